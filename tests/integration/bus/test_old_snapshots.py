"""A transaction that stays open, as a backup's does: nothing that dies meanwhile can be cleared away.

The rows that every pass moves, head and cursor, then have ten thousands of dead versions, and whoever looks for the
living one passes all of them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from time import monotonic

import asyncpg
import pytest

from tests.integration.bus.conftest import World, event

EVENTS_PER_S = 100
PASS_S = 0.05
TRIES = 15
# By its place, not by its key: else making the versions would take as long as we fear that finding one takes.
AGE = """
    DO $$
    DECLARE place tid;
    BEGIN
        SELECT ctid INTO place FROM {table} LIMIT 1;
        FOR n IN 1..{versions} LOOP
            UPDATE {table} SET {column} = {column} WHERE ctid = place RETURNING ctid INTO place;
        END LOOP;
    END $$
"""


@pytest.mark.parametrize("minutes", [5, pytest.param(30, marks=pytest.mark.slow)])
async def test_the_dead_versions_of_minutes_leave_a_pass_below_50_ms(world: World, minutes: int) -> None:
    relay = world.relay()
    await world.append(event())
    await relay.run_once()

    async with old_snapshot(world) as driver:
        for table, column in (("log_head", "position"), ("subscriptions", "cursor")):
            age = AGE.format(table=table, column=column, versions=minutes * 60 * EVENTS_PER_S)
            await driver.execute(age, timeout=200)
        took = []
        for _ in range(TRIES):
            await world.append(event())
            relay.wake()
            began = monotonic()
            assert await relay.run_once() == 1
            took.append(monotonic() - began)

    assert median(took) < PASS_S


@asynccontextmanager
async def old_snapshot(world: World) -> AsyncIterator[asyncpg.Connection]:
    """A connection without limits of time, while another one holds a snapshot of now."""
    url = world.db.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    backup, driver = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        async with backup.transaction(isolation="repeatable_read", readonly=True):
            await backup.execute("SELECT 1")
            await driver.execute("SET synchronous_commit = off; SET statement_timeout = 0")
            yield driver
    finally:
        await driver.close()
        await backup.close()
