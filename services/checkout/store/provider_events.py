"""The provider's notices: what each made us look at, so that the same one twice is one look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Boolean, Text, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.checkout.domain import Notice
from shared.runtime.statements import over_arrays

# An order that waits is looked at now, if nobody is at it. One that has ended unpaid is remembered, to be looked up.
# The rest needs no notice: who charges a pending order hears the answer, and a completed one has had it. Nothing is
# written for those, and they are nearly all. The orders are locked in one order, so that two batches cannot deadlock.
_TAKE = over_arrays(
    """
    WITH fresh AS (
        INSERT INTO provider_events (id, type, order_id, payment_reference, look_at)
        SELECT e.id, e.type, e.order_id, e.reference, CASE WHEN o.status IN ('failed', 'expired') THEN now() END
        FROM unnest(:ids, :types, :orders, :references, :paid) AS e (id, type, order_id, reference, paid)
        JOIN orders o ON o.id = e.order_id
        WHERE o.status IN ('payment_unknown', 'requires_action') OR (o.status IN ('failed', 'expired') AND e.paid)
        ORDER BY e.id
        ON CONFLICT (id) DO NOTHING
        RETURNING order_id
    ), waiting AS (
        SELECT id FROM orders
        WHERE id IN (SELECT order_id FROM fresh) AND status IN ('payment_unknown', 'requires_action')
        ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE orders SET lease_until = least(lease_until, now()) WHERE id IN (SELECT id FROM waiting)
    """,
    ids=Text,
    types=Text,
    orders=Text,
    references=Text,
    paid=Boolean,
)
# Looked at again, unless it is settled meanwhile, when as much time has passed again as since it came.
_DUE = text(
    """
    UPDATE provider_events
    SET look_at = now() + greatest(now() - received_at, :lease_s * interval '1 second')
    WHERE id IN (
        SELECT id FROM provider_events WHERE look_at <= now() ORDER BY look_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    RETURNING id, order_id, payment_reference
    """
)
_SETTLED = text("UPDATE provider_events SET look_at = NULL WHERE id = :id")
_FORGET = text(
    """
    DELETE FROM provider_events WHERE id IN (
        SELECT id FROM provider_events WHERE received_at < now() - :days * interval '1 day' LIMIT :limit
        FOR UPDATE SKIP LOCKED
    )
    """
)


@dataclass(frozen=True, slots=True)
class Doubt:
    """An order that ended unpaid, and a payment that is said to have been made for it."""

    event_id: str
    order_id: str
    reference: str


async def take(connection: AsyncConnection, notices: Sequence[Notice]) -> None:
    """Note what makes a difference, and let the recovery look at its orders now."""
    values = {
        "ids": [one.event_id for one in notices],
        "types": [one.type for one in notices],
        "orders": [one.order_id for one in notices],
        "references": [one.reference for one in notices],
        "paid": [one.paid for one in notices],
    }
    await connection.execute(_TAKE, values)


async def due(connection: AsyncConnection, lease_s: float, limit: int) -> list[Doubt]:
    """Doubts to be looked into, which nobody else gets for `lease_s` seconds at least."""
    rows = await connection.execute(_DUE, {"lease_s": lease_s, "limit": limit})
    return [Doubt(*row) for row in rows]


async def settled(connection: AsyncConnection, event_id: str) -> None:
    """There is nothing to be looked into any more."""
    await connection.execute(_SETTLED, {"id": event_id})


async def forget(connection: AsyncConnection, days: int, limit: int) -> int:
    """Delete what came so long ago that the provider has given up repeating it; returns how many there were."""
    return (await connection.execute(_FORGET, {"days": days, "limit": limit})).rowcount
