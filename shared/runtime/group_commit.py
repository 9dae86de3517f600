"""Group commit: commands that arrive while a transaction runs form the next one.

One transaction serves a whole batch, so locks and the disk's fsync are paid once per batch instead of once per command.
There is no timer: an idle system starts a batch of one at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Generic, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from shared.runtime import metrics
from shared.runtime.db import Database
from shared.runtime.errors import CommitUnknown, OrderstreamError, is_infrastructure
from shared.runtime.supervision import Loop, brief

log = structlog.get_logger()

Command = TypeVar("Command")
Result = TypeVar("Result")

Execute = Callable[[AsyncConnection, Sequence[Command]], Awaitable[Sequence[Result]]]
Recall = Callable[[AsyncConnection, Command], Awaitable[Result | None]]

MAX_BATCH = 64
ANSWERED_AT_ONCE = 16  # of a batch
PATIENCE_S = 3.0  # when a batch needs longer to find out that the database is away, those behind it need not find out


class NotAtOnce(OrderstreamError):
    """The batch does not fit into one statement, or the statement found the world changed: nothing was written."""


class GroupCommit(Loop, Generic[Command, Result]):
    """Runs commands in batches, one transaction a batch.

    `execute` gets the commands in arrival order and returns one result each, in that order. A batch that fails is
    repeated command by command, so one bad command never fails the others. When the answer to COMMIT is lost, `recall`
    reads back what became of a command: its result, or None when it was not committed (it is then run again).

    `at_once`, where there is one, is tried first: it must do the same in a single statement, which commits by itself,
    or raise `NotAtOnce`.
    """

    def __init__(
        self,
        name: str,
        db: Database,
        execute: Execute[Command, Result],
        recall: Recall[Command, Result],
        *,
        at_once: Execute[Command, Result] | None = None,
        after_commit: Callable[[], None] = lambda: None,
        max_batch: int = MAX_BATCH,
    ) -> None:
        """Nothing runs before `run` does."""
        super().__init__(name)
        self._db = db
        self._execute = execute
        self._recall = recall
        self._at_once = at_once
        self._after_commit = after_commit
        self._max_batch = max_batch
        self._queue: deque[tuple[Command, asyncio.Future[Result]]] = deque()

    @property
    def waiting(self) -> int:
        """How many commands wait for the next batch."""
        return len(self._queue)

    async def submit(self, command: Command) -> Result:
        """Run `command` in the next batch; returns after its COMMIT. Raises what its own transaction raised."""
        if self.stopping:
            raise ConnectionAbortedError(f"{self.name} has stopped")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((command, future))
        self.wake()
        return await future

    @override
    async def run_once(self) -> int:
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._max_batch))]
        if batch:
            metrics.BATCH_SIZE.labels(self.name).observe(len(batch))
            await self._run_batch(batch)
        return len(batch)

    @override
    async def finish(self) -> None:
        while await self.run_once():
            self.beat()

    async def _run_batch(self, batch: list[tuple[Command, asyncio.Future[Result]]]) -> None:
        commands = [command for command, _ in batch]
        began = monotonic()
        try:
            results = await self._commit(commands)
        except CommitUnknown as error:
            await self._read_back(batch, error, began)
        except Exception as error:  # noqa: BLE001 - it goes to whoever submitted the command
            await self._split(batch, error, began)
        except BaseException as error:
            _fail(batch, ConnectionAbortedError(brief(error)))
            raise
        else:
            self._after_commit()
            _answer_in_turns([future for _, future in batch], results)

    async def _commit(self, commands: Sequence[Command]) -> Sequence[Result]:
        if at_once := self._at_once:
            try:
                return await self._db.once(lambda connection: at_once(connection, commands))
            except NotAtOnce:
                metrics.STEP_BY_STEP.labels(self.name).inc()
        return await self._db.run(lambda connection: self._execute(connection, commands))

    async def _split(self, batch: list[tuple[Command, asyncio.Future[Result]]], error: Exception, began: float) -> None:
        # A server that is away fails every command alike, so only an error of the work itself is worth a second look.
        if len(batch) == 1 or is_infrastructure(error):
            _fail(batch, error)
            self._give_up_behind(began)
            return
        log.warning("batch failed, each command runs alone", group=self.name, size=len(batch), error=brief(error))
        for item in batch:
            await self._run_batch([item])

    async def _read_back(
        self, batch: list[tuple[Command, asyncio.Future[Result]]], error: CommitUnknown, began: float
    ) -> None:
        log.warning("commit unknown, reading back", group=self.name, size=len(batch))
        again = []
        try:
            async with self._db.reading() as connection:
                for command, future in batch:
                    result = await self._recall(connection, command)
                    if result is None:
                        again.append((command, future))
                    else:
                        _answer(future, result)
        except Exception:  # noqa: BLE001 - whatever it was, the outcome stays unknown and the callers must know that
            # All of them at once: while the database is away every look takes as long as a connection takes to fail,
            # and whoever came later waits behind.
            again.clear()
            _fail(batch, error)
            self._give_up_behind(began)
        self._after_commit()
        self._queue.extendleft(reversed(again))

    def _give_up_behind(self, began: float) -> None:
        """Those who waited for as long as this batch took to fail would wait as long again: nothing was tried yet."""
        if monotonic() - began > PATIENCE_S:
            behind, self._queue = [*self._queue], deque()
            _fail(behind, ConnectionAbortedError(f"{self.name}: the database does not answer"))


def _answer_in_turns(futures: Sequence[asyncio.Future[Result]], results: Sequence[Result]) -> None:
    """A few in each turn of the event loop: what follows an answer takes time, and others are waiting to be heard."""
    for future, result in zip(futures[:ANSWERED_AT_ONCE], results[:ANSWERED_AT_ONCE], strict=True):
        _answer(future, result)
    if left := futures[ANSWERED_AT_ONCE:]:
        asyncio.get_running_loop().call_soon(_answer_in_turns, left, results[ANSWERED_AT_ONCE:])


def _answer(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():  # its waiter may have been cancelled meanwhile
        future.set_result(result)


def _fail(batch: list[tuple[Command, asyncio.Future[Result]]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
