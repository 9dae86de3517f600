"""Webhooks: whatever is posted, only what the provider itself says when asked changes an order."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text

from deploy.local.payments.webhooks import sign
from shared.runtime.process import listen
from shared.runtime.supervision import http_server
from tests.integration.checkout.conftest import Shop, running, settings_for, until
from tests.integration.checkout.test_authentication import challenged, decide
from tests.integration.sandboxes.programs import (
    WEBHOOK_SECRET,
    Payments,
    payments_program,
    running_payments,
)
from tests.support.servers import free_port

if TYPE_CHECKING:
    from pathlib import Path

PATH = "/v1/webhooks/payments"


def event(order: dict[str, Any], kind: str = "payment_intent.succeeded", **changes: Any) -> dict[str, Any]:
    """An event about an order's payment, as the provider would write it."""
    subject = {
        "id": order["payment"]["provider_reference"],
        "object": "payment_intent",
        "amount": order["total"],
        "status": "succeeded",
        "metadata": {"order_id": order["id"], "tenant": "demo"},
    }
    return {"id": f"evt_{secrets.token_hex(8)}", "object": "event", "type": kind, "data": {"object": subject}} | changes


async def post(shop: Shop, body: object, *, secret: str = WEBHOOK_SECRET, at: float | None = None) -> httpx.Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await post_raw(shop, raw, sign(raw, secret, time.time() if at is None else at))


async def post_raw(shop: Shop, raw: bytes, *signatures: str) -> httpx.Response:
    return await shop.http.post(PATH, content=raw, headers=[(b"Stripe-Signature", one.encode()) for one in signatures])


async def only_a_notice_helps(shop: Shop, order_id: str) -> None:
    """The recovery would look at the order by itself, but not for an hour."""
    async with shop.db.transaction() as connection:
        query = (
            "UPDATE orders SET lease_until = now() + interval '1 hour', lease_token = lease_token + 1 WHERE id = :id"
        )
        await connection.execute(text(query), {"id": order_id})


async def state(shop: Shop, order_id: str) -> Any:
    """All of the order that a notice might touch."""
    return await shop.row(
        "SELECT status, version, lease_token, lease_until, recoveries,"
        " (SELECT count(*) FROM provider_events WHERE order_id = orders.id) FROM orders WHERE id = :id",
        id=order_id,
    )


async def asleep(shop: Shop, key: str) -> dict[str, Any]:
    """An order that waits for its customer, at which nobody looks without a notice."""
    waiting = await challenged(shop, key, "SKU-0001")
    await only_a_notice_helps(shop, waiting["id"])
    return waiting


async def test_a_notice_makes_us_look_at_once(shop: Shop) -> None:
    waiting = await asleep(shop, "noticed")
    await decide(shop, waiting, "complete")

    answer = await post(shop, event(waiting))
    await until(lambda: shop.is_in(waiting["id"], "completed"), timeout_s=5)

    assert answer.status_code == 200


async def test_what_a_notice_says_is_not_believed(shop: Shop) -> None:
    """It says that the money has moved; the provider, asked, says that the customer has still to act."""
    waiting = await asleep(shop, "liar")

    await post(shop, event(waiting))
    await until(lambda: looked_at(shop, waiting["id"]))

    assert (await shop.get(f"/v1/orders/{waiting['id']}")).json()["status"] == "requires_action"


async def test_notices_may_come_in_any_order_and_about_what_is_long_over(shop: Shop) -> None:
    waiting = await asleep(shop, "disorder")
    await decide(shop, waiting, "complete")

    for kind in ("payment_intent.canceled", "payment_intent.payment_failed", "payment_intent.succeeded"):
        assert (await post(shop, event(waiting, kind))).status_code == 200
    await until(lambda: shop.is_in(waiting["id"], "completed"), timeout_s=5)
    late = await post(shop, event(waiting, "payment_intent.payment_failed"))

    assert late.status_code == 200
    assert (await shop.get(f"/v1/orders/{waiting['id']}")).json()["status"] == "completed"
    assert await shop.row("SELECT count(*) FROM event_log WHERE subject = :id", id=waiting["id"]) == 1


async def test_two_thousand_copies_of_a_notice_are_one_look(shop: Shop) -> None:
    waiting = await asleep(shop, "copies")
    copied = event(waiting)
    await post(shop, copied)
    await until(lambda: looked_at(shop, waiting["id"]))
    await only_a_notice_helps(shop, waiting["id"])
    before = await state(shop, waiting["id"])

    answers = []
    for _ in range(20):
        answers += await asyncio.gather(*(post(shop, copied) for _ in range(100)))

    assert {answer.status_code for answer in answers} == {200}
    assert await state(shop, waiting["id"]) == before
    assert before[-1] == 1


