"""Cancelling: all the money goes back, the goods can be sold again, and nothing of it happens twice."""

import asyncio
from collections import Counter

from tests.integration.checkout.conftest import Shop, until
from tests.integration.checkout.refunding import bought, cancel, events_of, given_back, refund


async def test_money_and_stock_come_back_and_the_world_hears_of_it(shop: Shop) -> None:
    await shop.product("CANCELLED", stock=5)
    order_id = await bought(shop, "CANCELLED", quantity=2)

    answer = await cancel(shop, order_id, reason="changed my mind")

    assert answer.status_code == 200
    body = answer.json()
    assert (body["id"], body["status"], body["version"], body["refunded_total"]) == (order_id, "cancelled", 2, 2000)
    assert body == (await shop.get(f"/v1/orders/{order_id}")).json()
    assert await given_back(shop, order_id) == 2000
    assert await shop.stock("CANCELLED") == (5, 0, 0)
    kind, version, data = (await events_of(shop, order_id))[-1]
    assert (kind, version, data["reason"]) == ("order.cancelled", 2, "changed my mind")
    assert (data["status"], data["refunded_total"]) == ("cancelled", 2000)
    query = (
        "SELECT from_status, to_status, version FROM order_transitions WHERE order_id = :id ORDER BY id DESC LIMIT 1"
    )
    assert await shop.row(query, id=order_id) == ("completed", "cancelled", 2)


async def test_only_what_was_not_refunded_yet_goes_back(shop: Shop) -> None:
    order_id = await bought(shop)
    await refund(shop, order_id, amount=400)

    answer = await cancel(shop, order_id)

    assert (answer.status_code, answer.json()["refunded_total"]) == (200, 1000)
    assert await given_back(shop, order_id) == 1000
    kinds = [one["kind"] for one in (await shop.get(f"/v1/orders/{order_id}/refunds")).json()["items"]]
    assert kinds == ["cancel", "refund"]


async def test_an_order_that_was_refunded_in_full_is_cancelled_without_asking_the_provider(shop: Shop) -> None:
    await shop.product("REFUNDED", stock=1)
    order_id = await bought(shop, "REFUNDED")
    await refund(shop, order_id)
    await shop.payments.faults(refuse=True)

    answer = await cancel(shop, order_id, "nothing-left")
    again = await cancel(shop, order_id, "nothing-left")

    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert (again.text, again.headers["Idempotency-Replayed"]) == (answer.text, "true")
    assert await shop.stock("REFUNDED") == (1, 0, 0)
    assert [kind for kind, _, _ in await events_of(shop, order_id)] == [
        "order.completed",
        "order.refunded",
        "order.cancelled",
    ]


async def test_an_order_is_cancelled_once(shop: Shop) -> None:
    await shop.product("ONCE-CANCELLED", stock=1)
    order_id = await bought(shop, "ONCE-CANCELLED")

    first = await cancel(shop, order_id, "first")
    repeated = await cancel(shop, order_id, "first")
    another = await cancel(shop, order_id)

    assert (repeated.status_code, repeated.text) == (200, first.text)
    assert repeated.headers["Idempotency-Replayed"] == "true"
    assert (another.status_code, another.json()["code"]) == (409, "not_cancellable")
    assert another.json()["order_status"] == "cancelled"
    assert await shop.stock("ONCE-CANCELLED") == (1, 0, 0)


async def test_what_is_not_completed_cannot_be_cancelled(shop: Shop) -> None:
    declined = await shop.order(payment_method="pm_card_visa_chargeDeclined")
    waiting = await shop.order(payment_method="pm_card_authenticationRequired")

    answers = [await cancel(shop, declined.json()["order_id"]), await cancel(shop, waiting.json()["id"])]

    assert [(one.status_code, one.json()["code"]) for one in answers] == [(409, "not_cancellable")] * 2
    assert [one.json()["order_status"] for one in answers] == ["failed", "requires_action"]


async def test_of_fifty_cancellations_at_once_one_takes_place(shop: Shop) -> None:
    await shop.product("MANY-CANCELLED", stock=1)
    order_id = await bought(shop, "MANY-CANCELLED")

    answers = await asyncio.gather(*(cancel(shop, order_id) for _ in range(50)))

    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 49}
    assert {one.json()["code"] for one in answers if one.status_code == 409} <= {
        "not_cancellable",
        "refund_in_progress",
    }
    assert await given_back(shop, order_id) == 1000
    assert await shop.stock("MANY-CANCELLED") == (1, 0, 0)
    assert len(await events_of(shop, order_id)) == 2


async def test_a_cancellation_among_refunds_gives_back_exactly_the_total(shop: Shop) -> None:
    await shop.product("RACED", stock=1)
    order_id = await bought(shop, "RACED")

    refunds = [asyncio.create_task(refund(shop, order_id, amount=30)) for _ in range(20)]
    while (answer := await cancel(shop, order_id, "race")).status_code != 200:
        assert answer.json()["code"] == "refund_in_progress"
        assert "Retry-After" in answer.headers
    statuses = {one.status_code for one in await asyncio.gather(*refunds)}

    assert statuses <= {201, 409, 422}
    assert await given_back(shop, order_id) == 1000
    order = (await shop.get(f"/v1/orders/{order_id}")).json()
    events = await events_of(shop, order_id)
    assert (order["status"], order["refunded_total"], order["version"]) == ("cancelled", 1000, len(events))
    assert events[-1][0] == "order.cancelled"
    assert await shop.stock("RACED") == (1, 0, 0)


async def test_while_a_refund_is_open_a_cancellation_is_told_to_come_again(shop: Shop) -> None:
    order_id = await bought(shop)
    await shop.payments.faults(charge_then_reset=True, latency_ms=200)
    open_ = await refund(shop, order_id, amount=100)

    answer = await cancel(shop, order_id, "after-the-refund")
    await shop.payments.faults()
    await until(lambda: _answers(shop, order_id, "after-the-refund", 200))

    assert open_.status_code == 202
    assert (answer.status_code, answer.json()["code"]) == (409, "refund_in_progress")
    assert await given_back(shop, order_id) == 1000


async def test_a_cancellation_whose_outcome_is_unknown_is_finished_without_its_client(shop: Shop) -> None:
    await shop.product("UNKNOWN-CANCELLED", stock=1)
    order_id = await bought(shop, "UNKNOWN-CANCELLED")
    await shop.payments.faults(charge_then_500=True, latency_ms=200)

    answer = await cancel(shop, order_id, "unknown")
    meanwhile = await refund(shop, order_id, amount=1)
    await shop.payments.faults()
    await until(lambda: _answers(shop, order_id, "unknown", 200))

    assert (answer.status_code, answer.json()["status"]) == (202, "completed")
    assert answer.headers["Location"] == f"/v1/orders/{order_id}"
    assert (meanwhile.status_code, meanwhile.json()["code"]) == (409, "refund_in_progress")
    assert await given_back(shop, order_id) == 1000
    assert await shop.stock("UNKNOWN-CANCELLED") == (1, 0, 0)
    assert len(await events_of(shop, order_id)) == 2


async def _answers(shop: Shop, order_id: str, key: str, status: int) -> bool:
    return (await cancel(shop, order_id, key)).status_code == status
