"""3-D Secure: an order waits for its customer, and ends with the authentication or with the reservation."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from tests.integration.checkout.conftest import Shop, until

CHALLENGED = "pm_card_threeDSecure2Required"


async def test_an_order_is_completed_when_its_customer_has_authenticated(shop: Shop) -> None:
    await shop.product("AUTH-PASSED", stock=1)
    waiting = await challenged(shop, "passed", "AUTH-PASSED")
    again = await challenged(shop, "passed", "AUTH-PASSED")

    await decide(shop, waiting, "complete")
    await until(lambda: shop.is_in(waiting["id"], "completed"))

    assert again["id"] == waiting["id"]
    assert len(await shop.captures(waiting["id"])) == 1
    assert await shop.stock("AUTH-PASSED") == (0, 0, 1)
    final = await challenge(shop, "passed", "AUTH-PASSED")
    assert (final.status_code, final.json()["id"]) == (201, waiting["id"])
    assert await told(shop, waiting["id"]) == ["order.completed"]


async def test_an_order_fails_with_its_authentication_and_cannot_be_paid_afterwards(shop: Shop) -> None:
    await shop.product("AUTH-FAILED", stock=1)
    waiting = await challenged(shop, "failed", "AUTH-FAILED")

    await decide(shop, waiting, "fail")
    await until(lambda: shop.is_in(waiting["id"], "failed"))

    assert await shop.stock("AUTH-FAILED") == (1, 0, 0)
    final = await challenge(shop, "failed", "AUTH-FAILED")
    assert (final.status_code, final.json()["code"]) == (402, "payment_declined")
    assert final.json()["decline_code"] == "payment_intent_authentication_failure"
    assert await told(shop, waiting["id"]) == ["order.payment_failed"]
    payment = await shop.payments.intents.retrieve_async(waiting["payment"]["provider_reference"])
    assert payment.status == "canceled"


async def test_an_order_whose_customer_never_comes_expires_with_its_reservation(shop: Shop) -> None:
    await shop.product("AUTH-NEVER", stock=1)
    waiting = await challenged(shop, "never", "AUTH-NEVER")

    await end_reservation(shop, waiting["id"])
    await until(lambda: shop.is_in(waiting["id"], "expired"))

    assert await shop.stock("AUTH-NEVER") == (1, 0, 0)
    final = await challenge(shop, "never", "AUTH-NEVER")
    assert (final.status_code, final.json()["code"]) == (402, "payment_expired")
    assert final.headers["Idempotency-Replayed"] == "true"
    assert await told(shop, waiting["id"]) == ["order.payment_failed"]
    payment = await shop.payments.intents.retrieve_async(waiting["payment"]["provider_reference"])
    assert payment.status == "canceled"
    found = (await shop.get("/v1/orders", status="expired", idempotency_key="never")).json()["items"]
    assert [one["id"] for one in found] == [waiting["id"]]
    cause = "SELECT cause FROM order_transitions WHERE order_id = :id AND to_status = 'expired'"
    assert await shop.row(cause, id=waiting["id"]) == "recovery: Cancelled"


async def test_a_customer_who_authenticates_in_the_last_moment_has_the_order(shop: Shop) -> None:
    """The time is up and the money has moved: voiding comes too late, so the order is completed."""
    await shop.product("AUTH-LAST", stock=1)
    waiting = await challenged(shop, "last", "AUTH-LAST")

    await asyncio.gather(decide(shop, waiting, "complete"), end_reservation(shop, waiting["id"]))
    await until(lambda: shop.is_in(waiting["id"], "completed", "expired"))

    status = (await shop.get(f"/v1/orders/{waiting['id']}")).json()["status"]
    captured = len(await shop.captures(waiting["id"]))
    assert (status, captured) in {("completed", 1), ("expired", 0)}
    assert await shop.stock("AUTH-LAST") == ((0, 0, 1) if captured else (1, 0, 0))


@pytest.mark.parametrize("outcome", ["complete", "never"])
async def test_while_the_provider_is_away_a_waiting_order_keeps_waiting(shop: Shop, outcome: str) -> None:
    await shop.product(f"AUTH-AWAY-{outcome}", stock=1)
    waiting = await challenged(shop, f"away-{outcome}", f"AUTH-AWAY-{outcome}")
    await shop.payments.faults(refuse=True)
    if outcome == "complete":
        await decide(shop, waiting, "complete")
    await end_reservation(shop, waiting["id"])

    await until(lambda: looked_at_again(shop, waiting["id"], 2))
    status = (await shop.get(f"/v1/orders/{waiting['id']}")).json()["status"]
    held = await shop.stock(f"AUTH-AWAY-{outcome}")
    await shop.payments.faults()
    end = "completed" if outcome == "complete" else "expired"
    await until(lambda: shop.is_in(waiting["id"], end))

    assert status == "requires_action"
    assert held == (0, 1, 0)


async def test_an_unknown_outcome_that_turns_out_to_want_the_customer_gives_them_their_time(shop: Shop) -> None:
    await shop.payments.faults(charge_then_reset=True)

    answer = await challenge(shop, "unknown-first", "SKU-0001")
    order_id = answer.json()["id"]
    held = await shop.row("SELECT reserved_until IS NULL FROM orders WHERE id = :id", id=order_id)
    await shop.payments.faults()
    await until(lambda: shop.is_in(order_id, "requires_action"))

    assert (answer.status_code, answer.json()["status"]) == (202, "payment_unknown")
    assert held
    left = "SELECT extract(epoch FROM reserved_until - now()) FROM orders WHERE id = :id"
    assert 200 < await shop.row(left, id=order_id) <= 300
    waiting = (await shop.get(f"/v1/orders/{order_id}")).json()
    await decide(shop, waiting, "complete")
    await until(lambda: shop.is_in(order_id, "completed"))


async def challenge(shop: Shop, key: str, sku: str) -> Any:
    return await shop.order(key, payment_method=CHALLENGED, lines=[{"sku": sku, "quantity": 1}])


async def challenged(shop: Shop, key: str, sku: str) -> dict[str, Any]:
    """An order that waits for its customer."""
    answer = await challenge(shop, key, sku)
    order: dict[str, Any] = answer.json()
    assert (answer.status_code, order["status"]) == (202, "requires_action"), order
    assert order["payment"]["client_secret"]
    return order


async def decide(shop: Shop, order: dict[str, Any], outcome: str) -> None:
    """What the customer does on the bank's page."""
    path = f"/_sandbox/3ds/{order['payment']['provider_reference']}"
    assert (await shop.payments.http.post(path, json={"outcome": outcome})).is_success


async def end_reservation(shop: Shop, order_id: str) -> None:
    """As if the customer's time were up."""
    async with shop.db.transaction() as connection:
        values = {"id": order_id}
        await connection.execute(text("UPDATE orders SET reserved_until = now() WHERE id = :id"), values)


async def looked_at_again(shop: Shop, order_id: str, times: int) -> bool:
    recoveries: int = await shop.row("SELECT recoveries FROM orders WHERE id = :id", id=order_id)
    return recoveries >= times


async def told(shop: Shop, order_id: str) -> list[str]:
    """The types of the order's events, oldest first."""
    query = "SELECT array_agg(type ORDER BY position) FROM event_log WHERE subject = :id"
    found: list[str] = await shop.row(query, id=order_id)
    return found