async def test_an_order_that_somebody_charges_right_now_stays_theirs(shop: Shop) -> None:
    """The notice is often here before the charge's own answer: whoever waits for that needs no help."""
    await shop.payments.faults(latency_ms=500)
    placing = asyncio.create_task(shop.order("own"))
    await until(lambda: placed(shop, "own"))
    order_id = await shop.row("SELECT id FROM orders WHERE idempotency_key = 'own'")
    before = await state(shop, order_id)

    answer = await post(shop, event({"id": order_id, "total": 200, "payment": {"provider_reference": "pi_1"}}))
    after = await state(shop, order_id)
    placed_answer = await placing

    assert (before[0], answer.status_code, after) == ("pending", 200, before)
    assert placed_answer.status_code == 201


async def test_what_is_not_genuine_is_refused_without_a_trace(shop: Shop) -> None:
    waiting = await asleep(shop, "forged")
    raw = json.dumps(event(waiting)).encode()
    now = time.time()
    good, before = sign(raw, WEBHOOK_SECRET, now), await state(shop, waiting["id"])

    refused = [
        await post_raw(shop, raw),
        await post_raw(shop, raw, ""),
        await post_raw(shop, raw, good, good),
        await post_raw(shop, raw, sign(raw, "whsec_another", now)),
        await post_raw(shop, raw, sign(raw, WEBHOOK_SECRET, now - 3600)),
        await post_raw(shop, raw, sign(raw, WEBHOOK_SECRET, now + 3600)),
        await post_raw(shop, raw, "t=" + "9" * 5000 + ",v1=é"),
        await post_raw(shop, json.dumps(json.loads(raw), indent=1).encode(), good),
        await post_raw(shop, b"", good),
        await post_raw(shop, raw + b" ", good),
    ]

    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(400, "webhook_not_genuine")}
    assert await state(shop, waiting["id"]) == before


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b'{"id": "evt_1", "id": "evt_2", "type": "x"}', "malformed_json"),
        (b"\xff\xfe", "malformed_json"),
        (b"[" * 20_000, "malformed_json"),
        (b"null", "not_an_event"),
        (b"{}", "not_an_event"),
        (b'{"id": "evt_1", "type": "payment_intent.succeeded", "data": {"object": []}}', "not_an_event"),
    ],
)
async def test_a_genuine_webhook_that_is_no_event_is_refused(shop: Shop, raw: bytes, code: str) -> None:
    answer = await post(shop, raw)

    assert (answer.status_code, answer.json()["code"]) == (400, code)


async def test_a_body_of_ten_megabytes_is_refused_before_it_is_looked_at(shop: Shop) -> None:
    answer = await post(shop, b" " * 10_000_000)

    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


async def test_events_that_are_nothing_to_us_are_taken_and_forgotten(shop: Shop) -> None:
    unknown = {"id": "ord_unknown", "total": 1, "payment": {"provider_reference": "pi_1"}}
    done = (await shop.order("done")).json()
    strangers = [
        event(unknown),
        event({**unknown, "id": "x" * 400}),
        event(done),
        event(done, "payment_intent.created"),
        {"id": "evt_c", "type": "customer.created", "data": {"object": {"id": "cus_1"}}},
        {"id": "evt_n", "type": "never.heard", "data": None},
    ]
    before = await shop.row("SELECT count(*) FROM provider_events")

    answers = [await post(shop, one) for one in strangers]

    assert {answer.status_code for answer in answers} == {200}
    assert await shop.row("SELECT count(*) FROM provider_events") == before


async def test_a_failed_order_that_is_said_to_be_paid_and_is_not_stays_as_it_is(shop: Shop) -> None:
    order = await declined(shop)

    await post(shop, event(order))
    await until(lambda: nothing_is_due(shop, order["id"]))

    assert await shop.row("SELECT count(*) FROM refunds WHERE order_id = :id", id=order["id"]) == 0
    assert (await shop.get(f"/v1/orders/{order['id']}")).json()["status"] == "failed"


async def test_a_doubt_outlives_a_provider_that_does_not_answer(shop: Shop) -> None:
    order = await declined(shop)
    await pay_after_all(shop.payments, order)
    await shop.payments.faults(refuse=True)

    await post(shop, event(order))
    await until(lambda: is_put_off(shop, order["id"]))
    await shop.payments.faults()
    async with shop.db.transaction() as connection:
        await connection.execute(text("UPDATE provider_events SET look_at = now() WHERE look_at IS NOT NULL"))
    await until(lambda: given_back(shop, order["id"]))

    [capture] = await shop.captures(order["id"])
    assert capture["refunded"] == order["total"]


