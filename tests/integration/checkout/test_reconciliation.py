"""Reconciliation: each way in which books can disagree is planted, found, named, and repaired where that is safe."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest_asyncio
from prometheus_client import REGISTRY
from sqlalchemy import text

from services.checkout.commands.reconcile import Reconciliation
from services.checkout.store.reconciliation import Mismatch
from tests.integration.checkout.conftest import Shop, running, settings_for, until
from tests.integration.checkout.test_authentication import challenged, decide
from tests.integration.checkout.test_webhooks import declined, given_back, only_a_notice_helps, pay_after_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.sandboxes.programs import Payments

HOUR = timedelta(hours=1)
RECONCILIATION = -2  # among the loops of the service


@pytest_asyncio.fixture
async def quiet(own_database: str, redis_url: str, payments_server: Payments) -> AsyncIterator[Shop]:
    """A shop of this test's own, whose reconciliation does nothing unasked."""
    settings = settings_for(own_database, redis_url, payments_server.program.url)
    async with running(settings, payments_server) as shop:
        shop.began = datetime.now(UTC)  # type: ignore[attr-defined]
        shop.service.loops[RECONCILIATION].stop()
        yield shop
    await payments_server.faults()


def reconciliation(shop: Shop) -> Reconciliation:
    stopped: Any = shop.service.loops[RECONCILIATION]
    assert isinstance(stopped, Reconciliation)
    return Reconciliation(shop.db, stopped._provider, shop.wiring.refunds, every_s=300.0, overlap_s=300.0)


async def compared(shop: Shop) -> list[tuple[str, str]]:
    """Kind and subject of what disagrees about the orders of this shop."""
    since = shop.began - timedelta(seconds=1)  # type: ignore[attr-defined]
    found = await reconciliation(shop).compare(since, datetime.now(UTC) + timedelta(seconds=1))
    return [(one.kind, one.subject) for one in found if await is_ours(shop, one)]


async def is_ours(shop: Shop, mismatch: Mismatch) -> bool:
    """The provider serves other tests' shops too."""
    known: int = await shop.row("SELECT count(*) FROM orders WHERE id = :id", id=mismatch.subject)
    return known == 1 or mismatch.subject == stranger(shop)


async def execute(shop: Shop, sql: str, **values: object) -> None:
    async with shop.db.transaction() as connection:
        await connection.execute(text(sql), values)


def stranger(shop: Shop) -> str:
    """An order that this shop never had."""
    return f"ord_planted_{shop.began.timestamp()}"  # type: ignore[attr-defined]


async def bought(shop: Shop) -> str:
    order: dict[str, Any] = (await shop.order()).json()
    assert order["status"] == "completed"
    return str(order["id"])


async def test_books_that_agree_are_left_alone(quiet: Shop) -> None:
    refunded, cancelled = await bought(quiet), await bought(quiet)
    await bought(quiet)
    await declined(quiet)
    await challenged(quiet, "waits", "SKU-0001")
    headers = {"Authorization": "Bearer demo-key"}
    for path, body in ((f"{refunded}/refunds", {"amount": 50}), (f"{cancelled}/cancel", None)):
        key = {"Idempotency-Key": path}
        assert (await quiet.http.post(f"/v1/orders/{path}", json=body, headers=headers | key)).is_success

    assert await compared(quiet) == []


async def test_money_for_an_order_that_had_failed_is_given_back_without_a_webhook(quiet: Shop) -> None:
    order = await declined(quiet)
    await pay_after_all(quiet.payments, order)

    found = await compared(quiet)
    await until(lambda: given_back(quiet, order["id"]))
    again = await compared(quiet)

    assert (found, again) == ([("paid_and_ended", order["id"])], [])
    [capture] = await quiet.captures(order["id"])
    assert capture["refunded"] == capture["captured"] == order["total"]


async def test_money_for_an_order_that_still_waits_makes_the_recovery_look_now(quiet: Shop) -> None:
    waiting = await challenged(quiet, "unnoticed", "SKU-0001")
    await only_a_notice_helps(quiet, waiting["id"])
    await decide(quiet, waiting, "complete")

    found = await compared(quiet)
    await until(lambda: quiet.is_in(waiting["id"], "completed"), timeout_s=5)

    assert found == [("paid_and_open", waiting["id"])]


async def test_money_for_an_order_that_nobody_placed_is_reported(quiet: Shop) -> None:
    await quiet.payments.charge(stranger(quiet))

    assert await compared(quiet) == [("paid_without_order", stranger(quiet))]


async def test_an_order_that_was_paid_twice_is_reported(quiet: Shop) -> None:
    order_id = await bought(quiet)
    await quiet.payments.charge(order_id, f"again-{order_id}")

    assert await compared(quiet) == [("paid_twice", order_id)]


async def test_an_order_that_was_paid_with_another_amount_is_reported_and_not_given_back(quiet: Shop) -> None:
    completed, ended = await bought(quiet), await declined(quiet)
    await execute(quiet, "UPDATE orders SET total = total + 1 WHERE id = :id", id=completed)
    await quiet.payments.charge(ended["id"], f"other-{ended['id']}", amount="199")

    found = await compared(quiet)

    assert sorted(found) == sorted([("amount", completed), ("paid_and_ended", ended["id"])])
    assert await quiet.row("SELECT count(*) FROM refunds") == 0


