"""Two checkout processes in one event loop, on a real Postgres, with a provider and a clock that the test owns.

A process dies by having every one of its tasks cancelled where it stands: what it committed stays, the rest is gone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from typing_extensions import override

from services.checkout.commands.answers import Answer
from services.checkout.commands.batch import Batches, Command, Result
from services.checkout.commands.checkout import Checkout
from services.checkout.commands.recover import Recovery
from services.checkout.commands.refund import Refunds
from services.checkout.commands.refund_book import RefundBook
from services.checkout.commands.refund_recovery import RefundRecovery
from shared.bus.log import EventLog
from shared.runtime import failpoints
from shared.runtime.admission import Admission, Bounds
from shared.runtime.clock import Clock
from shared.runtime.db import Database
from shared.runtime.errors import is_infrastructure
from shared.runtime.failpoints import FailPoint
from shared.runtime.group_commit import GroupCommit
from tests.model.provider import Provider

LEASE_S = 20.0
RESERVATION_S = 300.0
SOURCE = "urn:test"
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
# Unqualified names are looked up along the path, so every `now()` of ours, in defaults too, finds this one first.
CLOCK = f"""
    CREATE TABLE clock (at timestamptz NOT NULL);
    INSERT INTO clock VALUES ('{BEGINNING.isoformat()}');
    CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM clock';
    DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$
"""
QUIET_WITHIN_S = 20.0

_running: ContextVar["Operation"] = ContextVar("_running")
_alive: ContextVar["Process"] = ContextVar("_alive")


class VirtualClock(Clock):
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        """The hour does not matter."""
        self.passed = timedelta(0)

    @override
    def now(self) -> datetime:
        return BEGINNING + self.passed

    @override
    def monotonic(self) -> float:
        return self.passed.total_seconds()

    @override
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@dataclass(eq=False)
class Operation:
    """Something that a process does, until it is done, stands still or died."""

    process: "Process"
    key: str | None
    task: "asyncio.Task[Any]" = field(init=False)
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event | None = None

    @property
    def answer(self) -> Answer | None:
        """What the client was told; None when nothing reached it."""
        if self.task.cancelled():
            return None
        error = self.task.exception()
        if error is not None and not is_infrastructure(error):
            raise error
        return None if error or not isinstance(self.task.result(), Answer) else self.task.result()


class Process:
    """What `services.checkout.app` builds, without HTTP and Redis."""

    def __init__(self, db: Database, provider: Provider, clock: Clock) -> None:
        """Born into the running event loop."""
        _alive.set(self)
        self.dead = False
        log = EventLog()
        work = Batches(log, SOURCE, LEASE_S, RESERVATION_S)
        batches: GroupCommit[Command, Result] = GroupCommit(
            "orders", db, work.execute, work.recall, at_once=work.at_once
        )
        self.checkout = Checkout(db, batches, provider, clock, Admission(Bounds(9, 9, 1.0, 9.0)))
        self.recovery = Recovery(db, batches, provider, clock, LEASE_S, RESERVATION_S)
        self.refunds = Refunds(db, RefundBook(log, SOURCE, LEASE_S), provider, clock)
        self.refund_recovery = RefundRecovery(db, self.refunds, provider, clock, LEASE_S)
        self.tasks = {asyncio.create_task(batches.run(), name=batches.name)}

    def begin(self, work: Coroutine[Any, Any, Any], key: str | None = None) -> Operation:
        """Start something."""
        operation = Operation(self, key)
        _alive.set(self)
        _running.set(operation)
        operation.task = asyncio.create_task(work)
        operation.task.add_done_callback(lambda _: operation.quiet.set())
        self.tasks.add(operation.task)
        return operation

    def kill(self) -> None:
        """Stop where it stands."""
        self.dead = True
        for task in [*self.tasks, *self.checkout._once._running.values(), *self.refunds._once._running.values()]:
            task.cancel()

    async def buried(self) -> None:
        """Nothing of it runs any more."""
        await asyncio.gather(*self.tasks, return_exceptions=True)


class World:
    """The processes, what they stand on, and what stands still in them."""

    def __init__(self, db: Database) -> None:
        """Begin with nothing but two processes."""
        self.db = db
        self.provider = Provider()
        self.clock = VirtualClock()
        self.processes = [self._new(), self._new()]
        self.standing: list[Operation] = []

    async def run(
        self, process: int, work: Callable[[Process], Coroutine[Any, Any, Any]], key: str | None
    ) -> Operation:
        """Let a process do something until it is done, stands still or has died."""
        operation = self.processes[process].begin(work(self.processes[process]), key)
        await self._until_quiet(operation)
        return operation

    async def go_on(self, operation: Operation) -> None:
        """Let something go on that stands still."""
        self.standing.remove(operation)
        operation.quiet.clear()
        assert operation.gate
        operation.gate.set()
        operation.gate = None
        await self._until_quiet(operation)

    async def kill(self, process: int) -> None:
        """Kill -9, and a new one in its place."""
        self.processes[process].kill()
        await self._bury()

    async def wait(self, seconds: float) -> None:
        """Time passes, for processes, database and provider alike."""
        self.clock.passed += timedelta(seconds=seconds)
        self.provider.now = self.clock.now()
        await self.change("UPDATE clock SET at = $1", self.clock.now())

    async def change(self, sql: str, *values: object) -> None:
        """Change the database behind everybody's back."""
        async with self.db.transaction() as connection:
            await connection.exec_driver_sql(sql, values)

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        """What the database holds."""
        async with self.db.reading() as connection:
            return [dict(row) for row in (await connection.exec_driver_sql(sql)).mappings()]

    async def close(self) -> None:
        """Kill everybody."""
        for process in self.processes:
            process.kill()
            await process.buried()

    def _new(self) -> Process:
        return Process(self.db, self.provider, self.clock)

    async def _until_quiet(self, operation: Operation) -> None:
        async with asyncio.timeout(QUIET_WITHIN_S):
            await operation.quiet.wait()
        if operation.gate:
            self.standing.append(operation)
        failpoints.arm([])
        await self._bury()

    async def _bury(self) -> None:
        for n, process in enumerate(self.processes):
            if process.dead:
                await process.buried()
                self.processes[n] = self._new()
        self.standing = [one for one in self.standing if not one.process.dead]


def moment(point: str, how: str) -> FailPoint:
    """`dies`, `breaks` (a connection is lost) or `stands` (until it is told to go on), once, at a named moment."""
    acts: dict[str, Callable[[], Awaitable[None]]] = {"dies": _die, "breaks": _break, "stands": _stand}
    return FailPoint(point, acts[how], hit=1)


async def _die() -> None:
    _alive.get().kill()
    await asyncio.Event().wait()


async def _break() -> None:
    raise ConnectionResetError("fail-point")


async def _stand() -> None:
    operation = _running.get()
    operation.gate = gate = asyncio.Event()
    operation.quiet.set()
    await gate.wait()
