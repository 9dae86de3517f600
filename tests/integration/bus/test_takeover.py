"""Who takes up what a dead, stopped or sleeping consumer left open."""

import asyncio
from functools import partial

import pytest

from shared.bus import consumer as consumer_module
from shared.bus.retrier import Retrier
from tests.integration.bus.conftest import SERVICE, STREAM, World, event, until


async def test_a_restart_under_the_same_name_takes_up_its_own_entries_at_once(world: World) -> None:
    await world.append(*(event() for _ in range(60)))
    await world.relay().run_once()
    await world.streams.create_group(STREAM, SERVICE, 0)
    await world.streams.read_new(STREAM, SERVICE, "one", 60)  # given to "one", who dies here

    world.start_service("one")
    await until(lambda: done(world, 60), timeout_s=2.0)

    assert await world.effects() == (60, 60)


async def test_a_peer_takes_over_what_a_dead_consumer_left_open(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "CLAIM_IDLE_MS", 300)
    await world.append(*(event() for _ in range(20)))
    await world.relay().run_once()
    await world.streams.create_group(STREAM, SERVICE, 0)
    await world.streams.read_new(STREAM, SERVICE, "dead", 20)

    world.start_service("alive")
    await until(lambda: done(world, 20), timeout_s=5.0)

    assert await world.effects() == (20, 20)
    pending = await world.redis.xpending(STREAM, SERVICE)
    assert pending["pending"] == 0


async def test_a_graceful_stop_hands_open_entries_over_in_about_a_second(world: World) -> None:
    await world.append(*(event() for _ in range(20)))
    await world.relay().run_once()
    await world.streams.create_group(STREAM, SERVICE, 0)
    await world.streams.read_new(STREAM, SERVICE, "leaving", 20)

    await world.streams.give_back(STREAM, SERVICE, "leaving")
    world.start_service("staying")
    await until(lambda: done(world, 20), timeout_s=3.0)

    assert await world.effects() == (20, 20)


async def test_a_consumer_with_nothing_open_is_forgotten_when_it_stops(world: World) -> None:
    world.start(world.relay())
    world.start_service("short-lived")
    await world.append(event())
    await until(lambda: done(world, 1))

    await world.stop()

    assert await world.redis.xinfo_consumers(STREAM, SERVICE) == []


async def test_an_event_that_kills_the_process_is_dead_in_the_end_and_takes_nobody_with_it(world: World) -> None:
    """Each round is a process that dies in the middle of its transaction, as the OOM killer would do it."""
    poison = event()
    others = [event() for _ in range(10)]
    await world.append(*others[:5], poison, *others[5:])
    await world.relay().run_once()

    class Killed(BaseException):
        """Ends the process; no handler of errors sees it."""

    world.handling.failing[poison.subject] = Killed()  # type: ignore[assignment]
    for _ in range(12):
        replica = world.consumer()
        retrier = world.retrier()
        try:
            await asyncio.wait_for(replica.run_once(), 5)
            await until(partial(step, retrier), timeout_s=1.0)
        except (Killed, TimeoutError):
            continue

    assert await world.effects() == (10, 10)
    assert await world.states() == {"done": 10, "dead": 1}


async def step(retrier: Retrier) -> bool:
    await retrier.run_once()
    return False


async def done(world: World, count: int) -> bool:
    return (await world.states()).get("done") == count
