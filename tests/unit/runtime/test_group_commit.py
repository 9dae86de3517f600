"""One transaction for many commands, and still each command gets its own answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest
import pytest_asyncio
from sqlalchemy import Integer, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from shared.runtime.db import Database
from shared.runtime.errors import CommitUnknown
from shared.runtime.group_commit import GroupCommit, NotAtOnce
from shared.runtime.statements import over_arrays

Outcome = TypeVar("Outcome")

INSERT = over_arrays("INSERT INTO numbers SELECT unnest(:numbers) RETURNING number", numbers=Integer)


@dataclass(frozen=True)
class Put:
    """Write a number; there can be only one of each, and none below 0."""

    number: int


class Numbers:
    """Executes commands, and can be held or made to lose the answer to its next COMMIT."""

    def __init__(self, url: str) -> None:
        self.db = LosingDatabase(url, "test-group-commit", 4)
        self.batches: list[list[int]] = []
        self.commits = 0
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.started = asyncio.Event()
        self.recall_fails = False
        self.recalls = 0
        self.group: GroupCommit[Put, str] = GroupCommit(
            "numbers", self.db, self.execute, self.recall, after_commit=self.committed, max_batch=100
        )

    async def execute(self, connection: AsyncConnection, commands: Sequence[Put]) -> list[str]:
        self.batches.append([command.number for command in commands])
        self.started.set()
        await self.may_go.wait()
        await connection.execute(INSERT, {"numbers": self.batches[-1]})
        return [f"put {command.number}" for command in commands]

    def in_one_statement(self, *, up_to: int = 100, then: Exception | None = None) -> None:
        """From now on batches of numbers `up_to` this are written in one statement, whose answer may get lost."""

        async def at_once(connection: AsyncConnection, commands: Sequence[Put]) -> list[str]:
            if any(command.number > up_to for command in commands):
                raise NotAtOnce("too high")
            await connection.execute(INSERT, {"numbers": [command.number for command in commands]})
            if then:
                raise then
            return [f"put {command.number} at once" for command in commands]

        self.group._at_once = at_once

    async def recall(self, connection: AsyncConnection, command: Put) -> str | None:
        self.recalls += 1
        if self.recall_fails:
            raise ConnectionResetError("still down")
        found = await connection.execute(text("SELECT 1 FROM numbers WHERE number = :n"), {"n": command.number})
        return f"recalled {command.number}" if found.first() else None

    def committed(self) -> None:
        self.commits += 1

    async def stored(self) -> list[int]:
        async with self.db.reading() as connection:
            return list((await connection.execute(text("SELECT number FROM numbers ORDER BY 1"))).scalars())


class LosingDatabase(Database):
    """Loses the answer to the next COMMIT, after or before it took place."""

    lose: str | None = None

    @override
    async def run(self, work: Callable[[AsyncConnection], Awaitable[Outcome]]) -> Outcome:
        lose, self.lose = self.lose, None
        if lose == "request":
            raise CommitUnknown("reset before it arrived")
        result = await super().run(work)
        if lose == "answer":
            raise CommitUnknown("reset after it arrived")
        return result


@pytest_asyncio.fixture
async def numbers(database_url: str) -> AsyncIterator[Numbers]:
    numbers = Numbers(database_url)
    async with numbers.db.transaction() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS numbers"))
        await connection.execute(text("CREATE TABLE numbers (number INTEGER PRIMARY KEY CHECK (number >= 0))"))
    running = asyncio.create_task(numbers.group.run())
    yield numbers
    numbers.may_go.set()
    numbers.group.stop()
    await asyncio.wait_for(running, 10)
    await numbers.db.close()


async def test_a_lone_command_runs_at_once_and_alone(numbers: Numbers) -> None:
    assert await numbers.group.submit(Put(1)) == "put 1"

    assert numbers.batches == [[1]]
    assert await numbers.stored() == [1]
    assert numbers.commits == 1


async def test_what_arrives_while_a_batch_runs_forms_the_next_one_in_order_of_arrival(numbers: Numbers) -> None:
    first = await _held(numbers)

    rest = [asyncio.create_task(numbers.group.submit(Put(n))) for n in (5, 3, 9, 4)]
    await _until_waiting(numbers, 4)
    numbers.may_go.set()

    assert await asyncio.gather(first, *rest) == ["put 1", "put 5", "put 3", "put 9", "put 4"]
    assert numbers.batches == [[1], [5, 3, 9, 4]]
    assert numbers.commits == 2


async def test_a_batch_has_a_limit_and_nobody_is_left_behind(numbers: Numbers) -> None:
    first = await _held(numbers)

    rest = [asyncio.create_task(numbers.group.submit(Put(n))) for n in range(2, 252)]
    await _until_waiting(numbers, 250)
    numbers.may_go.set()

    assert await asyncio.gather(first, *rest) == [f"put {n}" for n in range(1, 252)]
    assert [len(batch) for batch in numbers.batches] == [1, 100, 100, 50]


@pytest.mark.parametrize("bad", [-1, 1, 2**40])
async def test_one_bad_command_fails_alone(numbers: Numbers, bad: int) -> None:
    """Against a rule of the table, a duplicate of one before, and one that the driver does not even send."""
    first = await _held(numbers)

    rest = [asyncio.create_task(numbers.group.submit(Put(n))) for n in (2, bad, 3)]
    await _until_waiting(numbers, 3)
    numbers.may_go.set()
    results = await asyncio.gather(first, *rest, return_exceptions=True)

    assert [results[n] for n in (0, 1, 3)] == ["put 1", "put 2", "put 3"]
    assert isinstance(results[2], Exception)
    assert numbers.batches == [[1], [2, bad, 3], [2], [bad], [3]]
    assert await numbers.stored() == [1, 2, 3]


async def test_a_failed_command_does_not_stop_the_group(numbers: Numbers) -> None:
    with pytest.raises(IntegrityError):
        await numbers.group.submit(Put(-1))

    assert await numbers.group.submit(Put(1)) == "put 1"


async def test_an_outage_fails_the_whole_batch_at_once_and_is_not_repeated(
    numbers: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await _held(numbers)
    rest = [asyncio.create_task(numbers.group.submit(Put(n))) for n in (2, 3)]
    await _until_waiting(numbers, 2)

    async def unreachable(*_: object) -> list[str]:
        numbers.batches.append([])
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(numbers.group, "_execute", unreachable)
    numbers.may_go.set()
    results = await asyncio.gather(first, *rest, return_exceptions=True)

    assert results[0] == "put 1"
    assert [type(result) for result in results[1:]] == [ConnectionRefusedError] * 2
    assert numbers.batches == [[1], []]


async def test_a_lost_answer_to_commit_is_found_out_by_reading_back(numbers: Numbers) -> None:
    numbers.db.lose = "answer"

    assert await numbers.group.submit(Put(1)) == "recalled 1"

    assert numbers.batches == [[1]]
    assert await numbers.stored() == [1]
    assert numbers.commits == 1


async def test_a_commit_that_never_arrived_is_run_again_before_what_came_later(numbers: Numbers) -> None:
    first = await _held(numbers)
    rest = [asyncio.create_task(numbers.group.submit(Put(n))) for n in (5, 2)]
    await _until_waiting(numbers, 2)

    numbers.db.lose = "request"
    numbers.may_go.set()

    assert await asyncio.gather(first, *rest) == ["put 1", "put 5", "put 2"]
    assert numbers.batches == [[1], [5, 2]]
    assert await numbers.stored() == [1, 2, 5]


async def test_when_reading_back_fails_too_the_caller_learns_that_nobody_knows(numbers: Numbers) -> None:
    numbers.db.lose, numbers.recall_fails = "answer", True

    with pytest.raises(CommitUnknown):
        await numbers.group.submit(Put(1))

    numbers.recall_fails = False
    assert await numbers.group.submit(Put(2)) == "put 2"


async def test_a_batch_that_goes_in_one_statement_needs_no_transaction(numbers: Numbers) -> None:
    numbers.in_one_statement()

    assert await numbers.group.submit(Put(1)) == "put 1 at once"

    assert await numbers.stored() == [1]
    assert numbers.batches == []


async def test_a_batch_that_does_not_go_in_one_statement_goes_step_by_step(numbers: Numbers) -> None:
    numbers.in_one_statement(up_to=0)

    assert await numbers.group.submit(Put(1)) == "put 1"

    assert await numbers.stored() == [1]


async def test_a_lost_answer_to_the_one_statement_is_found_out_by_reading_back(numbers: Numbers) -> None:
    numbers.in_one_statement(then=ConnectionResetError("reset after it arrived"))

    assert await numbers.group.submit(Put(1)) == "recalled 1"

    assert await numbers.stored() == [1]


async def test_while_the_database_is_away_a_batch_is_read_back_once_and_not_command_by_command(
    numbers: Numbers,
) -> None:
    first = await _held(numbers)
    rest = [asyncio.create_task(numbers.group.submit(Put(n))) for n in (2, 3, 4)]
    await _until_waiting(numbers, 3)

    numbers.db.lose, numbers.recall_fails = "answer", True
    numbers.may_go.set()
    results = await asyncio.gather(first, *rest, return_exceptions=True)

    assert [type(result) for result in results] == [str, *[CommitUnknown] * 3]
    assert numbers.recalls == 1


async def test_those_who_waited_for_as_long_as_an_outage_took_to_show_need_not_find_out_themselves(
    numbers: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.runtime.group_commit.PATIENCE_S", 0.0)
    numbers.db.lose, numbers.recall_fails = "answer", True
    first = await _held(numbers)
    rest = [asyncio.create_task(numbers.group.submit(Put(n))) for n in (2, 3)]
    await _until_waiting(numbers, 2)

    numbers.may_go.set()
    results = await asyncio.gather(first, *rest, return_exceptions=True)

    assert [type(result) for result in results] == [CommitUnknown, *[ConnectionAbortedError] * 2]
    assert numbers.batches == [[1]]


async def test_a_caller_that_goes_away_takes_nothing_back_and_nobody_along(numbers: Numbers) -> None:
    first = await _held(numbers)
    gone, stays = (asyncio.create_task(numbers.group.submit(Put(n))) for n in (2, 3))
    await _until_waiting(numbers, 2)

    gone.cancel()
    numbers.may_go.set()

    assert list(await asyncio.gather(first, stays)) == ["put 1", "put 3"]
    assert await numbers.stored() == [1, 2, 3]


async def test_stopping_finishes_what_was_submitted_and_takes_no_more(numbers: Numbers) -> None:
    first = await _held(numbers)
    rest = [asyncio.create_task(numbers.group.submit(Put(n))) for n in range(2, 252)]
    await _until_waiting(numbers, 250)

    numbers.group.stop()
    with pytest.raises(ConnectionAbortedError, match="numbers has stopped"):
        await numbers.group.submit(Put(999))
    numbers.may_go.set()

    assert len(await asyncio.gather(first, *rest)) == 251
    assert len(await numbers.stored()) == 251


async def _held(numbers: Numbers) -> "asyncio.Task[str]":
    """A command whose transaction runs until `may_go`."""
    numbers.may_go.clear()
    first = asyncio.create_task(numbers.group.submit(Put(1)))
    await numbers.started.wait()
    return first


async def _until_waiting(numbers: Numbers, count: int) -> None:
    for _ in range(10):
        await asyncio.sleep(0)  # lets the tasks run up to their place in the queue
    assert numbers.group.waiting == count
