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
from shared.runtime.rehearsal import Played, Rehearsal, Work
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
    assert await errors(world) == ["ProcessKilled: kills the process that handles it: exit status 1"]
    # All, one by one until the killer, one by one behind it, and then it alone for each attempt that is left.
    assert rehearsal.plays == 3 + world.deliverer.backoff.retries


async def test_two_killers_behind_an_error_take_nobody_with_them(world: World) -> None:
    """In a batch the error comes first each time, and hides what is behind it."""
    rehearsed(world)
    events = [event() for _ in range(8)]
    world.handling.failing |= {
        events[1].subject: RuntimeError("never works"),
        events[3].subject: Killed(),  # type: ignore[dict-item]
        events[6].subject: Killed(),  # type: ignore[dict-item]
    }
    await world.deliverer.hand_over(arrivals(*events))
    await until(partial(at_rest, world, dead=3))

    assert await world.states() == {"dead": 3, "done": 5}
    assert await errors(world) == [
        "ProcessKilled: kills the process that handles it: exit status 1",
        "ProcessKilled: kills the process that handles it: exit status 1",
        "RuntimeError: never works",
    ]


async def test_an_error_is_rehearsed_at_first_and_then_known_to_be_one(world: World) -> None:
    rehearsal = rehearsed(world)
    failing, *others = [event() for _ in range(5)]
    world.handling.failing[failing.subject] = RuntimeError("never works")
    await world.deliverer.hand_over(arrivals(failing, *others))
    await until(partial(at_rest, world))

    assert await world.states() == {"dead": 1, "done": len(others)}
    assert rehearsal.plays == 2  # all, and one by one


async def test_an_event_that_fails_first_and_kills_later_kills_once(world: World) -> None:
    """The error of the attempt before says nothing about the one that left none."""
    rehearsed(world)
    changing = event()
    world.handling.failing[changing.subject] = RuntimeError("not yet")
    await world.deliverer.deliver(arrivals(changing))
    world.handling.failing[changing.subject] = Killed()  # type: ignore[assignment]

    assert await dies(world)
    assert not await dies(world)
    assert await errors(world) == ["ProcessKilled: kills the process that handles it: exit status 1"]


async def test_an_outage_does_not_make_anybody_forget_what_kills(world: World) -> None:
    rehearsed(world)
    poison = event()
    world.handling.failing[poison.subject] = Killed()  # type: ignore[assignment]
    await world.deliverer.hand_over(arrivals(poison))
    await world.retrier().run_once()
    await asyncio.sleep(0.1)  # until it is due again
    taken = await world.db.run(lambda c: world.deliverer.ledger.take(c, fresh=False, lease_s=9, limit=1))

    await world.deliverer.give_back(taken, "the mail server is away")

    assert await errors(world) == ["ProcessKilled: kills the process that handles it: exit status 1"]


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
    async def play(self, works: Sequence[Work]) -> Played:
        self.plays += 1
        return await super().play(works)


def rehearsed(world: World) -> Counted:
    """Let the world rehearse, as services do."""
    rehearsal = Counted(world.database_url, "rehearsal")
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


async def at_rest(world: World, dead: int = 1) -> bool:
    await world.retrier().run_once()
    states = await world.states()
    return states.get("dead") == dead and states.keys() <= {"dead", "done"}


async def errors(world: World) -> list[str]:
    async with world.db.reading() as connection:
        found = await connection.execute(
            text("SELECT last_error FROM deliveries WHERE last_error IS NOT NULL ORDER BY 1")
        )
        return list(found.scalars())


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
