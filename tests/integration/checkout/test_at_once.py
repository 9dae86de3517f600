"""A batch is decided on products as they were last seen: whatever changed since then is found out before it counts."""

from __future__ import annotations

import asyncio

from shared.runtime import metrics
from tests.integration.checkout.conftest import Shop


async def sold_one(shop: Shop, sku: str, price: int = 1000) -> None:
    """From now on the product is remembered."""
    await shop.product(sku, stock=10, price=price)
    for _ in range(20):  # what another test changed behind checkout's back makes it careful for some batches
        answer = await shop.order(lines=[{"sku": sku, "quantity": 1}], payment_method="pm_card_chargeDeclined")
        assert answer.status_code == 402
        await shop.order(lines=[{"sku": sku, "quantity": 1}], payment_method="pm_card_chargeDeclined")
    assert await shop.stock(sku) == (10, 0, 0)


def step_by_step() -> float:
    value: float = metrics.STEP_BY_STEP.labels("orders")._value.get()
    return value


async def test_orders_that_nothing_stands_in_the_way_of_take_one_statement_each_time(shop: Shop) -> None:
    await sold_one(shop, "ONCE-1")
    before = step_by_step()

    answers = await asyncio.gather(*(shop.order(lines=[{"sku": "ONCE-1", "quantity": 1}]) for _ in range(8)))

    assert [answer.status_code for answer in answers] == [201] * 8
    assert step_by_step() == before
    assert await shop.stock("ONCE-1") == (2, 0, 8)


async def test_a_price_that_somebody_changed_in_the_meantime_is_the_price_that_is_charged(shop: Shop) -> None:
    await sold_one(shop, "ONCE-2", price=1000)
    await shop.row("UPDATE products SET unit_price = 1250, name = 'renamed' WHERE sku = 'ONCE-2' RETURNING 1")

    order = (await shop.order(lines=[{"sku": "ONCE-2", "quantity": 2}])).json()

    assert order["total"] == 2500
    assert order["lines"][0]["name"] == "renamed"
    assert [item["amount"] for item in await shop.captures(order["id"])] == [2500]


async def test_the_last_units_that_somebody_else_sold_are_out_of_stock_and_not_an_error(shop: Shop) -> None:
    await sold_one(shop, "ONCE-3")
    await shop.row("UPDATE products SET available = 1, sold = 9 WHERE sku = 'ONCE-3' RETURNING 1")

    wanted = [{"sku": "ONCE-3", "quantity": 1}]
    answers = await asyncio.gather(*(shop.order(lines=wanted) for _ in range(4)))

    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert {answer.json().get("code", "sold") for answer in answers} == {"sold", "out_of_stock"}
    assert await shop.stock("ONCE-3") == (0, 0, 10)


async def test_units_that_came_in_behind_our_back_can_be_sold(shop: Shop) -> None:
    await sold_one(shop, "ONCE-4")
    await shop.row("UPDATE products SET available = 500, received = 500 WHERE sku = 'ONCE-4' RETURNING 1")

    answer = await shop.order(lines=[{"sku": "ONCE-4", "quantity": 400}])

    assert answer.status_code == 201


async def test_one_that_is_refused_and_one_that_repeats_a_key_do_not_harm_their_batch_mates(shop: Shop) -> None:
    await sold_one(shop, "ONCE-5")
    wanted = [{"sku": "ONCE-5", "quantity": 1}]
    await shop.order("seen-before", lines=wanted)

    good, unknown, repeated, too_many = await asyncio.gather(
        shop.order(lines=wanted),
        shop.order(lines=[{"sku": "NO-SUCH-THING", "quantity": 1}]),
        shop.order("seen-before", lines=wanted),
        shop.order(lines=[{"sku": "ONCE-5", "quantity": 99}]),
    )

    assert (good.status_code, unknown.status_code, too_many.status_code) == (201, 422, 409)
    assert (repeated.status_code, repeated.headers["idempotency-replayed"]) == (201, "true")
    assert await shop.stock("ONCE-5") == (8, 0, 2)
