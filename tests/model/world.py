"""Two checkout processes in one event loop, on a real Postgres, with a provider and a clock that the test owns.

A process dies by having every one of its tasks cancelled where it stands: what it committed stays, the rest is gone.
"""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from typing_extensions import override

from services.checkout.commands.batch import Batches, Command, Result
from services.checkout.commands.checkout import Checkout
from services.checkout.commands.recover import Recovery
from services.checkout.commands.refund import Refunds
from services.checkout.commands.refund_book import RefundBook
from services.checkout.commands.refund_recovery import RefundRecovery
from shared.bus.log import EventLog
from shared.runtime.admission import Admission, Bounds
from shared.runtime.clock import Clock
from shared.runtime.db import Database
from shared.runtime.group_commit import GroupCommit
from tests.model import processes
from tests.model.processes import Operation, Stage, VirtualClock
from tests.model.provider import Provider

LEASE_S = 20.0
RESERVATION_S = 300.0
SOURCE = "urn:test"


class Process(processes.Process):
    """What `services.checkout.app` builds, without HTTP and Redis."""

    def __init__(self, db: Database, provider: Provider, clock: Clock) -> None:
        """Born into the running event loop."""
        super().__init__()
        log = EventLog()
        work = Batches(log, SOURCE, LEASE_S, RESERVATION_S)
        batches: GroupCommit[Command, Result] = GroupCommit(
            "orders", db, work.execute, work.recall, at_once=work.at_once
        )
        self.checkout = Checkout(db, batches, provider, clock, Admission(Bounds(9, 9, 1.0, 9.0)))
        self.recovery = Recovery(db, batches, provider, clock, LEASE_S, RESERVATION_S)
        self.refunds = Refunds(db, RefundBook(log, SOURCE, LEASE_S), provider, clock)
        self.refund_recovery = RefundRecovery(db, self.refunds, provider, clock, LEASE_S)
        self.tasks.add(asyncio.create_task(batches.run(), name=batches.name))

    @override
    def kill(self) -> None:
        super().kill()
        for task in [*self.checkout._once._running.values(), *self.refunds._once._running.values()]:
            task.cancel()


class World(Stage[Process]):
    """The processes, what they stand on, and what stands still in them."""

    def __init__(self, db: Database) -> None:
        """Begin with nothing but two processes."""
        self.db = db
        self.provider = Provider()
        self.clock = VirtualClock()
        super().__init__([self.successor(), self.successor()])

    @override
    def successor(self, dead: Process | None = None) -> Process:
        return Process(self.db, self.provider, self.clock)

    async def run(
        self, process: int, work: Callable[[Process], Coroutine[Any, Any, Any]], key: str | None
    ) -> Operation:
        """Let a process do something until it is done, stands still or has died."""
        return await self.let(self.processes[process], work(self.processes[process]), key)

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
