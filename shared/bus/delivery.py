"""The life of a delivery, without Redis: read the event, write the ledger row, run the handler, all in one transaction.

A batch that fails is split until the culprit stands alone; only the culprit pays. Every delivery ends in one of the
states of `shared.bus.ledger.State`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import NAMESPACE_OID, UUID, uuid5

import structlog
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.bus.ledger import Ledger, Row, State
from shared.bus.retry import Backoff, Brake
from shared.contracts.envelope import Attributes, Envelope, UnreadableEvent, decode
from shared.contracts.orders import EVENTS, MAJOR, ORDER_ENVELOPE, OrderState
from shared.runtime import metrics
from shared.runtime.errors import CommitUnknown, DeadEvent, Outage, is_infrastructure, timed_out
from shared.runtime.failpoints import reach
from shared.runtime.supervision import brief

if TYPE_CHECKING:
    from shared.runtime.db import Database

log = structlog.get_logger()

OUTAGE_PROBE_S = 5.0
BRAKED_S = 60.0
STRANGER = "not written by the relay: its place in the stream is no position of the log"
IMPOSTOR = "another event with this id came before: possible tampering"


class Event(NamedTuple):
    """An event as a handler gets it: `data` is one of the models of `shared.contracts.orders`.

    A tuple, like all that is made once per event: a frozen dataclass takes five times as long to make.
    """

    id: UUID
    type: str
    subject: str
    version: int
    time: datetime
    data: OrderState
    traceparent: str | None = None


# A handler gets neighbouring events of its types (one or several in the dictionary) in log order, and writes their
# effect over the given connection. It must not commit, must not call anything but the database, and must apply a
# version only if it is newer than what it has.
Handler = Callable[[AsyncConnection, Sequence[Event]], Awaitable[None]]
Handlers = Mapping[str, Handler]


class Delivery(NamedTuple):
    """One event on its way through: the ledger row it will get, and the event if the handler is to run."""

    row: Row
    event: Event | None = None
    raw: bytes | str = b""

    def is_of(self, event_id: UUID) -> bool:
        """Whether the bytes are of the event that the ledger's row is about, and not of an impostor."""
        return self.row.event_id == event_id

    def kept(self, **changes: Any) -> Row:  # noqa: ANN401 - fields of Row
        """The row with the event in it, because something is still to be done with it."""
        return self.row._replace(event=self.row.event or _text(self.raw), **changes)


class Arrival(NamedTuple):
    """What came out of a stream: where it stood, and the bytes."""

    partition: int
    position: int | None
    raw: bytes | str


