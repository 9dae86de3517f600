"""Processes in one event loop that the test lets die, lose a connection or stand still at named moments.

A process dies by having every one of its tasks cancelled where it stands: what it committed stays, the rest is gone.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from typing_extensions import override

from shared.runtime import failpoints
from shared.runtime.clock import Clock
from shared.runtime.errors import is_infrastructure
from shared.runtime.failpoints import FailPoint

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
    key: str | None = None
    task: "asyncio.Task[Any]" = field(init=False)
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event | None = None

    @property
    def result(self) -> Any:
        """What came of it; None when it died or a server was away. Raises what nobody foresaw."""
        if self.task.cancelled():
            return None
        error = self.task.exception()
        if error is not None and not is_infrastructure(error):
            raise error
        return None if error else self.task.result()


class Process:
    """What lives and dies together."""

    def __init__(self) -> None:
        """Born into the running event loop; what it starts by itself belongs into `tasks`."""
        _alive.set(self)
        self.dead = False
        self.tasks: set[asyncio.Task[Any]] = set()

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
        for task in self.tasks:
            task.cancel()

    async def buried(self) -> None:
        """Nothing of it runs any more."""
        await asyncio.gather(*self.tasks, return_exceptions=True)


Kind = TypeVar("Kind", bound=Process)


class Stage(Generic[Kind]):
    """Processes, and what stands still in them. Whoever dies is followed by a new one."""

    def __init__(self, processes: Iterable[Kind]) -> None:
        """These processes, by number."""
        self.processes = list(processes)
        self.standing: list[Operation] = []

    @abstractmethod
    def successor(self, dead: Kind) -> Kind:
        """A new process in the place of a dead one."""

    async def let(self, process: Kind, work: Coroutine[Any, Any, Any], key: str | None = None) -> Operation:
        """Let a process do something until it is done, stands still or has died."""
        operation = process.begin(work, key)
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

    async def close(self) -> None:
        """Kill everybody."""
        for process in self.processes:
            process.kill()
            await process.buried()

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
                self.processes[n] = self.successor(process)
        self.standing = [one for one in self.standing if not one.process.dead]


def moment(point: str, how: str, hit: int = 1) -> FailPoint:
    """`dies`, `breaks` (a connection is lost) or `stands` (until it is told to go on), once, at a named moment."""
    acts: dict[str, Callable[[], Awaitable[None]]] = {"dies": die, "breaks": _break, "stands": _stand}
    return FailPoint(point, acts[how], hit=hit)


async def die() -> None:
    """The process that runs this is killed."""
    _alive.get().kill()
    await asyncio.Event().wait()


async def _break() -> None:
    raise ConnectionResetError("fail-point")


async def _stand() -> None:
    operation = _running.get()
    operation.gate = gate = asyncio.Event()
    operation.quiet.set()
    await gate.wait()
