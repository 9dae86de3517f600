"""The upgrade to slices: nothing is lost or taken for new, and the runtime role may not do more than before."""

import importlib
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.runtime.db import Database
from shared.runtime.migrations import check, upgrade

SERVICES = Path(importlib.import_module("services").__file__ or "").parent
NewDatabase = Callable[[], Awaitable[str]]

LOGGED = """
    INSERT INTO event_log (partition, position, event_id, type, subject, event)
    SELECT 0, n, gen_random_uuid(), 'order.completed', 'ord_' || n, '{}' FROM generate_series(1, 1000) AS n
"""
# Every tenth has an id that is not of our time, as of an entry that nobody could read.
DELIVERED = """
    INSERT INTO deliveries (event_id, partition, position, type, subject, order_version, state, attempts)
    SELECT CASE WHEN n % 10 = 0 THEN overlay(md5(n::text) placing 'f' from 1)::uuid
                ELSE (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - n), 12, '0')
                      || repeat('7', 20))::uuid END,
           0, n, 'order.completed', 'ord_' || n, 1, CASE WHEN n = 7 THEN 'dead' ELSE 'done' END, 1
    FROM generate_series(1, 1000) AS n
"""


async def test_a_log_becomes_slices_without_losing_an_event(new_database: NewDatabase) -> None:
    url = await new_database()
    migrations = SERVICES / "checkout" / "migrations"
    await upgrade(url, migrations, "0006")
    await execute(url, LOGGED, "UPDATE log_head SET position = 1000")
    before = await rows(url, "SELECT * FROM event_log ORDER BY position")

    await upgrade(url, migrations)
    await execute(url, LOGGED.replace("1, 1000", "1001, 1010"))

    assert (await rows(url, "SELECT * FROM event_log ORDER BY position"))[:1000] == before
    assert await rows(url, "SELECT count(*), max(position) FROM event_log") == [(1010, 1010)]
    assert await rows(url, "SELECT count(*) FROM ONLY event_log_rest") == [(0,)]
    await check(url, migrations)


@pytest.mark.parametrize("service", ["email", "analytics", "warehouse"])
async def test_a_ledger_becomes_slices_and_knows_what_it_knew(new_database: NewDatabase, service: str) -> None:
    url = await new_database()
    migrations = SERVICES / service / "migrations"
    await upgrade(url, migrations, "0002")
    await execute(url, DELIVERED)
    before = await rows(url, "SELECT event_id, position, state, received_at FROM deliveries ORDER BY position")

    await upgrade(url, migrations)
    known = "INSERT INTO deliveries SELECT * FROM deliveries ON CONFLICT (event_id) DO NOTHING RETURNING 1"

    assert await rows(url, known) == []
    assert await rows(url, "SELECT event_id, position, state, received_at FROM deliveries ORDER BY position") == before
    assert await rows(url, "SELECT count(*) FROM ONLY deliveries_rest") == [(100,)]
    await check(url, migrations)


async def test_a_role_that_may_only_work_with_rows_keeps_the_slices_up_and_drops_no_table(
    new_database: NewDatabase,
) -> None:
    url = await new_database()
    await upgrade(url, SERVICES / "checkout" / "migrations")
    role = f"worker_{secrets.token_hex(4)}"
    await execute(url, f"CREATE ROLE {role}", f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    await execute(
        url,
        "INSERT INTO event_log SELECT 0, n, gen_random_uuid(), '', '', '' FROM generate_series(1, 999999, 999998) AS n",
        "UPDATE log_head SET position = 1000000",
        "UPDATE subscriptions SET cursor = 1000000, settled = 1000000",
    )

    kept_up = await rows(url, f"SET LOCAL ROLE {role}", "SELECT made, dropped FROM log_upkeep(0, 1000000)")
    with pytest.raises(DBAPIError, match="must be owner"):
        await rows(url, f"SET LOCAL ROLE {role}", "DROP TABLE event_log_rest")

    assert kept_up == [(1, 1)]
    assert await rows(url, "SELECT dropped FROM log_head") == [(999_999,)]


async def execute(url: str, *statements: str) -> None:
    async def work(connection: AsyncConnection) -> None:
        for statement in statements:
            await connection.execute(text(statement))

    await _with(url, work)


async def rows(url: str, *statements: str) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []

    async def work(connection: AsyncConnection) -> None:
        for statement in statements:
            result = await connection.execute(text(statement))
            found[:] = [tuple(row) for row in result] if result.returns_rows else []

    await _with(url, work)
    return found


async def _with(url: str, work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    db = Database(url, "test", 1)
    try:
        async with db.transaction() as connection:
            await work(connection)
    finally:
        await db.close()
