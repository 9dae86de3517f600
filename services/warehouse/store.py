from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    UniqueConstraint,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from services.warehouse.domain import (
    EVENTS_COME_FROM,
    NEXT_STEP,
    Entry,
    Fulfilment,
    Parcel,
    Status,
    fulfilment_id,
    pick_list,
)
from shared.bus.arrivals import Event
from shared.contracts.orders import ORDER_CANCELLED
from shared.runtime.driver import Direct

Instant = DateTime(timezone=True)

tables = MetaData()

fulfilments = Table(
    "fulfilments",
    tables,
    Column("id", Text, primary_key=True),
    Column("order_id", Text, nullable=False),
    Column("order_version", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("recipient", Text),
    Column("lines", JSONB, nullable=False, comment="[{sku, name, quantity}]"),
    Column("shipping_address", JSONB(none_as_null=True)),
    Column("ordered_at", Instant, nullable=False),
    Column("carrier", Text),
    Column("tracking", Text),
    CheckConstraint(
        f"status IN ({', '.join(repr(str(status)) for status in Status)})", name="fulfilments_status_known"
    ),
    CheckConstraint("(status = 'shipped') = (tracking IS NOT NULL)", name="fulfilments_shipped_with_tracking"),
    UniqueConstraint("order_id", name="fulfilments_once_per_order"),
    Index("fulfilments_by_status", "status", "id"),
)

history = Table(
    "history",
    tables,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # No foreign key: it costs a look-up per row, and every row is written with its fulfilment in hand.
    Column("fulfilment_id", Text, nullable=False),
    Column("at", Instant, nullable=False, comment="when it happened, not when it was heard of"),
    Column("actor", Text, nullable=False),
    Column("entry", Text, nullable=False),
    Column("detail", Text),
    Column("order_version", Integer, comment="of the event that wrote the row"),
    # Also finds the history of a fulfilment. Rows of the staff have no version and never collide.
    UniqueConstraint("fulfilment_id", "order_version", name="history_once_per_version"),
)

# What has left the house stays shipped.
_APPLY = Direct(
    """
    INSERT INTO fulfilments AS f (id, order_id, order_version, status, recipient, lines, shipping_address,
                                  ordered_at)
    SELECT e.id, e.order_id, e.version, e.status, e.recipient, e.lines::jsonb, e.address::jsonb, e.ordered_at
    FROM unnest(:ids, :order_ids, :versions, :statuses, :recipients, :lines, :addresses, :ordered)
         AS e (id, order_id, version, status, recipient, lines, address, ordered_at)
    ON CONFLICT (order_id) DO UPDATE
    SET order_version = excluded.order_version, recipient = excluded.recipient, lines = excluded.lines,
        shipping_address = excluded.shipping_address, ordered_at = excluded.ordered_at,
        status = CASE WHEN excluded.status = 'cancelled' AND f.status <> 'shipped' THEN 'cancelled'
                      ELSE f.status END
    WHERE f.order_version < excluded.order_version
    """,
    ids=Text,
    order_ids=Text,
    versions=Integer,
    statuses=Text,
    recipients=Text,
    lines=Text,
    addresses=Text,
    ordered=Instant,
)

_REMEMBER = Direct(
    """
    INSERT INTO history (fulfilment_id, at, actor, entry, detail, order_version)
    SELECT f.id, e.at, :actor,
           CASE WHEN e.entry = 'cancelled' AND f.status = 'shipped' THEN 'cancelled_too_late'
                ELSE e.entry END,
           e.detail, e.version
    FROM unnest(:order_ids, :versions, :instants, :entries, :details)
         AS e (order_id, version, at, entry, detail)
    JOIN fulfilments f ON f.order_id = e.order_id
    ON CONFLICT (fulfilment_id, order_version) DO NOTHING
    """,
    order_ids=Text,
    versions=Integer,
    instants=Instant,
    entries=Text,
    details=Text,
)


async def apply(connection: AsyncConnection, events: Sequence[Event]) -> None:
    """Create the fulfilments of the orders or bring them up to date (one event per order)."""
    orders = [event.data for event in events]
    await _APPLY.fetch(
        connection,
        {
            "ids": [fulfilment_id(event.subject, event.data.created_at) for event in events],
            "order_ids": [event.subject for event in events],
            "versions": [event.version for event in events],
            "statuses": [_entry(event) for event in events],
            "recipients": [order.customer.name for order in orders],
            "lines": [json.dumps(pick_list(order)) for order in orders],
            "addresses": [
                order.shipping_address.model_dump_json(exclude_none=True) if order.shipping_address else None
                for order in orders
            ],
            "ordered": [order.completed_at or order.created_at for order in orders],
        },
    )


async def remember(connection: AsyncConnection, events: Sequence[Event]) -> None:
    """Write a history row per event, whether it changed anything or came too late."""
    await _REMEMBER.fetch(
        connection,
        {
            "actor": EVENTS_COME_FROM,
            "order_ids": [event.subject for event in events],
            "versions": [event.version for event in events],
            "instants": [event.time for event in events],
            "entries": [_entry(event) for event in events],
            "details": [getattr(event.data, "reason", None) for event in events],
        },
    )


async def lock(connection: AsyncConnection, wanted: str) -> Fulfilment | None:
    """The fulfilment, which nobody else changes until the transaction ends."""
    row = (
        await connection.execute(select(fulfilments).where(fulfilments.c.id == wanted).with_for_update())
    ).one_or_none()
    return _fulfilment(row) if row else None


async def move(connection: AsyncConnection, moved: Fulfilment, at: datetime, actor: str) -> None:
    """Store a locked fulfilment after a step, and who did it."""
    parcel = moved.parcel
    await connection.execute(
        fulfilments.update()
        .where(fulfilments.c.id == moved.id)
        .values(
            status=moved.status,
            carrier=parcel.carrier if parcel else None,
            tracking=parcel.tracking if parcel else None,
        )
    )
    await connection.execute(
        history.insert().values(
            fulfilment_id=moved.id,
            at=at,
            actor=actor,
            entry=Entry(moved.status),
            detail=f"{parcel.carrier} {parcel.tracking}" if parcel else None,
        )
    )


async def find(connection: AsyncConnection, wanted: str) -> Fulfilment | None:
    """One fulfilment."""
    row = (await connection.execute(select(fulfilments).where(fulfilments.c.id == wanted))).one_or_none()
    return _fulfilment(row) if row else None


async def page(
    connection: AsyncConnection,
    *,
    order_id: str | None = None,
    status: Status | None = None,
    limit: int,
    starting_after: str | None = None,
) -> list[Fulfilment]:
    """Fulfilments, newest order first."""
    found = select(fulfilments).order_by(fulfilments.c.id.desc()).limit(limit)
    if order_id is not None:
        found = found.where(fulfilments.c.order_id == order_id)
    if status is not None:
        found = found.where(fulfilments.c.status == status)
    if starting_after is not None:
        found = found.where(fulfilments.c.id < starting_after)
    return [_fulfilment(row) for row in await connection.execute(found)]


async def history_of(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, list[Row[Any]]]:
    """What happened to each of the fulfilments, oldest first."""
    rows = await connection.execute(
        select(history)
        .where(history.c.fulfilment_id.in_(ids))
        .order_by(history.c.at, history.c.order_version.nulls_last(), history.c.id)
    )
    found: dict[str, list[Row[Any]]] = {wanted: [] for wanted in ids}
    for row in rows:
        found[row.fulfilment_id].append(row)
    return found


async def count_open(connection: AsyncConnection) -> dict[Status, int]:
    """How many fulfilments wait for each step. What is closed is not counted: it is all of the past."""
    rows = await connection.execute(
        select(fulfilments.c.status, func.count())
        .where(fulfilments.c.status.in_(list(NEXT_STEP)))
        .group_by(fulfilments.c.status)
    )
    return {Status(status): count for status, count in rows}


def _entry(event: Event) -> str:
    return Entry.CANCELLED if event.type == ORDER_CANCELLED else Entry.RECEIVED


def _fulfilment(row: Row[Any]) -> Fulfilment:
    return Fulfilment(
        id=row.id,
        order_id=row.order_id,
        status=Status(row.status),
        recipient=row.recipient,
        lines=row.lines,
        shipping_address=row.shipping_address,
        ordered_at=row.ordered_at,
        parcel=Parcel(row.carrier, row.tracking) if row.tracking is not None else None,
    )
