"""Orders with their lines, payments and audit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, DateTime, Integer, Row, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.checkout.domain import Line, Order, Payment, Status
from shared.runtime.statements import Part, Write


@dataclass(frozen=True, slots=True)
class Transition:
    """One audit row."""

    order_id: str
    before: Status | None
    after: Status
    version: int
    cause: str


@dataclass(frozen=True, slots=True)
class Change:
    """An order before and after a transition, with the lease under which it was worked on."""

    before: Order
    after: Order
    lease_token: int
    again_in_s: float | None = None  # an outcome that is still open is looked at again after so many seconds
    hold_s: float | None = None  # an order that comes to wait for its customer does so for this long


_INSERT_ORDERS = Part(
    "placed",
    """
    INSERT INTO orders (id, tenant_id, status, version, currency, total, customer, shipping_address, metadata,
                        idempotency_key, created_at, lease_token, lease_until, reserved_until)
    SELECT e.id, e.tenant, e.status, e.version, e.currency, e.total, e.customer::jsonb, e.address::jsonb,
           e.metadata::jsonb, e.key, e.created_at, 1, now() + :lease_s * interval '1 second',
           now() + :reservation_s * interval '1 second'
    FROM unnest(:ids, :tenants, :statuses, :versions, :currencies, :totals, :customers, :addresses, :metadatas, :keys,
                :instants)
         AS e (id, tenant, status, version, currency, total, customer, address, metadata, key, created_at)
    """,
    ids=Text,
    tenants=Text,
    statuses=Text,
    versions=Integer,
    currencies=Text,
    totals=BigInteger,
    customers=Text,
    addresses=Text,
    metadatas=Text,
    keys=Text,
    instants=DateTime(timezone=True),
)
_INSERT_LINES = Part(
    "lines",
    """
    INSERT INTO order_lines (order_id, number, sku, name, quantity, unit_price)
    SELECT * FROM unnest(:orders, :numbers, :skus, :names, :quantities, :prices)
    """,
    orders=Text,
    numbers=Integer,
    skus=Text,
    names=Text,
    quantities=BigInteger,
    prices=BigInteger,
)
_INSERT_PAYMENTS = Part(
    "intents",
    """
    INSERT INTO payments (order_id, attempt, provider_key, method, amount, currency, status)
    SELECT * FROM unnest(:orders, :attempts, :keys, :methods, :amounts, :currencies, :statuses)
    """,
    orders=Text,
    attempts=Integer,
    keys=Text,
    methods=Text,
    amounts=BigInteger,
    currencies=Text,
    statuses=Text,
)
_AUDIT = Part(
    "audit",
    """
    INSERT INTO order_transitions (order_id, from_status, to_status, version, cause)
    SELECT * FROM unnest(:orders, :befores, :afters, :versions, :causes)
    """,
    orders=Text,
    befores=Text,
    afters=Text,
    versions=Integer,
    causes=Text,
)
# Compare-and-set on state and lease: whoever was taken over, or comes second, changes nothing and is told so.
MOVE = Part(
    "moved",
    """
    UPDATE orders o
    SET status = e.after, version = e.version, completed_at = e.completed_at,
        lease_until = now() + e.again_in_s * interval '1 second',
        reserved_until = CASE
            WHEN e.after = 'requires_action' THEN coalesce(now() + e.hold_s * interval '1 second', o.reserved_until)
        END
    FROM unnest(:ids, :tokens, :befores, :afters, :versions, :completions, :agains, :holds)
         AS e (id, token, before, after, version, completed_at, again_in_s, hold_s)
    WHERE o.id = e.id AND o.lease_token = e.token AND o.status = e.before
    RETURNING o.id
    """,
    ids=Text,
    tokens=Integer,
    befores=Text,
    afters=Text,
    versions=Integer,
    completions=DateTime(timezone=True),
    agains=Integer,
    holds=Integer,
)
_UPDATE_PAYMENTS = Part(
    "payments_settled",
    """
    UPDATE payments p
    SET status = e.status, provider_reference = e.reference, decline_code = e.decline_code,
        client_secret = e.client_secret, updated_at = now()
    FROM unnest(:orders, :attempts, :statuses, :references, :declines, :secrets)
         AS e (order_id, attempt, status, reference, decline_code, client_secret)
    WHERE p.order_id = e.order_id AND p.attempt = e.attempt
    """,
    orders=Text,
    attempts=Integer,
    statuses=Text,
    references=Text,
    declines=Text,
    secrets=Text,
)
_SELECT = """
    SELECT o.*, p.attempt, p.provider_key, p.method, p.status AS payment_status, p.provider_reference,
           p.decline_code, p.client_secret,
           (SELECT json_agg(json_build_array(l.sku, l.name, l.quantity, l.unit_price) ORDER BY l.number)
            FROM order_lines l WHERE l.order_id = o.id) AS lines
    FROM orders o
    JOIN LATERAL (SELECT * FROM payments WHERE order_id = o.id ORDER BY attempt DESC LIMIT 1) p ON true
