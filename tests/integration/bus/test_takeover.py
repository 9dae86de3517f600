"""Who takes up what a dead, stopped or sleeping consumer left open."""

import asyncio
from functools import partial

import pytest

from shared.bus.consumer import PartitionConsumer
from tests.integration.bus.conftest import SERVICE, STREAM, World, event, until


async def test_a_restart_under_the_same_name_takes_up_its_own_entries_at_once(world: World) -> None:
    await world.append(*(event() for _ in range(60)))
    await world.relay().run_once()
    await world.streams.create_group(STREAM, SERVICE, 0)
    await world.streams.read_new(STREAM, SERVICE, "one", 60)  # given to "one", who dies here

    world.start_service("one")
    await until(lambda: done(world, 60), timeout_s=2.0)

    assert await world.effects() == (60, 60)


async def test_a_peer_takes_over_what_a_dead_consumer_left_open(world: World) -> None:
    await world.append(*(event() for _ in range(20)))
    await world.relay().run_once()
    await world.streams.create_group(STREAM, SERVICE, 0)
    await world.streams.read_new(STREAM, SERVICE, "dead", 20)

    world.start(replica(world, "alive", claim_idle_s=0.3), world.retrier())
    await until(lambda: done(world, 20), timeout_s=5.0)

    assert await world.effects() == (20, 20)
    pending = await world.redis.xpending(STREAM, SERVICE)
    assert pending["pending"] == 0


async def test_who_stops_in_order_leaves_what_it_had_not_begun_in_the_ledger(world: World) -> None:
    await world.append(*(event() for _ in range(20)))
    await world.relay().run_once()
    await world.streams.create_group(STREAM, SERVICE, 0)
    await world.streams.read_new(STREAM, SERVICE, "leaving", 20)

    await world.consumer("leaving").finish()
    world.start(world.retrier())  # of whichever replica: it needs no stream for that
    await until(lambda: done(world, 20), timeout_s=5.0)

    assert await world.effects() == (20, 20)
    assert await names(world) == set()


async def test_who_stops_while_the_ledger_is_away_gives_its_entries_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.append(*(event() for _ in range(20)))
    await world.relay().run_once()
    await world.streams.create_group(STREAM, SERVICE, 0)
    await world.streams.read_new(STREAM, SERVICE, "leaving", 20)

    with monkeypatch.context() as away:
        away.setattr(world.deliverer, "hand_over", refuse)
        await world.consumer("leaving").finish()
    world.start(world.consumer("staying"), world.retrier())
    await until(lambda: done(world, 20), timeout_s=5.0)

    assert await world.effects() == (20, 20)


async def test_fifty_restarts_under_random_names_leave_one_name(world: World) -> None:
    await world.streams.create_group(STREAM, SERVICE, 0)
    world.start(world.relay())
    for number in range(50):
        dying = asyncio.create_task(replica(world, f"random-{number}", claim_idle_s=1.0).run())
        await world.append(event(), event())
        await until(partial(is_known, world, f"random-{number}"))
        await end(dying)

    world.start(replica(world, "steady", claim_idle_s=1.0), world.retrier())
    await until(lambda: done(world, 100))
    await until(lambda: only(world, "steady"))

    head = await world.scalar("SELECT position FROM log_head")
    assert await world.effects() == (head, head)


async def test_a_name_that_still_has_something_open_is_never_forgotten(world: World) -> None:
    """XGROUP DELCONSUMER drops what was open for ever."""
    await world.append(*(event() for _ in range(3)))
    await world.relay().run_once()
    await world.streams.create_group(STREAM, SERVICE, 0)
    await world.streams.read_new(STREAM, SERVICE, "busy", 1)
    await world.streams.read_new(STREAM, SERVICE, "idle", 1)
    await world.streams.ack(STREAM, SERVICE, ["2-0"])

    await until(partial(forgotten, world, {"busy"}))

    assert (await world.redis.xpending(STREAM, SERVICE))["pending"] == 1


async def test_a_consumer_with_nothing_open_is_forgotten_when_it_stops(world: World) -> None:
    world.start(world.relay())
    world.start_service("short-lived")
    await world.append(event())
    await until(lambda: done(world, 1))

    await world.stop()

    assert await world.redis.xinfo_consumers(STREAM, SERVICE) == []


def replica(world: World, name: str, claim_idle_s: float) -> PartitionConsumer:
    return PartitionConsumer(SERVICE, 0, name, world.streams, world.deliverer, world.gate, claim_idle_s)


async def names(world: World) -> set[str]:
    return {one["name"].decode() for one in await world.redis.xinfo_consumers(STREAM, SERVICE)}


async def end(task: asyncio.Task[None]) -> None:
    """As kill -9 would: no clean-up."""
    while not task.done():  # a database call may swallow a cancellation, and the loop goes on
        task.cancel()
        await asyncio.wait({task}, timeout=0.2)


async def is_known(world: World, name: str) -> bool:
    return name in await names(world)


async def only(world: World, name: str) -> bool:
    """Another event lets him show his name: before 7.2, Redis takes a waiting reader to be idle and forgets him too."""
    await world.append(event())
    head = await world.scalar("SELECT position FROM log_head")
    await until(lambda: done(world, head))
    return await names(world) == {name}


async def forgotten(world: World, left: set[str]) -> bool:
    await world.streams.forget_idle(STREAM, SERVICE, 10)
    return await names(world) == left


async def refuse(arrivals: object) -> None:
    raise ConnectionRefusedError(arrivals)


async def done(world: World, count: int) -> bool:
    return (await world.states()).get("done") == count
