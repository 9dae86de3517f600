"""Payments that succeed after their order has ended: the money goes back, once, and the world hears of it."""

import asyncio

from services.checkout.domain import Order
from services.checkout.payments.port import Captured
from services.checkout.store import orders
from tests.integration.checkout.conftest import Shop, until
from tests.integration.checkout.refunding import bought, cancel, events_of, refund


async def test_a_late_payment_is_given_back_once_however_many_find_it(shop: Shop) -> None:
    order = await failed(shop)
    captured = await paid_late(shop, order)

    found = await asyncio.gather(*(shop.wiring.refunds.reverse(order, captured) for _ in range(20)))
    await until(lambda: _refunded(shop, order.id))
    again = await shop.wiring.refunds.reverse(order, captured)

    assert (found.count(True), again) == (1, False)
    [capture] = await shop.captures(order.id)
    assert capture["refunded"] == capture["captured"] == order.total
    [one] = (await shop.get(f"/v1/orders/{order.id}/refunds")).json()["items"]
    assert (one["kind"], one["status"], one["amount"]) == ("late_success", "succeeded", order.total)
    kinds = [(kind, version) for kind, version, _ in await events_of(shop, order.id)]
    assert kinds == [("order.payment_failed", 1), ("order.refunded", 2)]


async def test_the_order_stays_failed_and_shows_what_went_back(shop: Shop) -> None:
    order = await failed(shop)

    await shop.wiring.refunds.reverse(order, await paid_late(shop, order))
    await until(lambda: _refunded(shop, order.id))

    shown = (await shop.get(f"/v1/orders/{order.id}")).json()
    assert (shown["status"], shown["refunded_total"]) == ("failed", order.total)
    _, _, data = (await events_of(shop, order.id))[-1]
    assert (data["status"], data["amount"], data["refunded_total"]) == ("failed", order.total, order.total)
    answers = [await refund(shop, order.id, amount=1), await cancel(shop, order.id)]
    assert [one.json()["code"] for one in answers] == ["not_refundable", "not_cancellable"]


async def test_a_late_payment_is_given_back_when_the_provider_is_there_again(shop: Shop) -> None:
    order = await failed(shop)
    captured = await paid_late(shop, order)
    await shop.payments.faults(charge_then_reset=True)

    await shop.wiring.refunds.reverse(order, captured)
    await until(lambda: _refund_is_unknown(shop, order.id))
    await shop.payments.faults()
    await until(lambda: _refunded(shop, order.id))

    [capture] = await shop.captures(order.id)
    assert capture["refunded"] == order.total


async def test_the_payment_of_an_order_that_stands_is_not_taken_for_a_late_one(shop: Shop) -> None:
    order = await found(shop, await bought(shop))

    reversed_ = await shop.wiring.refunds.reverse(order, Captured(str(order.payment.provider_reference)))

    assert not reversed_
    assert await shop.row("SELECT count(*) FROM refunds WHERE order_id = :id", id=order.id) == 0


async def failed(shop: Shop) -> Order:
    declined = await shop.order(payment_method="pm_card_visa_chargeDeclined")
    return await found(shop, declined.json()["order_id"])


async def found(shop: Shop, order_id: str) -> Order:
    async with shop.db.reading() as connection:
        [order] = await orders.some(connection, [order_id])
    return order


async def paid_late(shop: Shop, order: Order) -> Captured:
    """The provider takes the money after all."""
    charged = await shop.payments.charge(order.id, f"late:{order.id}", amount=str(order.total))
    assert charged.json()["status"] == "succeeded"
    return Captured(charged.json()["id"])


async def _refunded(shop: Shop, order_id: str) -> bool:
    return bool((await shop.get(f"/v1/orders/{order_id}")).json()["refunded_total"])


async def _refund_is_unknown(shop: Shop, order_id: str) -> bool:
    status: str = await shop.row("SELECT status FROM refunds WHERE order_id = :id", id=order_id)
    return status == "unknown"
