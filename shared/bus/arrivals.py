"""What comes out of a stream, and what is to be done with it: decided from its bytes alone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Container, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, NamedTuple
from uuid import NAMESPACE_OID, UUID, uuid5

import structlog
from pydantic import ValidationError

from shared.bus.ledger import Row, State
from shared.contracts.envelope import Attributes, Envelope, UnreadableEvent, decode
from shared.contracts.orders import EVENTS, MAJOR, ORDER_ENVELOPE, OrderState
from shared.runtime import metrics

log = structlog.get_logger()

SLICE = 100  # events: two milliseconds
TWO_ORDERS = "subject and data name two different orders"
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


class Sorter:
    """Tells what a service can handle from what it has to keep, or does not care for."""

    def __init__(self, types: Container[str]) -> None:
        """`types` are those that the service has handlers for."""
        self._types = types

    def sort(self, arrivals: Sequence[Arrival]) -> list[Delivery]:
        """A delivery for each event that arrived, in order; an event that came twice is one."""
        return _told_apart([self.one(arrival) for arrival in arrivals])

    async def sort_beside(self, arrivals: Sequence[Arrival]) -> list[Delivery]:
        """The same in slices: in between goes on whoever waits for the database."""
        found: list[Delivery] = []
        for start in range(0, len(arrivals), SLICE):
            if start:
                await asyncio.sleep(0)
            found += [self.one(arrival) for arrival in arrivals[start : start + SLICE]]
        return _told_apart(found)

    def one(self, arrival: Arrival) -> Delivery:
        """Decide from the bytes alone what is to be done with an arrival."""
        try:
            known = ORDER_ENVELOPE.validate_json(arrival.raw)
        except (ValidationError, RecursionError):
            return self._odd(arrival)
        if known.major != MAJOR or known.type not in self._types or arrival.position is None:
            return self._odd(arrival)
        if known.subject != known.data.order_id:  # events of one order wait for each other by what `subject` says
            return self._odd(arrival)
        event = Event(
            known.id, known.type, known.subject, known.orderversion, known.time, known.data, known.traceparent
        )
        return Delivery(_row(known, arrival), event, arrival.raw)

    def _odd(self, arrival: Arrival) -> Delivery:
        """Find out what is wrong with an arrival, or that nobody here cares for it."""
        text = _text(arrival.raw)
        try:
            envelope = decode(arrival.raw)
        except UnreadableEvent as error:
            return Delivery(_unreadable(arrival, text, str(error)))
        row = _row(envelope, arrival)
        reason = _why_parked(envelope)
        if reason is None and envelope.type not in self._types:
            return Delivery(row._replace(state=State.IGNORED))
        reason = reason or _misfit(envelope, arrival)
        return Delivery(row._replace(state=State.PARKED, event=storable(text), last_error=reason))


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
            impostor = as_impostor(delivery)
            first.setdefault(impostor.row.event_id, impostor)
    return list(first.values())


def as_impostor(delivery: Delivery) -> Delivery:
    """The delivery as one of its own: it must not pass for the event whose id it has, and somebody has to look."""
    row = delivery.row
    metrics.IMPOSTORS.inc()
    log.error("another event has this id, possible tampering", event_id=str(row.event_id), position=row.position)
    own_id = uuid5(NAMESPACE_OID, f"{row.event_id}/{row.partition}/{row.position}/{row.digest}")
    text = storable(_text(delivery.raw))
    parked = row._replace(event_id=own_id, state=State.PARKED, event=text, last_error=IMPOSTOR, delay_s=None)
    return Delivery(parked, None, delivery.raw)


def _misfit(envelope: Envelope, arrival: Arrival) -> str:
    try:
        data = EVENTS[envelope.type].model_validate(envelope.data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"data does not fit {envelope.dataschema}: {place}: {first['msg']}"
    if data.order_id != envelope.subject:
        return TWO_ORDERS
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