class Deliverer:
    """Brings events to the handlers of one service, exactly once each."""

    def __init__(
        self, db: Database, handlers: Handlers, backoff: Backoff | None = None, brake: Brake | None = None
    ) -> None:
        """`handlers` is the service's dictionary from event type to handler."""
        self.db = db
        self.ledger = Ledger()
        self.backoff = backoff or Backoff()
        self.brake = brake or Brake()
        self._handlers = handlers

    @property
    def types(self) -> list[str]:
        """The types that the service has handlers for."""
        return list(self._handlers)

    async def deliver(self, arrivals: Sequence[Arrival]) -> None:
        """Settle what is new among the arrivals; returns when every one of them is in the ledger."""
        await self.settle(self.sort(arrivals))

    def sort(self, arrivals: Sequence[Arrival]) -> list[Delivery]:
        """The part of `deliver` that needs no database, for whoever has the time while another batch is settled."""
        return _told_apart([self._sort(arrival) for arrival in arrivals])

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
        batch = [(row, self._sort(Arrival(row.partition, row.position or 0, row.event or ""))) for row in rows]
        runnable = [Delivery(row, found.event) for row, found in batch if found.event and found.is_of(row.event_id)]
        for row, found in ((row, found) for row, found in batch if not (found.event and found.is_of(row.event_id))):
            await self.db.run(lambda c, row=row, found=found: self._refuse(c, row, found))  # type: ignore[misc]
        for row in (d.row for d in runnable if self.backoff.exhausted(d.row.attempts - 1)):
            await self._die(row, row.last_error or "the process died each time it handled this event")
        if alive := [d for d in runnable if not self.backoff.exhausted(d.row.attempts - 1)]:
            await self._attempt(alive, self._retry_in)

    def knows(self, event_id: UUID, raw: str) -> bool:
        """Whether this version of the code can read the parked event (it is resumed when it can)."""
        found = self._sort(Arrival(0, 0, raw))
        return found.row.state is not State.PARKED and found.is_of(event_id)

    def _sort(self, arrival: Arrival) -> Delivery:
        """Decide from the bytes alone what is to be done with an arrival."""
        try:
            known = ORDER_ENVELOPE.validate_json(arrival.raw)
        except (ValidationError, RecursionError):
            return self._sort_odd(arrival)
        if known.major != MAJOR or known.type not in self._handlers or arrival.position is None:
            return self._sort_odd(arrival)
        event = Event(
            known.id, known.type, known.subject, known.orderversion, known.time, known.data, known.traceparent
        )
        return Delivery(_row(known, arrival), event, arrival.raw)

    def _sort_odd(self, arrival: Arrival) -> Delivery:
        """Find out what is wrong with an arrival, or that nobody here cares for it."""
        text = _text(arrival.raw)
        try:
            envelope = decode(arrival.raw)
        except UnreadableEvent as error:
            return Delivery(_unreadable(arrival, text, str(error)))
        row = _row(envelope, arrival)
        reason = _why_parked(envelope)
        if reason is None and envelope.type not in self._handlers:
            return Delivery(row._replace(state=State.IGNORED))
        reason = reason or _misfit(envelope, arrival)
        return Delivery(row._replace(state=State.PARKED, event=storable(text), last_error=reason))

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
        blocked = await self.ledger.blocked(connection, lambda: {one.row.subject for one in batch if one.event})
        if blocked:
            batch = [_behind(delivery) if delivery.row.subject in blocked else delivery for delivery in batch]
        known = await self._record(connection, batch)
        fresh = [delivery for delivery in batch if delivery.row.event_id not in known] if known else [*batch]
        await self._handle(connection, fresh)
        await reach("K2")
        return fresh

    async def _record(self, connection: AsyncConnection, batch: Sequence[Delivery]) -> set[UUID]:
        """Insert what is new, return the ids of the rest.

        What has the id of an event that is there, but other content, is parked beside it.
        """
        known = await self.ledger.record(connection, [delivery.row for delivery in batch])
        if known:
            metrics.DUPLICATES.inc(len(known))
            again = [delivery for delivery in batch if delivery.row.event_id in known]
            forged = await self.ledger.forged(connection, [delivery.row for delivery in again])
            if impostors := [_impostor(delivery) for delivery in again if delivery.row.event_id in forged]:
                await self.ledger.record(connection, [delivery.row for delivery in impostors])
        return known

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
            if await self.ledger.record(connection, [row]):
                await self.ledger.fail(connection, row, row.state, row.last_error or "", row.delay_s, counted=counted)

        await self.db.run(write)

    async def give_back(self, rows: Sequence[Row], error: str) -> None:
        """An outage hit taken rows: their attempt does not count, they are due again with the next probe."""

        async def write(connection: AsyncConnection) -> None:
            for row in rows:
                await self.ledger.fail(connection, row, State.RETRYING, error, OUTAGE_PROBE_S, counted=False)

        await self.db.run(write)

    async def _refuse(self, connection: AsyncConnection, taken: Row, found: Delivery) -> None:
        """A row that was due but that this version cannot run (any more)."""
        parked = found.row.state is State.PARKED or not found.is_of(taken.event_id)
        error = found.row.last_error or (IMPOSTOR if parked else "")
        state = State.PARKED if parked else State.IGNORED
        await self.ledger.fail(connection, taken, state, error, None, counted=False)

    async def _record_due(self, connection: AsyncConnection, batch: Sequence[Delivery]) -> None:
        blocked = await self.ledger.blocked(connection, lambda: {delivery.row.subject for delivery in batch})
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


