"""The stream server dies, sleeps or hangs up while events flow: whatever it still has when it is back is enough."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic

import pytest
import structlog

from shared.bus.clients import COMMAND_TIMEOUT_S
from tests.integration.bus.conftest import World, event, world_over
from tests.integration.bus.flowing import comes_to_rest, flowing, rebuilds
from tests.support.proxy import Mode
from tests.support.redis_server import Address, RedisServer, address_of, redis_server
from tests.support.servers import NewDatabase

log = structlog.get_logger()

CUT_BYTES = 20_000
BREAKS_AFTER_BYTES = 100_000  # a connection carries so much: a few batches of the relay, and half of one
UNSETTLED = 10_000
REDELIVERED_WITHIN_S = 60.0  # the aim is 30 s, on a machine that does nothing else


async def nothing(_: RedisServer) -> None:
    """What was written stays."""


async def the_tail(server: RedisServer) -> None:
    """As a power failure cuts it."""
    tail = server.tail()
    os.truncate(tail, max(0, tail.stat().st_size - CUT_BYTES))


Spoil = Callable[[RedisServer], Awaitable[None]]
DEATHS: dict[str, tuple[bool, Spoil]] = {
    "keeps all of its file": (True, nothing),
    "loses the tail of its file": (True, the_tail),
    "keeps nothing": (False, nothing),
}
MARKS = {"keeps all of its file": pytest.mark.slow}


@pytest.mark.parametrize("death", [pytest.param(death, marks=MARKS.get(death, ())) for death in DEATHS])
async def test_a_server_that_is_killed_costs_nothing_whatever_it(new_database: NewDatabase, death: str) -> None:
    durable, spoil = DEATHS[death]
    async with redis_server(durable=durable) as server, world_over(await new_database(), server.url) as world:
        before = rebuilds()
        world.start(world.relay(batch=50))
        world.start_service()
        async with flowing(world) as flow:
            await flow.more(200)

            await server.kill()
            await spoil(server)
            await flow.more(100)
            await server.start()

            await flow.resumes()
            await flow.more(100)
        assert (rebuilds() > before) == (spoil is the_tail or not durable)


@asynccontextmanager
async def behind_an_address(new_database: NewDatabase) -> AsyncIterator[tuple[World, Address]]:
    """A world at work, and the address by which it reaches its server."""
    async with (
        redis_server() as server,
        address_of(server) as address,
        world_over(await new_database(), address.url) as world,
    ):
        world.start(world.relay(batch=50))
        world.start_service()
        yield world, address


# A word that only this request has; every reply is lost once while events flow.
REQUESTS = {
    "publishing": b"XADD",
    "reading": b"XREADGROUP",
    "acknowledging": b"XACK",
    "reporting": b"HDEL",
    "listening to the other side": b"HGETALL",
}


async def test_a_reply_that_is_lost_costs_nothing_whichever_it_is(new_database: NewDatabase) -> None:
    async with behind_an_address(new_database) as (world, address), flowing(world) as flow:
        for word in REQUESTS.values():
            await flow.more(50)
            await asyncio.wait_for(address.drop_reply(word).wait(), 10)
        await flow.resumes()


@pytest.mark.parametrize("mode", [Mode.BLACKHOLE, Mode.DEAF])
async def test_a_network_that_swallows_everything_is_given_up_and_costs_nothing(
    new_database: NewDatabase, mode: Mode
) -> None:
    """Connections that were open then stay silent for ever; only who does not wait for them goes on."""
    async with behind_an_address(new_database) as (world, address), flowing(world) as flow:
        await flow.more(50)
        address.mode = mode
        await asyncio.sleep(2 * COMMAND_TIMEOUT_S)
        address.mode = Mode.OK

        await flow.resumes()
        await flow.more(50)


async def test_a_network_that_dawdles_and_breaks_off_in_the_middle_costs_nothing(new_database: NewDatabase) -> None:
    """What lost packets look like to both ends of a connection."""
    async with behind_an_address(new_database) as (world, address), flowing(world) as flow:
        before = rebuilds()
        address.latency_s, address.jitter_s, address.slice_bytes = 0.02, 0.05, 500
        await flow.resumes()
        await flow.more(100)
        address.limit_bytes = BREAKS_AFTER_BYTES
        await flow.more(500)
        address.calm()

        await flow.resumes()
        assert rebuilds() == before


@pytest.mark.slow
async def test_ten_thousand_events_come_again_within_half_a_minute(new_database: NewDatabase) -> None:
    async with redis_server() as server, world_over(await new_database(), server.url) as world:
        relay = world.relay()
        for _ in range(UNSETTLED // 500):
            await world.append(*(event() for _ in range(500)))
        while await relay.run_once():
            pass
        world.start(relay)

        await server.kill()
        await server.start()
        began = monotonic()
        world.start_service()
        await comes_to_rest(world, REDELIVERED_WITHIN_S)

        log.info("all came again", events=UNSETTLED, seconds=round(monotonic() - began, 1))
        assert await world.effects() == (UNSETTLED, UNSETTLED)


@pytest.mark.slow
async def test_a_server_that_stands_still_for_ten_seconds_costs_nothing(new_database: NewDatabase) -> None:
    async with redis_server() as server, world_over(await new_database(), server.url) as world:
        world.start(world.relay(batch=50))
        world.start_service()
        async with flowing(world) as flow:
            await flow.more(200)

            server.send(signal.SIGSTOP)
            await asyncio.sleep(10)
            server.send(signal.SIGCONT)

            await flow.resumes()
            await flow.more(200)


@pytest.mark.slow
async def test_connections_that_are_cut_all_the_time_cost_nothing(new_database: NewDatabase) -> None:
    async with redis_server() as server, world_over(await new_database(), server.url) as world:
        world.start(world.relay(batch=50))
        world.start_service()
        async with flowing(world) as flow:
            for _ in range(50):
                await server.redis.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(0.2)
            await flow.resumes()
