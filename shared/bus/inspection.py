"""Questions that people have about a service's ledger, and what they may change in it: retry, discard, pause.

Everything works inside the caller's transaction. What somebody changes is written down with it (`ops_audit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import func, insert, select, text, update

from shared.bus.ledger import State, deliveries, ops_audit, progress

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

UNSETTLED = frozenset({State.RETRYING, State.WAITING, State.DEAD, State.PARKED})
# A discarded row still has its event: whoever discarded it by mistake may retry it.
RETRYABLE = frozenset({State.DEAD, State.PARKED, State.RETRYING, State.DISCARDED})
DISCARDABLE = UNSETTLED
MOST_AT_ONCE = 10_000  # rows per statement, to stay well below statement_timeout

# Spelled as in the partial index, so that Postgres uses it: most of a ledger's millions of rows are done.
_OPEN = text("deliveries.state NOT IN ('done', 'ignored')")


@dataclass(frozen=True, slots=True)
class Census:
    """What is in the ledger that is not settled, and how far it is complete."""

    counts: Mapping[State, int]
    oldest_s: float | None  # age of the oldest delivery that waits for anything
    settled: Mapping[int, int]  # by partition


@dataclass(frozen=True, slots=True)
class Seen:
    """One row of the ledger, for people."""

    id: UUID
    partition: int
    position: int | None
    type: str
    order_id: str
    order_version: int
    state: State
    attempts: int
    next_attempt_at: datetime | None
    last_error: str | None
    received_at: datetime
    settled_at: datetime | None


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Deliveries in one state that failed with the same error."""

    state: State
    type: str
    error: str | None
    count: int
    oldest: datetime
    newest: datetime


