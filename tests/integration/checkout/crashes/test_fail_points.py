"""Whatever happens at whichever moment of an order: it becomes final by itself, and everybody was told the truth."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterable

import pytest

from shared.runtime.failpoints import EXIT_STATUS, POINTS, VARIABLE
from tests.integration.checkout.conftest import until
from tests.integration.checkout.crashes.stages import LEASE_S, Client, Stage, Theatre
from tests.support.replicas import Replica

DECLINED = "pm_card_visa_chargeDeclined"

# Where in an order's life, as it is written for a process: the second hit of C1 and C5 is (nearly always) a settling.
MOMENTS = ("C1=%s@1", "C1=%s@2", "C2=%s@1", "C3=%s@1", "C4=%s@1", "C5/orders=%s@1", "C5/orders=%s@2", "C6=%s@1")
ORDERS = [point for point in POINTS if point.startswith("C")]
FIRST = {point: f"{point}/orders=exit@1" if point == "C5" else f"{point}=exit@1" for point in ORDERS}

StoryAt = Callable[[Stage, str], Awaitable[list[str]]]
Play = Callable[[StoryAt, Iterable[str]], Awaitable[dict[str, list[str]]]]


@pytest.fixture
def play(theatre: Theatre) -> Play:
    """Tell a story once per moment; returns the moments at which something did not hold."""

    async def play(story: StoryAt, moments: Iterable[str]) -> dict[str, list[str]]:
        async def one(moment: str) -> tuple[str, list[str]]:
            return moment, await theatre.tell(lambda stage: story(stage, moment))

        told = await asyncio.gather(*(one(moment) for moment in moments))
        return {moment: complaints for moment, complaints in told if complaints}

    return play


async def test_a_process_that_dies_at_any_moment_loses_and_doubles_nothing(play: Play) -> None:
    async def story(stage: Stage, moment: str) -> list[str]:
        replica = stage.replica()
        await replica.start(**{VARIABLE: moment % "exit"})

        await stage.post(replica, *some_clients())
        ended = await replica.ended()
        await replica.start()
        await stage.come_to_rest()

        return [*([f"ended with {ended}"] if ended != EXIT_STATUS else []), *await stage.complaints(replica)]

    assert await play(story, MOMENTS) == {}


async def test_a_connection_that_breaks_at_any_moment_loses_and_doubles_nothing(play: Play) -> None:
    async def story(stage: Stage, moment: str) -> list[str]:
        replica = stage.replica()
        await replica.start(**{VARIABLE: moment % "raise"})

        statuses = await stage.post(replica, *some_clients())
        await stage.come_to_rest()

        honest = {201, 202, 402, 503}
        return [
            *([f"answered {statuses}"] if set(statuses) - honest else []),
            *await stage.complaints(replica),
        ]

    assert await play(story, MOMENTS) == {}


async def test_a_process_that_stands_still_longer_than_its_lease_is_overtaken_and_does_no_harm(play: Play) -> None:
    async def story(stage: Stage, moment: str) -> list[str]:
        slow, quick = stage.replica(), stage.replica()
        await asyncio.gather(slow.start(**{VARIABLE: moment % f"hang:{LEASE_S + 1:g}"}), quick.start())

        waiting = asyncio.create_task(stage.post(slow, *some_clients()))
        await asyncio.sleep(LEASE_S / 2)
        await stage.post(quick, *stage.clients)
        await waiting
        await stage.come_to_rest()

        return await stage.complaints(quick)

    assert await play(story, MOMENTS) == {}


async def test_a_process_that_is_told_to_stop_at_any_moment_answers_first(play: Play) -> None:
    async def story(stage: Stage, moment: str) -> list[str]:
        replica = stage.replica()
        before = points_reached(replica)  # in the stories that were told on this stage before
        await replica.start(**{VARIABLE: moment % "hang:0.6"})

        posting = asyncio.create_task(stage.post(replica, Client()))
        await until(lambda: has_come_further(replica, before))
        replica.send(signal.SIGTERM)
        statuses = await posting
        ended = await replica.ended()
        await replica.start()
        await stage.come_to_rest()

        told = [] if (statuses, ended) == ([201], 0) else [f"answered {statuses}, ended with {ended}"]
        return told + await stage.complaints(replica)

    assert await play(story, MOMENTS) == {}


def points_reached(replica: Replica) -> int:
    return replica.log.read_text().count("fail-point reached") if replica.log.exists() else 0


async def has_come_further(replica: Replica, before: int) -> bool:
    await asyncio.sleep(0)
    return points_reached(replica) > before


@pytest.mark.timeout(600)
async def test_a_second_death_during_the_recovery_from_the_first_loses_and_doubles_nothing(play: Play) -> None:
    async def story(stage: Stage, pair: str) -> list[str]:
        first, second = pair.split()
        replica = stage.replica()
        await replica.start(**{VARIABLE: FIRST[first]})
        await stage.post(replica, *some_clients())
        ended = [await replica.ended()]

        replica.launch(**{VARIABLE: FIRST[second]})
        if await stage.open_orders() == 0:  # the first death left nothing to recover, so a new order meets the second
            await replica.ready()
            await stage.post(replica, Client())
        ended.append(await replica.ended())
        await replica.start()
        await stage.come_to_rest()

        wrong = [f"ended with {ended}"] if ended != [EXIT_STATUS] * 2 else []
        return wrong + await stage.complaints(replica)

    assert await play(story, [f"{first} {second}" for first in ORDERS for second in ORDERS]) == {}


def some_clients() -> list[Client]:
    return [Client(), Client(skus=("SKU-0002", "SKU-0001")), Client(DECLINED)]
