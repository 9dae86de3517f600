"""Replicas of a relay get in each other's way all the time, and in the way of whoever changes the subscription."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from typing_extensions import override

from shared.bus.relay import Relay
from shared.bus.rewind import Target, rewind
from shared.bus.streams import RedisStreams, State
from tests.integration.bus.conftest import SERVICE, STREAM, World, event
from tests.integration.bus.flowing import comes_to_rest, rebuilds


class SleepyStreams(RedisStreams):
    """Falls asleep around a publish, when it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "sleepy")
        self.sleeps_before = self.sleeps_after = False
        self.asleep, self.awake = asyncio.Event(), asyncio.Event()

    @override
    async def publish(self, stream: str, settled: int, cursor: int, head: int, events: Sequence[str]) -> State:
        if self.sleeps_before:
            await self._sleep()
        answer = await super().publish(stream, settled, cursor, head, events)
        if self.sleeps_after:
            await self._sleep()
        return answer

    async def _sleep(self) -> None:
        self.sleeps_before = self.sleeps_after = False
        self.asleep.set()
        await self.awake.wait()


@pytest_asyncio.fixture
async def sleepy(redis_url: str) -> AsyncIterator[SleepyStreams]:
    streams = SleepyStreams(redis_url)
    yield streams
    await streams.close()


@pytest_asyncio.fixture
async def sleeper(world: World, sleepy: SleepyStreams) -> Relay:
    """A relay that has published ten events and announced itself, so its next pass is a usual one."""
    relay = Relay(world.db, world.log, sleepy, SERVICE, 0)
    await publish(world, relay, 10)
    return relay


async def test_nobody_waits_for_a_relay_that_sleeps_in_a_usual_pass(
    world: World, sleeper: Relay, sleepy: SleepyStreams
) -> None:
    sleepy.sleeps_before = True
    sleeping = asyncio.create_task(publish(world, sleeper, 5))
    await sleepy.asleep.wait()

    await publish(world, world.relay(), 5)
    sleepy.awake.set()
    await sleeping

    assert await cursor(world) == 20
    await everything_is_there_once(world)


async def test_nobody_waits_for_a_relay_that_sleeps_with_the_row_in_hand(
    world: World, sleeper: Relay, sleepy: SleepyStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleeper, "_announced_at", float("-inf"))  # so it takes the row
    sleepy.sleeps_before = True
    sleeping = asyncio.create_task(publish(world, sleeper, 5))
    await sleepy.asleep.wait()

    await publish(world, world.relay(), 5)  # it would take the row too: it has announced nothing yet
    assert await world.redis.xlen(STREAM) == 20
    assert await cursor(world) == 10
    sleepy.awake.set()
    await sleeping

    await everything_is_there_once(world)


async def test_a_relay_that_slept_until_it_lost_its_lock_destroys_nothing_when_it_wakes(
    world: World, sleepy: SleepyStreams
) -> None:
    sleepy.sleeps_before = True
    sleeping = asyncio.create_task(publish(world, Relay(world.db, world.log, sleepy, SERVICE, 0), 1))
    await sleepy.asleep.wait()

    await lose_transactions(world)  # what idle_in_transaction_session_timeout does to who sleeps
    await publish(world, world.relay(), 9)
    sleepy.awake.set()
    with pytest.raises(DBAPIError):
        await sleeping

    assert await world.redis.xlen(STREAM) == 10
    await everything_is_there_once(world)


async def test_a_subscription_that_was_rewound_meanwhile_stays_so(
    world: World, sleeper: Relay, sleepy: SleepyStreams
) -> None:
    world.start(world.relay())
    world.start_service()
    await comes_to_rest(world)
    await world.stop()

    sleepy.sleeps_after = True
    sleeping = asyncio.create_task(publish(world, sleeper, 5))
    await sleepy.asleep.wait()
    await world.db.run(lambda c: rewind(c, SERVICE, Target(position=3), replay=False, dry_run=False))
    sleepy.awake.set()
    await sleeping

    assert await cursor(world) == 3
    await everything_is_there_once(world)


async def test_a_report_that_came_late_takes_nothing_back(world: World, sleeper: Relay, sleepy: SleepyStreams) -> None:
    sleepy.sleeps_after = True
    sleeping = asyncio.create_task(publish(world, sleeper, 5))
    await sleepy.asleep.wait()

    async with world.db.transaction() as connection:
        await connection.execute(text("UPDATE subscriptions SET settled = 8"))
    sleepy.awake.set()
    await sleeping

    assert await world.scalar("SELECT settled FROM subscriptions") == 8
    assert await cursor(world) == 15


async def test_what_a_replica_published_since_the_look_at_the_head_is_no_damage(
    world: World, sleeper: Relay, sleepy: SleepyStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds the row keeps others from moving the cursor, not from publishing."""
    before = rebuilds()
    hasty = world.relay()
    await publish(world, hasty, 1)
    monkeypatch.setattr(sleeper, "_announced_at", float("-inf"))  # so it takes the row
    sleepy.sleeps_before = True
    sleeping = asyncio.create_task(publish(world, sleeper, 1))
    await sleepy.asleep.wait()

    await publish(world, hasty, 5)
    assert await cursor(world) == 11
    sleepy.awake.set()
    await sleeping

    assert await world.redis.xlen(STREAM) == 17
    assert rebuilds() == before
    await everything_is_there_once(world)


async def test_replicas_that_publish_at_the_same_time_rebuild_nothing(world: World) -> None:
    before = rebuilds()
    relays = [world.relay() for _ in range(3)]
    world.start(*relays)
    world.start_service()

    for _ in range(100):
        await world.append(event(), event())
        for relay in relays:
            relay.wake()
        await asyncio.sleep(0.01)

    await comes_to_rest(world)
    assert rebuilds() == before


async def publish(world: World, relay: Relay, count: int) -> None:
    """So many events more, and one pass."""
    await world.append(*(event() for _ in range(count)))
    relay.wake()
    await relay.run_once()


async def everything_is_there_once(world: World) -> None:
    world.start(world.relay())
    world.start_service()
    await comes_to_rest(world)


async def cursor(world: World) -> int:
    return await world.scalar("SELECT cursor FROM subscriptions")


async def lose_transactions(world: World) -> None:
    async with world.db.reading() as connection:
        sleeping = "FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
        await connection.execute(text(f"SELECT pg_terminate_backend(pid) {sleeping}"))
