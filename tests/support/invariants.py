"""What must hold at rest, asked of the databases and of the provider's own ledger: each violation is one line."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx

from services.checkout.store.reconciliation import EVERY_ORDER, ORDERS, STOCK

SERVICES = ("email", "analytics", "warehouse")

# Each query returns the offending rows, so an empty answer is the good one.
CHECKOUT = {
    "I1 stock is conserved": """
        SELECT p.sku, p.sold, p.reserved, s.sold AS lines_sold, s.held AS lines_held FROM products p
        JOIN (SELECT l.sku,
                     coalesce(sum(l.quantity) FILTER (WHERE o.status = 'completed'), 0) AS sold,
                     coalesce(sum(l.quantity) FILTER (
                         WHERE o.status IN ('pending', 'payment_unknown', 'requires_action')), 0) AS held
              FROM order_lines l JOIN orders o ON o.id = l.order_id GROUP BY l.sku) s USING (sku)
        WHERE p.sold <> s.sold OR p.reserved <> s.held OR p.available < 0
           OR p.available + p.reserved + p.sold <> p.received
    """,
    "I5 one order per key": """
        SELECT tenant_id, idempotency_key, count(*) FROM orders
        WHERE status NOT IN ('failed') GROUP BY 1, 2 HAVING count(*) > 1
    """,
    "I7 positions are dense": """
        SELECT partition, count(*), max(e.position), h.position AS head
        FROM event_log e JOIN log_head h USING (partition)
        GROUP BY partition, h.position HAVING count(*) <> max(e.position) OR max(e.position) <> h.position
    """,
    "I22 every order is final": """
        SELECT id, status FROM orders WHERE status IN ('pending', 'payment_unknown', 'requires_action')
    """,
    "I22 every refund is final": """
        SELECT id, order_id, status FROM refunds WHERE status IN ('created', 'unknown')
    """,
    "I2 refunds add up": """
        SELECT o.id, o.refunded_total, r.refunded FROM orders o JOIN (
            SELECT order_id, coalesce(sum(amount) FILTER (WHERE status = 'succeeded'), 0) AS refunded
            FROM refunds GROUP BY 1) r ON r.order_id = o.id
        WHERE o.refunded_total <> r.refunded
    """,
    "I4 what was cancelled was paid back": """
        SELECT id, total, refunded_total FROM orders WHERE status = 'cancelled' AND refunded_total <> total
    """,
    # What a running checkout compares by itself, here over everything that there is: I1, I4, I7, I23.
    **{kind: query.format(orders=EVERY_ORDER) for kind, query in ORDERS.items()},
    **STOCK,
}

PUBLISHED = {
    "I22 everything published and settled": """
        SELECT service, partition, cursor, settled, position FROM subscriptions s JOIN log_head h USING (partition)
        WHERE cursor <> position OR settled <> position
    """,
}

SERVICE = {
    "I14 nothing is left to be done": """
        SELECT event_id, state, last_error FROM deliveries WHERE state NOT IN ('done', 'ignored')
    """,
    "I8 no event is recorded twice": """
        SELECT position, count(*) FROM deliveries GROUP BY partition, position HAVING count(*) > 1
    """,
}


async def violations(env: Mapping[str, str]) -> list[str]:
    """Everything that does not hold on a platform at rest; `env` is the platform's env file."""
    databases = {name: await asyncpg.connect(_database(env, name)) for name in ("checkout", *SERVICES)}
    try:
        found = await _query_all(databases)
        found += await _money(databases["checkout"], await _ledger(env))
        found += await _deliveries(databases)
        return found + await _effects(databases)
    finally:
        for connection in databases.values():
            await connection.close()


async def violations_of_checkout(url: str, ledger: Sequence[Mapping[str, Any]]) -> list[str]:
    """Everything that does not hold in one checkout at rest; `ledger` is what the provider has of its orders."""
    connection = await asyncpg.connect(url)
    try:
        return await _queries("checkout", connection, CHECKOUT) + await _money(connection, ledger)
    finally:
        await connection.close()


async def facts(env: Mapping[str, str]) -> dict[str, Any]:
    """The counts that a reader wants to see beside an empty list of violations."""
    counts: dict[str, Any] = {}
    queries = {
        "checkout": "SELECT count(*) FROM orders WHERE status = 'completed'",
        "warehouse": "SELECT count(*) FROM fulfilments",
        "email": "SELECT count(*) FROM messages WHERE status = 'sent'",
        "analytics": "SELECT coalesce(sum(orders), 0)::bigint FROM sales_minutes",
    }
    for name, query in queries.items():
        connection = await asyncpg.connect(_database(env, name))
        counts[name] = await connection.fetchval(query)
        if name in SERVICES:
            counts[f"{name} deliveries"] = await connection.fetchval("SELECT count(*) FROM deliveries")
        await connection.close()
    ledger = await _ledger(env)
    counts["captures"] = sum(1 for item in ledger if item["captured"])
    counts["captured"] = sum(item["captured"] for item in ledger)
    return counts


