"""Refunds: in parts if wanted, up to the total, once per key, and told to the world."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from shared.runtime.identifiers import new_id
from tests.integration.checkout.conftest import API_KEY, Shop, until
from tests.integration.checkout.refunding import bought, events_of, given_back, refund


async def test_a_part_of_the_money_goes_back_and_the_world_hears_of_it(shop: Shop) -> None:
    order_id = await bought(shop)

    answer = await refund(shop, order_id, amount=300, reason="one was broken")

    assert answer.status_code == 201
    body = answer.json()
    assert (body["status"], body["amount"], body["currency"], body["reason"]) == (
        "succeeded",
        300,
        "EUR",
        "one was broken",
    )
    assert body["provider_reference"].startswith("re_")
    assert await given_back(shop, order_id) == 300
    order = (await shop.get(f"/v1/orders/{order_id}")).json()
    assert (order["status"], order["version"], order["refunded_total"]) == ("completed", 2, 300)
    kind, version, data = (await events_of(shop, order_id))[-1]
    assert (kind, version, data["refund_id"], data["amount"]) == ("order.refunded", 2, body["id"], 300)
    assert (data["refunded_total"], data["total"], data["reason"]) == (300, 1000, "one was broken")


async def test_without_an_amount_all_that_is_left_goes_back(shop: Shop) -> None:
    order_id = await bought(shop)
    await refund(shop, order_id, amount=300)

    answer = await refund(shop, order_id)

    assert (answer.status_code, answer.json()["amount"]) == (201, 700)
    assert await given_back(shop, order_id) == 1000
    order = (await shop.get(f"/v1/orders/{order_id}")).json()
    assert (order["status"], order["refunded_total"]) == ("completed", 1000)  # the goods stay sold
    sums = [data["refunded_total"] for _, _, data in await events_of(shop, order_id)]
    assert sums == [0, 300, 1000]


@pytest.mark.parametrize("amount", [701, None])
async def test_more_than_what_is_left_is_refused_and_leaves_the_key_free(shop: Shop, amount: int | None) -> None:
    order_id = await bought(shop)
    first = 300 if amount else 1000
    await refund(shop, order_id, amount=first)
    key = f"exceeds-{amount}"

    refused = await refund(shop, order_id, key, amount=amount)

    assert (refused.status_code, refused.json()["code"]) == (422, "refund_exceeds_total")
    assert refused.json()["refundable"] == 1000 - first
    assert await given_back(shop, order_id) == first
    assert await shop.row("SELECT count(*) FROM idempotency_keys WHERE key = :key", key=key) == 0


async def test_the_same_request_again_gets_the_first_answer_again(shop: Shop) -> None:
    order_id = await bought(shop)

    first = await refund(shop, order_id, "again", amount=100)
    second = await refund(shop, order_id, "again", amount=100)

    assert (first.status_code, second.status_code, second.text) == (201, 201, first.text)
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.headers["Location"] == first.headers["Location"]
    assert await given_back(shop, order_id) == 100
    found = await shop.get(first.headers["Location"])
    assert (found.status_code, found.json()) == (200, first.json())


async def test_a_key_stands_for_its_body_its_order_and_its_call(shop: Shop) -> None:
    order_id, other_id = await bought(shop), await bought(shop)
    await refund(shop, order_id, "stands-for", amount=100)

    answers = [
        await refund(shop, order_id, "stands-for", amount=101),
        await refund(shop, other_id, "stands-for", amount=100),
        await shop.order("stands-for"),
    ]

    assert [(one.status_code, one.json()["code"]) for one in answers] == [(422, "idempotency_key_reused")] * 3
    assert await given_back(shop, order_id) == 100


async def test_fifty_refunds_at_once_never_come_to_more_than_the_total(shop: Shop) -> None:
    order_id = await bought(shop)

    answers = await asyncio.gather(*(refund(shop, order_id, amount=30) for _ in range(50)))

    async def all_are_certain() -> bool:
        return bool((await shop.get(f"/v1/orders/{order_id}")).json()["refunded_total"] == 990)

    statuses = Counter(answer.status_code for answer in answers)
    # Whose answer from the provider comes late on a busy machine is 202, and completed by itself.
    assert (statuses[201] + statuses[202], statuses[422]) == (33, 17)
    await until(all_are_certain)
    assert await given_back(shop, order_id) == 990
    versions = [version for _, version, _ in await events_of(shop, order_id)]
    assert versions == list(range(1, 35))
    order = (await shop.get(f"/v1/orders/{order_id}")).json()
    assert (order["refunded_total"], order["version"]) == (990, 34)


async def test_fifty_requests_at_once_with_one_key_are_one_refund_and_get_one_answer(shop: Shop) -> None:
    order_id = await bought(shop)

    answers = await asyncio.gather(*(refund(shop, order_id, "at-once", amount=20) for _ in range(50)))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert await given_back(shop, order_id) == 20
    assert await shop.row("SELECT count(*) FROM refunds WHERE order_id = :id", id=order_id) == 1


async def test_somebody_elses_a_missing_and_a_malformed_order_look_the_same(shop: Shop) -> None:
    await shop.client("stranger", "stranger-key")
    order_id = await bought(shop)

    answers = [
        await refund(shop, order_id, api_key="stranger-key"),
        await refund(shop, new_id("ord")),
        await refund(shop, "ord_x"),
        await shop.get(f"/v1/orders/{order_id}/refunds", api_key="stranger-key"),
        await shop.get(f"/v1/orders/{new_id('ord')}/refunds"),
    ]

    bodies = [{**one.json(), "request_id": ""} for one in answers]
    assert bodies == [bodies[0]] * 5
    assert (answers[0].status_code, bodies[0]["code"]) == (404, "not_found")
    assert await given_back(shop, order_id) == 0


async def test_an_order_that_was_never_paid_cannot_be_refunded(shop: Shop) -> None:
    declined = await shop.order(payment_method="pm_card_visa_chargeDeclined")

    answer = await refund(shop, declined.json()["order_id"])

    assert (answer.status_code, answer.json()["code"], answer.json()["order_status"]) == (
        422,
        "not_refundable",
        "failed",
    )


@pytest.mark.parametrize(
    "request_", [{"amount": 0}, {"amount": -1}, {"amount": "1"}, {"amount": True}, {"amount": 1.5}, {"sum": 1}]
)
async def test_what_is_no_amount_is_refused(shop: Shop, request_: dict[str, Any]) -> None:
    order_id = await bought(shop)

    answer = await refund(shop, order_id, **request_)

    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert await shop.row("SELECT count(*) FROM refunds WHERE order_id = :id", id=order_id) == 0


async def test_a_refund_needs_a_key_and_takes_no_card_number(shop: Shop) -> None:
    order_id = await bought(shop)
    headers = {"Authorization": f"Bearer {API_KEY}"}

    keyless = await shop.http.post(f"/v1/orders/{order_id}/refunds", json={}, headers=headers)
    card = await refund(shop, order_id, reason="to 4242 4242 4242 4242 please")

    assert (keyless.status_code, keyless.json()["code"]) == (400, "idempotency_key_missing")
    assert (card.status_code, card.json()["code"]) == (422, "card_number_refused")
    assert await given_back(shop, order_id) == 0


async def test_refunds_are_listed_newest_first_in_pages(shop: Shop) -> None:
    order_id = await bought(shop)
    ids = [(await refund(shop, order_id, amount=amount)).json()["id"] for amount in (1, 2, 3)]

    first = (await shop.get(f"/v1/orders/{order_id}/refunds", limit=2)).json()
    rest = (await shop.get(f"/v1/orders/{order_id}/refunds", limit=2, starting_after=ids[1])).json()
    nowhere = await shop.get(f"/v1/orders/{order_id}/refunds", starting_after="rfd_x")

    assert (nowhere.status_code, nowhere.json()["code"]) == (422, "validation_failed")
    assert ([one["id"] for one in first["items"]], first["has_more"]) == ([ids[2], ids[1]], True)
    assert ([one["id"] for one in rest["items"]], rest["has_more"]) == ([ids[0]], False)


async def test_what_the_provider_refuses_for_good_is_told_and_stays_refused(shop: Shop) -> None:
    """Somebody gave the money back by hand, past this API."""
    order_id = await bought(shop)
    payment = (await shop.get(f"/v1/orders/{order_id}")).json()["payment"]["provider_reference"]
    await shop.payments.refunds.create_async({"payment_intent": payment})

    first = await refund(shop, order_id, "by-hand", amount=100)
    again = await refund(shop, order_id, "by-hand", amount=100)

    assert (first.status_code, first.json()["code"]) == (422, "refund_refused")
    assert first.json()["refusal_code"] == "charge_already_refunded"
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (422, "true")
    assert (await shop.get(f"/v1/orders/{order_id}")).json()["refunded_total"] == 0
    assert len(await events_of(shop, order_id)) == 1


async def test_a_client_that_goes_away_finds_its_refund_by_its_key(shop: Shop) -> None:
    order_id = await bought(shop)
    await shop.payments.faults(latency_ms=300)
    request = asyncio.create_task(refund(shop, order_id, "gone", amount=100))
    await until(lambda: _is_asked_for(shop, order_id))

    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    answer = await refund(shop, order_id, "gone", amount=100)

    assert answer.status_code == 201
    assert await given_back(shop, order_id) == 100


async def _is_asked_for(shop: Shop, order_id: str) -> bool:
    found: int = await shop.row("SELECT count(*) FROM refunds WHERE order_id = :id", id=order_id)
    return found > 0
