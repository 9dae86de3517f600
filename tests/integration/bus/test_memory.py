"""Redis runs out of room: it refuses, or throws away what nobody has read yet. Both end by themselves."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest_asyncio

from shared.bus.relay import Relay
from tests.integration.bus.conftest import World, until, world_over
from tests.integration.bus.flowing import flowing
from tests.support.redis_server import RedisServer, redis_server
from tests.support.servers import NewDatabase

ROOM_BYTES = 400_000


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

        await until(lambda: is_full(relay, False))


async def is_full(relay: Relay, expected: bool = True) -> bool:
    await asyncio.sleep(0)
    return relay.full is expected
