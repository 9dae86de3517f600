"""Refunds, cancellations and the ledger as Stripe's adapter reads them: nothing is believed that does not fit."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.checkout.payments.port import (
    Cancelled,
    Captured,
    Charge,
    Declined,
    NotExecuted,
    Outcome,
    PaymentsUnreadableError,
    Refund,
    Refunded,
    RefundOutcome,
    RefundRefused,
    RequiresAction,
    Unknown,
)
from services.checkout.payments.stripe import MAX_ANSWER_BYTES
from tests.unit.checkout.misbehaving import Answering, error, http, provider_that, raw_bytes, reset, silence

CHARGE = Charge("charge:ord_1:1", "ord_1", "demo", 1999, "EUR", "pm_card_visa")
REFUND = Refund("refund:ord_1:1", "ref_1", "ord_1", "demo", "pi_1", 500, "EUR")
MADE: dict[str, Any] = {
    "id": "re_1",
    "status": "succeeded",
    "amount": 500,
    "currency": "eur",
    "payment_intent": "pi_1",
    "metadata": {"refund_id": "ref_1", "order_id": "ord_1"},
}
INTENT: dict[str, Any] = {
    "id": "pi_1",
    "status": "succeeded",
    "amount": 1999,
    "amount_received": 1999,
    "currency": "eur",
    "metadata": {"order_id": "ord_1", "tenant": "demo"},
    "created": 1_790_000_000,
    "latest_charge": {"amount_refunded": 500},
}
WAITING = {**INTENT, "status": "requires_action", "amount_received": 0, "client_secret": "s"}
SINCE, UNTIL = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)

REFUNDS: dict[str, tuple[Answering, RefundOutcome]] = {
    "made": (http(200, MADE), Refunded("re_1")),
    "failed at the bank": (
        http(200, {**MADE, "status": "failed", "failure_reason": "expired_or_canceled_card"}),
        RefundRefused("expired_or_canceled_card"),
    ),
    "cancelled": (http(200, {**MADE, "status": "canceled"}), RefundRefused("canceled")),
    "more than there is": (
        error(400, type="invalid_request_error", code="amount_too_large"),
        RefundRefused("amount_too_large"),
    ),
    "of a payment that nobody knows": (
        error(404, type="invalid_request_error", code="resource_missing"),
        RefundRefused("resource_missing"),
    ),
    "401": (error(401, type="invalid_request_error"), NotExecuted("the provider answered 401")),
    "429": (error(429, "Retry-After: 3", type="rate_limit"), NotExecuted("the provider answered 429", 3.0)),
}
NO_REFUND: dict[str, Answering] = {
    "not done yet": http(200, {**MADE, "status": "pending"}),
    "another refund": http(200, {**MADE, "metadata": {"refund_id": "ref_2"}}),
    "another payment's": http(200, {**MADE, "payment_intent": "pi_2"}),
    "more money": http(200, {**MADE, "amount": 501}),
    "other money": http(200, {**MADE, "currency": "usd"}),
    "a payment's id": http(200, {**MADE, "id": "pi_1"}),
    "an amount as text": http(200, {**MADE, "amount": "500"}),
    "nothing": http(200, b""),
    "a reused key": error(400, type="idempotency_error"),
    "409": error(409, type="idempotency_error"),
    "500": error(500, type="api_error"),
    "a reset": reset,
    "silence": silence,
}


@pytest.mark.parametrize("what", REFUNDS)
async def test_a_certain_answer_to_a_refund_is_believed(what: str) -> None:
    answer, expected = REFUNDS[what]

    async with provider_that(answer) as (provider, _):
        assert await provider.refund(REFUND) == expected


@pytest.mark.parametrize("what", NO_REFUND)
async def test_nobody_knows_whether_money_went_back_after(what: str) -> None:
    async with provider_that(NO_REFUND[what]) as (provider, server):
        assert isinstance(await provider.refund(REFUND), Unknown)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ({"data": [MADE]}, Refunded),
        ({"data": [{**MADE, "metadata": {"refund_id": "ref_0"}}, MADE]}, Refunded),
        ({"data": [], "has_more": False}, NotExecuted),
        ({"data": [{**MADE, "metadata": {}}], "has_more": False}, NotExecuted),
        ({"data": [{**MADE, "metadata": {}}], "has_more": True}, Unknown),
        ({"data": [{**MADE, "amount": 1}]}, Unknown),
        ({"data": [{**MADE, "status": "pending"}]}, Unknown),
        ({"data": None}, Unknown),
        ([], Unknown),
        (b"<html>", Unknown),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_refund_is_looked_up_among_those_of_its_payment(found: object, kind: type[RefundOutcome]) -> None:
    async with provider_that(http(200, found)) as (provider, server):
        assert isinstance(await provider.look_up_refund(REFUND), kind)

    assert server.requests[0][0].startswith(b"GET /v1/refunds?payment_intent=pi_1&")


@pytest.mark.parametrize("status", [401, 404, 429, 500])
async def test_a_look_up_that_fails_says_nothing_about_the_refund(status: int) -> None:
    async with provider_that(error(status, type="api_error")) as (provider, _):
        assert isinstance(await provider.look_up_refund(REFUND), Unknown)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([http(200, {**INTENT, "status": "canceled", "amount_received": 0})], Cancelled()),
        ([error(400, type="invalid_request_error"), http(200, INTENT)], Captured("pi_1")),
        ([error(400, type="invalid_request_error"), http(200, {**WAITING, "status": "canceled"})], Cancelled()),
        ([error(400, type="invalid_request_error"), http(200, WAITING)], Unknown("not cancelled: RequiresAction")),
        ([error(429, type="rate_limit"), http(404, b"")], Unknown("the look-up answered 404")),
        ([http(200, {**INTENT, "metadata": {"order_id": "ord_2"}})], Unknown("another order's payment")),
    ],
    ids=["cancelled", "paid", "cancelled before", "still waiting", "turned away", "another order's"],
)
async def test_a_payment_counts_as_cancelled_only_when_it_is(answers: list[Answering], expected: Outcome) -> None:
    async with provider_that(answers[0]) as (provider, server):
        server.then = answers[1:]

        assert await provider.cancel(CHARGE, "pi_1") == expected

    assert server.requests[0][0].startswith(b"POST /v1/payment_intents/pi_1/cancel ")


async def test_a_reference_cannot_lead_anywhere_else() -> None:
    async with provider_that(http(200, INTENT)) as (provider, server):
        await provider.cancel(CHARGE, "../refunds?x=")

    assert server.requests[0][0].startswith(b"POST /v1/payment_intents/..%2Frefunds%3Fx%3D/cancel ")


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (INTENT, Captured("pi_1")),
        (WAITING, RequiresAction("pi_1", "s")),
        (
            {**INTENT, "status": "requires_payment_method", "amount_received": 0},
            Declined("requires_payment_method", "pi_1"),
        ),
    ],
    ids=["paid", "still waiting", "given up"],
)
async def test_a_stored_answer_that_was_not_the_end_is_followed_to_the_present(
    now: dict[str, Any], expected: Outcome
) -> None:
    """The key repeats what was true when it was first used: for ever `requires_action`, although the customer paid."""
    async with provider_that(http(200, WAITING, "Idempotent-Replayed: true")) as (provider, server):
        server.then = [http(200, now)]

        assert await provider.charge(CHARGE) == expected

    assert server.requests[1][0].startswith(b"GET /v1/payment_intents/pi_1 ")


async def test_a_replayed_refund_that_was_pending_is_looked_up() -> None:
    pending = {**MADE, "status": "pending"}
    async with provider_that(http(200, pending, "Idempotent-Replayed: true")) as (provider, server):
        server.then = [http(200, {"data": [MADE]})]

        assert await provider.refund(REFUND) == Refunded("re_1")


async def test_the_ledger_is_read_page_by_page_to_its_end() -> None:
    pages = [
        {"data": [{**INTENT, "id": f"pi_{page}{n}"} for n in range(2)], "has_more": page < 3} for page in (1, 2, 3)
    ]
    async with provider_that(http(200, pages[0])) as (provider, server):
        server.then = [http(200, page) for page in pages[1:]]

        seen = [one async for one in provider.payments(SINCE, UNTIL)]

    assert [one.reference for one in seen] == ["pi_10", "pi_11", "pi_20", "pi_21", "pi_30", "pi_31"]
    assert (seen[0].captured, seen[0].refunded, seen[0].currency) == (1999, 500, "EUR")
    asked = [head.split(b" ")[1] for head, _ in server.requests]
    assert [b"starting_after=pi_11" in one for one in asked] == [False, True, False]
    assert all(b"created%5Bgte%5D=1767225600&created%5Blt%5D=1767312000" in one for one in asked)


@pytest.mark.parametrize(
    "second",
    [
        error(500, type="api_error"),
        http(200, {"data": [{**INTENT, "amount": "1"}], "has_more": False}),
        http(200, {"data": []}),
        reset,
    ],
    ids=["500", "an unreadable payment", "no word on whether there is more", "a reset"],
)
async def test_a_ledger_that_cannot_be_read_to_its_end_is_no_ledger(second: Answering) -> None:
    async with provider_that(http(200, {"data": [INTENT], "has_more": True})) as (provider, server):
        server.then = [second]

        with pytest.raises(PaymentsUnreadableError):
            _ = [one async for one in provider.payments(SINCE, UNTIL)]


@pytest.mark.parametrize("known", [True, False], ids=["with its length", "in chunks"])
async def test_an_endless_answer_is_not_read_to_its_end(known: bool) -> None:
    long = json.dumps({**INTENT, "description": "x" * MAX_ANSWER_BYTES}).encode()
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(long), long)

    async with provider_that(http(200, long) if known else raw_bytes(chunked)) as (provider, _):
        assert isinstance(await provider.charge(CHARGE), Unknown)


async def test_somebody_is_alerted_about_an_answer_that_does_not_fit() -> None:
    with capture_logs() as logs:
        async with provider_that(http(200, {**INTENT, "amount_received": 1})) as (provider, _):
            await provider.charge(CHARGE)

    [entry] = [one for one in logs if one["log_level"] == "error"]
    assert (entry["order_id"], entry["mismatch"]) == ("ord_1", "amount 1 of 1999, not 1999")


@pytest.mark.parametrize("reference", ["ch_1", "pi_", "pi_1/../x", "pi 1"])
async def test_a_payment_whose_id_is_none_is_not_believed(reference: str) -> None:
    async with provider_that(http(200, {**INTENT, "id": reference})) as (provider, _):
        assert isinstance(await provider.charge(CHARGE), Unknown)
