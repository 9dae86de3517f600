"""A real PgBouncer in transaction mode, as it stands in front of many a Postgres."""

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from deploy.local import postgres
from deploy.local.process import Process, Program, environment
from tests.support.absent import Absent

READY_S = 30
SETTINGS = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "auth_type": "any",  # whoever comes is the superuser that the tests are elsewhere too
    "admin_users": "postgres",
    "pool_mode": "transaction",
    "default_pool_size": "8",  # fewer than there are clients, so that sessions go from one to the other
    "max_client_conn": "500",
    "server_idle_timeout": "10",
    "query_wait_timeout": "20",
    # After it lost its sessions of Postgres it would wait for fifteen seconds before it opens others.
    "server_login_retry": "1",
    # Sent by the tests' own connections: the driver takes what it does not know in a URL for a setting of the server.
    "ignore_startup_parameters": "pgbouncer",
}

_behind: dict[int, str] = {}  # by port, the servers that the PgBouncers of this process stand in front of


def binary() -> Path:
    """The program; raises `Absent`."""
    if path := shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"):
        return Path(path)
    raise Absent("no PgBouncer here: apt-get install pgbouncer")


def direct(url: str) -> str:
    """The same database without the PgBouncer that may stand in front of it: for whoever looks in from outside."""
    parts = urlsplit(url)
    server = _behind.get(parts.port or 0)
    return urlsplit(server)._replace(path=parts.path).geturl() if server else url


@dataclass
class PgBouncer:
    """One in front of the server that `server` is a superuser's DSN of."""

    folder: Path
    server: str
    port: int
    process: Process | None = None

    @property
    def url(self) -> str:
        """As the services want it."""
        return f"postgresql://postgres:any@127.0.0.1:{self.port}/postgres?pgbouncer=true"

    async def start(self) -> None:
        """Start it; returns when it answers."""
        self.folder.mkdir(exist_ok=True)
        settings = self.folder / "pgbouncer.ini"
        settings.write_text(self._settings())
        self.process = await Process.start(self._program(settings))
        await self.process.wait_ready(READY_S)
        _behind[self.port] = self.server

    async def stop(self) -> None:
        """As kill -9 does it, so that every connection is reset."""
        if self.process is not None:
            self.process.send(signal.SIGKILL)
            await self.process.exited()

    async def say(self, command: str) -> None:
        """A command of its console, such as PAUSE."""
        reader = await asyncpg.connect(self._console, statement_cache_size=0)
        try:
            await reader.execute(command)
        finally:
            await reader.close()

    @property
    def _console(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/pgbouncer"

    def _settings(self) -> str:
        server = urlsplit(self.server)
        place = f"host={server.hostname} port={server.port} user={server.username} password={server.password}"
        settings = {**SETTINGS, "listen_port": str(self.port)}
        return "\n".join(["[databases]", f"* = {place}", "[pgbouncer]", *(f"{n} = {v}" for n, v in settings.items())])

    def _program(self, settings: Path) -> Program:
        return Program(
            name="pgbouncer",
            command=(str(binary()), str(settings)),
            environment=environment(),
            log=self.folder / "log",
            ready=self._ready,
            wrapper=postgres.disguise() if postgres.namespaces() else (),  # it refuses to be root, as Postgres does
            user=postgres.account(),
        )

    async def _ready(self) -> bool:
        try:
            await self.say("SHOW VERSION")
        except (OSError, asyncpg.PostgresError):
            return False
        return True
