"""Redis runs out of room: it refuses, or throws away what nobody has read yet. Both end by themselves."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from shared.bus.relay import Relay
from tests.integration.bus.conftest import World, until, world_over
from tests.integration.bus.flowing import flowing
from tests.support.redis_server import RedisServer, redis_server
from tests.support.servers import NewDatabase

ROOM_BYTES = 400_000
DISK_BYTES, LEFT_BYTES = 20_000_000, 500_000


@dataclass
class Narrow:
    """A world whose Redis can be made as narrow as one likes."""

    world: World
    server: RedisServer

    async def leave(self, room_bytes: int, policy: str = "noeviction") -> None:
        """From now on there is only so much room."""
        used = (await self.server.redis.info("memory"))["used_memory"]
        await self.server.configure(maxmemory_policy=policy, maxmemory=used + room_bytes)


@pytest_asyncio.fixture(loop_scope="session")
async def narrow(new_database: NewDatabase) -> AsyncIterator[Narrow]:
    async with redis_server() as server, world_over(await new_database(), server.url) as world:
        yield Narrow(world, server)


async def test_a_full_redis_drains_and_then_goes_on_by_itself(narrow: Narrow) -> None:
    world, relay = narrow.world, narrow.world.relay(batch=50)
    world.start(relay)
    async with flowing(world) as flow:
        await flow.more(100)
        await narrow.leave(ROOM_BYTES)
        await until(lambda: is_full(relay))
        world.start_service()
        await flow.resumes()

        await until(lambda: is_full(relay, expected=False))


async def test_a_redis_that_throws_away_what_nobody_has_read_costs_nothing(narrow: Narrow) -> None:
    world = narrow.world
    world.start(world.relay(batch=50))
    async with flowing(world) as flow:
        await flow.more(100)
        await narrow.leave(ROOM_BYTES, "allkeys-lru")
        await until(lambda: has_evicted(narrow.server, 3))
        world.start_service()
        await flow.resumes()
        await flow.more(200)


@pytest.mark.slow
async def test_a_disk_on_which_nothing_can_be_saved_stops_nobody_for_longer_than_that(narrow: Narrow) -> None:
    """A folder where the snapshot should be: Redis then refuses every write, as it does when the disk is full."""
    world, in_the_way = narrow.world, narrow.server.folder / "dump.rdb"
    world.start(world.relay(batch=50))
    world.start_service()
    async with flowing(world) as flow:
        await flow.more(100)

        in_the_way.mkdir()
        await narrow.server.configure(save="1 1")
        await until(lambda: saves(narrow.server, "err"))
        await flow.more(200)
        in_the_way.rmdir()
        await until(lambda: saves(narrow.server, "ok"))

        await flow.resumes()
        await flow.more(100)


async def test_a_disk_that_is_full_stops_nobody_for_longer_than_that(
    new_database: NewDatabase, small_disk: Path
) -> None:
    """Redis cannot append what it is told, and refuses every write, readers' too, until there is room again."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(DISK_BYTES - LEFT_BYTES))
    async with redis_server(durable=True, folder=small_disk) as server, world_over(
        await new_database(), server.url
    ) as world:  # fmt: skip
        world.start(world.relay(batch=50))
        world.start_service()
        async with flowing(world) as flow:
            await until(lambda: appends(server, "err"))
            await flow.more(200)
            ballast.unlink()

            await flow.resumes()
            await until(lambda: appends(server, "ok"))
            await flow.more(100)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that is quickly filled."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a disk that is small enough to be filled")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)  # noqa: S607


async def appends(server: RedisServer, status: str) -> bool:
    found: str = (await server.redis.info("persistence"))["aof_last_write_status"]
    return found == status


async def has_evicted(server: RedisServer, keys: int) -> bool:
    evicted: int = (await server.redis.info("stats"))["evicted_keys"]
    return evicted >= keys


async def saves(server: RedisServer, status: str) -> bool:
    found: str = (await server.redis.info("persistence"))["rdb_last_bgsave_status"]
    return found == status


async def is_full(relay: Relay, *, expected: bool = True) -> bool:
    await asyncio.sleep(0)
    return relay.full is expected
