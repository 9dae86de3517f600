"""What happened to one order, from every table that remembers something of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# What one transaction writes has one time: `rank` and `number` are the order within it.
_STEPS = text(
    """
    SELECT at, 1 AS rank, id AS number, CASE WHEN from_status IS NULL THEN 'reserved' ELSE 'settled' END AS step,
           jsonb_build_object('from', from_status, 'to', to_status, 'version', version, 'cause', cause) AS detail
    FROM order_transitions WHERE order_id = :order
    UNION ALL
    SELECT created_at, 2, attempt, 'charge',
           jsonb_build_object('attempt', attempt, 'status', status, 'amount', amount, 'currency', currency,
                              'provider_reference', provider_reference, 'decline_code', decline_code,
                              'answered_at', updated_at)
    FROM payments WHERE order_id = :order
    UNION ALL
    SELECT created_at, 2, number, 'refund',
           jsonb_build_object('refund_id', id, 'kind', kind, 'status', status, 'amount', amount, 'currency', currency,
                              'provider_reference', provider_reference, 'refusal_code', refusal,
                              'settled_at', settled_at)
    FROM refunds WHERE order_id = :order
    UNION ALL
    SELECT created_at, 3, position, 'event',
           jsonb_build_object('event_id', event_id, 'type', type, 'partition', partition, 'position', position)
    FROM event_log WHERE subject = :order
    ORDER BY at, rank, number
    """
)
# An event in front of `origin` is not for the service: it was subscribed later, and from then on.
_PASSAGES = text(
    """
    SELECT s.service, e.event_id, e.type, e.position <= s.cursor AS published
    FROM subscriptions s LEFT JOIN event_log e
         ON e.partition = s.partition AND e.position > s.origin AND e.subject = :order
    ORDER BY s.service, e.position
    """
)


@dataclass(frozen=True, slots=True)
class Step:
    """Something that checkout did for the order."""

    at: datetime
    step: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Passage:
    """An event of the order on its way to a service."""

    event_id: UUID
    type: str
    published: bool


async def steps(connection: AsyncConnection, order_id: str) -> list[Step]:
    """Every step, in the order in which they were taken."""
    return [Step(row.at, row.step, row.detail) for row in await connection.execute(_STEPS, {"order": order_id})]


async def passages(connection: AsyncConnection, order_id: str) -> dict[str, list[Passage]]:
    """By subscribed service: the events that are for it, oldest first."""
    found: dict[str, list[Passage]] = {}
    for row in await connection.execute(_PASSAGES, {"order": order_id}):
        events = found.setdefault(row.service, [])
        if row.event_id is not None:
            events.append(Passage(row.event_id, row.type, row.published))
    return found