async def test_a_refund_that_somebody_made_at_the_provider_is_reported(quiet: Shop) -> None:
    order_id = await bought(quiet)
    [capture] = await quiet.captures(order_id)
    await quiet.payments.refunds.create_async({"payment_intent": capture["payment_intent"], "amount": 1})

    assert await compared(quiet) == [("refunds", order_id)]


async def test_a_completed_order_without_a_payment_is_reported(quiet: Shop) -> None:
    await quiet.payments.faults(refuse=True)
    order_id = (await quiet.order()).json()["id"]
    pretend = "UPDATE orders SET status = 'completed', lease_token = lease_token + 1, lease_until = NULL WHERE id = :id"
    await execute(quiet, pretend, id=order_id)
    await quiet.payments.faults()

    assert ("unpaid_and_completed", order_id) in await compared(quiet)


async def test_an_event_that_is_missing_and_one_too_many_are_reported(quiet: Shop) -> None:
    missing, surplus = await bought(quiet), await bought(quiet)
    await execute(quiet, "UPDATE event_log SET subject = :to WHERE subject = :id", to=surplus, id=missing)

    assert sorted(await compared(quiet)) == sorted([("order_and_log", missing), ("order_and_log", surplus)])


async def test_events_that_the_log_has_let_go_are_not_missed(quiet: Shop) -> None:
    await bought(quiet)
    await execute(quiet, "DELETE FROM event_log")
    await execute(quiet, "UPDATE log_head SET dropped = position")
    surplus = await bought(quiet)
    await bought(quiet)
    kept = await bought(quiet)
    await execute(quiet, "UPDATE event_log SET subject = :to WHERE subject = :id", to=surplus, id=kept)

    assert await compared(quiet) == [("order_and_log", kept)]


async def test_a_step_that_nobody_audited_is_reported(quiet: Shop) -> None:
    order_id = await bought(quiet)
    await execute(quiet, "DELETE FROM order_transitions WHERE order_id = :id AND to_status = 'completed'", id=order_id)

    assert await compared(quiet) == [("order_and_audit", order_id)]


async def test_a_turn_finds_stock_that_no_order_holds_and_reservations_that_never_end(quiet: Shop) -> None:
    await quiet.product("LEAKED", stock=5)
    await execute(quiet, "UPDATE products SET available = 3, reserved = 2 WHERE sku = 'LEAKED'")
    waiting = await challenged(quiet, "forgotten", "SKU-0001")
    await only_a_notice_helps(quiet, waiting["id"])
    await execute(
        quiet, "UPDATE orders SET reserved_until = now() - interval '2 minutes' WHERE id = :id", id=waiting["id"]
    )
    before = {kind: mismatches(kind) for kind in ("stock_and_orders", "reservation_overdue")}

    await execute(quiet, "UPDATE reconciliation SET due_at = now()")
    found = await reconciliation(quiet).run_once()

    assert found >= 2
    assert {kind: mismatches(kind) - count for kind, count in before.items()} == dict.fromkeys(before, 1)


async def test_one_of_several_processes_has_the_turn_and_the_next_is_due_later(quiet: Shop) -> None:
    await quiet.product("TURN", stock=5)
    await execute(quiet, "UPDATE products SET available = 4, reserved = 1 WHERE sku = 'TURN'")
    since = datetime.now(UTC) - HOUR
    await execute(quiet, "UPDATE reconciliation SET due_at = now(), done_until = :since", since=since)
    before = mismatches("stock_and_orders")
    began = await quiet.row("SELECT now()")

    await asyncio.gather(*(reconciliation(quiet).run_once() for _ in range(5)))

    assert mismatches("stock_and_orders") - before == 1
    query = (
        "SELECT done_until > CAST(:began AS timestamptz) - interval '70 seconds', "
        "due_at > CAST(:began AS timestamptz) + interval '4 minutes' "
        "FROM reconciliation WHERE name = 'payments'"
    )
    assert await quiet.row(query, began=began) == (True, True)


async def test_what_could_not_be_compared_is_compared_when_the_provider_is_back(quiet: Shop) -> None:
    since = datetime.now(UTC) - HOUR
    await execute(quiet, "UPDATE reconciliation SET due_at = now(), done_until = :since", since=since)
    await quiet.payments.faults(refuse=True)

    await reconciliation(quiet).run_once()
    left = await quiet.row(
        "SELECT done_until = :since, due_at < now() + interval '3 minutes' FROM reconciliation WHERE name = 'payments'",
        since=since,
    )
    await quiet.payments.faults()
    await execute(quiet, "UPDATE reconciliation SET due_at = now()")
    await until(lambda: all_compared(quiet))

    assert left == (True, True)


async def all_compared(shop: Shop) -> bool:
    """Take a turn, if one is due: the breaker may need a moment."""
    await reconciliation(shop).run_once()
    await execute(shop, "UPDATE reconciliation SET due_at = now()")
    done: bool = await shop.row(
        "SELECT done_until > now() - interval '2 minutes' FROM reconciliation WHERE name = 'payments'"
    )
    return done


def mismatches(kind: str) -> float:
    return REGISTRY.get_sample_value("orderstream_reconciliation_mismatches_total", {"kind": kind}) or 0.0
