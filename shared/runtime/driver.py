"""The driver below SQLAlchemy's connections, for what the database is asked with every order.

SQLAlchemy spends 220 µs on a statement before and after the driver's 60: nothing where a page is shown, much where a
thousand statements a second carry one order each.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from shared.runtime.statements import Many, Part, Write, array_literal, over_arrays, together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sqlalchemy import Dialect, TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.types import TypeEngine

Answer = TypeVar("Answer")

_DIALECT: Dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]


class Found(asyncpg.Record):  # type: ignore[misc]  # asyncpg has no types
    """A row whose columns are attributes."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the column holds
        """The column's value."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Direct:
    """A statement that is made ready once and goes straight to the driver from then on.

    It is part of the connection's transaction like any other. What Postgres says against it comes as asyncpg's error.
    """

    def __init__(self, sql: str | TextClause, **columns: type[TypeEngine[Any]] | TypeEngine[Any]) -> None:
        """`columns` says which parameters are arrays, and of what; of the others Postgres infers the type."""
        clause = over_arrays(sql, **columns) if isinstance(sql, str) else sql
        compiled = clause.compile(dialect=_DIALECT)
        self._sql = str(compiled)
        self._parameters = [(name, isinstance(compiled.binds[name].type, Many)) for name in compiled.positiontup or ()]

    async def fetch(self, connection: AsyncConnection, values: Mapping[str, Any]) -> list[Found]:
        """Run it with a value for every parameter; returns its rows."""
        given = [_array(values[name]) if many else values[name] for name, many in self._parameters]
        rows: list[Found] = await ask(connection, lambda driver: driver.fetch(self._sql, *given, record_class=Found))
        return rows

    async def one(self, connection: AsyncConnection, values: Mapping[str, Any]) -> Found | None:
        """The first of its rows."""
        return next(iter(await self.fetch(connection, values)), None)


def _array(values: Sequence[Any] | None) -> str | None:
    return None if values is None else array_literal(values)


async def write_together(connection: AsyncConnection, writes: Sequence[Write]) -> None:
    """Run all writes in one statement."""
    if writes:
        values = {name: value for write in writes for name, value in write.values.items()}
        await _together(tuple(write.part for write in writes)).fetch(connection, values)


@lru_cache(maxsize=256)
def _together(parts: tuple[Part, ...]) -> Direct:
    return Direct(together(parts))


async def ask(connection: AsyncConnection, question: Callable[[asyncpg.Connection], Awaitable[Answer]]) -> Answer:
    """Ask the driver of an open connection. One that breaks meanwhile, or gave no answer, is used for nothing else."""
    lower = connection.sync_connection
    driver = lower.connection.driver_connection if lower else None
    if driver is None:
        raise RuntimeError("the connection is not open")
    try:
        return await question(driver)
    except BaseException as error:
        if not isinstance(error, asyncpg.PostgresError) or driver.is_closed():
            await connection.invalidate(error)
        raise
