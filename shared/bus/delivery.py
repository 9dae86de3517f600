"""The life of a delivery, without Redis: read the event, write the ledger row, run the handler, all in one transaction.

A batch that fails is split until the culprit stands alone; only the culprit pays. Every delivery ends in one of the
states of `shared.bus.ledger.State`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.bus.arrivals import IMPOSTOR, Arrival, Delivery, Event, Sorter, as_impostor
from shared.bus.ledger import FEW, Ledger, Recorded, Row, State
from shared.bus.retry import Backoff, Brake
from shared.runtime import metrics
from shared.runtime.errors import CommitUnknown, DeadEvent, Outage, ProcessKilled, is_infrastructure, timed_out
from shared.runtime.failpoints import reach
from shared.runtime.supervision import brief

if TYPE_CHECKING:
    from shared.runtime.db import Database
    from shared.runtime.rehearsal import Rehearsal, Work

log = structlog.get_logger()

OUTAGE_PROBE_S = 5.0
BRAKED_S = 60.0
KILLS = "kills the process that handles it"


# A handler gets neighbouring events of its types (one or several in the dictionary) in log order, and writes their
# effect over the given connection. It must not commit, must not call anything but the database, and must apply a
# version only if it is newer than what it has.
Handler = Callable[[AsyncConnection, Sequence[Event]], Awaitable[None]]
Handlers = Mapping[str, Handler]


class Deliverer:
    """Brings events to the handlers of one service, exactly once each."""

    def __init__(
        self,
        db: Database,
        handlers: Handlers,
        backoff: Backoff | None = None,
        brake: Brake | None = None,
        rehearsal: Rehearsal | None = None,
    ) -> None:
        """`handlers` is the service's dictionary from event type to handler.

        With a `rehearsal`, what may kill the process is tried in a child of it first.
        """
        self.db = db
        self.ledger = Ledger()
        self.backoff = backoff or Backoff()
        self.brake = brake or Brake()
        self._rehearsal = rehearsal
        self._handlers = handlers
        self._sorter = Sorter(handlers)

    @property
    def types(self) -> list[str]:
        """The types that the service has handlers for."""
        return list(self._handlers)

    async def deliver(self, arrivals: Sequence[Arrival]) -> None:
        """Settle what is new among the arrivals; returns when every one of them is in the ledger."""
        await self.settle(self.sort(arrivals))

    def sort(self, arrivals: Sequence[Arrival]) -> list[Delivery]:
        """The part of `deliver` that needs no database."""
        return self._sorter.sort(arrivals)

    async def sort_beside(self, arrivals: Sequence[Arrival]) -> list[Delivery]:
        """The same, for whoever has the time while another batch is settled."""
        return await self._sorter.sort_beside(arrivals)

    async def settle(self, batch: Sequence[Delivery]) -> None:
        """The rest of `deliver`."""
        if batch:
            await self._attempt(batch, self._deliver_in)

    async def hand_over(self, arrivals: Sequence[Arrival]) -> None:
        """Put redelivered events into the ledger without running them; the retry loop counts each attempt first.

        They may be here a second time because the first time killed the process.
        """
        if batch := self.sort(arrivals):
            due = [_as_due(delivery) if delivery.event else delivery for delivery in batch]
            await self.db.run(lambda connection: self._record_due(connection, due))

    async def retry(self, rows: Sequence[Row]) -> None:
        """Run rows that were taken from the ledger; their attempt is counted already."""
        # Position 0 for what the relay did not write: it is due because somebody looked and let it through.
        batch = [(row, self._sorter.one(Arrival(row.partition, row.position or 0, row.event or ""))) for row in rows]
        runnable = [Delivery(row, found.event) for row, found in batch if found.event and found.is_of(row.event_id)]
        for row, found in ((row, found) for row, found in batch if not (found.event and found.is_of(row.event_id))):
            await self.db.run(lambda c, row=row, found=found: self._refuse(c, row, found))  # type: ignore[misc]
        for row in (d.row for d in runnable if self.backoff.exhausted(d.row.attempts - 1)):
            await self._die(row, row.last_error or "the process died each time it handled this event")
        if alive := [d for d in runnable if not self.backoff.exhausted(d.row.attempts - 1)]:
            await self._try(alive)

    def knows(self, event_id: UUID, raw: str) -> bool:
        """Whether this version of the code can read the parked event (it is resumed when it can)."""
        found = self._sorter.one(Arrival(0, 0, raw))
        return found.row.state is not State.PARKED and found.is_of(event_id)

    async def _try(self, batch: Sequence[Delivery]) -> None:
        """In earnest only what a child has survived. In a batch, an error hides what would come after it."""
        if self._rehearsal and any(map(_suspect, batch)):
            whole = await self._rehearsal.play([self._retrying(batch)])
            if whole.too_long and len(batch) > 1:
                return  # they come again one by one
            if whole.ended < whole.begun and len(batch) > 1:
                await self._try_one_by_one(batch, self._rehearsal)
                return
            if whole.death:
                await self._blame(batch[0], ProcessKilled(f"{KILLS}: {whole.death}"))
                return
        await self._attempt(batch, self._retry_in)

    async def _try_one_by_one(self, batch: Sequence[Delivery], rehearsal: Rehearsal) -> None:
        while batch:
            played = await rehearsal.play([self._retrying([one]) for one in batch])
            survivors = batch[: played.begun - 1] if played.death else batch
            for one in survivors:  # also here: together they may be too much
                await self._attempt([one], self._retry_in)
            if not played.death or played.too_long:
                return
            await self._blame(batch[len(survivors)], ProcessKilled(f"{KILLS}: {played.death}"))
            batch = batch[played.begun :]

    def _retrying(self, batch: Sequence[Delivery]) -> Work:
        return lambda connection: self._retry_in(connection, batch)

    async def _attempt(
        self,
        batch: Sequence[Delivery],
        work: Callable[[AsyncConnection, Sequence[Delivery]], Awaitable[list[Delivery]]],
        *,
        again: bool = True,
    ) -> None:
        """One transaction for all of `batch`; on failure halve it, so that the culprit ends up alone."""
        try:
            done = await self.db.run(lambda connection: work(connection, batch))
        except (CommitUnknown, Outage):
            raise  # nobody's fault here: the whole batch comes again, no attempt is spent
        except Exception as error:  # whatever a handler raises is recorded with its event
            if is_infrastructure(error):
                await self.db.ping()  # raises when the database is away; when it answers, the event may be to blame
                if timed_out(error) and len(batch) > 1:
                    raise  # each half with the culprit would take as long: by the ledger they come again one by one
                if again:
                    # Connections break by themselves as well, now and then: a culprit will do it a second time.
                    await self._attempt(batch, work, again=False)
                    return
            if len(batch) == 1:
                await self._blame(batch[0], error)
                return
        else:
            self._count(done)
            return
        middle = len(batch) // 2
        await self._attempt(batch[:middle], work, again=again)
        await self._attempt(batch[middle:], work, again=again)

    async def _deliver_in(self, connection: AsyncConnection, batch: Sequence[Delivery]) -> list[Delivery]:
        known, blocked = await self._record(connection, batch)
        fresh = [delivery for delivery in batch if delivery.row.event_id not in known] if known else [*batch]
        if blocked:
            fresh = await self._queue_up(connection, fresh, blocked)
        await self._handle(connection, fresh)
        await reach("K2")
        return fresh

    async def _queue_up(
        self, connection: AsyncConnection, fresh: Sequence[Delivery], blocked: set[str]
    ) -> list[Delivery]:
        """Let later events of an order wait while an earlier one is retrying."""
        if len(blocked) >= FEW:
            blocked = await self.ledger.blocked(connection, {one.row.subject for one in fresh if one.event})
        ordered = [_behind(delivery) if delivery.row.subject in blocked else delivery for delivery in fresh]
        if waiting := [delivery.row for delivery in ordered if delivery.row.state is State.WAITING]:
            await self.ledger.hold_back(connection, waiting)
        return ordered

    async def _record(self, connection: AsyncConnection, batch: Sequence[Delivery]) -> Recorded:
        """Insert what is new; says what was there, and which orders are blocked.

        What has the id of an event that is there, but other content, is parked beside it.
        """
        recorded = await self.ledger.record(connection, [delivery.row for delivery in batch])
        if recorded.known:
            metrics.DUPLICATES.inc(len(recorded.known))
            again = [delivery for delivery in batch if delivery.row.event_id in recorded.known]
            forged = await self.ledger.forged(connection, [delivery.row for delivery in again])
            if impostors := [as_impostor(delivery) for delivery in again if delivery.row.event_id in forged]:
                await self.ledger.record(connection, [delivery.row for delivery in impostors])
        return recorded

    async def _retry_in(self, connection: AsyncConnection, batch: Sequence[Delivery]) -> list[Delivery]:
        mine = await self.ledger.settle(connection, [delivery.row for delivery in batch])
        still = [delivery for delivery in batch if delivery.row.event_id in mine]
        await self._handle(connection, still)
        return [Delivery(delivery.row._replace(state=State.DONE), delivery.event) for delivery in still]

    async def _handle(self, connection: AsyncConnection, batch: Sequence[Delivery]) -> None:
        events = [d.event for d in batch if d.event and d.row.state is not State.WAITING]
        if len({event.type for event in events}) == 1:
            await self._handlers[events[0].type](connection, events)
            return
        for handler, run in groupby(events, key=lambda event: self._handlers[event.type]):
            await handler(connection, list(run))

    async def _blame(self, culprit: Delivery, error: Exception) -> None:
        """Record the failure of the one event that caused it."""
        if isinstance(error, DeadEvent):
            await self._die(culprit.kept(), brief(error))
            return
        log.warning("delivery failed", event_id=str(culprit.row.event_id), type=culprit.row.type, error=brief(error))
        delay = self.backoff.delay_s(culprit.row.attempts, random.random())  # noqa: S311 - jitter
        if self.backoff.exhausted(culprit.row.attempts):
            await self._die(culprit.kept(), brief(error))
            return
        await self._store(culprit.kept(state=State.RETRYING, last_error=brief(error), delay_s=delay))

    async def _die(self, row: Row, error: str) -> None:
        self.brake.note(died=True)
        if self.brake.tripped:
            # Most of the last deliveries died: the code is to blame, not the events. Keep this one, stop consuming. Its
            # last attempt is given back, or it would be dead after the resume without having seen the better code.
            await self._store(row._replace(state=State.RETRYING, last_error=error, delay_s=BRAKED_S), counted=False)
            await self.db.run(lambda c: self.ledger.set_control(c, paused=True, reason=f"brake: {error}", by="brake"))
            log.error("brake: most of the last deliveries died, consuming is paused", error=error)
            return
        metrics.DELIVERIES.labels(State.DEAD).inc()
        log.error("delivery is dead", event_id=str(row.event_id), type=row.type, subject=row.subject, error=error)
        await self._store(row._replace(state=State.DEAD, last_error=error, delay_s=None))

    async def _store(self, row: Row, *, counted: bool = True) -> None:
        """Write the row whether it is new or was taken from the ledger."""

        async def write(connection: AsyncConnection) -> None:
            if (await self.ledger.record(connection, [row])).known:
                await self.ledger.fail(connection, row, row.state, row.last_error or "", row.delay_s, counted=counted)

        await self.db.run(write)

    async def give_back(self, rows: Sequence[Row], error: str) -> None:
        """An outage hit taken rows: their attempt does not count, they are due again with the next probe."""

        async def write(connection: AsyncConnection) -> None:
            for row in rows:
                known = row.last_error if KILLS in (row.last_error or "") else None
                await self.ledger.fail(connection, row, State.RETRYING, known or error, OUTAGE_PROBE_S, counted=False)

        await self.db.run(write)

    async def _refuse(self, connection: AsyncConnection, taken: Row, found: Delivery) -> None:
        """A row that was due but that this version cannot run (any more)."""
        parked = found.row.state is State.PARKED or not found.is_of(taken.event_id)
        error = found.row.last_error or (IMPOSTOR if parked else "")
        state = State.PARKED if parked else State.IGNORED
        await self.ledger.fail(connection, taken, state, error, None, counted=False)

    async def _record_due(self, connection: AsyncConnection, batch: Sequence[Delivery]) -> None:
        blocked = await self.ledger.blocked(connection, {delivery.row.subject for delivery in batch})
        ordered = []
        for delivery in batch:
            row = delivery.row
            behind = row.state is State.RETRYING and row.subject in blocked
            waiting = delivery._replace(row=row._replace(state=State.WAITING, delay_s=None))
            ordered.append(waiting if behind else delivery)
            if row.state is State.RETRYING:
                blocked.add(row.subject)
        await self._record(connection, ordered)

    def _count(self, done: Sequence[Delivery]) -> None:
        now = datetime.now(UTC)
        for state, count in Counter([delivery.row.state for delivery in done]).items():
            metrics.DELIVERIES.labels(state).inc(count)
        times = [one.event.time for one in done if one.event and one.row.state is State.DONE]
        metrics.EFFECT_SECONDS.observe([max(0.0, (now - time).total_seconds()) for time in times])
        self.brake.note(died=False, times=len(done))


def _as_due(delivery: Delivery) -> Delivery:
    return delivery._replace(row=delivery.kept(state=State.RETRYING, attempts=0, delay_s=0.0))


def _suspect(delivery: Delivery) -> bool:
    """Whether this one may kill a process: nobody has tried it yet, or its last attempt left no error, or that one."""
    row = delivery.row
    return row.attempts == 1 or not row.last_error or KILLS in row.last_error


def _behind(delivery: Delivery) -> Delivery:
    if delivery.event is None:
        return delivery
    return delivery._replace(row=delivery.kept(state=State.WAITING, attempts=0))
