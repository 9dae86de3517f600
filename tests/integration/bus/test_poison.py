"""Events that can never work, and what they cost the others: a few transactions, or one restart."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import TypeVar

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from shared.bus import retrier as retrier_module
from shared.bus.arrivals import Event
from shared.bus.consumer import BATCH
from shared.bus.delivery import Deliverer
from shared.bus.retry import Backoff
from shared.contracts.envelope import Envelope
from shared.contracts.orders import ORDER_COMPLETED
from shared.runtime.rehearsal import Rehearsal, Work
from shared.runtime.supervision import Loop
from tests.integration.bus.conftest import World, event, until
from tests.integration.bus.test_delivery import arrivals

DELAY_AIM_S = 1.0  # what an event that always fails may cost the others
TRIES = 2  # a machine that does other things besides stands still now and then, but not each time
DEATHS_MOST = 3  # that the neighbours of a killer live through: with it, in its second batch, and behind it

Result = TypeVar("Result")


async def test_the_culprit_of_a_batch_is_found_in_as_many_transactions_as_halving_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [event() for _ in range(BATCH)]
    world.handling.failing[events[BATCH // 3].subject] = RuntimeError("never works")
    transactions = 0
    run = world.db.run

    async def counted(work: Callable[..., Awaitable[Result]]) -> Result:
        nonlocal transactions
        transactions += 1
        return await run(work)

    monkeypatch.setattr(world.db, "run", counted)
    await world.deliverer.deliver(arrivals(*events))

    assert await world.states() == {"done": BATCH - 1, "retrying": 1}
    # The whole, then both halves each time, then the culprit's row.
    assert transactions <= 1 + 2 * math.ceil(math.log2(BATCH)) + 1


@pytest.mark.alone
async def test_an_event_that_always_fails_costs_the_others_less_than_a_second(world: World) -> None:
    world.start(world.relay())
    world.start_service()
    await together(world, [event() for _ in range(BATCH)])  # everybody has found his feet

    alone = [await together(world, [event() for _ in range(BATCH)]) for _ in range(TRIES)]
    beside = [await together(world, poisoned(world)) for _ in range(TRIES)]

    assert min(beside) - min(alone) < DELAY_AIM_S
    await until(lambda: dead(world, TRIES))


async def test_an_event_that_always_takes_too_long_costs_those_who_come_later_one_timeout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halving would take as long for each half with the culprit in it: ten times for a batch of a thousand."""
    monkeypatch.setattr(retrier_module, "FRESH_LEASE_S", 0.1)
    monkeypatch.setattr(Loop, "failure_s", 0.05)
    neighbours, slow = [event() for _ in range(99)], event()
    timeouts = 0

    async def handle(connection: AsyncConnection, events: Sequence[Event]) -> None:
        nonlocal timeouts
        if slow.subject in {one.subject for one in events}:
            timeouts += 1
            await connection.execute(text("SET LOCAL statement_timeout = 200"))
            await connection.execute(text("SELECT pg_sleep(60)"))
        await world.handling(connection, events)

    async def ran_into(count: int) -> bool:
        return timeouts == count

    world.deliverer = Deliverer(world.db, {ORDER_COMPLETED: handle}, Backoff(base_s=60))
    await publish(world, *neighbours[:33], slow, *neighbours[33:])
    world.start(world.consumer())
    await until(lambda: ran_into(1))
    await publish(world, event())
    await until(partial(has_effects, world, 1))

    assert timeouts == 1
    world.start(world.retrier())
    await until(partial(has_effects, world, 100))
    assert timeouts <= 1 + 1 + 2  # in the first batch, in the second, and alone, where the first time proves nothing


async def test_an_event_that_kills_the_process_takes_one_with_it_and_is_dead_in_the_end(world: World) -> None:
    """What may have killed a process is rehearsed in a child before another one handles it."""
    rehearsal = rehearsed(world)
    poison, *neighbours = [event() for _ in range(101)]
    world.handling.failing[poison.subject] = Killed()  # type: ignore[assignment]
    await publish(world, *neighbours[:50], poison, *neighbours[50:])

    assert await dies(world)
    await publish(world, event())  # one more comes while nobody is there
    assert not await dies(world)

    assert await world.states() == {"dead": 1, "done": len(neighbours) + 1}
    assert await world.effects() == (len(neighbours) + 1, len(neighbours) + 1)
    assert await world.scalar("SELECT count(*) FROM deliveries WHERE last_error LIKE '%kills the process%exit status%'")
    # The whole, then both halves each time, then once for each attempt that is left.
    assert rehearsal.plays <= 1 + 2 * math.ceil(math.log2(101)) + world.deliverer.backoff.retries