# Postgres' text holds no NUL, and its jsonb no lone surrogate: hostile bytes must not be able to stop the ledger.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_LONGEST_STORED = 1_000_000


def storable(text: str) -> str:
    """The text as Postgres can keep it."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text[:_LONGEST_STORED])


def _unreadable(arrival: Arrival, text: str, reason: str) -> Row:
    # It has no id of its own. One made from place and content makes the same bytes, delivered again, the same row.
    # It keeps its position, or `settled` would stop there for ever.
    event_id = uuid5(NAMESPACE_OID, f"{arrival.partition}/{arrival.position}/{text}")
    return Row(
        event_id, arrival.partition, arrival.position, "unreadable", "unreadable", 0, State.PARKED,
        event=storable(text), last_error=reason,
    )  # fmt: skip


def _why_parked(envelope: Envelope) -> str | None:
    if envelope.type not in EVENTS:
        return f"unknown type {envelope.type}"
    if envelope.major != MAJOR:
        return f"unknown major version {envelope.dataschema}"
    return None


def _told_apart(batch: Sequence[Delivery]) -> list[Delivery]:
    """Each event once, and what only has the id of another one as the impostor that it is."""
    if len({delivery.row.event_id.int for delivery in batch}) == len(batch):
        return [*batch]  # nearly always
    first: dict[UUID, Delivery] = {}
    for delivery in batch:
        known = first.setdefault(delivery.row.event_id, delivery)
        if known.row.digest != delivery.row.digest:
            impostor = _impostor(delivery)
            first.setdefault(impostor.row.event_id, impostor)
    return list(first.values())


def _impostor(delivery: Delivery) -> Delivery:
    """The delivery as one of its own: it must not pass for the event whose id it has, and somebody has to look."""
    row = delivery.row
    metrics.IMPOSTORS.inc()
    log.error("another event has this id, possible tampering", event_id=str(row.event_id), position=row.position)
    own_id = uuid5(NAMESPACE_OID, f"{row.event_id}/{row.partition}/{row.position}/{row.digest}")
    text = storable(_text(delivery.raw))
    parked = row._replace(event_id=own_id, state=State.PARKED, event=text, last_error=IMPOSTOR, delay_s=None)
    return Delivery(parked, None, delivery.raw)


def _as_due(delivery: Delivery) -> Delivery:
    return delivery._replace(row=delivery.kept(state=State.RETRYING, attempts=0, delay_s=0.0))


def _behind(delivery: Delivery) -> Delivery:
    """Later events of an order wait while an earlier one is retrying."""
    if delivery.event is None:
        return delivery
    return delivery._replace(row=delivery.kept(state=State.WAITING, attempts=0))


def _misfit(envelope: Envelope, arrival: Arrival) -> str:
    try:
        EVENTS[envelope.type].model_validate(envelope.data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"data does not fit {envelope.dataschema}: {place}: {first['msg']}"
    return STRANGER if arrival.position is None else f"data does not fit {envelope.dataschema}"


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", errors="replace")


def _row(envelope: Attributes, arrival: Arrival) -> Row:
    return Row(
        envelope.id, arrival.partition, arrival.position, envelope.type, envelope.subject, envelope.orderversion,
        State.DONE, digest=_digest(arrival.raw),
    )  # fmt: skip


def _digest(raw: bytes | str) -> int:
    """Eight bytes of BLAKE2b as Postgres' bigint: enough to tell an event from a forgery of it."""
    content = raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(content, digest_size=8).digest(), signed=True)
