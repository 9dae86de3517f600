"""A real Postgres for tests, one per session, and a fresh database for whoever asks."""

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from deploy.local import postgres
from deploy.local.ports import is_free
from tests.support.pgbouncer import PgBouncer

NewDatabase = Callable[[], Awaitable[str]]


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Where this session's servers keep data and logs; gone at its end."""
    folder = Path(tempfile.mkdtemp(prefix="orderstream-tests-"))
    # Postgres may have to run as another user, who must be able to pass through.
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="session")
async def postgres_url(server_folder: Path) -> AsyncIterator[str]:
    """A superuser's DSN. The server forgets everything in a crash of the machine, so it is fast."""
    server = postgres.Postgres(
        folder=server_folder / "postgres",
        port=free_port(),
        password=secrets.token_urlsafe(16),
        log=server_folder / "postgres.log",
        durable=False,
    )
    process = await postgres.start(server)
    yield server.url
    await postgres.stop(process)


@pytest_asyncio.fixture(scope="session")
async def pgbouncer(postgres_url: str, server_folder: Path) -> AsyncIterator[PgBouncer | None]:
    """A PgBouncer in front of it, where TEST_POSTGRES says so."""
    if os.environ.get("TEST_POSTGRES") != "pgbouncer":
        yield None
        return
    between = PgBouncer(server_folder / "pgbouncer", postgres_url, free_port())
    await between.start()
    yield between
    await between.stop()


@pytest_asyncio.fixture(scope="session")
async def new_database(postgres_url: str, pgbouncer: PgBouncer | None) -> NewDatabase:
    """Call it for the DSN of an empty database; the server takes all of them along at the end."""

    async def create() -> str:
        name = f"test_{secrets.token_hex(6)}"
        connection = await asyncpg.connect(postgres_url)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return urlsplit(pgbouncer.url if pgbouncer else postgres_url)._replace(path=f"/{name}").geturl()

    return create


@pytest_asyncio.fixture(scope="module")
async def database_url(new_database: NewDatabase) -> str:
    """The DSN of a database that is this test module's own."""
    return await new_database()


def free_port() -> int:
    """A port that nobody listens on, also not for a moment while a server that has it is started again.

    So it is below those that the kernel gives to outgoing connections.
    """
    while True:
        port = secrets.choice(range(10_000, 32_000))
        if is_free(port):
            return port