async def test_old_events_are_forgotten(shop: Shop) -> None:
    waiting = await asleep(shop, "old")
    await post(shop, event(waiting))
    async with shop.db.transaction() as connection:
        old = "UPDATE provider_events SET received_at = now() - interval '8 days', look_at = NULL WHERE order_id = :id"
        await connection.execute(text(old), {"id": waiting["id"]})
    shop.wiring.webhooks._forget_at = 0.0

    await until(lambda: nothing_is_left(shop, waiting["id"]))


async def test_without_a_secret_webhooks_are_off(
    checkout_database: str, redis_url: str, payments_server: Payments
) -> None:
    settings = settings_for(checkout_database, redis_url, payments_server.program.url, payments_webhook_secret="")

    async with running(settings, payments_server) as shop:
        answer = await post(shop, {"id": "evt_1", "type": "x"}, secret="")

    assert (answer.status_code, answer.json()["code"]) == (404, "webhooks_off")
    assert "CHECKOUT_PAYMENTS_WEBHOOK_SECRET" in answer.json()["detail"]


@pytest_asyncio.fixture
async def reported(own_database: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    """A checkout of its own, to which its provider's own webhooks come over HTTP."""
    port = free_port()
    url = f"http://127.0.0.1:{port}{PATH}"
    program = payments_program(tmp_path, PAYMENTS_WEBHOOK_URL=url, PAYMENTS_WEBHOOK_SECRET=WEBHOOK_SECRET)
    async with running_payments(program, tmp_path) as payments:
        settings = settings_for(own_database, redis_url, program.url)
        async with running(settings, payments) as shop, listening(shop, port):
            yield shop
    await program.end(signal.SIGTERM)


@asynccontextmanager
async def listening(shop: Shop, port: int) -> AsyncIterator[None]:
    """The service's application on a port."""
    listener = listen("127.0.0.1", port, "PORT")
    server = http_server(shop.service.http)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


@pytest.mark.parametrize(("outcome", "status"), [("complete", "completed"), ("fail", "failed")])
async def test_the_providers_own_webhook_ends_an_order_that_waits(reported: Shop, outcome: str, status: str) -> None:
    waiting = await asleep(reported, f"own-{outcome}")

    await decide(reported, waiting, outcome)

    await until(lambda: reported.is_in(waiting["id"], status), timeout_s=10)


async def test_a_payment_after_the_order_has_failed_is_reported_and_given_back(reported: Shop) -> None:
    order = await declined(reported)

    await pay_after_all(reported.payments, order)
    await until(lambda: given_back(reported, order["id"]))

    [capture] = await reported.captures(order["id"])
    assert capture["refunded"] == capture["captured"] == order["total"]
    assert (await reported.get(f"/v1/orders/{order['id']}")).json()["status"] == "failed"


async def declined(shop: Shop) -> dict[str, Any]:
    answer = await shop.order(payment_method="pm_card_visa_chargeDeclined")
    assert answer.status_code == 402
    order: dict[str, Any] = (await shop.get(f"/v1/orders/{answer.json()['order_id']}")).json()
    return order


async def pay_after_all(payments: Payments, order: dict[str, Any]) -> None:
    """The customer, who has the payment's secret, tries another card."""
    reference = order["payment"]["provider_reference"]
    paid = await payments.intents.confirm_async(reference, {"payment_method": "pm_card_visa"})
    assert paid.status == "succeeded"


async def looked_at(shop: Shop, order_id: str) -> bool:
    recoveries: int = await shop.row("SELECT recoveries FROM orders WHERE id = :id", id=order_id)
    return recoveries > 0


async def placed(shop: Shop, key: str) -> bool:
    found: int = await shop.row("SELECT count(*) FROM orders WHERE idempotency_key = :key", key=key)
    return found == 1


async def nothing_is_due(shop: Shop, order_id: str) -> bool:
    query = "SELECT count(*), count(look_at) FROM provider_events WHERE order_id = :id"
    found: tuple[int, int] = await shop.row(query, id=order_id)
    return found == (1, 0)


async def is_put_off(shop: Shop, order_id: str) -> bool:
    query = "SELECT look_at > now() + interval '20 seconds' FROM provider_events WHERE order_id = :id"
    found: bool = await shop.row(query, id=order_id)
    return found


async def nothing_is_left(shop: Shop, order_id: str) -> bool:
    found: int = await shop.row("SELECT count(*) FROM provider_events WHERE order_id = :id", id=order_id)
    return found == 0


async def given_back(shop: Shop, order_id: str) -> bool:
    return bool((await shop.get(f"/v1/orders/{order_id}")).json()["refunded_total"])
