"""Unknown for a day: a key that the provider may have forgotten is never sent again, by whichever clock."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from typing_extensions import override

from services.checkout import app as checkout_app
from services.checkout.commands.recover import NEVER_CHARGED
from shared.runtime.clock import SystemClock
from tests.integration.checkout.conftest import Shop, running, settings_for, until
from tests.integration.checkout.test_recovery import placing

if TYPE_CHECKING:
    from tests.integration.sandboxes.programs import Payments


@pytest.mark.parametrize("hours", [23.1, 25.1, 400.0])
async def test_a_charge_that_was_made_is_found_and_not_made_again(shop: Shop, hours: float) -> None:
    order = await placed(shop, f"made-{hours}", charged=True)
    await shop.payments.http.post("/_sandbox/forget-keys")

    await grow_old(shop, order.id, hours)
    await until(lambda: shop.is_in(order.id, "completed"))

    assert len(await shop.captures(order.id)) == 1
    assert await shop.stock(sku(f"made-{hours}")) == (0, 0, 1)


async def test_what_the_provider_cannot_find_soon_after_its_window_is_not_given_up_yet(shop: Shop) -> None:
    """Its search may lag behind, and a charge may be on its way."""
    order = await placed(shop, "too-soon")

    for hours in (23.1, 24.9):
        await grow_old(shop, order.id, hours)
        await until(lambda: looked_at_again(shop, order.id))

    assert await shop.is_in(order.id, "payment_unknown")
    assert await shop.captures(order.id) == []
    assert await shop.stock(sku("too-soon")) == (0, 1, 0)


async def test_what_the_provider_cannot_find_long_after_its_window_was_never_charged(shop: Shop) -> None:
    order = await placed(shop, "never")

    await grow_old(shop, order.id, 25.1)
    await until(lambda: shop.is_in(order.id, "failed"))

    assert await shop.captures(order.id) == []
    assert await shop.stock(sku("never")) == (1, 0, 0)
    assert (await shop.get(f"/v1/orders/{order.id}")).json()["payment"]["decline_code"] == NEVER_CHARGED
    assert await shop.row("SELECT type FROM event_log WHERE subject = :id", id=order.id) == "order.payment_failed"
    assert await shop.row("SELECT status FROM idempotency_keys WHERE key = 'never'") == 402


async def test_while_the_provider_is_away_an_old_order_stays_unknown(shop: Shop) -> None:
    """Not asked is not the same as not found."""
    order = await placed(shop, "away")
    await shop.payments.faults(refuse=True)

    await grow_old(shop, order.id, 400.0)
    await until(lambda: looked_at_again(shop, order.id))
    await until(lambda: looked_at_again(shop, order.id))
    status = (await shop.get(f"/v1/orders/{order.id}")).json()["status"]
    await shop.payments.faults()
    await until(lambda: shop.is_in(order.id, "failed"))

    assert status == "payment_unknown"


@pytest.mark.parametrize("hours", [-30, -1, 1, 30])
async def test_a_clock_of_ours_that_is_wrong_changes_nothing(
    own_database: str, redis_url: str, payments_server: Payments, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    class WrongClock(SystemClock):
        @override
        def now(self) -> datetime:
            return super().now() + timedelta(hours=hours)

    monkeypatch.setattr(checkout_app, "SystemClock", WrongClock)
    settings = settings_for(own_database, redis_url, payments_server.program.url)

    async with running(settings, payments_server) as shop:
        young = await placed(shop, "young")
        old = await placed(shop, "old")
        await grow_old(shop, old.id, 23.1)
        waiting = (await shop.order(payment_method="pm_card_threeDSecure2Required")).json()
        await until(lambda: shop.is_in(young.id, "completed"))
        await until(lambda: looked_at_again(shop, old.id))
        await until(lambda: looked_at_again(shop, waiting["id"]))

        assert await shop.is_in(old.id, "payment_unknown")
        assert await shop.is_in(waiting["id"], "requires_action")
        assert await shop.captures(old.id) == []
        assert len(await shop.captures(young.id)) == 1


def sku(key: str) -> str:
    return f"WINDOW-{key}".upper()


async def placed(shop: Shop, key: str, *, charged: bool = False) -> Any:
    """An order whose process died before, or right after, the charge."""
    await shop.product(sku(key), stock=1)
    placed = await shop.wiring.checkout._batches.submit(placing(key, sku(key)))
    if charged:
        await shop.wiring.checkout._charge(placed.order)  # type: ignore[union-attr]
    return placed.order  # type: ignore[union-attr]


async def grow_old(shop: Shop, order_id: str, hours: float) -> None:
    """As if the payment had been begun so long ago, and the order were due."""
    async with shop.db.transaction() as connection:
        values = {"id": order_id, "hours": hours}
        past = "UPDATE payments SET created_at = now() - :hours * interval '1 hour' WHERE order_id = :id"
        await connection.execute(text(past), values)
        due = "UPDATE orders SET lease_until = now(), recoveries = 0 WHERE id = :id"
        await connection.execute(text(due), {"id": order_id})


async def looked_at_again(shop: Shop, order_id: str) -> bool:
    """Whether a look that began after this order was due has been written down."""
    query = "SELECT recoveries > 0 AND lease_until < now() + interval '2 seconds' FROM orders WHERE id = :id"
    found: bool = await shop.row(query, id=order_id)
    return found
