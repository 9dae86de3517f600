"""Migrations: one alembic history per service, run as the database's owner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.pool import NullPool

from shared.runtime.db import engine_for
from shared.runtime.statements import COMPLETED_BY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, MetaData

UPGRADE_LOCK = 0x6F72646572  # "order": any constant, the same in every replica that starts at the same time


def run_from_environment(metadata: Sequence[MetaData], context: Any) -> None:  # noqa: ANN401
    """The body of every `migrations/env.py`: migrate over the connection that `upgrade` opened.

    `context` is the module `alembic.context`, which stands in for an `EnvironmentContext`.
    """
    connection: Connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=list(metadata),
        transaction_per_migration=False,
        include_name=lambda name, kind, _: kind != "table" or name not in parts_of_tables(connection),
    )
    with context.begin_transaction():
        # Held until the transaction ends: replicas that start together upgrade one after the other.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
        context.run_migrations()
        _complete(connection, metadata)


def _complete(connection: Connection, metadata: Sequence[MetaData]) -> None:
    for table in (table for one in metadata for table in one.sorted_tables):
        statements = table.info.get(COMPLETED_BY, ())
        if statements and _is_partitioned(connection, table.name):
            for statement in statements:
                connection.exec_driver_sql(statement)


def _is_partitioned(connection: Connection, table: str) -> bool:
    """Whether the table is there, and as it is declared: a history may be upgraded to an earlier revision."""
    found = text("SELECT EXISTS (SELECT 1 FROM pg_class WHERE oid = to_regclass(:table) AND relkind = 'p')")
    return bool(connection.execute(found, {"table": table}).scalar_one())


def parts_of_tables(connection: Connection) -> frozenset[str]:
    """The tables that are partitions of others: they come and go without a revision."""
    return frozenset(connection.execute(text("SELECT relname FROM pg_class WHERE relispartition")).scalars())


async def upgrade(url: str, directory: Path, revision: str = "head") -> None:
    """Bring the database to a revision of the history in `directory`, by default to the newest."""
    await _with_connection(url, lambda connection: command.upgrade(configuration(directory, connection), revision))


async def revise(url: str, directory: Path) -> None:
    """Write the revision that makes the declared tables of the migrated ones; whoever keeps it reads it first."""

    def write(connection: Connection) -> None:
        config = configuration(directory, connection)
        (directory / "versions").mkdir(exist_ok=True)
        known = sum(1 for _ in ScriptDirectory.from_config(config).walk_revisions())
        command.revision(config, "What has changed", autogenerate=True, rev_id=f"{known + 1:04}")

    await _with_connection(url, write)


async def check(url: str, directory: Path) -> None:
    """Raise when the declared tables and the migrated ones differ."""
    await _with_connection(url, lambda connection: command.check(configuration(directory, connection)))


def configuration(directory: Path, connection: Connection | None = None) -> Config:
    """Alembic's configuration for one service, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(directory))
    config.set_main_option("path_separator", "os")
    if connection is not None:
        config.attributes["connection"] = connection
    return config


async def _with_connection(url: str, work: Callable[[Connection], None]) -> None:
    engine = engine_for(url, poolclass=NullPool, connect_args={"timeout": 10.0})
    try:
        async with engine.connect() as connection:
            await connection.run_sync(work)
    finally:
        await engine.dispose()
