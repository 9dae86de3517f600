"""What must agree with what: the statements that find whatever does not, and how far the books were compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import DateTime, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.checkout.domain import Status
from shared.runtime.statements import Many, over_arrays

SHOWN = 100  # mismatches of a kind at once: whoever has more needs no longer list
EVERY_ORDER = "orders"
_SOME_ORDERS = "(SELECT * FROM orders WHERE id >= :first AND id < :last)"

# Each statement returns what disagrees: its name, and why. `{orders}` are the orders to look at, or all of them.
ORDERS: Mapping[str, str] = {
    "order_and_log": """
        SELECT o.id, 'version ' || o.version || ', ' || e.events || ' events' AS why
        FROM {orders} o CROSS JOIN LATERAL (SELECT count(*) AS events FROM event_log WHERE subject = o.id) e
        WHERE o.version <> e.events AND o.created_at > (
            -- Older orders may have lost their first events to the log's retention.
            SELECT coalesce(max(e.created_at), '-infinity') FROM log_head h CROSS JOIN LATERAL (
                SELECT created_at FROM event_log
                WHERE partition = h.partition AND position > h.dropped ORDER BY position LIMIT 1
            ) e WHERE h.dropped > h.opened
        )
    """,
    "order_and_audit": """
        SELECT o.id, 'is ' || o.status || ', audited as ' || coalesce(t.to_status, 'nothing') AS why
        FROM {orders} o LEFT JOIN LATERAL (
            SELECT to_status FROM order_transitions WHERE order_id = o.id ORDER BY id DESC LIMIT 1
        ) t ON true
        WHERE t.to_status IS DISTINCT FROM o.status
    """,
}
STOCK: Mapping[str, str] = {
    "stock_and_orders": """
        SELECT p.sku AS id, p.reserved || ' reserved, ' || coalesce(h.held, 0) || ' in open orders' AS why
        FROM products p LEFT JOIN (
            SELECT l.sku, sum(l.quantity) AS held FROM order_lines l JOIN orders o ON o.id = l.order_id
            WHERE o.status IN ('pending', 'payment_unknown', 'requires_action') GROUP BY l.sku
        ) h USING (sku)
        WHERE p.reserved <> coalesce(h.held, 0)
    """,
    "stock_equation": """
        SELECT sku AS id, available || ' + ' || reserved || ' + ' || sold || ' of ' || received AS why FROM products
        WHERE available < 0 OR available + reserved + sold <> received
    """,
    # The recovery ends a reservation within a second, while the provider answers.
    "reservation_overdue": """
        SELECT id, status || ' since ' || created_at AS why FROM orders
        WHERE status IN ('pending', 'requires_action') AND reserved_until < now() - interval '1 minute'
    """,
}

_ACCOUNTS = text(
    """
    SELECT o.id, o.status, o.total, o.currency, o.refunded_total,
           EXISTS (
               SELECT 1 FROM refunds r WHERE r.order_id = o.id AND r.status IN ('created', 'unknown')
           ) AS refunding
    FROM orders o WHERE o.id = ANY(:ids)
    """
).bindparams(bindparam("ids", type_=Many(Text)))
_PAID = text(
    """
    SELECT id FROM orders
    WHERE id > :after AND id < :last AND status IN ('completed', 'cancelled') ORDER BY id LIMIT :limit
    """
)
_HURRY = over_arrays(
    """
    UPDATE orders SET lease_until = least(lease_until, now())
    WHERE id IN (
        SELECT id FROM orders WHERE id = ANY(:ids) AND status IN ('payment_unknown', 'requires_action')
        ORDER BY id FOR NO KEY UPDATE
    )
    """,
    ids=Text,
)
_BEGIN = text(
    """
    UPDATE reconciliation SET due_at = now() + :lease_s * interval '1 second'
    WHERE name = 'payments' AND due_at <= now() RETURNING done_until, now() AS now
    """
)
_GO_ON = text(
    """
    UPDATE reconciliation
    SET done_until = greatest(done_until, :until), due_at = now() + :again_s * interval '1 second'
    WHERE name = 'payments'
    """
).bindparams(bindparam("until", type_=DateTime(timezone=True)))


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Two books that disagree about an order or a SKU."""

    kind: str
    subject: str
    why: str


@dataclass(frozen=True, slots=True)
class Account:
    """What checkout believes of an order's money."""

    order_id: str
    status: Status
    total: int
    currency: str
    refunded_total: int
    refunding: bool  # a refund is under way


@dataclass(frozen=True, slots=True)
class Turn:
    """One process' turn to compare: what was compared before, and what time it is."""

    done_until: datetime
    now: datetime


async def begin(connection: AsyncConnection, lease: timedelta) -> Turn | None:
    """Take the turn for as long as `lease`; None when it is not due, or somebody else has it."""
    row = (await connection.execute(_BEGIN, {"lease_s": lease.total_seconds()})).one_or_none()
    return Turn(row.done_until, row.now) if row else None


async def go_on(connection: AsyncConnection, until: datetime, again: timedelta) -> None:
    """Everything before `until` is compared; the next turn is due in `again`."""
    await connection.execute(_GO_ON, {"until": until, "again_s": again.total_seconds()})


async def in_orders(connection: AsyncConnection, first: str, last: str) -> list[Mismatch]:
    """What disagrees about the orders from the id `first` to before `last`."""
    found = []
    for kind, statement in ORDERS.items():
        sql = text(f"{statement.format(orders=_SOME_ORDERS)} LIMIT {SHOWN}")
        rows = await connection.execute(sql, {"first": first, "last": last})
        found += [Mismatch(kind, row.id, row.why) for row in rows]
    return found


async def in_stock(connection: AsyncConnection) -> list[Mismatch]:
    """What disagrees about stock and reservations."""
    found = []
    for kind, statement in STOCK.items():
        found += [Mismatch(kind, *row) for row in await connection.execute(text(f"{statement} LIMIT {SHOWN}"))]
    return found


async def accounts(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, Account]:
    """The accounts of the orders that there are."""
    rows = await connection.execute(_ACCOUNTS, {"ids": list(ids)})
    return {row.id: Account(row.id, Status(row.status), *row[2:]) for row in rows}


async def paid(connection: AsyncConnection, after: str, last: str, limit: int) -> list[str]:
    """The ids of paid orders behind `after` and before `last`, in order."""
    values = {"after": after, "last": last, "limit": limit}
    return list((await connection.execute(_PAID, values)).scalars())


async def hurry(connection: AsyncConnection, ids: Sequence[str]) -> None:
    """Let the recovery look at these orders now, if they wait for anything."""
    await connection.execute(_HURRY, {"ids": list(ids)})
