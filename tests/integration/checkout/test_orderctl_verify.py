"""`orderctl verify`: says that everything holds, or in a line each what does not, and changes nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from deploy.orderctl.verify import Report, look
from services.analytics import app as analytics_app
from shared.runtime.migrations import upgrade
from tests.integration.checkout.conftest import running, settings_for
from tests.integration.checkout.test_orderctl_keys import orderctl
from tests.integration.sandboxes.programs import SECRET_KEY, payments_program, running_payments
from tests.support.pgbouncer import direct
from tests.support.servers import NewDatabase

# What somebody does to the rows by hand, what is said of it, and how it is put right again.
SPOILT: Mapping[str, tuple[str, str, str]] = {
    "stock that nobody bought": (
        "UPDATE products SET sold = sold + 5, received = received + 5 WHERE sku = 'SKU-0009'",
        "stock is sold to completed orders only: SKU-0009: 5 sold, 0 in completed orders",
        "UPDATE products SET sold = sold - 5, received = received - 5 WHERE sku = 'SKU-0009'",
    ),
    "stock that nobody waits for": (
        "UPDATE products SET reserved = 2, received = received + 2 WHERE sku = 'SKU-0009'",
        "stock is reserved for open orders only: SKU-0009: 2 reserved, 0 in open orders",
        "UPDATE products SET reserved = 0, received = received - 2 WHERE sku = 'SKU-0009'",
    ),
    "two orders of one key": (
        'INSERT INTO orders SELECT (jsonb_populate_record(o, \'{"id": "ord_twin"}\')).* FROM orders o LIMIT 1',
        "one order per key: demo, key ",
        "DELETE FROM orders WHERE id = 'ord_twin'",
    ),
    "a step that there is not": (
        "UPDATE order_transitions SET from_status = 'failed' WHERE from_status = 'pending'",
        "orders take legal steps: ord_",
        "UPDATE order_transitions SET from_status = 'pending' WHERE from_status = 'failed'",
    ),
    "an order that was changed without a step": (
        "UPDATE order_transitions SET to_status = 'pending' WHERE to_status = 'completed'",
        "each step has its audit row: ord_",
        "UPDATE order_transitions SET to_status = 'completed' WHERE to_status = 'pending' AND from_status IS NOT NULL",
    ),
    "an event that was taken out of the log": (
        "UPDATE event_log SET position = position + 100 WHERE position = 2",
        "the log has no gap: partition 0: 3 events from 1 to 102, the head says 3",
        "UPDATE event_log SET position = 2 WHERE position = 102",
    ),
    "an order that was refunded by hand": (
        "UPDATE orders SET refunded_total = 1 WHERE status = 'completed'",
        "what was paid was sold or given back: ord_",
        "UPDATE orders SET refunded_total = 0 WHERE status = 'completed'",
    ),
    "a payment that never was": (
        'INSERT INTO orders SELECT (jsonb_populate_record(o, \'{"id": "ord_twin"}\')).* FROM orders o LIMIT 1',
        "what was sold was paid once: ord_twin: it is completed, and nothing was captured",
        "DELETE FROM orders WHERE id = 'ord_twin'",
    ),
}
LEDGER: Mapping[str, tuple[str, str]] = {
    "an event that the ledger lost": (
        "DELETE FROM deliveries WHERE position = 2",
        "at 2 counts as settled and is not in the ledger: it was lost",
    ),
    "an event that nobody wrote": (
        f"UPDATE deliveries SET event_id = '{uuid4()}' WHERE position = 2",
        "is ignored at 2, where the log has another or none",
    ),
    "an event that is dead": (
        "UPDATE deliveries SET state = 'dead', last_error = 'no such thing' WHERE position = 2",
        "is dead: no such thing",
    ),
    "an order that was not counted": (
        "TRUNCATE order_facts, sales_minutes",
        "each order has its effect once: ord_",
    ),
}


@dataclass
class Books:
    """A checkout that has stopped after three orders, an analytics that has counted them, and who took the money."""

    checkout: str
    analytics: str
    provider: Mapping[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """As `look` reads it."""
        return {**self.provider, "ANALYTICS_DATABASE_URL": self.analytics}


@pytest_asyncio.fixture(scope="module")
async def books(
    checkout_database: str, redis_url: str, new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Books]:
    folder = tmp_path_factory.mktemp("payments")
    program = payments_program(folder)
    async with running_payments(program, folder) as payments:
        async with running(settings_for(checkout_database, redis_url, program.url), payments) as shop:
            assert [(await shop.order()).status_code for _ in range(3)] == [201, 201, 201]
        analytics = await new_database()
        await upgrade(analytics, Path(analytics_app.__file__).parent / "migrations")
        async with rows(checkout_database) as checkout, rows(analytics) as theirs:
            await checkout.execute("DELETE FROM subscriptions WHERE service <> 'analytics'")
            await settle(checkout)
            await copy(checkout, theirs)
        provider = {"CHECKOUT_PAYMENTS_URL": program.url, "CHECKOUT_PAYMENTS_SECRET_KEY": SECRET_KEY}
        yield Books(checkout_database, analytics, provider)
    await program.end(signal.SIGTERM)


async def test_everything_holds_and_what_was_not_looked_at_is_named(books: Books) -> None:
    whole = await look(books.checkout, books.environment, at_rest=False)
    half = await look(books.checkout, {}, at_rest=False)

    assert whole.violations == []
    assert [one for one in whole.checks if one.left_out] == []
    assert used(whole) == {"ignored": 3}
    assert half.violations == []
    assert {one.left_out for one in half.checks} == {
        "",
        "ANALYTICS_DATABASE_URL is not set",
        "CHECKOUT_PAYMENTS_URL or CHECKOUT_PAYMENTS_SECRET_KEY is not set",
    }


@pytest.mark.parametrize("what", SPOILT)
async def test_whatever_is_changed_by_hand_in_checkout_is_found(books: Books, what: str) -> None:
    spoil, said, repair = SPOILT[what]
    async with rows(books.checkout) as checkout:
        await checkout.execute(spoil)

        found = await look(books.checkout, books.provider, at_rest=True)

        await checkout.execute(repair)
    assert any(said in line for line in found.violations), found.violations
    assert (await look(books.checkout, books.provider, at_rest=True)).violations == []


@pytest.mark.parametrize("what", LEDGER)
async def test_whatever_a_service_lost_or_made_up_is_found(books: Books, what: str) -> None:
    spoil, said = LEDGER[what]
    async with rows(books.checkout) as checkout, rows(books.analytics) as theirs:
        await theirs.execute(spoil)

        found = await look(books.checkout, books.environment, at_rest=False)

        await copy(checkout, theirs)
    assert any(said in line for line in found.violations), found.violations


async def test_what_needs_rest_is_left_out_while_work_is_under_way(books: Books) -> None:
    async with rows(books.checkout) as checkout, rows(books.analytics) as theirs:
        await checkout.execute("UPDATE subscriptions SET settled = 1, cursor = 2")
        await theirs.execute("DELETE FROM deliveries WHERE position > 1; TRUNCATE order_facts, sales_minutes")

        busy = await look(books.checkout, books.environment, at_rest=False)
        insisting = await look(books.checkout, books.environment, at_rest=True)

        await settle(checkout)
        await copy(checkout, theirs)
    assert busy.violations == []
    reasons = {one.what: one.left_out for one in busy.checks if one.at_rest}
    assert "checkout: analytics, partition 0: settled 1" in reasons["each order has its effect once"]
    assert used(busy) == {"ignored": 1, "in the stream": 1, "in the log": 1}
    assert any("everything is published and settled" in line for line in insisting.violations)


async def test_people_and_scripts_get_a_table_a_line_for_each_violation_and_an_exit_code(books: Books) -> None:
    held, nobody = await asyncio.gather(
        orderctl(books.checkout, "verify", "--json"), orderctl("postgresql://127.0.0.1:1/none", "verify")
    )
    async with rows(books.checkout) as checkout:
        await checkout.execute(SPOILT["stock that nobody bought"][0])

        broken = await orderctl(books.checkout, "verify")

        await checkout.execute(SPOILT["stock that nobody bought"][2])

    assert held.json["violations"] == []
    assert (broken.code, broken.err) == (1, "")
    [violation] = [line for line in broken.out.splitlines() if line.startswith("Violation: ")]
    assert violation.startswith("Violation: checkout: stock is sold to completed orders only: SKU-0009: 5 sold")
    assert "Left out: ANALYTICS_DATABASE_URL is not set" in broken.out
    assert (nobody.code, nobody.out) == (69, "")
    assert nobody.err.startswith("orderctl: a database cannot be used")


def used(report: Report) -> dict[str, int]:
    """Where analytics' events are."""
    return {place: count for place, count in report.places["analytics"].items() if count}


