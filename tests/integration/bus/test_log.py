"""The log: dense positions in commit order, whatever fails and whoever appends at the same time."""

import asyncio
import contextlib

from tests.integration.bus.conftest import World, event


async def test_positions_have_no_gaps_and_follow_commit_order(world: World) -> None:
    async def append_slowly(number: int) -> None:
        async with world.db.transaction() as connection:
            await asyncio.sleep(0.01 * (number % 5))
            await world.log.append(connection, [event() for _ in range(number % 3 + 1)])

    await asyncio.gather(*(append_slowly(number) for number in range(30)))

    async with world.db.reading() as connection:
        entries = await world.log.read(connection, 0, 0, 1000)
    assert [entry.position for entry in entries] == list(range(1, 61))


async def test_a_rollback_gives_its_positions_back(world: World) -> None:
    await world.append(event())

    with contextlib.suppress(RuntimeError):
        async with world.db.transaction() as connection:
            await world.log.append(connection, [event(), event()])
            raise RuntimeError("the order did not happen")
    await world.append(event())

    async with world.db.reading() as connection:
        entries = await world.log.read(connection, 0, 0, 10)
        assert await world.log.head(connection, 0) == 2
    assert [entry.position for entry in entries] == [1, 2]


async def test_a_reader_never_skips_what_commits_late(world: World) -> None:
    """The trap of reading `id > last` from a sequence: a lower number may commit after a higher one was read."""
    seen: list[int] = []
    done = asyncio.Event()

    async def read() -> None:
        while not (done.is_set() and len(seen) == 120):
            async with world.db.reading() as connection:
                entries = await world.log.read(connection, 0, seen[-1] if seen else 0, 50)
            seen.extend(entry.position for entry in entries)
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

    assert seen == list(range(1, 121))
