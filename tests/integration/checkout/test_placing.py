"""Placing an order: stock and money move together or not at all, and the answer is true."""

import asyncio
import signal
from typing import Any

from tests.integration.checkout.conftest import OPS_KEY, Shop, body


async def test_an_order_reserves_charges_and_is_told_to_the_world(shop: Shop) -> None:
    await shop.product("TEA", stock=10, price=250)
    address = {"line1": "Hauptstr. 1", "city": "Berlin", "postal_code": "10115", "country": "DE"}

    answer = await shop.order(
        lines=[{"sku": "TEA", "quantity": 3}], expected_total=750, metadata={"cart": "42"}, shipping_address=address
    )

    order = answer.json()
    assert answer.status_code == 201, order
    assert answer.headers["Location"] == f"/v1/orders/{order['id']}"
    assert (order["status"], order["total"], order["version"]) == ("completed", 750, 1)
    assert order["lines"] == [{"sku": "TEA", "name": "TEA", "quantity": 3, "unit_price": 250, "subtotal": 750}]
    assert await shop.stock("TEA") == (7, 0, 3)
    [capture] = await shop.captures(order["id"])
    assert (capture["amount"], capture["currency"].upper(), capture["tenant"]) == (750, "EUR", "demo")
    events = (await shop.get("/ops/events", api_key=OPS_KEY, order_id=order["id"])).json()["items"]
    assert [one["event"]["type"] for one in events] == ["order.completed"]
    assert events[0]["event"]["orderversion"] == 1
    assert (await shop.get(f"/v1/orders/{order['id']}")).json() == order


async def test_a_declined_payment_gives_the_stock_back_and_says_why(shop: Shop) -> None:
    await shop.product("WINE", stock=5)

    answer = await shop.order(
        lines=[{"sku": "WINE", "quantity": 5}], payment_method="pm_card_visa_chargeDeclinedInsufficientFunds"
    )

    problem = answer.json()
    assert answer.status_code == 402
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (problem["code"], problem["decline_code"]) == ("payment_declined", "insufficient_funds")
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    assert await shop.stock("WINE") == (5, 0, 0)
    order = (await shop.get(f"/v1/orders/{problem['order_id']}")).json()
    assert (order["status"], order["payment"]["status"]) == ("failed", "declined")
    assert await shop.row("SELECT type FROM event_log WHERE subject = :id", id=order["id"]) == "order.payment_failed"


async def test_a_payment_method_that_the_provider_does_not_know_is_declined_for_good(shop: Shop) -> None:
    await shop.product("BEER", stock=1)
    wish: dict[str, Any] = {"lines": [{"sku": "BEER", "quantity": 1}], "payment_method": "pm_of_nobody"}

    first = await shop.order("unknown-method", **wish)
    second = await shop.order("unknown-method", **wish)

    assert (first.status_code, first.json()["decline_code"]) == (402, "invalid_payment_method")
    assert (second.status_code, second.headers["Idempotency-Replayed"]) == (402, "true")
    assert await shop.captures(first.json()["order_id"]) == []
    assert await shop.stock("BEER") == (1, 0, 0)


async def test_an_order_gets_all_of_its_lines_or_none(shop: Shop) -> None:
    await shop.product("CUP", stock=10)
    await shop.product("POT", stock=1)

    answer = await shop.order(lines=[{"sku": "CUP", "quantity": 2}, {"sku": "POT", "quantity": 2}])

    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (409, "out_of_stock")
    assert problem["lines"] == [{"sku": "POT", "requested": 2, "available": 1}]
    assert await shop.stock("CUP") == (10, 0, 0)
    assert await shop.stock("POT") == (1, 0, 0)


async def test_a_rush_on_the_last_units_sells_each_of_them_once(shop: Shop) -> None:
    await shop.product("RARE", stock=20)

    answers = await asyncio.gather(*(shop.order(lines=[{"sku": "RARE", "quantity": 1}]) for _ in range(60)))

    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(201), statuses.count(409)) == (20, 40)
    assert await shop.stock("RARE") == (0, 0, 20)


