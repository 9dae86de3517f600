"""What must hold inside each database, as statements that return one line for whatever breaks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.checkout.domain import TRANSITIONS
from services.checkout.store.reconciliation import EVERY_ORDER, ORDERS, SHOWN, STOCK

if TYPE_CHECKING:
    import asyncpg


@dataclass(frozen=True, slots=True)
class Rule:
    """`query` returns a column `line` for each violation; what is broken only `at_rest` may be work under way.

    A violation of a rule of which `shows_work` is true is nothing else: while there is one, there is no rest.
    """

    query: str
    at_rest: bool = False
    shows_work: bool = False


def _reconciled(query: str, *, at_rest: bool = False) -> Rule:
    """One of the statements with which a running checkout compares its books, over everything that there is."""
    return Rule(f"SELECT id || ': ' || why AS line FROM ({query.format(orders=EVERY_ORDER)}) AS found", at_rest)  # noqa: S608


_LEGAL = ", ".join(f"('{before}', '{after}')" for before, some in TRANSITIONS.items() for after in sorted(some))

CHECKOUT: Mapping[str, Rule] = {
    "available, reserved and sold add up to received": _reconciled(STOCK["stock_equation"]),
    "stock is reserved for open orders only": _reconciled(STOCK["stock_and_orders"]),
    "stock is sold to completed orders only": Rule(
        """
        SELECT p.sku || ': ' || p.sold || ' sold, ' || coalesce(s.sold, 0) || ' in completed orders' AS line
        FROM products p LEFT JOIN (
            SELECT l.sku, sum(l.quantity) AS sold FROM order_lines l JOIN orders o ON o.id = l.order_id
            WHERE o.status = 'completed' GROUP BY l.sku
        ) s USING (sku)
        WHERE p.sold <> coalesce(s.sold, 0)
        """
    ),
    "reservations end in time": _reconciled(STOCK["reservation_overdue"], at_rest=True),
    "one order per key": Rule(
        """
        SELECT tenant_id || ', key ' || idempotency_key || ': ' || string_agg(id, ', ') AS line FROM orders
        WHERE status <> 'failed' GROUP BY tenant_id, idempotency_key HAVING count(*) > 1
        """
    ),
    "orders take legal steps": Rule(
        f"""
        SELECT order_id || ': from ' || coalesce(from_status, 'nothing') || ' to ' || to_status || ', after '
               || coalesce(before, 'nothing') AS line
        FROM (
            SELECT order_id, from_status, to_status, lag(to_status) OVER (PARTITION BY order_id ORDER BY id) AS before
            FROM order_transitions
        ) t
        WHERE from_status IS DISTINCT FROM before
           OR from_status <> to_status AND (from_status, to_status) NOT IN ({_LEGAL}) -- a refund stays where it is
        """  # noqa: S608 - the domain's own table
    ),
    "each step has its audit row": _reconciled(ORDERS["order_and_audit"]),
    "each version of an order has its event": _reconciled(ORDERS["order_and_log"]),
    "refunds add up": Rule(
        """
        SELECT o.id || ': ' || o.refunded_total || ' refunded, its refunds come to ' || r.refunded AS line
        FROM orders o JOIN (
            SELECT order_id, coalesce(sum(amount) FILTER (WHERE status = 'succeeded'), 0) AS refunded
            FROM refunds GROUP BY 1
        ) r ON r.order_id = o.id
        WHERE o.refunded_total <> r.refunded
        """
    ),
    "what was cancelled was paid back": Rule(
        """
        SELECT id || ': ' || refunded_total || ' of ' || total AS line FROM orders
        WHERE status = 'cancelled' AND refunded_total <> total
        """
    ),
    "the log has no gap": Rule(
        """
        SELECT 'partition ' || h.partition || ': ' || count(e.position) || ' events from ' || min(e.position) || ' to '
               || max(e.position) || ', the head says ' || h.position AS line
        FROM log_head h JOIN event_log e USING (partition) GROUP BY h.partition, h.position
        HAVING count(e.position) <> max(e.position) - min(e.position) + 1 OR max(e.position) <> h.position
        """
    ),
    "subscriptions are within the log": Rule(
        """
        SELECT service || ': settled ' || settled || ', published ' || cursor || ', written ' || position AS line
        FROM subscriptions JOIN log_head USING (partition) WHERE settled > cursor OR cursor > position
        """
    ),
    "every order is final": Rule(
        """
        SELECT id || ': ' || status || ' since ' || created_at AS line FROM orders
        WHERE status IN ('pending', 'payment_unknown', 'requires_action')
        """,
        at_rest=True,
        shows_work=True,
    ),
    "every refund is final": Rule(
        """
        SELECT id || ' of ' || order_id || ': ' || status AS line FROM refunds WHERE status IN ('created', 'unknown')
        """,
        at_rest=True,
        shows_work=True,
    ),
}

PUBLISHED: Mapping[str, Rule] = {
    "everything is published and settled": Rule(
        """
        SELECT service || ', partition ' || partition || ': settled ' || settled || ', published ' || cursor
               || ', written ' || position AS line
        FROM subscriptions JOIN log_head USING (partition) WHERE cursor <> position OR settled <> position
        """,
        at_rest=True,
        shows_work=True,
    ),
}

_DELIVERIES = """
    SELECT 'event ' || event_id || ' (' || type || ' of ' || subject || ') is ' || state
           || coalesce(': ' || last_error, '') AS line
    FROM deliveries WHERE state IN ({})
