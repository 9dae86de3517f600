"""What comes of a charge, whatever provider and network do: money that may have moved is never called unmoved."""

import asyncio
import json
import socket
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import pytest

from services.checkout.payments.port import (
    Cancelled,
    Captured,
    Charge,
    Declined,
    NotExecuted,
    Outcome,
    RequiresAction,
    Unknown,
)
from services.checkout.payments.stripe import API_VERSION
from tests.support.servers import free_port
from tests.unit.checkout.misbehaving import (
    TIMEOUT_S,
    Answering,
    client,
    drip,
    error,
    http,
    provider_that,
    raw_bytes,
    reset,
    silence,
)

CHARGE = Charge("charge:ord_1:1", "ord_1", "demo", 1999, "EUR", "pm_card_visa")
INTENT: dict[str, Any] = {
    "id": "pi_1",
    "status": "succeeded",
    "amount": 1999,
    "amount_received": 1999,
    "currency": "eur",
    "metadata": {"order_id": "ord_1", "tenant": "demo"},
}


def _without(field: str) -> dict[str, Any]:
    return {name: value for name, value in INTENT.items() if name != field}


CERTAIN: dict[str, tuple[Answering, Outcome]] = {
    "money moved": (http(200, INTENT), Captured("pi_1")),
    "the customer has to act": (
        http(200, {**INTENT, "status": "requires_action", "client_secret": "s", "amount_received": 0}),
        RequiresAction("pi_1", "s"),
    ),
    "the intent wants another payment method": (
        http(
            200,
            {
                **INTENT,
                "status": "requires_payment_method",
                "amount_received": 0,
                "last_payment_error": {"code": "card_declined", "decline_code": "lost_card"},
            },
        ),
        Declined("lost_card", "pi_1"),
    ),
    "the intent was canceled": (
        http(200, {**INTENT, "status": "canceled", "amount_received": 0}),
        Cancelled(),
    ),
    "402 with a decline code": (
        error(
            402,
            type="card_error",
            code="card_declined",
            decline_code="insufficient_funds",
            payment_intent={"id": "pi_1"},
        ),
        Declined("insufficient_funds", "pi_1"),
    ),
    "402 with a code only": (error(402, type="card_error", code="expired_card"), Declined("expired_card")),
    "402 with neither": (error(402, type="card_error"), Declined("declined")),
    "400 for a parameter": (
        error(400, type="invalid_request_error", code="parameter_unknown", param="confirm"),
        NotExecuted("the provider answered 400"),
    ),
    "400 for an amount that it does not charge": (
        error(400, type="invalid_request_error", code="amount_too_small", param="amount"),
        Declined("amount_too_small"),
    ),
    "400 for a payment method that nobody has": (
        error(400, type="invalid_request_error", code="resource_missing", param="payment_method"),
        Declined("invalid_payment_method"),
    ),
    "401": (error(401, type="invalid_request_error"), NotExecuted("the provider answered 401")),
    "403": (error(403, type="invalid_request_error"), NotExecuted("the provider answered 403")),
    "429": (error(429, type="rate_limit"), NotExecuted("the provider answered 429")),
    "429 with a time": (
        error(429, "Retry-After: 7", type="rate_limit"),
        NotExecuted("the provider answered 429", 7.0),
    ),
    "429 with a date": (
        error(429, "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT", type="rate_limit"),
        NotExecuted("the provider answered 429"),
    ),
    "429 with garbage": (http(429, b"<html>"), NotExecuted("the provider answered 429")),
}

UNBELIEVABLE: dict[str, object] = {
    "another order": {**INTENT, "metadata": {"order_id": "ord_2"}},
    "no order": {**INTENT, "metadata": {}},
    "another currency": {**INTENT, "currency": "usd"},
    "another amount": {**INTENT, "amount": 199900, "amount_received": 199900},
    "less money than asked for": {**INTENT, "amount_received": 1998},
    "no money although it succeeded": _without("amount_received"),
    "an amount as text": {**INTENT, "amount": "1999"},
    "an amount as a fraction": {**INTENT, "amount": 1999.0},
    "an amount of true": {**INTENT, "amount": True},
    "no id": _without("id"),
    "an empty id": {**INTENT, "id": ""},
    "an endless id": {**INTENT, "id": "p" * 256},
    "no status": _without("status"),
    "a status that nobody knows": {**INTENT, "status": "wondering"},
    "still processing": {**INTENT, "status": "processing", "amount_received": 0},
    "metadata that are a list": {**INTENT, "metadata": ["ord_1"]},
    "a list": [INTENT],
    "null": None,
    "text": "succeeded",
    "nothing": b"",
    "half of an answer": json.dumps(INTENT).encode()[:50],
    "HTML": b"<html>succeeded</html>",
    "bytes": b"\x80\x04\x95",
    "deep nesting": b"[" * 100_000,
}

