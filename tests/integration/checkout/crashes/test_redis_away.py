"""Orders do not wait for Redis, whatever is the matter with it: they are in the log, and go out when it is back."""

import signal
from collections.abc import AsyncIterator
from statistics import median
from time import monotonic

import pytest_asyncio

from tests.integration.checkout.conftest import until
from tests.integration.checkout.crashes.stages import Client, Stage, Theatre
from tests.support.redis_server import RedisServer, redis_server
from tests.support.replicas import Replica

ORDERS = 20
QUICK_S = 1.0  # half of what whoever waits for Redis waits at the least


@pytest_asyncio.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


async def test_a_redis_that_stands_still_costs_no_order_and_no_time(theatre: Theatre, redis: RedisServer) -> None:
    async def story(stage: Stage) -> list[str]:
        replica = await serving(stage, redis)
        await order(stage, replica)
        redis.send(signal.SIGSTOP)
        during = await order(stage, replica)
        ready = (await stage.http.get(f"{replica.url}/health/ready")).status_code
        redis.send(signal.SIGCONT)
        await until(lambda: published(stage))

        assert median(during) < QUICK_S
        assert ready == 200
        return await stage.complaints(replica)

    assert await theatre.tell(story) == []


async def test_a_redis_that_is_full_costs_no_order_and_somebody_hears_of_it(
    theatre: Theatre, redis: RedisServer
) -> None:
    async def story(stage: Stage) -> list[str]:
        replica = await serving(stage, redis)
        await order(stage, replica)
        await redis.configure(maxmemory=1)
        during = await order(stage, replica)
        await until(lambda: is_held_back(stage, replica))
        await redis.configure(maxmemory=0)
        await until(lambda: published(stage))
        await until(lambda: is_held_back(stage, replica, expected=False))

        assert median(during) < QUICK_S
        return await stage.complaints(replica)

    assert await theatre.tell(story) == []


async def serving(stage: Stage, redis: RedisServer) -> Replica:
    replica = stage.replica(CHECKOUT_REDIS_URL=redis.url)
    await replica.start()
    return replica


async def order(stage: Stage, replica: Replica) -> list[float]:
    """Orders one after the other; the seconds that each of them took."""
    seconds = []
    for _ in range(ORDERS):
        began = monotonic()
        assert await stage.post(replica, Client()) == [201]
        seconds.append(monotonic() - began)
    return seconds


async def published(stage: Stage) -> bool:
    """The streams have all of the log."""
    behind: int = await stage.connection.fetchval(
        "SELECT count(*) FROM subscriptions JOIN log_head USING (partition) WHERE cursor < log_head.position"
    )
    return behind == 0


async def is_held_back(stage: Stage, replica: Replica, *, expected: bool = True) -> bool:
    metrics = (await stage.http.get(f"{replica.url}/metrics")).text
    values = {line.split()[-1] for line in metrics.splitlines() if line.startswith("orderstream_relay_held_back{")}
    return bool(values) and ("1.0" in values) is expected
