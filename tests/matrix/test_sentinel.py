"""Behind Sentinels: whoever is the master, events flow on."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import pytest_asyncio

from shared.bus.clients import Client, connect
from tests.integration.bus.conftest import until
from tests.matrix.conftest import RESUMED, Record, busy, catches_up
from tests.support.servers import NewDatabase
from tests.support.topologies import Sentinels, Server, Topology

# Seconds that are the Sentinels' own: 1 to notice, 30 in which they do nothing if the machine has just stood still,
# and 20 after an election that none of them won.
SWITCHED_WITHIN_S = 120.0
CONNECTIONS = 20


@pytest_asyncio.fixture
async def sentinels(redis_topology: Topology) -> Sentinels:
    """Of the kind that TEST_REDIS names, and ready to fail over."""
    assert isinstance(redis_topology, Sentinels), "TEST_REDIS=sentinel is not set"
    await until(redis_topology.agree, SWITCHED_WITHIN_S)
    return redis_topology


async def ask_for_another(sentinels: Sentinels, _master: Server) -> None:
    await sentinels.failover()


async def kill(_sentinels: Sentinels, master: Server) -> None:
    await master.stop()


async def freeze(_sentinels: Sentinels, master: Server) -> None:
    assert master.process
    master.process.send(signal.SIGSTOP)


async def stay(_sentinels: Sentinels, _master: Server) -> None:
    """The old master is there all the time, and hears at last that it is one no more."""


async def come_back_empty(_sentinels: Sentinels, master: Server) -> None:
    await master.start()


async def thaw(_sentinels: Sentinels, master: Server) -> None:
    """It still believes that it is the master, until a Sentinel comes by."""
    assert master.process
    master.process.send(signal.SIGCONT)


Deed = Callable[[Sentinels, Server], Awaitable[None]]


@pytest.mark.parametrize(
    ("fail", "come_back"),
    [(ask_for_another, stay), (kill, come_back_empty), (freeze, thaw)],
    ids=["asked", "killed", "frozen"],
)
async def test_a_failover_while_events_flow_costs_nothing(
    sentinels: Sentinels, new_database: NewDatabase, record_property: Record, fail: Deed, come_back: Deed
) -> None:
    async with busy(await new_database(), sentinels.url) as (world, flow):
        old = await sentinels.master()

        await fail(sentinels, old)
        await until(partial(switched, sentinels, old), SWITCHED_WITHIN_S)
        record_property(RESUMED, await catches_up(world))
        await come_back(sentinels, old)
        await flow.more(300)
        record_property(RESUMED, await catches_up(world))

    await until(sentinels.agree, SWITCHED_WITHIN_S)


async def test_a_sentinel_that_was_away_is_asked_again_when_the_others_are(sentinels: Sentinels) -> None:
    first, *others = sentinels.sentinels
    client = connect(sentinels.url, "test")
    assert isinstance(client, Client)

    await first.stop()
    await asyncio.gather(*(client.ping() for _ in range(CONNECTIONS)))  # so many ask for the master at the same time
    await first.start()
    for other in others:
        await other.stop()
    await client.connection_pool.disconnect()
    try:
        assert await client.ping()
    finally:
        for other in others:
            await other.start()
        await client.aclose()
    await until(sentinels.agree, SWITCHED_WITHIN_S)


async def switched(sentinels: Sentinels, old: Server) -> bool:
    return await sentinels.master() is not old
