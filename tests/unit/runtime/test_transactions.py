"""A transaction is all or nothing, whichever way its statements go to the server, and whatever breaks in between."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from sqlalchemy import Text, text
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.runtime.db import Database
from shared.runtime.driver import Direct
from shared.runtime.errors import Action, classify
from tests.support.pgbouncer import direct
from tests.support.proxy import proxy_to

Run = Callable[[AsyncConnection, str], Awaitable[object]]

ADD = Direct("INSERT INTO names SELECT unnest(:names) RETURNING name", names=Text)
DIE = "SELECT pg_terminate_backend(pg_backend_pid())"


async def _by_sqlalchemy(connection: AsyncConnection, sql: str) -> None:
    await connection.execute(text(sql))


async def _directly(connection: AsyncConnection, sql: str) -> None:
    await Direct(sql).fetch(connection, {})


WAYS = (_by_sqlalchemy, _directly)


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """One connection at the most, so that what a test leaves behind is what its next transaction gets."""
    db = Database(database_url, "test-transactions", 1)
    async with db.transaction() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS names"))
        await connection.execute(text("CREATE TABLE names (name TEXT PRIMARY KEY)"))
    yield db
    await db.close()


async def names(db: Database) -> list[str]:
    async with db.reading() as connection:
        return list((await connection.execute(text("SELECT name FROM names ORDER BY name"))).scalars())


async def test_statements_of_both_ways_see_each_other_and_commit_together(db: Database) -> None:
    async with db.transaction() as connection:
        await connection.execute(text("INSERT INTO names VALUES ('from above')"))
        added = await ADD.fetch(connection, {"names": ["straight", "to the driver"]})
        seen = (await connection.execute(text("SELECT count(*) FROM names"))).scalar_one()

    assert [row.name for row in added] == ["straight", "to the driver"]
    assert seen == len(await names(db)) == 3


async def test_an_error_undoes_both(db: Database) -> None:
    async def work(connection: AsyncConnection) -> None:
        await connection.execute(text("INSERT INTO names VALUES ('from above')"))
        await ADD.fetch(connection, {"names": ["straight"]})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await db.run(work)

    assert await names(db) == []


@pytest.mark.parametrize("run", WAYS)
async def test_an_error_that_the_work_passes_over_is_not_taken_for_success(db: Database, run: Run) -> None:
    """Postgres answers COMMIT with ROLLBACK then, which the driver reports as nothing special."""

    async def work(connection: AsyncConnection) -> None:
        await ADD.fetch(connection, {"names": ["first"]})
        with suppress(Exception):
            await run(connection, "SELECT 1 / 0")

    with pytest.raises(RuntimeError, match="passed over"):
        await db.run(work)

    assert await names(db) == []


@pytest.mark.parametrize("then", WAYS)
@pytest.mark.parametrize("broken_by", WAYS)
async def test_work_that_goes_on_after_its_connection_broke_writes_nothing(
    db: Database, broken_by: Run, then: Run
) -> None:
    """On a connection of its own, what follows would be committed without what came before."""

    async def work(connection: AsyncConnection) -> None:
        await ADD.fetch(connection, {"names": ["before"]})
        with suppress(Exception):
            await broken_by(connection, DIE)
        await then(connection, "INSERT INTO names VALUES ('after')")

    with pytest.raises(PendingRollbackError):
        await db.run(work)

    assert await names(db) == []


@pytest.mark.parametrize("run", WAYS)
async def test_a_connection_that_broke_is_not_given_to_the_next(db: Database, run: Run) -> None:
    for opened in (db.transaction, db.reading):
        with pytest.raises(Exception, match="terminat"):
            async with opened() as connection:
                await run(connection, DIE)

        assert await names(db) == []


@pytest.mark.parametrize("run", WAYS)
async def test_a_cancelled_statement_leaves_nothing_to_the_next(db: Database, run: Run) -> None:
    async def write_and_sleep() -> None:
        async with db.transaction() as connection:
            await ADD.fetch(connection, {"names": ["cancelled"]})
            begun.set()
            await run(connection, "SELECT pg_sleep(30)")

    begun = asyncio.Event()
    task = asyncio.create_task(write_and_sleep())
    await begun.wait()
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with db.transaction() as connection:
        await ADD.fetch(connection, {"names": ["next"]})
    assert await names(db) == ["next"]


# SQLSTATE 57P01 in the words of the protocol: https://www.postgresql.org/docs/current/protocol-message-formats.html
GOODBYE_FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mthe pooler was told to let go of everybody\0\0"
GOODBYE = b"E" + (4 + len(GOODBYE_FIELDS)).to_bytes(4) + GOODBYE_FIELDS


@pytest.mark.parametrize("begun", [False, True])
async def test_a_goodbye_that_comes_while_nobody_asks_is_a_lost_connection(database_url: str, begun: bool) -> None:
    """The driver has read it, but does not know yet that the connection is closed, and refuses the next question."""
    address = urlsplit(direct(database_url))
    async with proxy_to(address.hostname or "", address.port or 0) as proxy:
        netloc = f"{address.username}:{address.password}@127.0.0.1:{proxy.port}"
        db = Database(address._replace(netloc=netloc).geturl(), "test-transactions", 1)
        await db.ping()
        proxy.say(GOODBYE)
        await asyncio.sleep(0.1)

        with pytest.raises(Exception, match="another operation") as refused:
            await (db.run(nothing) if begun else db.ping())
        proxy.reset()
        await asyncio.sleep(0.1)

        assert classify(refused.value) is Action.RECONNECT
        await db.ping()
        await db.close()


async def nothing(_: AsyncConnection) -> None:
    pass