async def settle(checkout: asyncpg.Connection) -> None:
    """Everything is published and settled."""
    await checkout.execute("UPDATE subscriptions s SET settled = h.position, cursor = h.position FROM log_head h")


async def copy(checkout: asyncpg.Connection, theirs: asyncpg.Connection) -> None:
    """The ledger and the facts as they have to be."""
    await theirs.execute("TRUNCATE deliveries, order_facts, sales_minutes")
    for row in await checkout.fetch("SELECT position, event_id, type, subject FROM event_log"):
        await theirs.execute(
            "INSERT INTO deliveries (partition, position, event_id, type, subject, order_version, state, attempts)"
            "VALUES (0, $1, $2, $3, $4, 1, 'ignored', 1)",
            *row,
        )
    for row in await checkout.fetch("SELECT id, tenant_id, currency, total, created_at FROM orders WHERE version > 0"):
        await theirs.execute(
            "INSERT INTO order_facts (order_id, version, tenant, status, sold, currency, total, refunded_total,"
            " created_at, happened_at, lines) VALUES ($1, 1, $2, 'completed', true, $3, $4, 0, $5, $5, '[]')",
            *row,
        )
    await theirs.execute(
        "INSERT INTO sales_minutes SELECT date_trunc('minute', happened_at, 'UTC'), currency, count(*), sum(total),"
        " 0, 0, 0 FROM order_facts GROUP BY 1, 2"
    )


@asynccontextmanager
async def rows(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that may change things."""
    connection = await asyncpg.connect(direct(urlsplit(url)._replace(scheme="postgresql").geturl()))
    try:
        yield connection
    finally:
        await connection.close()
