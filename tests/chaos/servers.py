"""What the nemesis does to Postgres and Redis, past the proxies."""

import random
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from redis.asyncio import Redis
from redis.exceptions import RedisError

from deploy.local.settings import SERVICES
from shared.bus.boards import settled_board
from shared.bus.streams import stream_name
from tests.support.platform import Platform

GROUP_PARTITION = 0


class RedisServer:
    """The platform's Redis, and its files."""

    def __init__(self, platform: Platform, url: str) -> None:
        """Nothing is connected between two calls."""
        self._platform = platform
        self._url = url

    async def flush(self) -> None:
        """Empty it while readers block."""
        async with self._client() as redis:
            await redis.flushall()

    def restart_empty(self) -> None:
        """Kill it, and let it come back without persistence."""
        self._platform.kill("redis")
        for folder in self._appends():
            shutil.rmtree(folder, ignore_errors=True)

    def cut_tail(self, count: int) -> None:
        """Kill it, and cut the end of its log off, as a power failure does."""
        self._platform.kill("redis")
        for folder in self._appends():
            for path in folder.glob("*.incr.aof"):
                with path.open("r+b") as file:
                    file.truncate(max(0, path.stat().st_size - count))

    async def trim(self, service: str) -> None:
        """Drop every entry of a stream."""
        async with self._client() as redis:
            await redis.xtrim(stream_name(service, GROUP_PARTITION), maxlen=0, approximate=False)

    async def delete_entries(self, service: str, count: int) -> None:
        """Drop some entries from the middle of a stream."""
        async with self._client() as redis:
            key = stream_name(service, GROUP_PARTITION)
            entries: Any = await redis.xrange(key, count=2 * count)
            if ids := [entry_id for entry_id, _ in entries][len(entries) // 2 :]:
                await redis.xdel(key, *ids)

    async def destroy_group(self, service: str) -> None:
        """Drop the groups of a stream."""
        async with self._client() as redis:
            key = stream_name(service, GROUP_PARTITION)
            for group in await redis.xinfo_groups(key):
                await redis.xgroup_destroy(key, group["name"])

    async def delete_consumer(self, service: str) -> None:
        """Drop the consumers, and with them what they have not acknowledged."""
        async with self._client() as redis:
            key = stream_name(service, GROUP_PARTITION)
            for group in await redis.xinfo_groups(key):
                for consumer in await redis.xinfo_consumers(key, group["name"]):
                    await redis.xgroup_delconsumer(key, group["name"], consumer["name"])

    async def replace_key(self, service: str) -> None:
        """Put something else where a stream was."""
        async with self._client() as redis:
            await redis.set(stream_name(service, GROUP_PARTITION), "no stream")

    async def forget_settled(self, service: str) -> None:
        """Drop what a service has reported."""
        async with self._client() as redis:
            await redis.delete(settled_board(service))

    async def lie_settled(self, service: str, value: str) -> None:
        """Report something that cannot be true."""
        async with self._client() as redis:
            await redis.hset(settled_board(service), str(GROUP_PARTITION), value)

    async def disconnect(self) -> None:
        """Break the connections of everybody."""
        async with self._client() as redis:
            await redis.client_kill_filter(_type="normal")

    async def pause(self, seconds: float) -> None:
        """Answer nobody for some time."""
        async with self._client() as redis:
            await redis.client_pause(round(seconds * 1000))

    async def limit_memory(self, count: int) -> None:
        """Take no writes that need memory beyond `count` bytes; 0 is no limit."""
        async with self._client() as redis:
            await redis.config_set("maxmemory", count)

    async def left_over(self) -> dict[str, int]:
        """Per service, entries that somebody holds and has not acknowledged."""
        async with self._client() as redis:
            found = {}
            for service in SERVICES[1:]:
                groups = await redis.xinfo_groups(stream_name(service, GROUP_PARTITION))
                found[service] = sum(group["pending"] for group in groups)
            return found

    def _appends(self) -> list[Path]:
        return list((self._platform.run_dir / "redis").glob("appendonlydir*"))

    @asynccontextmanager
    async def _client(self) -> "AsyncIterator[Redis]":
        redis = Redis.from_url(self._url, decode_responses=True, socket_timeout=5)
        try:
            yield redis
        except RedisError as error:
            raise ConnectionError(f"redis: {error}") from error
        finally:
            await redis.aclose()


class PostgresServer:
    """The platform's Postgres, as its superuser."""

    def __init__(self, platform: Platform, url: str) -> None:
        """`url` is a superuser's."""
        self._platform = platform
        self._url = url

    def immediate_stop(self) -> None:
        """Stop it without a checkpoint; it recovers from its log when it is started again."""
        self._platform.kill("postgres", signal.SIGQUIT)

    async def end_backends(self, role: str, share: float) -> None:
        """End some of a service's connections."""
        async with self._connection() as connection:
            pids = await self._backends(connection, role)
            for pid in pids[: max(1, round(share * len(pids)))]:
                await connection.execute("SELECT pg_terminate_backend($1)", pid)

    async def backend(self, role: str, dice: random.Random) -> psutil.Process | None:
        """The process behind one of a service's connections, one in a transaction if there is any."""
        async with self._connection() as connection:
            pids = await self._backends(connection, role)
        return psutil.Process(dice.choice(pids)) if pids else None

    async def limit_connections(self, role: str, limit: int) -> None:
        """Let a service have so many connections, and end those that it has; -1 is no limit."""
        async with self._connection() as connection:
            await connection.execute(f"ALTER ROLE {role} CONNECTION LIMIT {limit}")
            if limit >= 0:
                for pid in await self._backends(connection, role):
                    await connection.execute("SELECT pg_terminate_backend($1)", pid)

    @staticmethod
    async def _backends(connection: asyncpg.Connection, role: str) -> list[int]:
        query = "SELECT pid FROM pg_stat_activity WHERE usename = $1 ORDER BY xact_start NULLS LAST, backend_start"
        return [row["pid"] for row in await connection.fetch(query, role)]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            connection = await asyncpg.connect(self._url, timeout=5, command_timeout=5)
        except asyncpg.PostgresError as error:
            raise ConnectionError(f"postgres: {error}") from error
        try:
            yield connection
        finally:
            await connection.close(timeout=2)
