"""Whatever happens at whichever moment of relay and consumer: every event has its effect, once, and soon."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import monotonic

import asyncpg
import pytest

from shared.runtime.failpoints import EXIT_STATUS
from tests.integration.bus.conftest import until
from tests.integration.bus.flowing import RESUMED_WITHIN_S, flowing
from tests.integration.bus.processes import RELAY, SERVICE, Stage, ended, stage
from tests.support.pgbouncer import direct
from tests.support.servers import NewDatabase

# Where in an event's life, as it is written for a process. The first hits are those of a process that finds its feet.
MOMENTS = {
    RELAY: ("R1=%s@3", "R2=%s@3", "R3=%s@3", "R4=%s@3", "C5/relay-email-0=%s@3"),
    SERVICE: ("K1=%s@2", "K2=%s@2", "C5/consumer-email-0=%s@2", "K4=%s@2", "K5=%s@2"),
}
WITH_THE_ROW = ("R1=%s@1", "R2=%s@1", "R3=%s@1")  # the first pass has something to announce, so it takes the row
ALL = [(role, moment) for role, moments in MOMENTS.items() for moment in moments]
OTHER = {RELAY: SERVICE, SERVICE: RELAY}
HANG_S = 7.0  # longer than it takes to be overtaken

Story = Callable[[Stage, str, str], Awaitable[None]]
Play = Callable[[Story, Sequence[tuple[str, str]]], Awaitable[None]]


@pytest.fixture
def play(new_database: NewDatabase, tmp_path: Path) -> Play:
    """Tell a story once per moment, some at the same time: mostly they wait."""
    some = asyncio.Semaphore(5)

    async def one(story: Story, role: str, moment: str) -> None:
        async with some, stage(await new_database(), tmp_path / f"{role}-{moment[:2]}.log") as made:
            await story(made, role, moment)

    async def play(story: Story, moments: Sequence[tuple[str, str]]) -> None:
        told = await asyncio.gather(*(one(story, *moment) for moment in moments), return_exceptions=True)
        wrong = {moment: result for (_, moment), result in zip(moments, told, strict=True) if result is not None}
        assert wrong == {}

    return play


async def test_a_process_that_dies_at_any_moment_loses_and_doubles_nothing(play: Play) -> None:
    async def story(stage: Stage, role: str, moment: str) -> None:
        await stage.start(OTHER[role])
        fated = await stage.start(role, armed=moment % "exit")
        async with flowing(stage.world) as flow:
            assert await asyncio.wait_for(ended(fated), RESUMED_WITHIN_S) == EXIT_STATUS
            await stage.start(role)
            await flow.resumes()

    await play(story, ALL)


async def test_a_relay_that_dies_at_any_moment_is_not_missed_where_another_one_runs(play: Play) -> None:
    async def story(stage: Stage, role: str, moment: str) -> None:
        await stage.start(SERVICE)
        await stage.start(role, "two")
        fated = await stage.start(role, armed=moment % "exit")
        async with flowing(stage.world) as flow:
            assert await asyncio.wait_for(ended(fated), RESUMED_WITHIN_S) == EXIT_STATUS
            await flow.catches_up()

    await play(story, [(RELAY, moment) for moment in (*MOMENTS[RELAY], *WITH_THE_ROW)])


async def test_a_connection_that_breaks_at_any_moment_loses_and_doubles_nothing(play: Play) -> None:
    async def story(stage: Stage, role: str, moment: str) -> None:
        await stage.start(OTHER[role])
        await stage.start(role, armed=moment % "raise")
        async with flowing(stage.world) as flow:
            await until(lambda: came_to(stage, moment))
            await flow.resumes()

    await play(story, ALL)


@pytest.mark.slow
async def test_a_process_that_stands_still_is_overtaken_and_does_no_harm_when_it_goes_on(play: Play) -> None:
    async def story(stage: Stage, role: str, moment: str) -> None:
        if role == SERVICE:
            await limit(stage.database_url)  # a relay brings its own
        await stage.start(OTHER[role])
        await stage.start(role, armed=moment % f"hang:{HANG_S:g}")
        async with flowing(stage.world) as flow:
            await until(lambda: came_to(stage, moment))
            woken_at = monotonic() + HANG_S
            await stage.start(role, "two")
            await flow.resumes()
            await until(lambda: is_past(woken_at))
            await flow.more(50)

    await play(story, ALL)


async def limit(database_url: str) -> None:
    """What the roles of a real installation have: nobody may sleep on a lock."""
    connection = await asyncpg.connect(direct(database_url))
    name = await connection.fetchval("SELECT current_database()")
    for setting in ("idle_in_transaction_session_timeout = '3s'", "lock_timeout = '1s'"):
        await connection.execute(f"ALTER DATABASE {name} SET {setting}")
    await connection.close()


async def came_to(stage: Stage, moment: str) -> bool:
    await asyncio.sleep(0)
    return stage.reached(moment[:2])


async def is_past(instant: float) -> bool:
    await asyncio.sleep(0)
    return monotonic() >= instant
