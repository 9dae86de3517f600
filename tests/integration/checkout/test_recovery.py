"""Unknown outcomes and dead processes: every order is finished without its client, and nobody is charged twice."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from services.checkout.commands.place_order import PlaceOrder
from services.checkout.domain import Wanted
from shared.runtime.identifiers import new_id
from tests.integration.checkout.conftest import Shop, until
from tests.integration.checkout.refunding import cancel


@pytest.mark.parametrize("fault", ["charge_then_hang", "charge_then_reset", "charge_then_500"])
async def test_a_charge_whose_answer_is_lost_is_unknown_and_then_completed(shop: Shop, fault: str) -> None:
    await shop.product(f"LOST-{fault}".replace("_", "-"), stock=1)
    await shop.payments.faults(**{fault: True})

    answer = await shop.order(fault, lines=[{"sku": f"LOST-{fault}".replace("_", "-"), "quantity": 1}])
    order_id = answer.json()["id"]
    unknown = (await shop.get(f"/v1/orders/{order_id}")).json()["status"]
    await shop.payments.faults()
    await until(lambda: status_is(shop, order_id, "completed"))

    assert answer.status_code == 202
    assert "Retry-After" in answer.headers
    assert unknown in {"payment_unknown", "completed"}  # the recovery may be quicker than this test
    assert len(await shop.captures(order_id)) == 1
    assert await shop.stock(f"LOST-{fault}".replace("_", "-")) == (0, 0, 1)
    replayed = await shop.order(fault, lines=[{"sku": f"LOST-{fault}".replace("_", "-"), "quantity": 1}])
    assert (replayed.status_code, replayed.json()["id"]) == (201, order_id)
    assert await shop.row("SELECT count(*) FROM event_log WHERE subject = :id", id=order_id) == 1


async def test_while_the_outcome_is_unknown_the_key_answers_with_the_order_as_it_is(shop: Shop) -> None:
    await shop.payments.faults(charge_then_hang=True)

    first = await shop.order("open")
    second = await shop.order("open")

    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json()["id"] == first.json()["id"]


async def test_a_provider_that_resets_before_reading_leaves_the_outcome_unknown_until_it_answers(shop: Shop) -> None:
    """A reset looks the same before and after the charge, so it must be treated as the worse of the two."""
    await shop.payments.faults(refuse=True)

    answer = await shop.order("refused")
    order_id = answer.json()["id"]
    await shop.payments.faults()
    await until(lambda: status_is(shop, order_id, "completed"))

    assert answer.status_code == 202
    assert len(await shop.captures(order_id)) == 1


@pytest.mark.parametrize("charged", [False, True], ids=["before the charge", "after the charge"])
async def test_an_order_of_a_process_that_died_is_finished_by_another(shop: Shop, charged: bool) -> None:
    """Placed and committed, then kill -9: the lease runs out and the recovery asks the provider with the same key."""
    await shop.product(f"ORPHAN-{charged}", stock=1)
    command = placing(f"orphan-{charged}", f"ORPHAN-{charged}")
    placed = await shop.wiring.checkout._batches.submit(command)
    if charged:
        await shop.wiring.checkout._charge(placed.order)  # type: ignore[union-attr]

    await until(lambda: status_is(shop, command.order_id, "completed"), timeout_s=15)

    assert len(await shop.captures(command.order_id)) == 1
    assert await shop.stock(f"ORPHAN-{charged}") == (0, 0, 1)
    query = "SELECT cause FROM order_transitions WHERE order_id = :id AND to_status = 'completed'"
    cause = await shop.row(query, id=command.order_id)
    assert cause.startswith("recovery")
    stored = await shop.row("SELECT status FROM idempotency_keys WHERE key = :key", key=command.key)
    assert stored == 201


async def test_a_process_that_slept_through_its_lease_changes_nothing_when_it_wakes(shop: Shop) -> None:
    """The charge answers after the recovery has settled: the late settle finds another token and gives way."""
    command = placing("sleeper", "SKU-0002")
    placed = await shop.wiring.checkout._batches.submit(command)

    await until(lambda: status_is(shop, command.order_id, "completed"), timeout_s=15)
    late = await shop.wiring.checkout._charge_and_settle(placed.order, 1, None)  # type: ignore[union-attr]

    assert late.status == 201
    assert await shop.row("SELECT count(*) FROM event_log WHERE subject = :id", id=command.order_id) == 1
    assert await shop.row("SELECT version FROM orders WHERE id = :id", id=command.order_id) == 1


async def test_a_process_that_slept_tells_what_the_key_was_told_not_what_became_of_the_order_since(shop: Shop) -> None:
    command = placing("sleeper-refunded", "SKU-0002")
    placed = await shop.wiring.checkout._batches.submit(command)
    await until(lambda: status_is(shop, command.order_id, "completed"), timeout_s=15)
    assert (await cancel(shop, command.order_id)).status_code == 200

    late = await shop.wiring.checkout._charge_and_settle(placed.order, 1, None)  # type: ignore[union-attr]

    told = await shop.row("SELECT answer FROM idempotency_keys WHERE key = :key", key=command.key)
    assert (late.status, late.body) == (201, told)


async def test_checkout_takes_orders_while_redis_is_away(shop: Shop) -> None:
    await shop.wiring.db.ping()
    streams: Any = shop.service.loops[-1]
    real, streams._streams._commands = streams._streams._commands, None  # every call to Redis fails from now on

    answers = await asyncio.gather(*(shop.order() for _ in range(20)))
    streams._streams._commands = real

    assert {answer.status_code for answer in answers} == {201}


def placing(key: str, sku: str) -> PlaceOrder:
    return PlaceOrder(
        order_id=new_id("ord"),
        tenant="demo",
        key=key,
        request_sha256=b"x" * 32,
        currency="EUR",
        lines=(Wanted(sku, 1),),
        payment_method="pm_card_visa",
        customer={"email": "ann@example.com"},
        shipping_address=None,
        metadata={},
        expected_total=None,
        at=datetime.now(UTC),
    )


async def status_is(shop: Shop, order_id: str, status: str) -> bool:
    found: str = (await shop.get(f"/v1/orders/{order_id}")).json()["status"]
    return found == status