async def test_orders_with_the_same_products_in_any_order_do_not_deadlock(shop: Shop) -> None:
    skus = [f"MIX-{n}" for n in range(8)]
    for sku in skus:
        await shop.product(sku, stock=10_000, price=1)

    lines = [[{"sku": sku, "quantity": 1} for sku in (skus[n % 8 :] + skus[: n % 8])[:5]] for n in range(80)]
    answers = await asyncio.gather(*(shop.order(lines=one) for one in lines))

    assert [answer.text for answer in answers if answer.status_code != 201] == []
    assert sum([(await shop.stock(sku))[2] for sku in skus]) == 400


async def test_an_unreachable_provider_releases_the_stock_and_the_key(shop: Shop) -> None:
    """Connection refused is the one failure that is certain: nothing was charged."""
    await shop.product("LAMP", stock=3)
    await shop.payments.program.end(signal.SIGKILL)

    refused = await shop.order("lamp-1", lines=[{"sku": "LAMP", "quantity": 3}])
    stock_meanwhile = await shop.stock("LAMP")
    await shop.payments.program.start()
    repeated = await shop.order("lamp-1", lines=[{"sku": "LAMP", "quantity": 3}])

    assert (refused.status_code, refused.json()["code"]) == (503, "payment_provider_unavailable")
    assert "Retry-After" in refused.headers
    assert stock_meanwhile == (3, 0, 0)
    assert repeated.status_code == 201
    assert await shop.stock("LAMP") == (0, 0, 3)


async def test_a_price_that_the_client_did_not_expect_charges_nothing(shop: Shop) -> None:
    before = await shop.written()

    answer = await shop.order(expected_total=199)

    assert (answer.status_code, answer.json()["code"]) == (422, "total_mismatch")
    assert answer.json()["errors"][0]["pointer"] == "/expected_total"
    assert await shop.written() == before


async def test_orders_are_listed_newest_first_page_by_page(shop: Shop) -> None:
    placed = [(await shop.order(f"page-{n}")).json()["id"] for n in range(5)]

    first = (await shop.get("/v1/orders", limit=3)).json()
    second = (await shop.get("/v1/orders", limit=2, starting_after=first["items"][-1]["id"])).json()
    by_key = (await shop.get("/v1/orders", idempotency_key="page-3")).json()

    assert [one["id"] for one in first["items"] + second["items"]] == placed[::-1]
    assert first["has_more"] is True
    assert [one["id"] for one in by_key["items"]] == [placed[3]]


async def test_somebody_elses_order_a_missing_one_and_a_malformed_id_look_the_same(shop: Shop) -> None:
    mine = (await shop.order()).json()["id"]
    await shop.client("other", "other-key")

    answers = [
        await shop.get(f"/v1/orders/{mine}", api_key="other-key"),
        await shop.get(f"/v1/orders/{mine[:-4]}0000", api_key="other-key"),
        await shop.get("/v1/orders/nonsense';--", api_key="other-key"),
    ]

    bodies = [{k: v for k, v in answer.json().items() if k != "request_id"} for answer in answers]
    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert bodies[0] == bodies[1] == bodies[2]


async def test_stock_is_received_and_written_off_once_per_key_and_never_below_zero(shop: Shop) -> None:
    await shop.product("BOOK", stock=4)

    async def adjust(key: str, delta: int) -> tuple[int, str | None]:
        headers = {"Authorization": f"Bearer {OPS_KEY}", "Idempotency-Key": key}
        answer = await shop.http.post(
            "/v1/products/BOOK/stock", json={"delta": delta, "reason": "count"}, headers=headers
        )
        return answer.status_code, answer.headers.get("Idempotency-Replayed")

    assert await adjust("b1", -1) == (200, None)
    assert await adjust("b1", -1) == (200, "true")
    assert await adjust("b1", -2) == (422, None)
    assert await adjust("b2", -9) == (409, None)
    assert await shop.stock("BOOK") == (3, 0, 0)


async def test_the_database_itself_refuses_an_illegal_transition(shop: Shop) -> None:
    order_id = (await shop.order()).json()["id"]

    try:
        await shop.row("UPDATE orders SET status = 'pending' WHERE id = :id RETURNING id", id=order_id)
        refused = ""
    except Exception as error:  # noqa: BLE001 - the driver's class does not matter
        refused = str(error)

    assert "no legal transition" in refused
    assert (await shop.get(f"/v1/orders/{order_id}")).json()["status"] == "completed"


def test_the_example_request_is_valid() -> None:
    assert set(body()) == {"customer", "currency", "lines", "payment_method"}