"""
SERVICE: Mapping[str, Rule] = {
    "nothing is left to be done": Rule(_DELIVERIES.format("'retrying', 'waiting'"), at_rest=True, shows_work=True),
    "nothing is dead or parked": Rule(_DELIVERIES.format("'dead', 'parked'")),
}

# What only one service has.
OF: Mapping[str, Mapping[str, Rule]] = {
    "email": {
        "every mail is sent": Rule(
            """
            SELECT id || ' (' || kind || ' of ' || order_id || ') is ' || status || coalesce(': ' || last_error, '')
                   AS line
            FROM messages WHERE status IN ('queued', 'sending')
            """,
            at_rest=True,
            shows_work=True,
        ),
    },
    "analytics": {
        "the sums are those of the orders": Rule(
            """
            SELECT currency || ': ' || coalesce(s.orders, 0) || ' orders, ' || coalesce(s.gross, 0) || ' gross and '
                   || coalesce(s.refunded, 0) || ' refunded in the minutes; ' || coalesce(f.orders, 0) || ', '
                   || coalesce(f.gross, 0) || ' and ' || coalesce(f.refunded, 0) || ' in the orders' AS line
            FROM (SELECT currency, sum(orders) AS orders, sum(gross) AS gross, sum(refunded) AS refunded
                  FROM sales_minutes GROUP BY 1) s
            FULL JOIN (SELECT currency, count(*) AS orders, sum(total) AS gross, sum(refunded_total) AS refunded
                       FROM order_facts WHERE sold GROUP BY 1) f USING (currency)
            WHERE (coalesce(s.orders, 0), coalesce(s.gross, 0), coalesce(s.refunded, 0))
                  <> (coalesce(f.orders, 0), coalesce(f.gross, 0), coalesce(f.refunded, 0))
            """
        ),
    },
}


def rules_of(name: str) -> Mapping[str, Rule]:
    """The rules of a service's own database; a service that is not known here has a ledger all the same."""
    return {**CHECKOUT, **PUBLISHED} if name == "checkout" else {**SERVICE, **OF.get(name, {})}


async def broken(connection: asyncpg.Connection, rule: Rule) -> Sequence[str]:
    """A line for each violation, `SHOWN` at the most."""
    return [row["line"] for row in await connection.fetch(f"{rule.query} LIMIT {SHOWN}")]
