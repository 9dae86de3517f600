"""A database and two roles per service: one owns and migrates it, the other may only work with its rows."""

from urllib.parse import urlsplit

import asyncpg

from deploy.local.errors import PlatformError
from deploy.local.settings import SERVICES

# Databases with this comment were made here, so a reset may drop them on a server that is not ours.
COMMENT = "Orderstream local platform"
LOCK = 0x6F72_6473  # "ords": two launchers may share one server

# A service's statements are short; one that is not must not hold the others up.
LIMITS = {
    "statement_timeout": "5s",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "10s",
}


async def provide(url: str, passwords: dict[str, str]) -> None:
    """Make what is missing and set what should be so; `url` is a superuser's."""
    connection = await connect(url)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK)
        for name in SERVICES:
            await _roles(connection, name, passwords)
            await _database(connection, name)
    except asyncpg.InsufficientPrivilegeError as error:
        raise PlatformError(f"POSTGRES_URL's user may not make roles and databases ({error}).") from error
    finally:
        await connection.close()
    for name in SERVICES:
        await _privileges(in_database(url, name), name)


async def drop(url: str) -> list[str]:
    """Drop the databases that were made here; return their names."""
    connection = await connect(url)
    try:
        ours = [name for name in SERVICES if await _comment(connection, name) == COMMENT]
        for name in ours:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await connection.execute(f"DROP ROLE IF EXISTS {name}, {name}_migrator")
        return ours
    finally:
        await connection.close()


async def connect(url: str) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(url, timeout=10, server_settings={"application_name": "orderstream-local"})
    except (OSError, asyncpg.PostgresError, ValueError) as error:
        message = f"Cannot connect to Postgres ({error or type(error).__name__}): check POSTGRES_URL."
        raise PlatformError(message) from error


def role_url(url: str, role: str, password: str, database: str) -> str:
    """The server of `url`, as another role in another database."""
    parts = urlsplit(url)
    server = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{role}:{password}@{server}", path=f"/{database}").geturl()


def in_database(url: str, database: str) -> str:
    return urlsplit(url)._replace(path=f"/{database}").geturl()


async def _roles(connection: asyncpg.Connection, name: str, passwords: dict[str, str]) -> None:
    for role in (name, f"{name}_migrator"):
        if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role} LOGIN")
        # Utility statements take no parameters: the server quotes the password itself.
        quoted = "SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', $1::text, $2::text)"
        await connection.execute(await connection.fetchval(quoted, role, passwords[role]))
    for setting, value in LIMITS.items():
        await connection.execute(f"ALTER ROLE {name} SET {setting} = '{value}'")


async def _database(connection: asyncpg.Connection, name: str) -> None:
    if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
        await connection.execute(f"CREATE DATABASE {name} OWNER {name}_migrator")
        await connection.execute(f"COMMENT ON DATABASE {name} IS '{COMMENT}'")
    await connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
    await connection.execute(f"GRANT CONNECT ON DATABASE {name} TO {name}")


async def _privileges(url: str, name: str) -> None:
    connection = await connect(url)
    mine = f"ALTER DEFAULT PRIVILEGES FOR ROLE {name}_migrator IN SCHEMA public GRANT"
    try:
        await connection.execute(f"""
            ALTER SCHEMA public OWNER TO {name}_migrator;
            REVOKE ALL ON SCHEMA public FROM PUBLIC;
            GRANT USAGE ON SCHEMA public TO {name};
            {mine} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {name};
            {mine} USAGE, SELECT ON SEQUENCES TO {name};
        """)
    finally:
        await connection.close()


async def _comment(connection: asyncpg.Connection, name: str) -> str | None:
    query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1"
    comment: str | None = await connection.fetchval(query, name)
    return comment
