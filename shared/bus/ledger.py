"""The ledger: one row per event in the service's own database.

It is at once the inbox (dedup), the retry queue, the dead-letter store, the audit trail, and the source of `settled`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    func,
    text,
)
from sqlalchemy import Uuid as UuidColumn
from sqlalchemy.dialects import postgresql

from shared.bus import slices
from shared.runtime.driver import Direct
from shared.runtime.statements import Many, over_arrays

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.types import TypeEngine


class State(StrEnum):
    """What became of a delivery: a closed set."""

    DONE = "done"  # the handler's effect is committed
    IGNORED = "ignored"  # this service does not care for the type
    RETRYING = "retrying"  # due again at next_attempt_at
    WAITING = "waiting"  # behind a retrying event of the same order
    DEAD = "dead"  # out of attempts, or can never work: somebody has to look
    PARKED = "parked"  # this version of the code does not know it; a newer one resumes it
    DISCARDED = "discarded"  # somebody looked and decided to drop it


FEW = 100  # blocked events: above them each order of a batch is asked for

ledger_tables = MetaData()

deliveries = Table(
    "deliveries",
    ledger_tables,
    Column("event_id", UuidColumn, primary_key=True),
    Column("partition", Integer, nullable=False),
    Column("position", BigInteger, nullable=True, comment="null when the entry was not written by the relay"),
    Column("type", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("order_version", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", DateTime(timezone=True)),
    Column("last_error", Text),
    Column("event", Text, comment="the event itself, while it is not settled"),
    Column("received_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("settled_at", DateTime(timezone=True)),
    Column("digest", BigInteger, comment="of the event as it came, to tell it from another one with its id"),
    CheckConstraint(f"state IN ({', '.join(repr(str(state)) for state in State)})", name="deliveries_state_known"),
    Index("deliveries_position", "partition", "position"),
    Index("deliveries_subject", "subject"),
    Index("deliveries_due", "next_attempt_at", postgresql_where=text("state = 'retrying'")),
    Index("deliveries_unsettled", "state", "subject", postgresql_where=text("state NOT IN ('done', 'ignored')")),
    **slices.ledger_by_event_id(),
)

progress = Table(
    "progress",
    ledger_tables,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("settled", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False, server_default="0", comment="of the subscription"),
    Column("forgotten", BigInteger, nullable=False, server_default="0", comment="dealt with, and no longer known here"),
)

consumer_control = Table(
    "consumer_control",
    ledger_tables,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("paused", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("changed_by", Text, nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("singleton", name="consumer_control_single_row"),
)

ops_audit = Table(
    "ops_audit",
    ledger_tables,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("key_id", Text, nullable=False, comment="which key did it"),
    Column("action", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)


class Recorded(NamedTuple):
    """What was found when rows were written: ids that were there already, and orders with something to be tried."""

    known: set[UUID]
    blocked: set[str]


class Row(NamedTuple):
    """A ledger row about to be written, or one that was taken to be tried again."""

    event_id: UUID
    partition: int
    position: int | None
    type: str
    subject: str
    order_version: int
    state: State
    attempts: int = 1
    event: str | None = None
    last_error: str | None = None
    delay_s: float | None = None
    digest: int | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """Whether consuming is paused, why, and who said so."""

    paused: bool = False
    reason: str = ""
    changed_by: str = ""
    changed_at: datetime | None = None


# In the order of a row's fields.
_ROW_COLUMNS: Mapping[str, type[TypeEngine[Any]]] = {
    "ids": postgresql.UUID,
    "partitions": Integer,
    "positions": BigInteger,
    "types": Text,
    "subjects": Text,
    "versions": Integer,
    "states": Text,
    "attempts": Integer,
    "events": Text,
    "errors": Text,
    "delays": Double,
    "digests": BigInteger,
}

# What was dealt with and forgotten is no news either: a Redis that was put back from a backup still has it.
# Beside it the first few blocked orders, nearly always none: asking for them costs less than asking for each order of a
# batch, and here it costs no round trip.
_RECORD = Direct(
    f"""
    WITH new AS (
        INSERT INTO deliveries (event_id, partition, position, type, subject, order_version, state, attempts, event,
                                last_error, next_attempt_at, settled_at, digest)
        SELECT e.event_id, e.partition, e.position, e.type, e.subject, e.version, e.state, e.attempts, e.event,
               e.last_error, now() + e.delay_s * interval '1 second',
               CASE WHEN e.state IN ('done', 'ignored') THEN now() END, e.digest
        FROM unnest(:ids, :partitions, :positions, :types, :subjects, :versions, :states, :attempts, :events, :errors,
                    :delays, :digests)
             AS e (event_id, partition, position, type, subject, version, state, attempts, event, last_error, delay_s,
                   digest)
        WHERE NOT EXISTS (SELECT 1 FROM progress p WHERE p.partition = e.partition AND e.position <= p.forgotten)
        ON CONFLICT (event_id) DO NOTHING
        RETURNING event_id
    )
    SELECT id, NULL AS subject FROM unnest(:ids) AS e (id) WHERE id NOT IN (SELECT event_id FROM new)
    UNION ALL
    (SELECT NULL, subject FROM deliveries WHERE state IN ('retrying', 'waiting') LIMIT {FEW})
    """,  # noqa: S608 - a number
    **_ROW_COLUMNS,
)

_FORGED = text(
    """
    SELECT d.event_id FROM deliveries d
    JOIN unnest(:ids, :digests) AS e (event_id, digest) USING (event_id) WHERE d.digest <> e.digest
    """
).bindparams(bindparam("ids", type_=Many(postgresql.UUID)), bindparam("digests", type_=Many(BigInteger)))

_BLOCKED = text(
    """
    SELECT DISTINCT subject FROM deliveries
    WHERE state IN ('retrying', 'waiting') AND subject = ANY(:subjects)
    """
).bindparams(bindparam("subjects", type_=Many(Text)))

# What was written as done in the same transaction has to wait after all.
_HOLD_BACK = over_arrays(
    """
    UPDATE deliveries d SET state = 'waiting', attempts = 0, settled_at = NULL, event = e.event
    FROM unnest(:ids, :events) AS e (event_id, event) WHERE d.event_id = e.event_id
    """,
    ids=postgresql.UUID,
    events=Text,
)

_ANYTHING_OPEN = text(
    """
    SELECT EXISTS (SELECT 1 FROM deliveries WHERE state = 'retrying' AND next_attempt_at <= now())
        OR EXISTS (SELECT 1 FROM deliveries WHERE state = 'waiting')
    """
)

# Attempts are counted before the work: an event that kills the process has used one up each time, and left no error.
_TAKE = text(
    """
    WITH due AS MATERIALIZED (
        SELECT event_id, last_error FROM deliveries
        WHERE state = 'retrying' AND next_attempt_at <= now() AND (attempts = 0) = :fresh
        ORDER BY next_attempt_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE deliveries d
    SET attempts = attempts + 1, last_error = NULL, next_attempt_at = now() + :lease_s * interval '1 second'
    FROM due WHERE d.event_id = due.event_id
    RETURNING d.event_id, partition, position, type, subject, order_version, attempts, event, due.last_error
    """
).bindparams(bindparam("lease_s", type_=Double))

# The attempt number is the fence: whoever was taken over in the meantime changes nothing.
_SETTLE = text(
    """
    UPDATE deliveries d SET state = 'done', settled_at = now(), next_attempt_at = NULL, event = NULL
    FROM unnest(:ids, :attempts) AS e (event_id, attempts)
    WHERE d.event_id = e.event_id AND d.attempts = e.attempts AND d.state = 'retrying'
    RETURNING d.event_id
    """
).bindparams(bindparam("ids", type_=Many(postgresql.UUID)), bindparam("attempts", type_=Many(Integer)))

_FAIL = text(
    """
    UPDATE deliveries SET state = :state, last_error = nullif(:error, ''),
           next_attempt_at = now() + :delay_s * interval '1 second', attempts = :left_attempts,
           settled_at = CASE WHEN CAST(:state AS text) = 'ignored' THEN now() END,
           event = CASE WHEN CAST(:state AS text) <> 'ignored' THEN event END
    WHERE event_id = :event_id AND attempts = :attempts AND state = 'retrying'
    """
).bindparams(bindparam("delay_s", type_=Double))

# Derived, not pushed: whoever settled the event in front need not know who waits behind it.
_RELEASE = text(
    """
    UPDATE deliveries SET state = 'retrying', attempts = 0, next_attempt_at = now()
    WHERE event_id IN (
        SELECT DISTINCT ON (subject) event_id FROM deliveries w
        WHERE state = 'waiting' AND NOT EXISTS (
            SELECT 1 FROM deliveries r WHERE r.subject = w.subject AND r.state = 'retrying'
        )
        ORDER BY subject, order_version, position
    ) AND state = 'waiting'
    """
)

_RESUME_PARKED = text(
    """
    UPDATE deliveries SET state = 'retrying', attempts = 0, next_attempt_at = now(), last_error = NULL
    WHERE state = 'parked' AND event IS NOT NULL AND event_id = ANY(:ids)
    """
).bindparams(bindparam("ids", type_=Many(postgresql.UUID)))


class Ledger:
    """Reads and writes the ledger. Every method works inside the caller's transaction."""

    async def record(self, connection: AsyncConnection, rows: Sequence[Row]) -> Recorded:
        """Insert those of the rows (at least one) that are new; the others stay unchanged.

        Says which those are, and of the orders that were blocked before all of them or `FEW`.
        """
        columns = zip(_ROW_COLUMNS, zip(*rows, strict=True), strict=True)
        # `unnest` fills up with NULL what is shorter than the others, and nearly always there are no errors, no delays.
        values = {name: None if column.count(None) == len(column) else column for name, column in columns}
        found = await _RECORD.fetch(connection, values)
        known, blocked = set(), set()
        for event_id, subject in found:
            if subject is None:
                known.add(event_id)
            else:
                blocked.add(subject)
        return Recorded(known, blocked)

    async def hold_back(self, connection: AsyncConnection, rows: Sequence[Row]) -> None:
        """Let rows that were recorded as done in this transaction wait behind what is in front of them."""
        values = {"ids": [row.event_id for row in rows], "events": [row.event for row in rows]}
        await connection.execute(_HOLD_BACK, values)

    async def forged(self, connection: AsyncConnection, rows: Sequence[Row]) -> set[UUID]:
        """Which of the rows have the id of an event that is there, but not its content."""
        ids, digests = [row.event_id for row in rows], [row.digest for row in rows]
        return set((await connection.execute(_FORGED, {"ids": ids, "digests": digests})).scalars())

    async def blocked(self, connection: AsyncConnection, subjects: Collection[str]) -> set[str]:
        """Which of these orders have an event that is still to be tried."""
        return set((await connection.execute(_BLOCKED, {"subjects": sorted(subjects)})).scalars())

    async def anything_open(self, connection: AsyncConnection) -> bool:
        """Whether there may be something to retry or to release."""
        return bool((await connection.execute(_ANYTHING_OPEN)).scalar_one())

    async def take(self, connection: AsyncConnection, *, fresh: bool, lease_s: float, limit: int) -> list[Row]:
        """Take due rows, counting the attempt: those never tried (`fresh`), or those that failed before.

        They come with the error of the attempt before; in the table it gives way to that of this one.
        """
        rows = await connection.execute(_TAKE, {"fresh": fresh, "lease_s": lease_s, "limit": limit})
        return [
            Row(
                row.event_id, row.partition, row.position, row.type, row.subject, row.order_version,
                State.RETRYING, row.attempts, row.event, row.last_error,
            )
            for row in rows
        ]  # fmt: skip

    async def settle(self, connection: AsyncConnection, rows: Sequence[Row]) -> set[UUID]:
        """Mark taken rows as done; returns the ids of those that were still this taker's."""
        written = await connection.execute(
            _SETTLE, {"ids": [row.event_id for row in rows], "attempts": [row.attempts for row in rows]}
        )
        return set(written.scalars())

    async def fail(
        self,
        connection: AsyncConnection,
        row: Row,
        state: State,
        error: str,
        delay_s: float | None,
        *,
        counted: bool,
    ) -> None:
        """Note why a taken row failed and when it is due again; an attempt that is not `counted` is given back."""
        await connection.execute(
            _FAIL,
            {
                "event_id": row.event_id,
                "attempts": row.attempts,
                "left_attempts": row.attempts if counted else row.attempts - 1,
                "state": str(state),
                "error": error[:2000],
                "delay_s": delay_s,
            },
        )

    async def release(self, connection: AsyncConnection) -> int:
        """Make waiting rows due whose order has nothing in front of them any more."""
        return (await connection.execute(_RELEASE)).rowcount

    async def parked(self, connection: AsyncConnection, types: Sequence[str] = ()) -> list[tuple[UUID, str]]:
        """Every parked row (of these types) that still has its event, and had it from the relay."""
        found = deliveries.select().where(
            deliveries.c.state == State.PARKED, deliveries.c.event.is_not(None), deliveries.c.position.is_not(None)
        )
        found = found.where(deliveries.c.type.in_(types)) if types else found
        return [(row.event_id, row.event) for row in await connection.execute(found)]

    async def resume_parked(self, connection: AsyncConnection, ids: Sequence[UUID]) -> int:
        """Make parked rows due."""
        return (await connection.execute(_RESUME_PARKED, {"ids": list(ids)})).rowcount

    async def control(self, connection: AsyncConnection) -> Control:
        """Whether consuming is paused."""
        row = (await connection.execute(consumer_control.select())).one_or_none()
        return Control(row.paused, row.reason, row.changed_by, row.changed_at) if row else Control()

    async def set_control(self, connection: AsyncConnection, *, paused: bool, reason: str, by: str) -> None:
        """Pause or resume; holds until somebody says otherwise, also over restarts."""
        await connection.execute(
            text(
                """
                INSERT INTO consumer_control (paused, reason, changed_by) VALUES (:paused, :reason, :by)
                ON CONFLICT (singleton) DO UPDATE
                SET paused = excluded.paused, reason = excluded.reason, changed_by = excluded.changed_by,
                    changed_at = now()
                """
            ),
            {"paused": paused, "reason": reason, "by": by},
        )
