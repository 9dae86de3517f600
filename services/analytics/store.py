from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    bindparam,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from services.analytics.domain import (
    Bucket,
    Fact,
    LineFact,
    MinuteKey,
    MinuteSums,
    Period,
    ProductKey,
    ProductSums,
)

Instant = DateTime(timezone=True)

tables = MetaData()

order_facts = Table(
    "order_facts",
    tables,
    Column("order_id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("sold", Boolean, nullable=False),
    Column("currency", Text, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("refunded_total", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("completed_at", Instant),
    Column("happened_at", Instant, nullable=False, comment="completed_at, or created_at without it"),
    # In the order's own row, because they are only ever read and replaced with it: a table of lines halves the rate.
    Column("lines", JSONB, nullable=False, comment="[[sku, quantity, subtotal], …]"),
    Index("order_facts_happened_at", "happened_at", "order_id"),
)

# The current minute's rows are updated by every batch: with room on the page an update touches no index.
_ROOM = {"fillfactor": "50"}

sales_minutes = Table(
    "sales_minutes",
    tables,
    Column("minute", Instant, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("orders", BigInteger, nullable=False),
    Column("gross", BigInteger, nullable=False),
    Column("refunded", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
    Column("payment_failed", BigInteger, nullable=False),
    postgresql_with=_ROOM,
)

product_minutes = Table(
    "product_minutes",
    tables,
    Column("minute", Instant, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("sku", Text, primary_key=True),
    Column("orders", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("gross", BigInteger, nullable=False),
    postgresql_with=_ROOM,
)

_FACTS = """
    unnest(:order_ids, :versions, :tenants, :statuses, :sold, :currencies, :totals, :refunded, :created, :completed,
           :lines)
    AS e (order_id, version, tenant, status, sold, currency, total, refunded_total, created_at, completed_at, lines)
"""
_FACT_PARAMETERS = (
    bindparam("order_ids", type_=ARRAY(Text)),
    bindparam("versions", type_=ARRAY(Integer)),
    bindparam("tenants", type_=ARRAY(Text)),
    bindparam("statuses", type_=ARRAY(Text)),
    bindparam("sold", type_=ARRAY(Boolean)),
    bindparam("currencies", type_=ARRAY(Text)),
    bindparam("totals", type_=ARRAY(BigInteger)),
    bindparam("refunded", type_=ARRAY(BigInteger)),
    bindparam("created", type_=ARRAY(Instant)),
    bindparam("completed", type_=ARRAY(Instant)),
    bindparam("lines", type_=ARRAY(Text)),
)

_INSERT_FACTS = text(
    f"""
    INSERT INTO order_facts (order_id, version, tenant, status, sold, currency, total, refunded_total, created_at,
                             completed_at, happened_at, lines)
    SELECT e.order_id, e.version, e.tenant, e.status, e.sold, e.currency, e.total, e.refunded_total, e.created_at,
           e.completed_at, coalesce(e.completed_at, e.created_at), e.lines::jsonb
    FROM {_FACTS}
    ON CONFLICT (order_id) DO NOTHING
    RETURNING order_id
    """  # noqa: S608 - a constant
).bindparams(*_FACT_PARAMETERS)

_UPDATE_FACTS = text(
    f"""
    UPDATE order_facts f
    SET version = e.version, tenant = e.tenant, status = e.status, sold = e.sold, currency = e.currency,
        total = e.total, refunded_total = e.refunded_total, created_at = e.created_at,
        completed_at = e.completed_at, happened_at = coalesce(e.completed_at, e.created_at), lines = e.lines::jsonb
    FROM {_FACTS}
    WHERE f.order_id = e.order_id
    """  # noqa: S608 - a constant
).bindparams(*_FACT_PARAMETERS)

_MINUTES = (bindparam("minutes", type_=ARRAY(Instant)), bindparam("currencies", type_=ARRAY(Text)))

# ORDER BY: two replicas that add to the same minutes take the row locks in the same order.
_ADD_MINUTES = text(
    """
    INSERT INTO sales_minutes AS m (minute, currency, orders, gross, refunded, cancelled, payment_failed)
    SELECT * FROM unnest(:minutes, :currencies, :orders, :gross, :refunded, :cancelled, :payment_failed) AS e
    ORDER BY 1, 2
    ON CONFLICT (minute, currency) DO UPDATE
    SET orders = m.orders + excluded.orders, gross = m.gross + excluded.gross,
        refunded = m.refunded + excluded.refunded, cancelled = m.cancelled + excluded.cancelled,
        payment_failed = m.payment_failed + excluded.payment_failed
    """
).bindparams(
    *_MINUTES,
    bindparam("orders", type_=ARRAY(BigInteger)),
    bindparam("gross", type_=ARRAY(BigInteger)),
    bindparam("refunded", type_=ARRAY(BigInteger)),
    bindparam("cancelled", type_=ARRAY(BigInteger)),
    bindparam("payment_failed", type_=ARRAY(BigInteger)),
)

_ADD_PRODUCTS = text(
    """
    INSERT INTO product_minutes AS m (minute, currency, sku, orders, quantity, gross)
    SELECT * FROM unnest(:minutes, :currencies, :skus, :orders, :quantities, :gross) AS e
    ORDER BY 1, 2, 3
    ON CONFLICT (minute, currency, sku) DO UPDATE
    SET orders = m.orders + excluded.orders, quantity = m.quantity + excluded.quantity,
        gross = m.gross + excluded.gross
    """
).bindparams(
    *_MINUTES,
    bindparam("skus", type_=ARRAY(Text)),
    bindparam("orders", type_=ARRAY(BigInteger)),
    bindparam("quantities", type_=ARRAY(BigInteger)),
    bindparam("gross", type_=ARRAY(BigInteger)),
)

# A minute that nothing counts at any more looks as if nothing ever had: the tables depend on the facts alone.
_DROP_EMPTY_MINUTES = text(
    """
    DELETE FROM sales_minutes m USING unnest(:minutes, :currencies) AS e (minute, currency)
    WHERE m.minute = e.minute AND m.currency = e.currency AND m.orders = 0 AND m.payment_failed = 0
    """
).bindparams(*_MINUTES)

_DROP_EMPTY_PRODUCTS = text(
    """
    DELETE FROM product_minutes m USING unnest(:minutes, :currencies, :skus) AS e (minute, currency, sku)
    WHERE m.minute = e.minute AND m.currency = e.currency AND m.sku = e.sku AND m.orders = 0
    """
).bindparams(*_MINUTES, bindparam("skus", type_=ARRAY(Text)))


async def replace_facts(
    connection: AsyncConnection, facts: Sequence[Fact]
) -> list[tuple[Fact | None, Fact]]:
    """Write what is new or newer (one fact per order); returns each fact written with the one that it replaced."""
    # In key order, so that two replicas never wait for each other in a circle.
    facts = sorted(facts, key=lambda fact: fact.order_id)
    inserted = set((await connection.execute(_INSERT_FACTS, _columns(facts))).scalars())
    written: list[tuple[Fact | None, Fact]] = [(None, fact) for fact in facts if fact.order_id in inserted]
    if len(written) < len(facts):
        written += await _update_facts(connection, [fact for fact in facts if fact.order_id not in inserted])
    return written


async def _update_facts(connection: AsyncConnection, facts: Sequence[Fact]) -> list[tuple[Fact, Fact]]:
    known = (
        select(order_facts)
        .where(order_facts.c.order_id == bindparam("order_ids", type_=ARRAY(Text)).any_())
        .order_by(order_facts.c.order_id)
        .with_for_update()
    )
    rows = await connection.execute(known, {"order_ids": [fact.order_id for fact in facts]})
    old = {row.order_id: _fact(row) for row in rows}
    newer = [(old[fact.order_id], fact) for fact in facts if old[fact.order_id].version < fact.version]
    if newer:
        await connection.execute(_UPDATE_FACTS, _columns([fact for _, fact in newer]))
    return newer


async def change_minutes(connection: AsyncConnection, changes: Mapping[MinuteKey, MinuteSums]) -> None:
    """Add to the roll-ups by currency."""
    if not changes:
        return
    sums = list(changes.values())
    keys = _keys(changes)
    await connection.execute(
        _ADD_MINUTES,
        {
            **keys,
            "orders": [one.orders for one in sums],
            "gross": [one.gross for one in sums],
            "refunded": [one.refunded for one in sums],
            "cancelled": [one.cancelled for one in sums],
            "payment_failed": [one.payment_failed for one in sums],
        },
    )
    if any(one.orders < 0 or one.payment_failed < 0 for one in sums):
        await connection.execute(_DROP_EMPTY_MINUTES, keys)


async def change_products(connection: AsyncConnection, changes: Mapping[ProductKey, ProductSums]) -> None:
    """Add to the roll-ups by product."""
    moved = {key: one for key, one in changes.items() if one.orders or one.quantity or one.gross}
    if not moved:
        return
    sums = list(moved.values())
    keys = {**_keys(moved), "skus": [sku for _, _, sku in moved]}
    await connection.execute(
        _ADD_PRODUCTS,
        {
            **keys,
            "orders": [one.orders for one in sums],
            "quantities": [one.quantity for one in sums],
            "gross": [one.gross for one in sums],
        },
    )
    if any(one.orders < 0 for one in sums):
        await connection.execute(_DROP_EMPTY_PRODUCTS, keys)


def _keys(changes: Iterable[tuple[Any, ...]]) -> dict[str, list[Any]]:
    keys = list(changes)
    return {"minutes": [key[0] for key in keys], "currencies": [key[1] for key in keys]}


def _columns(facts: Sequence[Fact]) -> dict[str, list[Any]]:
    return {
        "order_ids": [fact.order_id for fact in facts],
        "versions": [fact.version for fact in facts],
        "tenants": [fact.tenant for fact in facts],
        "statuses": [fact.status for fact in facts],
        "sold": [fact.sold for fact in facts],
        "currencies": [fact.currency for fact in facts],
        "totals": [fact.total for fact in facts],
        "refunded": [fact.refunded_total for fact in facts],
        "created": [fact.created_at for fact in facts],
        "completed": [fact.completed_at for fact in facts],
        "lines": [json.dumps(fact.lines) for fact in facts],
    }


def _fact(row: Row[Any]) -> Fact:
    return Fact(
        order_id=row.order_id,
        version=row.version,
        tenant=row.tenant,
        status=row.status,
        sold=row.sold,
        currency=row.currency,
        total=row.total,
        refunded_total=row.refunded_total,
        created_at=row.created_at,
        completed_at=row.completed_at,
        lines=tuple(LineFact(*line) for line in row.lines),
    )
