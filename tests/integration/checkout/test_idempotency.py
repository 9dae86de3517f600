"""One key, one order: in any interleaving, with any body, for every client on its own."""

import asyncio

from tests.integration.checkout.conftest import API_KEY, OPS_KEY, Shop, body


async def test_the_same_request_again_gets_the_first_answer_again(shop: Shop) -> None:
    first = await shop.order("again")
    second = await shop.order("again")

    assert (first.status_code, second.status_code) == (201, 201)
    assert second.text == first.text
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.headers["Location"] == first.headers["Location"]


async def test_a_decline_is_final_and_repeated_too(shop: Shop) -> None:
    first = await shop.order("declined", payment_method="pm_card_visa_chargeDeclined")
    second = await shop.order("declined", payment_method="pm_card_visa_chargeDeclined")

    assert (first.status_code, second.status_code) == (402, 402)
    assert second.json()["order_id"] == first.json()["order_id"]
    assert second.headers["Idempotency-Replayed"] == "true"


async def test_another_body_under_the_same_key_is_refused(shop: Shop) -> None:
    await shop.order("reused")

    answer = await shop.order("reused", lines=[{"sku": "SKU-0001", "quantity": 3}])

    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


async def test_white_space_and_member_order_do_not_make_another_body(shop: Shop) -> None:
    first = await shop.order("spaced")
    reordered = dict(reversed(body().items()))
    headers = {"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": '"spaced"'}  # quoted, as the draft has it

    second = await shop.http.post("/v1/orders", json=reordered, headers=headers)

    assert second.status_code == 201
    assert second.json()["id"] == first.json()["id"]


async def test_a_hundred_posts_at_once_with_one_key_make_one_order_and_get_one_answer(shop: Shop) -> None:
    await shop.product("ONCE", stock=1000)

    answers = await asyncio.gather(*(shop.order("at-once", lines=[{"sku": "ONCE", "quantity": 1}]) for _ in range(100)))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert await shop.stock("ONCE") == (999, 0, 1)
    assert len(await shop.captures(answers[0].json()["id"])) == 1


async def test_a_request_that_meets_a_running_one_waits_for_its_answer(shop: Shop) -> None:
    await shop.payments.faults(latency_ms=500)

    first = asyncio.create_task(shop.order("slow"))
    await asyncio.sleep(0.1)
    second = await shop.order("slow")

    assert second.status_code == 201
    assert second.text == (await first).text


async def test_a_client_that_goes_away_finds_its_order_by_its_key(shop: Shop) -> None:
    """The charge outlives the request."""
    await shop.payments.faults(latency_ms=300)
    request = asyncio.create_task(shop.order("gone"))
    await asyncio.sleep(0.1)

    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    answer = await shop.order("gone")

    assert answer.status_code == 201
    assert len(await shop.captures(answer.json()["id"])) == 1
    [found] = (await shop.get("/v1/orders", idempotency_key="gone")).json()["items"]
    assert found["id"] == answer.json()["id"]


async def test_a_refused_request_leaves_its_key_free(shop: Shop) -> None:
    refused = await shop.order("corrected", lines=[{"sku": "NO-SUCH", "quantity": 1}])
    corrected = await shop.order("corrected")

    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_sku")
    assert corrected.status_code == 201


async def test_two_clients_may_use_the_same_key(shop: Shop) -> None:
    await shop.client("second", "second-key")

    first = await shop.order("shared")
    second = await shop.order("shared", api_key="second-key")

    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]


async def test_a_key_of_the_ops_scope_opens_ops_and_others_do_not(shop: Shop) -> None:
    assert (await shop.get("/ops/subscriptions", api_key=OPS_KEY)).status_code == 200
    assert (await shop.get("/ops/subscriptions")).status_code == 403
    assert (await shop.get("/ops/subscriptions", api_key="nobody")).status_code == 401
