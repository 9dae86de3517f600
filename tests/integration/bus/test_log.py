"""The log: dense positions in commit order, whatever fails and whoever appends at the same time."""

import asyncio
import contextlib

import pytest
from sqlalchemy import text

from shared.bus.log import LogGapError
from tests.integration.bus.conftest import World, event


async def test_positions_have_no_gaps_and_follow_commit_order(world: World) -> None:
    async def append_slowly(number: int) -> None:
        async with world.db.transaction() as connection:
            await asyncio.sleep(0.01 * (number % 5))
            await world.log.append(connection, [event() for _ in range(number % 3 + 1)])

    await asyncio.gather(*(append_slowly(number) for number in range(30)))

    assert await positions(world) == list(range(1, 61))


async def test_a_rollback_gives_its_positions_back(world: World) -> None:
    await world.append(event())

    with contextlib.suppress(RuntimeError):
        async with world.db.transaction() as connection:
            await world.log.append(connection, [event(), event()])
            raise RuntimeError("the order did not happen")
    await world.append(event())

    async with world.db.reading() as connection:
        assert await world.log.head(connection, 0) == 2
    assert await positions(world) == [1, 2]


async def test_a_reader_never_skips_what_commits_late(world: World) -> None:
    """The trap of reading `id > last` from a sequence: a lower number may commit after a higher one was read."""
    seen: list[str] = []
    done = asyncio.Event()

    async def read() -> None:
        while not (done.is_set() and len(seen) == 120):
            async with world.db.reading() as connection:
                seen.extend(await world.log.read(connection, 0, len(seen), 50))
            await asyncio.sleep(0.001)

    async def write(number: int) -> None:
        for _ in range(20):
            async with world.db.transaction() as connection:
                await world.log.append(connection, [event()])
                await asyncio.sleep(0.001 * number)

    reader = asyncio.create_task(read())
    await asyncio.gather(*(write(number) for number in range(6)))
    done.set()
    await asyncio.wait_for(reader, 10)

    async with world.db.reading() as connection:
        assert await world.log.read(connection, 0, 0, 1000) == seen
    assert len(set(seen)) == 120


async def test_a_gap_is_never_passed_over(world: World) -> None:
    """Only hands can make one; behind it, every event would get the position of another one."""
    await world.append(event(), event(), event())
    async with world.db.transaction() as connection:
        await connection.execute(text("DELETE FROM event_log WHERE position = 2"))

    async with world.db.reading() as connection:
        with pytest.raises(LogGapError, match=r"partition 0 lacks a position between 0 and 3\."):
            await world.log.read(connection, 0, 0, 10)
        assert len(await world.log.read(connection, 0, 2, 10)) == 1


async def positions(world: World) -> list[int]:
    async with world.db.reading() as connection:
        found = await connection.execute(text("SELECT position FROM event_log ORDER BY position"))
        return list(found.scalars())
