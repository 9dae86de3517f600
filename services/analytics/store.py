from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from json.encoder import encode_basestring_ascii as quoted
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
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from services.analytics.domain import (
    Bucket,
    Changes,
    Fact,
    LineFact,
    MinuteKey,
    MinuteSums,
    Period,
    ProductKey,
    ProductSums,
)
from shared.runtime.driver import Direct, write_together
from shared.runtime.statements import Many, Part, Write, over_arrays

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
    # In the order's own row, because they are only ever written, read and replaced together with it.
    Column("lines", JSONB, nullable=False, comment="[[sku, quantity, subtotal], …]"),
    Index("order_facts_happened_at", "happened_at", "order_id"),
)

# The current minute's rows are updated by every batch: with room on the page an update touches no index.
_ROOM = {"fillfactor": "80"}

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
    unnest(:order_ids, :versions, :tenants, :statuses, :sold, :currencies, :totals, :refunded, :created,
           :completed, :lines)
    AS e (order_id, version, tenant, status, sold, currency, total, refunded_total, created_at,
          completed_at, lines)
"""
# In the order of a fact's fields.
_FACT_COLUMNS: dict[str, TypeEngine[Any]] = {
    "order_ids": Text(),
    "versions": Integer(),
    "tenants": Text(),
    "statuses": Text(),
    "sold": Boolean(),
    "currencies": Text(),
    "totals": BigInteger(),
    "refunded": BigInteger(),
    "created": Instant,
    "completed": Instant,
    "lines": Text(),
}

# Answers the orders that are known already, which are few.
_INSERT_FACTS = Direct(
    f"""
    WITH new AS (
        INSERT INTO order_facts (order_id, version, tenant, status, sold, currency, total, refunded_total,
                                 created_at, completed_at, happened_at, lines)
        SELECT e.order_id, e.version, e.tenant, e.status, e.sold, e.currency, e.total, e.refunded_total,
               e.created_at, e.completed_at, coalesce(e.completed_at, e.created_at), e.lines::jsonb
        FROM {_FACTS}
        ON CONFLICT (order_id) DO NOTHING
        RETURNING order_id
    )
    SELECT order_id FROM unnest(:order_ids) AS e (order_id) WHERE order_id NOT IN (SELECT order_id FROM new)
    """,  # noqa: S608 - a constant
    **_FACT_COLUMNS,
)

_UPDATE_FACTS = over_arrays(
    f"""
    UPDATE order_facts f
    SET version = e.version, tenant = e.tenant, status = e.status, sold = e.sold, currency = e.currency,
        total = e.total, refunded_total = e.refunded_total, created_at = e.created_at,
        completed_at = e.completed_at, happened_at = coalesce(e.completed_at, e.created_at),
        lines = e.lines::jsonb
    FROM {_FACTS}
    WHERE f.order_id = e.order_id
    """,  # noqa: S608 - a constant
    **_FACT_COLUMNS,
)

# ORDER BY: two replicas that add to the same minutes take the row locks in the same order.
_ADD_MINUTES = Part(
    "added_minutes",
    """
    INSERT INTO sales_minutes AS m (minute, currency, orders, gross, refunded, cancelled, payment_failed)
    SELECT * FROM unnest(:minutes, :currencies, :orders, :gross, :refunded, :cancelled, :payment_failed) AS e
    ORDER BY 1, 2
    ON CONFLICT (minute, currency) DO UPDATE
    SET orders = m.orders + excluded.orders, gross = m.gross + excluded.gross,
        refunded = m.refunded + excluded.refunded, cancelled = m.cancelled + excluded.cancelled,
        payment_failed = m.payment_failed + excluded.payment_failed
    """,
    minutes=Instant,
    currencies=Text,
    orders=BigInteger,
    gross=BigInteger,
    refunded=BigInteger,
    cancelled=BigInteger,
    payment_failed=BigInteger,
)

_ADD_PRODUCTS = Part(
    "added_products",
    """
    INSERT INTO product_minutes AS m (minute, currency, sku, orders, quantity, gross)
    SELECT * FROM unnest(:minutes, :currencies, :skus, :orders, :quantities, :gross) AS e
    ORDER BY 1, 2, 3
    ON CONFLICT (minute, currency, sku) DO UPDATE
    SET orders = m.orders + excluded.orders, quantity = m.quantity + excluded.quantity,
        gross = m.gross + excluded.gross
    """,
    minutes=Instant,
    currencies=Text,
    skus=Text,
    orders=BigInteger,
    quantities=BigInteger,
    gross=BigInteger,
)

# A minute that nothing counts at any more looks as if nothing ever had: the tables depend on the facts alone.
_DROP_EMPTY_MINUTES = Part(
    "dropped_minutes",
    """
    DELETE FROM sales_minutes m USING unnest(:minutes, :currencies) AS e (minute, currency)
    WHERE m.minute = e.minute AND m.currency = e.currency AND m.orders = 0 AND m.payment_failed = 0
    """,
    minutes=Instant,
    currencies=Text,
)

_DROP_EMPTY_PRODUCTS = Part(
    "dropped_products",
    """
    DELETE FROM product_minutes m USING unnest(:minutes, :currencies, :skus) AS e (minute, currency, sku)
    WHERE m.minute = e.minute AND m.currency = e.currency AND m.sku = e.sku AND m.orders = 0
    """,
    minutes=Instant,
    currencies=Text,
    skus=Text,
)

# What a period holds: its whole minutes from the roll-ups, its edges from the facts.
_SALES_IN_PERIOD = """
    SELECT minute, currency, orders, gross, refunded, cancelled, payment_failed
    FROM sales_minutes WHERE minute >= :first AND minute < :last
    UNION ALL
    SELECT date_trunc('minute', f.happened_at, 'UTC'), f.currency, f.sold::int,
           CASE WHEN f.sold THEN f.total ELSE 0 END, CASE WHEN f.sold THEN f.refunded_total ELSE 0 END,
           (f.status = 'cancelled')::int, (NOT f.sold)::int
    FROM unnest(:starts, :ends) AS edge (from_, to_)
    JOIN order_facts f ON f.happened_at >= edge.from_ AND f.happened_at < edge.to_