async def _query_all(databases: Mapping[str, asyncpg.Connection]) -> list[str]:
    found = []
    for name, connection in databases.items():
        found += await _queries(name, connection, CHECKOUT | PUBLISHED if name == "checkout" else SERVICE)
    return found


async def _queries(name: str, connection: asyncpg.Connection, queries: Mapping[str, str]) -> list[str]:
    return [f"{name}: {rule}: {dict(row)}" for rule, query in queries.items() for row in await connection.fetch(query)]


async def _money(checkout: asyncpg.Connection, ledger: Sequence[Mapping[str, Any]]) -> list[str]:
    """I2, I3: paid if and only if captured exactly once, for the right amount; what went back is what we say."""
    found = []
    given_back: Counter[str] = Counter()
    captures: dict[str, list[Mapping[str, Any]]] = {}
    for item in ledger:
        given_back[item["order_id"]] += item["refunded"]
        if item["captured"] > item["refunded"]:
            captures.setdefault(item["order_id"], []).append(item)
    rows = await checkout.fetch("SELECT id, status, total, refunded_total, currency FROM orders")
    orders = {row["id"]: row for row in rows}
    for order_id, items in captures.items():
        order = orders.get(order_id)
        if order is None or order["status"] != "completed":
            found.append(f"I3 money without an order: {order_id}, {dict(order) if order else None}")
        elif len(items) > 1:
            found.append(f"I2 captured {len(items)} times: {order_id}")
        elif (items[0]["captured"], items[0]["currency"].upper()) != (order["total"], order["currency"]):
            found.append(f"I2 another amount: {dict(order)}, {items[0]}")
    found += [
        f"I2 {given_back[order_id]} given back: {dict(order)}"
        for order_id, order in orders.items()
        if given_back[order_id] != order["refunded_total"]
    ]
    kept = {order_id for order_id, order in orders.items() if order["total"] > order["refunded_total"]}
    paid = {order_id for order_id in kept if orders[order_id]["status"] == "completed"}
    return found + [f"I2 completed without a capture: {order_id}" for order_id in paid - captures.keys()]


async def _deliveries(databases: Mapping[str, asyncpg.Connection]) -> list[str]:
    """I8, I9: what each ledger has is exactly what the log has."""
    log = {row[0] for row in await databases["checkout"].fetch("SELECT event_id FROM event_log")}
    found = []
    for name in SERVICES:
        ledger = {row[0] for row in await databases[name].fetch("SELECT event_id FROM deliveries")}
        found += [f"I8 {name} lost {len(log - ledger)} events"] if log - ledger else []
        found += [f"I9 {name} has {len(ledger - log)} events that nobody wrote"] if ledger - log else []
    return found


async def _effects(databases: Mapping[str, asyncpg.Connection]) -> list[str]:
    """I8, I13, I21: the effects add up to the orders."""
    orders = await databases["checkout"].fetch(
        "SELECT id, total, currency FROM orders WHERE status IN ('completed', 'cancelled')"
    )
    ids = sorted(order["id"] for order in orders)
    gross: dict[str, int] = {}
    for order in orders:
        gross[order["currency"]] = gross.get(order["currency"], 0) + order["total"]
    found = []
    fulfilled = sorted(row[0] for row in await databases["warehouse"].fetch("SELECT order_id FROM fulfilments"))
    if fulfilled != ids:
        found.append(f"I21 {len(fulfilled)} fulfilments of {len(ids)} orders")
    confirmations = "SELECT order_id FROM messages WHERE kind = 'completed' AND status = 'sent'"
    mailed = sorted(row[0] for row in await databases["email"].fetch(confirmations))
    if mailed != ids:
        found.append(f"I13 {len(mailed)} confirmations sent for {len(ids)} orders")
    gross_of = "SELECT currency, sum(gross)::bigint AS gross FROM sales_minutes GROUP BY 1"
    sums = await databases["analytics"].fetch(gross_of)
    counted = {row["currency"]: row["gross"] for row in sums if row["gross"]}
    if counted != gross:
        found.append(f"I21 analytics has {json.dumps(counted)}, the orders come to {json.dumps(gross)}")
    return found


async def _ledger(env: Mapping[str, str]) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(timeout=30) as client:
        items: list[dict[str, Any]] = (await client.get(f"{env['PAYMENTS_URL']}/_sandbox/ledger")).json()["items"]
    return items


def _database(env: Mapping[str, str], name: str) -> str:
    return urlsplit(env["POSTGRES_URL"])._replace(path=f"/{name}").geturl()
