"""Under a backlog the consumer reads the next batch while the database works on this one: nothing is lost by that."""

import pytest

from shared.bus import consumer
from shared.runtime.errors import Outage
from tests.integration.bus.conftest import World, event, until

EVENTS = 45


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "BATCH", 10)


async def test_a_backlog_is_done_to_the_last_event_each_of_them_once(world: World) -> None:
    await world.append(*(event() for _ in range(EVENTS)))
    await world.relay().run_once()

    world.start_service()
    await until(lambda: done(world))

    assert await world.effects() == (EVENTS, EVENTS)


async def test_what_was_read_ahead_of_a_batch_that_failed_is_not_lost(world: World) -> None:
    events = [event() for _ in range(EVENTS)]
    world.handling.failing[events[3].subject] = Outage("the dependency is down")
    await world.append(*events)
    await world.relay().run_once()

    world.start_service()
    await until(lambda: tried(world, events[3].subject))
    world.handling.failing.clear()
    await until(lambda: done(world))

    assert await world.effects() == (EVENTS, EVENTS)


async def test_what_was_read_ahead_of_a_stop_is_left_to_the_next_start(world: World) -> None:
    await world.append(*(event() for _ in range(EVENTS)))
    await world.relay().run_once()
    first = world.consumer()
    await first.run_once()
    await first.run_once()

    await world.kill()
    world.start_service()
    await until(lambda: done(world))

    assert await world.effects() == (EVENTS, EVENTS)


async def done(world: World) -> bool:
    return (await world.states()).get("done") == EVENTS


async def tried(world: World, subject: str) -> bool:
    return subject in world.handling.seen
