"""What must hold, asked of the databases and of the provider's own ledger: each violation is one line."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx

from deploy.orderctl.comparison import money
from deploy.orderctl.rules import CHECKOUT, Rule, broken
from deploy.orderctl.verify import CHECKOUT as CHECKOUTS
from deploy.orderctl.verify import Check, between, inside, snapshot
from services.checkout.payments.port import PaymentSeen

SERVICES = ("email", "analytics", "warehouse")
ALWAYS = {what: rule for what, rule in CHECKOUT.items() if not rule.at_rest}


async def violations(env: Mapping[str, str]) -> list[str]:
    """Everything that does not hold on a platform at rest; `env` is the platform's env file."""
    async with AsyncExitStack() as stack:
        names = (CHECKOUTS, *SERVICES)
        databases = {name: await stack.enter_async_context(snapshot(database(env, name))) for name in names}
        checks = [one async for one in inside(databases)] + [one async for one in between({}, databases)]
        found = await _money(databases[CHECKOUTS], await _ledger(env))
    return _lines(checks) + found


async def violations_of_checkout(url: str, ledger: Sequence[Mapping[str, Any]]) -> list[str]:
    """Everything that does not hold in one checkout at rest; `ledger` is what the provider has of its orders."""
    async with snapshot(url) as connection:
        return await broken_rules(connection, CHECKOUT) + await _money(connection, ledger)


async def broken_rules(connection: asyncpg.Connection, rules: Mapping[str, Rule]) -> list[str]:
    """A line for each violation."""
    return [f"{what}: {line}" for what, rule in rules.items() for line in await broken(connection, rule)]


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
        connection = await asyncpg.connect(database(env, name))
        counts[name] = await connection.fetchval(query)
        if name in SERVICES:
            counts[f"{name} deliveries"] = await connection.fetchval("SELECT count(*) FROM deliveries")
        await connection.close()
    ledger = await _ledger(env)
    counts["captures"] = sum(1 for item in ledger if item["captured"])
    counts["captured"] = sum(item["captured"] for item in ledger)
    return counts


async def figures(env: Mapping[str, str]) -> dict[str, int]:
    """Orders, deliveries, and how many of them were lost or had an effect twice."""
    databases = {name: await asyncpg.connect(database(env, name)) for name in ("checkout", *SERVICES)}
    try:
        checkout = databases["checkout"]
        log = {row[0] for row in await checkout.fetch("SELECT event_id FROM event_log")}
        counts = {"orders": await checkout.fetchval("SELECT count(*) FROM orders")}
        counts["completed"] = await checkout.fetchval("SELECT count(*) FROM orders WHERE completed_at IS NOT NULL")
        counts |= {"deliveries": len(log) * len(SERVICES), "lost": 0, "duplicates": 0}
        for name in SERVICES:
            rows = [row[0] for row in await databases[name].fetch("SELECT event_id FROM deliveries")]
            counts["lost"] += len(log - set(rows))
            counts["duplicates"] += len(rows) - len(set(rows))
        captures = Counter(item["order_id"] for item in await _ledger(env) if item["captured"])
        counts["duplicates"] += sum(count - 1 for count in captures.values())
        return counts
    finally:
        for connection in databases.values():
            await connection.close()


async def _money(checkout: asyncpg.Connection, ledger: Sequence[Mapping[str, Any]]) -> list[str]:
    return [line async for line, _ in money(checkout, _seen(ledger))]


async def _seen(ledger: Sequence[Mapping[str, Any]]) -> AsyncIterator[PaymentSeen]:
    for item in ledger:
        yield PaymentSeen(
            item["payment_intent"],
            item["order_id"],
            item["tenant"],
            item["amount"],
            item["currency"],
            item["captured"],
            item["refunded"],
            item["status"],
            datetime.fromtimestamp(item["created"], UTC),
        )


def _lines(checks: Iterable[Check]) -> list[str]:
    return [f"{one.where}: {one.what}: {line}" for one in checks for line in one.violations]


async def _ledger(env: Mapping[str, str]) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(timeout=30) as client:
        items: list[dict[str, Any]] = (await client.get(f"{env['PAYMENTS_URL']}/_sandbox/ledger")).json()["items"]
    return items


def database(env: Mapping[str, str], name: str) -> str:
    """The superuser's DSN of a service's database."""
    return urlsplit(env["POSTGRES_URL"])._replace(path=f"/{name}").geturl()