"""

_PRODUCTS_IN_PERIOD = """
    SELECT currency, sku, orders, quantity, gross
    FROM product_minutes WHERE minute >= :first AND minute < :last
    UNION ALL
    SELECT f.currency, line ->> 0, 1, (line ->> 1)::bigint, (line ->> 2)::bigint
    FROM unnest(:starts, :ends) AS edge (from_, to_)
    JOIN order_facts f ON f.happened_at >= edge.from_ AND f.happened_at < edge.to_ AND f.sold,
         jsonb_array_elements(f.lines) AS line
"""

_SUMMARY = over_arrays(
    f"""
    SELECT currency, sum(orders) AS orders, sum(gross) AS gross, sum(refunded) AS refunded,
           sum(cancelled) AS cancelled, sum(payment_failed) AS payment_failed
    FROM ({_SALES_IN_PERIOD}) AS counted GROUP BY currency ORDER BY currency
    """,  # noqa: S608 - a constant
    starts=Instant,
    ends=Instant,
)

_SALES = over_arrays(
    f"""
    SELECT date_trunc(:bucket, minute, 'UTC') AS start, currency, sum(orders) AS orders, sum(gross) AS gross,
           sum(refunded) AS refunded
    FROM ({_SALES_IN_PERIOD}) AS counted
    GROUP BY 1, 2 HAVING sum(orders) > 0 ORDER BY 1, 2
    """,  # noqa: S608 - a constant
    starts=Instant,
    ends=Instant,
)

_TOP_PRODUCTS = over_arrays(
    f"""
    SELECT sku, currency, sum(orders) AS orders, sum(quantity) AS quantity, sum(gross) AS gross
    FROM ({_PRODUCTS_IN_PERIOD}) AS counted
    WHERE :currency IS NULL OR currency = :currency
    GROUP BY sku, currency ORDER BY gross DESC, sku, currency LIMIT :limit
    """,  # noqa: S608 - a constant
    starts=Instant,
    ends=Instant,
).bindparams(bindparam("currency", type_=Text))


async def replace_facts(connection: AsyncConnection, facts: Sequence[Fact]) -> list[tuple[Fact | None, Fact]]:
    """Write what is new or newer (one fact per order); returns each one written with what it replaced."""
    # In key order, so that two replicas never wait for each other in a circle.
    facts = sorted(facts, key=lambda fact: fact.order_id)
    known = {row.order_id for row in await _INSERT_FACTS.fetch(connection, _columns(facts))}
    written: list[tuple[Fact | None, Fact]] = [(None, fact) for fact in facts if fact.order_id not in known]
    if known:
        written += await _update_facts(connection, [fact for fact in facts if fact.order_id in known])
    return written


async def _update_facts(connection: AsyncConnection, facts: Sequence[Fact]) -> list[tuple[Fact, Fact]]:
    known = (
        select(order_facts)
        .where(order_facts.c.order_id == bindparam("order_ids", type_=Many(Text)).any_())
        .order_by(order_facts.c.order_id)
        .with_for_update()
    )
    rows = await connection.execute(known, {"order_ids": [fact.order_id for fact in facts]})
    old = {row.order_id: _fact(row) for row in rows}
    newer = [(old[fact.order_id], fact) for fact in facts if old[fact.order_id].version < fact.version]
    if newer:
        await connection.execute(_UPDATE_FACTS, _columns([fact for _, fact in newer]))
    return newer


async def change_rollups(connection: AsyncConnection, changes: Changes) -> None:
    """Add to the roll-ups; what is empty then goes.

    In one statement, which is the same for all replicas: they take the locks of both tables in the same order.
    """
    products = {key: one for key, one in changes.products.items() if one.orders or one.quantity or one.gross}
    writes = []
    if changes.minutes:
        writes.append(_add_minutes(changes.minutes))
    if products:
        writes.append(_add_products(products))
    await write_together(connection, writes)
    emptied = []
    if any(one.orders < 0 or one.payment_failed < 0 for one in changes.minutes.values()):
        emptied.append(_DROP_EMPTY_MINUTES.write(**_keys(changes.minutes)))
    if any(one.orders < 0 for one in products.values()):
        emptied.append(_DROP_EMPTY_PRODUCTS.write(**_product_keys(products)))
    await write_together(connection, emptied)


def _add_minutes(changes: Mapping[MinuteKey, MinuteSums]) -> Write:
    sums = list(changes.values())
    return _ADD_MINUTES.write(
        **_keys(changes),
        orders=[one.orders for one in sums],
        gross=[one.gross for one in sums],
        refunded=[one.refunded for one in sums],
        cancelled=[one.cancelled for one in sums],
        payment_failed=[one.payment_failed for one in sums],
    )


def _add_products(changes: Mapping[ProductKey, ProductSums]) -> Write:
    sums = list(changes.values())
    return _ADD_PRODUCTS.write(
        **_product_keys(changes),
        orders=[one.orders for one in sums],
        quantities=[one.quantity for one in sums],
        gross=[one.gross for one in sums],
    )


def _product_keys(changes: Mapping[ProductKey, ProductSums]) -> dict[str, list[Any]]:
    return {**_keys(changes), "skus": [sku for _, _, sku in changes]}


def _keys(changes: Iterable[tuple[Any, ...]]) -> dict[str, list[Any]]:
    keys = list(changes)
    return {"minutes": [key[0] for key in keys], "currencies": [key[1] for key in keys]}


def _columns(facts: Sequence[Fact]) -> dict[str, Sequence[Any]]:
    columns = dict(zip(_FACT_COLUMNS, zip(*facts, strict=True), strict=True))
    return columns | {"lines": [_json(fact.lines) for fact in facts]}


def _json(lines: Sequence[LineFact]) -> str:
    # What json.dumps makes of it, in a third of the time.
    return f"[{','.join([f'[{quoted(line.sku)},{line.quantity},{line.subtotal}]' for line in lines])}]"


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


async def summary(connection: AsyncConnection, period: Period) -> Sequence[Row[Any]]:
    """What the period adds up to, per currency."""
    return (await connection.execute(_SUMMARY, _bounds(period))).all()


async def sales(connection: AsyncConnection, period: Period, bucket: Bucket) -> Sequence[Row[Any]]:
    """What each bucket of the period adds up to, per currency; buckets without orders are left out."""
    return (await connection.execute(_SALES, {**_bounds(period), "bucket": bucket})).all()


async def top_products(
    connection: AsyncConnection, period: Period, currency: str | None, limit: int
) -> Sequence[Row[Any]]:
    """The products that brought in most."""
    wanted = {**_bounds(period), "currency": currency, "limit": limit}
    return (await connection.execute(_TOP_PRODUCTS, wanted)).all()


async def facts_after(
    connection: AsyncConnection, period: Period, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Row[Any]]:
    """The period's next facts behind `after` (instant and order), oldest first."""
    place = tuple_(order_facts.c.happened_at, order_facts.c.order_id)
    found = select(order_facts).where(order_facts.c.happened_at >= period.start, order_facts.c.happened_at < period.end)
    if after:
        found = found.where(place > after)
    return (await connection.execute(found.order_by(*place).limit(limit))).all()


def _bounds(period: Period) -> dict[str, Any]:
    whole, edges = period.split()
    return {
        "first": whole.start,
        "last": whole.end,
        "starts": [edge.start for edge in edges],
        "ends": [edge.end for edge in edges],
    }