"""
_ONE = text(f"{_SELECT} WHERE o.tenant_id = :tenant AND o.id = :id")
_SOME = text(f"{_SELECT} WHERE o.id = ANY(:ids)")
_PAGE = text(
    f"""
    {_SELECT}
    WHERE o.tenant_id = :tenant AND (CAST(:before AS text) IS NULL OR o.id < :before)
      AND (CAST(:status AS text) IS NULL OR o.status = :status)
      AND (CAST(:key AS text) IS NULL OR o.idempotency_key = :key)
      AND (CAST(:since AS timestamptz) IS NULL OR o.created_at >= :since)
    ORDER BY o.id DESC LIMIT :limit
    """
).bindparams(bindparam("since", type_=DateTime(timezone=True)))
_UNFINISHED = text(
    """
    SELECT status, count(*) AS orders, min(created_at) AS oldest FROM orders
    WHERE status IN ('pending', 'payment_unknown', 'requires_action') GROUP BY status ORDER BY status
    """
)
_TAKE_OVER = text(
    """
    UPDATE orders SET lease_token = lease_token + 1, recoveries = recoveries + 1,
                      lease_until = now() + :lease_s * interval '1 second'
    WHERE id IN (
        SELECT id FROM orders
        WHERE status IN ('pending', 'payment_unknown', 'requires_action') AND lease_until < now()
        ORDER BY lease_until LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    RETURNING id, lease_token, recoveries, reserved_until - now() AS left,
              (SELECT now() - max(created_at) FROM payments WHERE order_id = orders.id) AS age
    """
)


def insert(orders: Sequence[Order], lease_s: float, reservation_s: float) -> list[Write]:
    """Insert new orders with their lines and payment intents."""
    return [
        _INSERT_ORDERS.write(
            ids=[order.id for order in orders],
            tenants=[order.tenant for order in orders],
            statuses=[str(order.status) for order in orders],
            versions=[order.version for order in orders],
            currencies=[order.currency for order in orders],
            totals=[order.total for order in orders],
            customers=[json.dumps(order.customer) for order in orders],
            addresses=[_json_or_none(order.shipping_address) for order in orders],
            metadatas=[json.dumps(order.metadata) for order in orders],
            keys=[order.idempotency_key for order in orders],
            instants=[order.created_at for order in orders],
            lease_s=lease_s,
            reservation_s=reservation_s,
        ),
        _insert_lines([(order.id, n, line) for order in orders for n, line in enumerate(order.lines, start=1)]),
        _INSERT_PAYMENTS.write(
            orders=[order.id for order in orders],
            attempts=[order.payment.attempt for order in orders],
            keys=[order.payment.provider_key for order in orders],
            methods=[order.payment.method for order in orders],
            amounts=[order.total for order in orders],
            currencies=[order.currency for order in orders],
            statuses=[order.payment.status for order in orders],
        ),
    ]


def _insert_lines(numbered: Sequence[tuple[str, int, Line]]) -> Write:
    return _INSERT_LINES.write(
        orders=[order_id for order_id, _, _ in numbered],
        numbers=[n for _, n, _ in numbered],
        skus=[line.sku for _, _, line in numbered],
        names=[line.name for _, _, line in numbered],
        quantities=[line.quantity for _, _, line in numbered],
        prices=[line.unit_price for _, _, line in numbered],
    )


def move(changes: Sequence[Change]) -> Write:
    """Make the transitions; returns the ids of the orders that were as `before` and under this lease."""
    return MOVE.write(
        ids=[change.after.id for change in changes],
        tokens=[change.lease_token for change in changes],
        befores=[str(change.before.status) for change in changes],
        afters=[str(change.after.status) for change in changes],
        versions=[change.after.version for change in changes],
        completions=[change.after.completed_at for change in changes],
        agains=[None if change.again_in_s is None else int(change.again_in_s) for change in changes],
        holds=[None if change.hold_s is None else int(change.hold_s) for change in changes],
    )


def update_payments(orders: Sequence[Order]) -> Write:
    """Write what is known of the orders' current payment attempts."""
    return _UPDATE_PAYMENTS.write(
        orders=[order.id for order in orders],
        attempts=[order.payment.attempt for order in orders],
        statuses=[order.payment.status for order in orders],
        references=[order.payment.provider_reference for order in orders],
        declines=[order.payment.decline_code for order in orders],
        secrets=[order.payment.client_secret for order in orders],
    )


def audit(transitions: Sequence[Transition]) -> Write:
    """Write one row per transition."""
    return _AUDIT.write(
        orders=[one.order_id for one in transitions],
        befores=[str(one.before) if one.before else None for one in transitions],
        afters=[str(one.after) for one in transitions],
        versions=[one.version for one in transitions],
        causes=[one.cause[:500] for one in transitions],
    )


async def one(connection: AsyncConnection, tenant: str, order_id: str) -> Order | None:
    """The tenant's order."""
    row = (await connection.execute(_ONE, {"tenant": tenant, "id": order_id})).one_or_none()
    return _order(row) if row else None


async def some(connection: AsyncConnection, ids: Sequence[str]) -> list[Order]:
    """Orders by id, of any tenant: for recovery."""
    return [_order(row) for row in await connection.execute(_SOME, {"ids": list(ids)})]


async def page(
    connection: AsyncConnection,
    tenant: str,
    *,
    limit: int,
    before: str | None = None,
    status: str | None = None,
    key: str | None = None,
    since: datetime | None = None,
) -> list[Order]:
    """The tenant's orders, newest first, behind the id `before`."""
    values = {
        "tenant": tenant,
        "before": before,
        "status": status,
        "key": key,
        "since": since,
        "limit": limit,
    }
    return [_order(row) for row in await connection.execute(_PAGE, values)]


@dataclass(frozen=True, slots=True)
class TakenOver:
    """An order whose lease ran out and now is this process's, under a new token."""

    order: Order
    lease_token: int
    recoveries: int
    age: timedelta  # since the payment intent was written, and until the reservation ends: by the database's clock
    left: timedelta | None


async def take_over(connection: AsyncConnection, lease_s: float, limit: int) -> list[TakenOver]:
    """Take over open orders whose lease has run out."""
    rows = (await connection.execute(_TAKE_OVER, {"lease_s": lease_s, "limit": limit})).all()
    found = {order.id: order for order in await some(connection, [row.id for row in rows])} if rows else {}
    return [TakenOver(found[row.id], row.lease_token, row.recoveries, row.age, row.left) for row in rows]


@dataclass(frozen=True, slots=True)
class Unfinished:
    """How many orders stand in a state that is not final, and since when the oldest of them."""

    status: str
    count: int
    oldest: datetime


async def unfinished(connection: AsyncConnection) -> list[Unfinished]:
    """The orders that are not final, by status."""
    return [Unfinished(row.status, row.orders, row.oldest) for row in await connection.execute(_UNFINISHED)]


def _order(row: Row[Any]) -> Order:
    return Order(
        id=row.id,
        tenant=row.tenant_id,
        status=Status(row.status),
        version=row.version,
        currency=row.currency,
        total=row.total,
        refunded_total=row.refunded_total,
        lines=tuple(Line(*line) for line in row.lines),
        customer=row.customer,
        shipping_address=row.shipping_address,
        metadata=row.metadata,
        idempotency_key=row.idempotency_key,
        created_at=row.created_at,
        completed_at=row.completed_at,
        payment=Payment(
            row.attempt,
            row.provider_key,
            row.method,
            row.payment_status,
            row.provider_reference,
            row.decline_code,
            row.client_secret,
        ),
    )


def _json_or_none(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value)
