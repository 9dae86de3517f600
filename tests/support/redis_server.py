"""A Redis-protocol server of a test's own, which may die, lose what it wrote, fill up, or follow another one."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from deploy.local import valkey
from deploy.local.process import Process
from tests.support import topologies
from tests.support.proxy import Proxy
from tests.support.servers import free_port


@dataclass
class RedisServer:
    """One of the make that TEST_REDIS names. It comes back at the same port, with what is left in its folder."""

    folder: Path
    durable: bool = False
    port: int = field(default_factory=free_port)
    process: Process | None = None

    def __post_init__(self) -> None:
        # Whoever looks in from outside: beside the services' own connections, and with all the patience of the library.
        self.redis = Redis.from_url(self.url)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Start it; returns when it answers."""
        server = valkey.Valkey(self.folder, self.port, self.folder.with_suffix(".log"), self.durable)
        await server.prepare()
        binary, (_, *arguments) = topologies.binary(topologies.make_of(topologies.kind())), server.program().command
        self.process = await Process.start(replace(server.program(), command=(str(binary), *arguments)))
        await self.process.wait_ready(valkey.READY_S)

    async def kill(self) -> None:
        """As kill -9 does it."""
        self.send(signal.SIGKILL)
        assert self.process
        await self.process.exited()

    def send(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send(number)

    async def configure(self, **settings: object) -> None:
        """CONFIG SET; underscores stand for hyphens."""
        for name, value in settings.items():
            await self.redis.config_set(name.replace("_", "-"), value)  # type: ignore[arg-type]

    async def follow(self, leader: "RedisServer") -> None:
        """Become a replica; returns when it has everything that the other one has."""
        # Without a delay: the first copy is made at once, not five seconds later.
        await leader.configure(repl_diskless_sync_delay=0)
        await self.redis.replicaof("127.0.0.1", leader.port)
        while (await self.replication())["master_link_status"] != "up":
            await asyncio.sleep(0.02)
        await leader.redis.wait(1, 5000)

    async def begin_to_follow(self, leader: "RedisServer") -> None:
        """Become a replica that has nothing of the other one yet, and will not for a minute."""
        await leader.configure(repl_diskless_sync="yes", repl_diskless_sync_delay=60)
        await self.redis.replicaof("127.0.0.1", leader.port)
        while not (await leader.replication())["connected_slaves"]:
            await asyncio.sleep(0.02)

    async def fall_behind(self) -> None:
        """Follow nobody who exists: what is there stays, and nothing more arrives."""
        await self.redis.replicaof("127.0.0.1", 1)

    async def lead(self) -> None:
        """Be a master from now on."""
        await self.redis.replicaof("NO", "ONE")

    async def replication(self) -> dict[str, Any]:
        found: dict[str, Any] = await self.redis.info("replication")
        return found

    def tail(self) -> Path:
        """The file to which it appends what it is told."""
        before_redis_7 = self.folder / "appendonly.aof"
        return before_redis_7 if before_redis_7.exists() else max(self.folder.glob("appendonlydir/*.incr.aof"))


class Address(Proxy):
    """One address, behind which one server or another may stand."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def lead_to(self, server: RedisServer) -> None:
        """From now on to this one; connections to the one before break."""
        self._server_port = server.port
        self.reset()


@asynccontextmanager
async def address_of(server: RedisServer) -> AsyncIterator[Address]:
    """An address that leads to `server` at first."""
    address = Address("127.0.0.1", server.port)
    await address.accept()
    try:
        yield address
    finally:
        await address.close()


@asynccontextmanager
async def redis_server(*, durable: bool = False, folder: Path | None = None) -> AsyncIterator[RedisServer]:
    """One that runs, in a folder of its own below `folder`."""
    with tempfile.TemporaryDirectory(prefix="orderstream-redis-", dir=folder) as own:
        server = RedisServer(Path(own) / "data", durable)
        await server.start()
        try:
            yield server
        finally:
            await server.redis.aclose()
            server.send(signal.SIGCONT)
            await server.kill()