UNKNOWN: dict[str, Answering] = {
    "409: a call with the key still runs": error(409, type="idempotency_error", code="lock_timeout"),
    "400: the key was used otherwise": error(400, type="idempotency_error"),
    "400 without a reason": http(400, b"nope"),
    "402 without a reason": http(402, {}),
    "402 with a list": http(402, []),
    "404 from something else": http(404, b"<html>not found</html>"),
    "500": error(500, type="api_error"),
    "502": http(502, b"<html>bad gateway</html>"),
    "503": http(503, b""),
    "504": http(504, b""),
    "a redirect": http(302, b"", "Location: http://127.0.0.1:1/"),
    "201, which the API does not know": http(201, INTENT),
    "204": raw_bytes(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "reset after the request was sent": reset,
    "closed after the request was sent": raw_bytes(b"", then_close=True),
    "closed in the head": raw_bytes(b"HTTP/1.1 200 OK\r\nContent-", then_close=True),
    "closed in the body": raw_bytes(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"id"', then_close=True),
    "a chunk that never ends": raw_bytes(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", then_close=True
    ),
    "no HTTP": raw_bytes(b"220 mail.example.com ESMTP\r\n\r\n", then_close=True),
    "a body that is not the gzip that it says": http(200, INTENT, "Content-Encoding: gzip"),
    "a head and then silence": raw_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
    "silence": silence,
}


@pytest.mark.parametrize("what", CERTAIN)
async def test_a_certain_answer_is_believed(what: str) -> None:
    answer, expected = CERTAIN[what]

    async with provider_that(answer) as (provider, _):
        assert await provider.charge(CHARGE) == expected


@pytest.mark.parametrize("what", UNBELIEVABLE)
async def test_a_200_is_not_believed_when_it_holds(what: str) -> None:
    async with provider_that(http(200, UNBELIEVABLE[what])) as (provider, _):
        assert isinstance(await provider.charge(CHARGE), Unknown)


@pytest.mark.parametrize("what", UNKNOWN)
async def test_nobody_knows_what_happened_after(what: str) -> None:
    async with provider_that(UNKNOWN[what]) as (provider, server):
        outcome = await provider.charge(CHARGE)

        assert isinstance(outcome, Unknown)
        assert len(server.requests) == 1


async def test_a_reset_of_a_kept_connection_is_unknown_and_the_charge_is_not_sent_twice() -> None:
    async with provider_that(http(200, INTENT)) as (provider, server):
        assert isinstance(await provider.charge(CHARGE), Captured)
        server.answer = reset

        assert isinstance(await provider.charge(CHARGE), Unknown)
        assert len(server.requests) == 2


async def test_after_a_reset_the_next_charge_works() -> None:
    async with provider_that(reset) as (provider, server):
        await provider.charge(CHARGE)
        server.answer = http(200, INTENT)

        assert await provider.charge(CHARGE) == Captured("pi_1")


async def test_a_refused_connection_is_certain() -> None:
    provider = client(f"http://127.0.0.1:{free_port()}")

    assert isinstance(await provider.charge(CHARGE), NotExecuted)
    await provider.close()


async def test_a_name_that_nobody_knows_is_certain() -> None:
    provider = client("http://payments.invalid")

    assert isinstance(await provider.charge(CHARGE), NotExecuted)
    await provider.close()


async def test_a_failed_tls_handshake_is_certain() -> None:
    async with provider_that(silence) as (plain, server):
        port = plain._intents.port
        provider = client(f"https://127.0.0.1:{port}")
        server.answer = raw_bytes(b"220 no TLS here\r\n", then_close=True)

        # The request itself is never sent: what the server sees are the first bytes of a handshake.
        outcome = await provider.charge(CHARGE)

        assert isinstance(outcome, NotExecuted)
        assert server.requests == []
        await provider.close()


async def test_a_connection_that_never_comes_about_is_certain() -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):  # the backlog is full: further SYNs get no answer
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        provider = client(f"http://127.0.0.1:{full.getsockname()[1]}")

        assert isinstance(await provider.charge(CHARGE), NotExecuted)
        await provider.close()


async def test_a_charge_that_waits_for_a_free_connection_in_vain_is_certain() -> None:
    async with provider_that(silence) as (provider, server):
        outcomes = await asyncio.gather(*(provider.charge(replace(CHARGE, key=str(n))) for n in range(6)))

        sent = len(server.requests)
        assert sum(isinstance(outcome, NotExecuted) for outcome in outcomes) == 6 - sent
        assert sum(isinstance(outcome, Unknown) for outcome in outcomes) == sent


async def test_an_answer_that_drips_has_an_end() -> None:
    async with provider_that(drip) as (provider, _), asyncio.timeout(TIMEOUT_S * 6):
        assert isinstance(await provider.charge(CHARGE), Unknown)


async def test_a_charge_is_sent_with_its_key_and_its_order() -> None:
    async with provider_that(http(200, INTENT)) as (provider, server):
        await provider.charge(CHARGE)

    head, body = server.requests[0]
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post /v1/payment_intents http/1.1"
    assert "idempotency-key: charge:ord_1:1" in lines
    assert "authorization: bearer sk_test_1" in lines
    assert f"stripe-version: {API_VERSION}".lower() in lines
    form = parse_qs(body.decode())
    assert form["amount"] == ["1999"]
    assert form["currency"] == ["eur"]
    assert form["metadata[order_id]"] == ["ord_1"]


@pytest.mark.parametrize("what", ["a NUL", "an endless text"])
async def test_a_decline_code_that_no_database_would_take_is_not_passed_on(what: str) -> None:
    code = {"a NUL": "lost\x00card", "an endless text": "x" * 100_000}[what]

    async with provider_that(error(402, type="card_error", decline_code=code)) as (provider, _):
        outcome = await provider.charge(CHARGE)

    assert isinstance(outcome, Declined)
    assert "\x00" not in outcome.code
    assert len(outcome.code) <= 255


async def test_a_reference_that_is_no_text_is_not_passed_on() -> None:
    async with provider_that(error(402, type="card_error", payment_intent={"id": 5})) as (provider, _):
        assert await provider.charge(CHARGE) == Declined("declined", None)


@pytest.mark.parametrize("field", ["id", "client_secret"])
async def test_an_intent_with_a_nul_is_not_believed(field: str) -> None:
    intent = {**INTENT, "status": "requires_action", "amount_received": 0, "client_secret": "s", field: "a\x00b"}

    async with provider_that(http(200, intent)) as (provider, _):
        assert isinstance(await provider.charge(CHARGE), Unknown)


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ({"data": [INTENT]}, Captured),
        ({"data": []}, NotExecuted),
        ({"data": [{**INTENT, "currency": "usd"}]}, Unknown),
        ({"data": [None]}, Unknown),
        ({"data": None}, Unknown),
        ({"data": {"id": "pi_1"}}, Unknown),
        ({"data": 5}, Unknown),
        ({"data": "pi_1"}, Unknown),
        ({}, Unknown),
        ([], Unknown),
        (b"<html>", Unknown),
        (b"[" * 100_000, Unknown),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_look_up_finds_what_there_is_and_believes_nothing_else(found: object, kind: type[Outcome]) -> None:
    async with provider_that(http(200, found)) as (provider, _):
        assert isinstance(await provider.look_up(CHARGE), kind)


@pytest.mark.parametrize("status", [401, 404, 429, 500])
async def test_a_look_up_that_fails_says_nothing_about_the_charge(status: int) -> None:
    async with provider_that(error(status, type="api_error")) as (provider, _):
        assert isinstance(await provider.look_up(CHARGE), Unknown)


async def test_a_look_up_without_a_connection_says_nothing_about_the_charge() -> None:
    provider = client(f"http://127.0.0.1:{free_port()}")

    assert isinstance(await provider.look_up(CHARGE), Unknown)
    await provider.close()


async def test_a_provider_that_is_there_can_be_pinged_and_one_that_is_not_cannot() -> None:
    async with provider_that(error(401, type="invalid_request_error")) as (provider, _):
        await provider.ping()
    nobody = client(f"http://127.0.0.1:{free_port()}")

    with pytest.raises(Exception, match="Connect"):
        await nobody.ping()
    await nobody.close()
