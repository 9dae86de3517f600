"""Another server takes over and has not heard of everything: what it lacks comes again, what it undoes is done once."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from shared.bus.streams import RedisStreams
from tests.integration.bus.conftest import STREAM, World, world_over
from tests.integration.bus.flowing import flowing
from tests.support.redis_server import Address, RedisServer, address_of, redis_server
from tests.support.servers import NewDatabase


@dataclass
class Pair:
    """Two servers, and the addresses at which checkout and the service look for the one that leads."""

    first: RedisServer
    second: RedisServer
    checkouts: Address
    services: Address
    checkout: World
    service: World

    def start(self) -> None:
        """Run both sides."""
        self.checkout.start(self.checkout.relay(batch=50))
        self.service.start_service()

    async def fail_over(self) -> None:
        """The first dies, and everybody finds the second."""
        await self.first.kill()
        await self.second.lead()
        self.lead_to(self.second)

    def lead_to(self, server: RedisServer) -> None:
        """Everybody finds this one now."""
        self.checkouts.lead_to(server)
        self.services.lead_to(server)


@pytest_asyncio.fixture(loop_scope="session")
async def pair(new_database: NewDatabase) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(redis_server()) for _ in range(2)]
        checkouts, services = [await stack.enter_async_context(address_of(first)) for _ in range(2)]
        checkout = await stack.enter_async_context(world_over(await new_database(), checkouts.url))
        streams = RedisStreams(services.url, "test-service")
        stack.push_async_callback(streams.close)
        service = replace(checkout, streams=streams, running=[])
        stack.push_async_callback(service.kill)
        yield Pair(first, second, checkouts, services, checkout, service)


async def test_a_replica_that_lags_takes_over(pair: Pair) -> None:
    await pair.second.follow(pair.first)
    pair.start()
    async with flowing(pair.checkout) as flow:
        await flow.more(100)
        await pair.service.kill()  # or it would have had in time what is lost
        await pair.second.fall_behind()
        await flow.more(200)

        assert await reaches(pair.second) < await reaches(pair.first)
        await pair.fail_over()
        pair.service.start_service()

        await flow.resumes()
        await flow.more(100)


@pytest.mark.slow
async def test_a_replica_that_has_nothing_yet_takes_over(pair: Pair) -> None:
    pair.start()
    async with flowing(pair.checkout) as flow:
        await flow.more(100)
        await pair.service.kill()
        await pair.second.begin_to_follow(pair.first)
        await flow.more(100)

        assert await reaches(pair.second) < await reaches(pair.first)
        await pair.fail_over()
        pair.service.start_service()

        await flow.resumes()
        await flow.more(100)


@pytest.mark.parametrize("stays", ["checkouts", pytest.param("services", marks=pytest.mark.slow)])
async def test_two_servers_lead_for_a_while_and_one_of_them_is_right(pair: Pair, stays: str) -> None:
    """One side goes on at the old server, the other one has found the new one already."""
    moves: Address = pair.services if stays == "checkouts" else pair.checkouts
    await pair.second.follow(pair.first)
    pair.start()
    async with flowing(pair.checkout) as flow:
        await flow.more(100)
        await pair.second.fall_behind()
        await flow.more(100)

        await pair.second.lead()
        moves.lead_to(pair.second)
        await flow.more(300)
        await pair.first.redis.replicaof("127.0.0.1", pair.second.port)
        pair.lead_to(pair.second)

        await flow.resumes()
        await flow.more(100)


async def reaches(server: RedisServer) -> int:
    """The position of the last event that it knows of."""
    if not await server.redis.exists(STREAM):
        return 0
    last: bytes = (await server.redis.xinfo_stream(STREAM))["last-generated-id"]
    return int(last.split(b"-")[0])