async def test_an_error_is_rehearsed_once_and_then_known_to_be_one(world: World) -> None:
    rehearsal = rehearsed(world)
    failing, *others = [event() for _ in range(5)]
    world.handling.failing[failing.subject] = RuntimeError("never works")
    await world.deliverer.hand_over(arrivals(failing, *others))
    await until(partial(at_rest, world))

    assert await world.states() == {"dead": 1, "done": len(others)}
    assert rehearsal.plays == 1


async def test_where_nothing_is_rehearsed_others_wait_for_few_restarts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each life ends in the middle of a transaction, as the OOM killer would end it."""
    monkeypatch.setattr(retrier_module, "FRESH_LEASE_S", 0.1)
    poison, *neighbours = [event() for _ in range(11)]
    world.handling.failing[poison.subject] = Killed()  # type: ignore[assignment]
    await publish(world, *neighbours[:5], poison, *neighbours[5:])
    done = []  # at each death

    async with asyncio.timeout(60):
        while await dies(world):
            done.append((await world.states()).get("done", 0))
            await publish(world, event())  # one more comes while nobody is there

    deaths = 1 + 1 + world.deliverer.backoff.retries  # the first one is not counted
    assert len(done) == deaths
    # Whoever came after the killer, one per death, waited for one restart. What else is done are its neighbours.
    neighbours_done = [count - came for came, count in enumerate(done)]
    assert neighbours_done[:2] == [0, 0]
    assert set(neighbours_done[DEATHS_MOST:]) == {len(neighbours)}
    assert await world.states() == {"dead": 1, "done": len(neighbours) + deaths}
    assert await world.effects() == (len(neighbours) + deaths, len(neighbours) + deaths)


class Killed(BaseException):
    """Ends the process; no handler of errors sees it."""


class Counted(Rehearsal):
    """Counts how often a child was needed."""

    plays = 0

    @override
    async def death_of(self, work: Work) -> str | None:
        self.plays += 1
        return await super().death_of(work)


def rehearsed(world: World) -> Counted:
    """Let the world rehearse, as services do."""
    rehearsal = Counted(world.db.engine.url.render_as_string(hide_password=False), "rehearsal")
    world.deliverer = Deliverer(
        world.db, {ORDER_COMPLETED: world.handling}, Backoff(base_s=0.05, retries=3), rehearsal=rehearsal
    )
    return rehearsal


async def dies(world: World) -> bool:
    """One life under the same name; False if it comes to the end of all work."""
    try:
        await world.consumer().run_once()
        await until(partial(at_rest, world))
    except Killed:
        return True
    return False


async def at_rest(world: World) -> bool:
    await world.retrier().run_once()
    return await world.states() == {"dead": 1, "done": await world.scalar("SELECT count(*) - 1 FROM deliveries")}


async def publish(world: World, *events: Envelope) -> None:
    await world.append(*events)
    await world.relay().run_once()


def poisoned(world: World) -> list[Envelope]:
    """A batch with a culprit in it."""
    events = [event() for _ in range(BATCH)]
    world.handling.failing[events[BATCH // 3].subject] = RuntimeError("never works")
    return events


async def together(world: World, events: list[Envelope]) -> float:
    """Seconds until all of them that work have their effect."""
    working = sum(one.subject not in world.handling.failing for one in events)
    wanted = (await world.effects())[0] + working
    began = monotonic()
    await world.append(*events)
    await until(partial(has_effects, world, wanted))
    return monotonic() - began


async def has_effects(world: World, wanted: int) -> bool:
    return (await world.effects())[0] == wanted


async def dead(world: World, count: int) -> bool:
    return (await world.states()).get("dead") == count
