"""The log: dense positions in commit order, whatever fails and whoever appends at the same time."""

import asyncio
import contextlib

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from shared.bus.log import LogGapError
from tests.integration.bus.conftest import SERVICE, World, event, until


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


async def test_a_gap_that_somebody_fills_ends_as_a_parked_delivery(world: World) -> None:
    """What the handbook says to write into it."""
    await world.append(event(), event(), event())
    async with world.db.transaction() as connection:
        await connection.execute(text("DELETE FROM event_log WHERE position = 2"))
    before = gaps_told()
    world.start(world.relay())
    world.start_service()
    await until(lambda: told_since(before))

    async with world.db.transaction() as connection:
        await connection.execute(
            text(
                """
                INSERT INTO event_log (partition, position, event_id, type, subject, event)
                VALUES (0, 2, gen_random_uuid(), 'lost', 'lost', 'lost')
                """
            )
        )

    await until(lambda: settled(world, 3), 20)
    assert await world.states() == {"done": 2, "parked": 1}


def gaps_told() -> float:
    labels = {"loop": f"relay-{SERVICE}-0", "error": "LogGapError"}
    return REGISTRY.get_sample_value("orderstream_loop_failures_total", labels) or 0.0


async def told_since(before: float) -> bool:
    await asyncio.sleep(0)
    return gaps_told() > before


async def settled(world: World, position: int) -> bool:
    return await world.settled() == position


async def positions(world: World) -> list[int]:
    async with world.db.reading() as connection:
        found = await connection.execute(text("SELECT position FROM event_log ORDER BY position"))
        return list(found.scalars())