@dataclass(frozen=True, slots=True)
class Selection:
    """Which deliveries are meant: these ids, or all that fit every given criterion."""

    ids: Sequence[UUID] | None = None
    state: State | None = None
    order_id: str | None = None
    type: str | None = None
    error: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The criteria in SQL."""
        wanted = {"state": self.state, "subject": self.order_id, "type": self.type, "last_error": self.error}
        found = [deliveries.c[name] == value for name, value in wanted.items() if value is not None]
        if self.ids is not None:
            found.append(deliveries.c.event_id.in_(self.ids))
        return found


@dataclass(frozen=True, slots=True)
class Change:
    """How many deliveries fitted, and how many of them were changed."""

    matched: int
    changed: int


@dataclass(frozen=True, slots=True)
class Audited:
    """Who did what, when."""

    id: int
    key_id: str
    action: str
    detail: str
    at: datetime


async def census(connection: AsyncConnection) -> Census:
    """Count what is not settled."""
    age = func.extract("epoch", func.now() - func.min(deliveries.c.received_at))
    counted = select(deliveries.c.state, func.count().label("rows"), age.label("oldest"))
    rows = (await connection.execute(counted.where(_OPEN).group_by(deliveries.c.state))).all()
    counts = {State(row.state): row.rows for row in rows}
    ages = [float(row.oldest) for row in rows if State(row.state) in UNSETTLED]
    settled = await connection.execute(select(progress.c.partition, progress.c.settled))
    return Census(counts, max(ages, default=None), {row.partition: row.settled for row in settled})


async def find(
    connection: AsyncConnection, selection: Selection, *, limit: int, starting_after: UUID | None = None
) -> list[Seen]:
    """Matching deliveries, newest event first (their ids are made from the time)."""
    wanted = _narrowed(select(deliveries), selection)
    if starting_after is not None:
        wanted = wanted.where(deliveries.c.event_id < starting_after)
    rows = await connection.execute(wanted.order_by(deliveries.c.event_id.desc()).limit(limit))
    return [_seen(row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's documented name


async def show(connection: AsyncConnection, event_id: UUID) -> tuple[Seen, str | None] | None:
    """One delivery, and the event as it came if it is not settled."""
    row = (await connection.execute(select(deliveries).where(deliveries.c.event_id == event_id))).one_or_none()
    return (_seen(row._mapping), row.event) if row else None  # noqa: SLF001 - SQLAlchemy's documented name


async def errors(connection: AsyncConnection, limit: int = 50) -> list[ErrorGroup]:
    """Dead, parked and retrying deliveries grouped by error, the most frequent first."""
    what = (deliveries.c.state, deliveries.c.type, deliveries.c.last_error)
    when = deliveries.c.received_at
    grouped = select(*what, func.count().label("rows"), func.min(when).label("first"), func.max(when).label("last"))
    grouped = grouped.where(_OPEN, deliveries.c.state.in_((State.DEAD, State.PARKED, State.RETRYING)))
    grouped = grouped.group_by(*what).order_by(func.count().desc()).limit(limit)
    return [
        ErrorGroup(State(row.state), row.type, row.last_error, row.rows, row.first, row.last)
        for row in await connection.execute(grouped)
    ]


async def retry(connection: AsyncConnection, selection: Selection, *, dry_run: bool) -> Change:
    """Make matching deliveries due now; dead, parked and discarded ones get all their attempts anew."""
    due: dict[str, Any] = {
        "state": State.RETRYING,
        "next_attempt_at": func.now(),
        "settled_at": None,
        # A retrying row keeps its number: that is the fence for whoever may be working on it.
        "attempts": text("CASE WHEN state = 'retrying' THEN attempts ELSE 0 END"),
    }
    has_event = deliveries.c.event.is_not(None)
    return await _change(connection, selection, RETRYABLE, due, has_event, dry_run=dry_run)


async def discard(connection: AsyncConnection, selection: Selection, reason: str, *, dry_run: bool) -> Change:
    """Give matching deliveries up; the reason stays with them."""
    gone: dict[str, Any] = {
        "state": State.DISCARDED,
        "next_attempt_at": None,
        "settled_at": func.now(),
        "last_error": func.concat("discarded: ", reason, "; ", func.coalesce(deliveries.c.last_error, "")),
    }
    return await _change(connection, selection, DISCARDABLE, gone, dry_run=dry_run)


async def record(connection: AsyncConnection, key_id: str, action: str, detail: str) -> None:
    """Write down who did what."""
    await connection.execute(insert(ops_audit).values(key_id=key_id, action=action, detail=detail[:2000]))


async def audit(connection: AsyncConnection, limit: int = 20, before: int | None = None) -> list[Audited]:
    """What was done last, behind the id `before`."""
    wanted = ops_audit.select() if before is None else ops_audit.select().where(ops_audit.c.id < before)
    rows = await connection.execute(wanted.order_by(ops_audit.c.id.desc()).limit(limit))
    return [Audited(row.id, row.key_id, row.action, row.detail, row.at) for row in rows]


async def _change(
    connection: AsyncConnection,
    selection: Selection,
    states: frozenset[State],
    values: Mapping[str, Any],
    *conditions: ColumnElement[bool],
    dry_run: bool,
) -> Change:
    possible = deliveries.c.state.in_(sorted(states))
    fitting = _narrowed(select(deliveries.c.event_id), selection).where(_OPEN, possible, *conditions)
    matched = (await connection.execute(select(func.count()).select_from(fitting.subquery()))).scalar_one()
    if dry_run or not matched:
        return Change(matched, 0)
    chosen = fitting.order_by(deliveries.c.event_id).limit(MOST_AT_ONCE).with_for_update(skip_locked=True)
    changed = await connection.execute(update(deliveries).where(deliveries.c.event_id.in_(chosen)).values(values))
    return Change(matched, changed.rowcount)


def _narrowed(query: Select[Any], selection: Selection) -> Select[Any]:
    query = query.where(*selection.conditions())
    return query if selection.state in {None, State.DONE, State.IGNORED} else query.where(_OPEN)


def _seen(row: Any) -> Seen:  # noqa: ANN401 - a mapping of columns
    return Seen(
        row["event_id"], row["partition"], row["position"], row["type"], row["subject"], row["order_version"],
        State(row["state"]), row["attempts"], row["next_attempt_at"], row["last_error"], row["received_at"],
        row["settled_at"],
    )  # fmt: skip
