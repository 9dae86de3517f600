"""The database: one engine per process, and the only place (with group commit) that commits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from typing_extensions import override

from shared.runtime.driver import ask
from shared.runtime.errors import Action, CommitUnknown, classify, sqlstate
from shared.runtime.failpoints import reach

COMMAND_TIMEOUT_S = 6.0  # one above the role's statement_timeout, so that the server answers first
CONNECT_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 0.3  # with the other two, a network that swallows everything is noticed within 10 s
POOL_TIMEOUT_S = 5.0
CONFLICT_RETRIES = 3
CONFLICTS = (
    "40001",
    "40P01",
)  # serialization_failure, deadlock_detected: nothing happened, the same again may work
PGBOUNCER = "pgbouncer"  # in the query of a URL
# Each transaction gets whichever session of Postgres is free. A statement that was prepared in one is unknown in the
# next, or its name is taken; and names would pile up there. Without a name, it is replaced by the next statement.
UNPREPARED: Mapping[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
}

Result = TypeVar("Result")


class Database:
    """A pool of connections to one Postgres database.

    Nothing is kept in a session between transactions, so PgBouncer in transaction mode may stand in between. Its URL
    ends with `?pgbouncer=true` then: statements are not prepared ahead, and each is in a transaction of its own.
    """

    def __init__(self, url: str, application_name: str, pool_size: int) -> None:
        """Prepare the pool; connections are opened when they are needed, not here."""
        self._pgbouncer = has_pgbouncer(url)
        settings = {"application_name": application_name}
        if not self._pgbouncer:
            settings["jit"] = "off"  # PgBouncer refuses settings that it does not know
        self.engine = engine_for(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_recycle=1800,
            hide_parameters=True,  # errors end up in logs; customers do not
            connect_args={
                "timeout": CONNECT_TIMEOUT_S,
                "command_timeout": COMMAND_TIMEOUT_S,
                "connection_class": _Hasty,
                "server_settings": settings,
            },
        )
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end of the block and rolls back on any exception.

        Raises `CommitUnknown` when the connection breaks while COMMIT is on its way.
        """
        async with self._autocommit.connect() as connection:
            # SQLAlchemy only has to know of it: should the connection break, it must not go on with another one.
            _ = await connection.begin()
            await ask(connection, lambda driver: driver.execute("BEGIN"))
            try:
                yield connection
            except BaseException:
                await _rollback(connection)
                raise
            await _commit(connection)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for single statements, each its own transaction: no round trips for BEGIN and COMMIT.

        Behind PgBouncer it is one transaction: between two messages of a statement outside of one, the session may be
        exchanged.
        """
        if self._pgbouncer:
            async with self.transaction() as connection:
                yield connection
            return
        async with self._autocommit.connect() as connection:
            yield connection

    async def once(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Run `work`, which must write with one statement only: it commits by itself, in the same round trip.

        Raises `CommitUnknown` when the connection breaks while the statement is on its way.
        """
        async with self.reading() as connection:
            try:
                result = await work(connection)
                await reach("C5")
                return result
            except Exception as error:
                _doubt(error)
                raise

    async def run(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Run `work` in a transaction; deadlocks and serialization failures are tried again at most three times."""
        for attempt in range(1, CONFLICT_RETRIES + 1):
            try:
                async with self.transaction() as connection:
                    return await work(connection)
            except (DBAPIError, asyncpg.PostgresError) as error:
                # Postgres undid everything and says that the same may work now: the only errors repeated here.
                if sqlstate(error) not in CONFLICTS:
                    raise
            await asyncio.sleep(random.uniform(0.005, 0.02) * 2**attempt)  # noqa: S311 - jitter
        async with self.transaction() as connection:
            return await work(connection)

    async def ping(self) -> None:
        """Raise unless the database answers a query."""
        async with self.reading() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


class _Hasty(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that says goodbye for a moment only, when it is given up: SQLAlchemy would wait for two seconds."""

    @override
    async def close(self, *, timeout: float | None = None) -> None:
        await super().close(timeout=min(timeout or CLOSE_TIMEOUT_S, CLOSE_TIMEOUT_S))


def engine_for(url: str, *, connect_args: dict[str, Any], **options: Any) -> AsyncEngine:  # noqa: ANN401 - SQLAlchemy's
    """An engine for a Postgres, or for a PgBouncer in front of it, with our driver: SQLAlchemy's default is another."""
    parsed = make_url(url).set(drivername="postgresql+asyncpg").difference_update_query([PGBOUNCER])
    unprepared = UNPREPARED if has_pgbouncer(url) else {}
    return create_async_engine(parsed, connect_args={**connect_args, **unprepared}, **options)


def has_pgbouncer(url: str) -> bool:
    """Whether the URL says that it is that of a PgBouncer in transaction mode."""
    return make_url(url).query.get(PGBOUNCER) == "true"


async def _commit(connection: AsyncConnection) -> None:
    try:
        outcome = await ask(connection, lambda driver: driver.execute("COMMIT"))
        await reach("C5")
    except Exception as error:
        _doubt(error)
        raise
    if outcome != "COMMIT":
        raise RuntimeError("Postgres rolled back: the error of a statement was passed over")


def _doubt(error: Exception) -> None:
    # A refusal by the server (a deferred constraint, say) is certain. A broken connection is not: the COMMIT may have
    # arrived. Whoever began the transaction must read back before doing anything else.
    if classify(error) is Action.RECONNECT:
        raise CommitUnknown(str(error)) from error


async def _rollback(connection: AsyncConnection) -> None:
    if connection.invalidated:
        return  # whoever broke it rolled back
    try:
        await ask(connection, lambda driver: driver.execute("ROLLBACK"))
    except Exception as error:
        # The connection that broke the transaction cannot answer ROLLBACK either; the server rolls back by itself.
        if classify(error) is Action.UNKNOWN:
            raise
