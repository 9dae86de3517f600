"""Refunds: what is to be given back, who works on it, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import DateTime, Integer, Row, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.checkout.domain import Order, Refund, RefundKind, RefundStatus
from services.checkout.store import orders

# Whatever writes about an order's refunds holds this lock, so that nothing is promised twice.
_LOCK_ORDER = text(
    """
    SELECT id FROM orders WHERE id = :id AND tenant_id = coalesce(:tenant, tenant_id) FOR NO KEY UPDATE
    """
).bindparams(bindparam("tenant", type_=Text))
_ACCOUNT = text(
    """
    SELECT coalesce(max(number), 0) AS last_number,
           coalesce(sum(amount) FILTER (WHERE status <> 'refused'), 0)::bigint AS promised,
           count(*) FILTER (WHERE status IN ('created', 'unknown')) AS open,
           count(*) FILTER (WHERE status IN ('created', 'unknown') AND kind = 'cancel') > 0 AS cancelling
    FROM refunds WHERE order_id = :order
    """
)
_INSERT = text(
    """
    INSERT INTO refunds (id, order_id, tenant_id, number, kind, status, provider_key, payment_reference, amount,
                         currency, reason, idempotency_key, lease_token, lease_until)
    VALUES (:id, :order, :tenant, :number, :kind, :status, :provider_key, :payment_reference, :amount,
            :currency, :reason, :idempotency_key, 1, now() + :lease_s * interval '1 second')
    ON CONFLICT (order_id, payment_reference) WHERE kind = 'late_success' DO NOTHING
    RETURNING *
    """
)
# Compare-and-set on the lease: whoever was taken over changes nothing and is told so.
_SETTLE = text(
    """
    UPDATE refunds
    SET status = :status, provider_reference = :reference, refusal = :refusal, settled_at = :settled_at,
        lease_until = now() + :again_in_s * interval '1 second'
    WHERE id = :id AND lease_token = :token AND status IN ('created', 'unknown')
    RETURNING id
    """
).bindparams(bindparam("settled_at", type_=DateTime(timezone=True)), bindparam("again_in_s", type_=Integer))
_UPDATE_ORDER = text(
    "UPDATE orders SET status = :status, version = :version, refunded_total = :refunded_total WHERE id = :id"
)
# In SKU order, like everybody, and before the update: a row that was waited for must be read anew.
_HOLD_STOCK = text(
    """
    SELECT sku FROM products WHERE sku IN (SELECT sku FROM order_lines WHERE order_id = :order)
    ORDER BY sku FOR NO KEY UPDATE
    """
)
_TAKE_BACK = text(
    """
    UPDATE products p SET available = p.available + l.quantity, sold = p.sold - l.quantity
    FROM order_lines l WHERE l.order_id = :order AND l.sku = p.sku
    """
)
_TAKE_OVER = text(
    """
    UPDATE refunds SET lease_token = lease_token + 1, recoveries = recoveries + 1,
                       lease_until = now() + :lease_s * interval '1 second'
    WHERE id IN (
        SELECT id FROM refunds
        WHERE status IN ('created', 'unknown') AND lease_until < now()
        ORDER BY lease_until LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    RETURNING *, now() - created_at AS age
    """
)
_OF_KEY = text(
    """
    SELECT * FROM refunds WHERE order_id = :order AND tenant_id = :tenant AND idempotency_key = :key
    ORDER BY number DESC LIMIT 1
    """
)
_PAGE = text(
    """
    SELECT * FROM refunds
    WHERE order_id = :order AND tenant_id = :tenant AND (CAST(:before AS text) IS NULL OR id < :before)
    ORDER BY id DESC LIMIT :limit
    """
)
_ONE = text("SELECT * FROM refunds WHERE id = :id AND order_id = :order AND tenant_id = :tenant")
_UNFINISHED = text(
    """
    SELECT kind, status, count(*) AS refunds, min(created_at) AS oldest FROM refunds
    WHERE status IN ('created', 'unknown') GROUP BY kind, status ORDER BY kind, status
    """
)


@dataclass(frozen=True, slots=True)
class Account:
    """What an order's refunds come to, in minor units; `promised` leaves out those that were refused."""

    last_number: int
    promised: int
    open: int
    cancelling: bool


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A refund whose lease ran out and now is this process's, under a new token."""

    refund: Refund
    lease_token: int
    recoveries: int
    age: timedelta  # by the database's clock, which also wrote the beginning


@dataclass(frozen=True, slots=True)
class Unfinished:
    """How many refunds of a kind are not final, and since when the oldest of them."""

    kind: str
    status: str
    count: int
    oldest: datetime


async def lock_order(connection: AsyncConnection, order_id: str, tenant: str | None = None) -> Order | None:
    """The order (of that tenant, if one is named), locked until the transaction ends: always the first lock taken."""
    locked = await connection.execute(_LOCK_ORDER, {"id": order_id, "tenant": tenant})
    if locked.one_or_none() is None:
        return None
    [order] = await orders.some(connection, [order_id])
    return order


async def account(connection: AsyncConnection, order_id: str) -> Account:
    """What was given back or is about to be. True as long as the order is locked."""
    row = (await connection.execute(_ACCOUNT, {"order": order_id})).one()
    return Account(row.last_number, row.promised, row.open, row.cancelling)


async def insert(connection: AsyncConnection, refund: Refund, lease_s: float) -> Refund | None:
    """Write the intent, as it stands then; None when the same late payment is being given back already."""
    values = {
        "id": refund.id,
        "order": refund.order_id,
        "tenant": refund.tenant,
        "number": refund.number,
        "kind": str(refund.kind),
        "status": str(refund.status),
        "provider_key": refund.provider_key,
        "payment_reference": refund.payment_reference,
        "amount": refund.amount,
        "currency": refund.currency,
        "reason": refund.reason,
        "idempotency_key": refund.idempotency_key,
        "lease_s": lease_s,
    }
    row = (await connection.execute(_INSERT, values)).one_or_none()
    return _refund(row) if row else None


async def settle(connection: AsyncConnection, refund: Refund, lease_token: int, again_in_s: float | None) -> bool:
    """Record what came of it, or when to look again; False when somebody else has taken the refund over."""
    values = {
        "id": refund.id,
        "token": lease_token,
        "status": str(refund.status),
        "reference": refund.provider_reference,
        "refusal": refund.refusal,
        "settled_at": refund.settled_at,
        "again_in_s": None if again_in_s is None else int(again_in_s),
    }
    return (await connection.execute(_SETTLE, values)).one_or_none() is not None


async def update_order(connection: AsyncConnection, order: Order) -> None:
    """Write what a refund changes about its order, which must be locked."""
    values = {
        "id": order.id,
        "status": str(order.status),
        "version": order.version,
        "refunded_total": order.refunded_total,
    }
    await connection.execute(_UPDATE_ORDER, values)


async def take_stock_back(connection: AsyncConnection, order: Order) -> None:
    """What the order had sold can be sold again."""
    await connection.execute(_HOLD_STOCK, {"order": order.id})
    await connection.execute(_TAKE_BACK, {"order": order.id})


async def take_over(connection: AsyncConnection, lease_s: float, limit: int) -> list[TakenOver]:
    """Take over open refunds whose lease has run out."""
    rows = await connection.execute(_TAKE_OVER, {"lease_s": lease_s, "limit": limit})
    return [TakenOver(_refund(row), row.lease_token, row.recoveries, row.age) for row in rows]


async def of_key(connection: AsyncConnection, tenant: str, order_id: str, key: str) -> Refund | None:
    """The newest refund that was asked for with this key."""
    row = (await connection.execute(_OF_KEY, {"tenant": tenant, "order": order_id, "key": key})).one_or_none()
    return _refund(row) if row else None


async def one(connection: AsyncConnection, tenant: str, order_id: str, refund_id: str) -> Refund | None:
    """A refund of the tenant's order."""
    row = (await connection.execute(_ONE, {"tenant": tenant, "order": order_id, "id": refund_id})).one_or_none()
    return _refund(row) if row else None


async def page(
    connection: AsyncConnection, tenant: str, order_id: str, *, limit: int, before: str | None = None
) -> list[Refund]:
    """The refunds of the tenant's order, newest first, behind the id `before`."""
    values = {"tenant": tenant, "order": order_id, "before": before, "limit": limit}
    return [_refund(row) for row in await connection.execute(_PAGE, values)]


async def unfinished(connection: AsyncConnection) -> list[Unfinished]:
    """The refunds that are not final, by kind and status."""
    return [Unfinished(row.kind, row.status, row.refunds, row.oldest) for row in await connection.execute(_UNFINISHED)]


def _refund(row: Row[Any]) -> Refund:
    return Refund(
        id=row.id,
        order_id=row.order_id,
        tenant=row.tenant_id,
        number=row.number,
        kind=RefundKind(row.kind),
        status=RefundStatus(row.status),
        payment_reference=row.payment_reference,
        amount=row.amount,
        currency=row.currency,
        created_at=row.created_at,
        reason=row.reason,
        idempotency_key=row.idempotency_key,
        provider_reference=row.provider_reference,
        refusal=row.refusal,
        settled_at=row.settled_at,
    )
