"""A key gives one charge: replays, misuse, concurrency, and the end of its 24 hours."""

import asyncio

import pytest
import stripe

from tests.integration.sandboxes.programs import Payments
from tests.integration.sandboxes.test_charges import charge_of


async def test_the_same_request_again_gets_the_first_answer(payments: Payments, order_id: str) -> None:
    first = await payments.charge(order_id)
    second = await payments.charge(order_id)

    assert second.content == first.content
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert (await payments.row(order_id))["captured"] == 200


async def test_a_decline_is_replayed_too(payments: Payments, order_id: str) -> None:
    first = await payments.charge(order_id, payment_method="pm_card_visa_chargeDeclined")
    second = await payments.charge(order_id, payment_method="pm_card_visa_chargeDeclined")

    assert (first.status_code, second.status_code) == (402, 402)
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"


async def test_the_order_of_the_parameters_does_not_matter(payments: Payments, order_id: str) -> None:
    charge = charge_of(order_id)
    first = await payments.intents.create_async(charge, {"idempotency_key": order_id})
    backwards = dict(reversed(charge.items()))
    second = await payments.intents.create_async(backwards, {"idempotency_key": order_id})  # type: ignore[arg-type]

    assert second.id == first.id


async def test_other_parameters_with_the_same_key_are_an_error(payments: Payments, order_id: str) -> None:
    intent = await payments.intents.create_async(charge_of(order_id), {"idempotency_key": order_id})

    with pytest.raises(stripe.IdempotencyError) as other_amount:
        await payments.intents.create_async(charge_of(order_id, amount=1), {"idempotency_key": order_id})
    with pytest.raises(stripe.IdempotencyError) as other_path:
        await payments.refunds.create_async({"payment_intent": intent.id}, {"idempotency_key": order_id})

    assert (other_amount.value.http_status, other_path.value.http_status) == (400, 400)
    assert await payments.row(order_id) | {"refunded": 0, "captured": 1_050} == await payments.row(order_id)


async def test_while_the_first_runs_the_same_key_is_in_use(payments: Payments, order_id: str) -> None:
    await payments.faults(latency_ms=300)

    answers = await asyncio.gather(*(payments.charge(order_id) for _ in range(5)))

    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 409, 409, 409, 409]
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["error"]["code"] == "idempotency_key_in_use"
    assert (await payments.row(order_id))["captured"] == 200


async def test_a_forgotten_key_charges_again(payments: Payments, order_id: str) -> None:
    first = await payments.charge(order_id)
    await payments.http.post("/_sandbox/forget-keys")

    second = await payments.charge(order_id)

    assert second.json()["id"] != first.json()["id"]


async def test_a_key_over_255_characters_is_refused(payments: Payments, order_id: str) -> None:
    answer = await payments.charge(order_id, key="k" * 256)

    assert answer.status_code == 400
