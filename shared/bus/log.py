"""The event log: a numbered list of everything that happened, written in the transaction that made it happen.

Positions are dense (1, 2, 3 … per partition, no gaps) and follow commit order, so that "what is missing" is arithmetic.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from zlib import crc32

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    bindparam,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import UUID

from shared.bus import slices
from shared.contracts.envelope import Envelope, encode
from shared.runtime.statements import Many, Part, Write, together

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

log_tables = MetaData()

log_head = Table(
    "log_head",
    log_tables,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    Column(
        "opened", BigInteger, nullable=False, server_default="0", comment="its first event has the position behind it"
    ),
    Column("dropped", BigInteger, nullable=False, server_default="0", comment="up to here the log holds nothing more"),
    CheckConstraint("position >= 0", name="log_head_position_not_negative"),
)

event_log = Table(
    "event_log",
    log_tables,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("event_log_subject", "subject"),
    **slices.log_by_position(),
)

subscriptions = Table(
    "subscriptions",
    log_tables,
    Column("service", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("cursor", BigInteger, nullable=False, comment="last position published to the stream"),
    Column(
        "settled",
        BigInteger,
        nullable=False,
        comment="every position up to here is in the service's own ledger",
    ),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("moved_at", DateTime(timezone=True), nullable=False, server_default=func.now(), comment="of settled"),
    Column("epoch", BigInteger, nullable=False, server_default="0", comment="grows with each rewind and each new life"),
    Column("origin", BigInteger, nullable=False, server_default="0", comment="the service is owed what is behind it"),
    Column("rewound", BigInteger, nullable=False, server_default="0", comment="where the epoch began"),
    Column("replay", Boolean, nullable=False, server_default="false", comment="the epoch's events are handled anew"),
    CheckConstraint("0 <= settled AND settled <= cursor", name="subscriptions_settled_up_to_cursor"),
)

# A time, not a count: a subscription that is removed and added again, or a database that is put back, must not begin
# an epoch that its service has already had.
NEXT_EPOCH = "greatest({epoch} + 1, CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint))"

# Positions are dense, so a bound is a limit, and tells in which slices they are. One array instead of many rows: the
# driver takes a tenth of the time.
_READ = text(
    """
    SELECT max(position) AS last, array_agg(event ORDER BY position) AS events FROM event_log
    WHERE partition = :partition AND position > :after AND position <= :upto
    """
)

# Opening a partition and subscribing a service each read what the other one writes: one at a time, or a new service may
# lack a new partition for ever.
_ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtext('subscriptions'))")

# Every service that is subscribed gets the new partitions from their beginning, so nobody misses their first event.
# They begin level with the others: a slice holds the same positions of all partitions, and goes when all are through.
_OPEN = text(
    f"""
    WITH heads AS (
        INSERT INTO log_head (partition, position, opened, dropped)
        SELECT partition, level, level, level
        FROM generate_series(0, :last) AS partition, (
            SELECT coalesce(max(position), 0) / {slices.LOG_SLICE} * {slices.LOG_SLICE} AS level FROM log_head
        ) AS least
        ON CONFLICT DO NOTHING RETURNING partition, position
    ), subscribed AS (
        INSERT INTO subscriptions (service, partition, cursor, settled, origin, rewound, epoch)
        SELECT service, partition, position, position, position, position, {NEXT_EPOCH.format(epoch=0)}
        FROM (SELECT DISTINCT service FROM subscriptions) AS services CROSS JOIN heads
    )
    SELECT count(*) FROM heads
    """  # noqa: S608 - an expression of our own
).bindparams(bindparam("last", type_=Integer))

_OPENED = text("SELECT max(partition) + 1 FROM log_head")

# Where an order's events are: its newest one says so.
_HOMES = text(
    """
    SELECT DISTINCT ON (subject) subject, partition FROM event_log WHERE subject = ANY(:subjects)
    ORDER BY subject, created_at DESC
    """
).bindparams(bindparam("subjects", type_=Many(Text)))

# From the beginning of what the log still holds; `now` starts behind the last position instead.
_SUBSCRIBE = text(
    f"""
    INSERT INTO subscriptions (service, partition, cursor, settled, origin, rewound, epoch)
    SELECT :service, partition, start, start, start, start, {NEXT_EPOCH.format(epoch=0)}
    FROM (SELECT partition, CASE WHEN :from_now THEN position ELSE dropped END AS start FROM log_head) AS heads
    WHERE NOT EXISTS (SELECT 1 FROM subscriptions WHERE service = :service)
    ON CONFLICT DO NOTHING
    """  # noqa: S608 - an expression of our own
)

_OVERVIEW = text(
    """
    SELECT s.service, s.partition, s.cursor, s.settled, s.epoch, s.created_at, s.moved_at, h.position AS head,
           e.created_at AS oldest,
           CAST(extract(epoch FROM now() - greatest(s.moved_at, e.created_at)) AS double precision) AS silent_s
    FROM subscriptions s JOIN log_head h USING (partition)
    LEFT JOIN event_log e ON e.partition = s.partition AND e.position = s.settled + 1
    ORDER BY s.service, s.partition
    """
)


class LogGapError(Exception):
    """The log lacks a position, which no transaction of ours can bring about; the text says where."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """How far one service has come in one partition."""

    service: str
    partition: int
    cursor: int
    settled: int


@dataclass(frozen=True, slots=True)
class Reader:
    """A subscription as people look at it. `silent_s`: for how long nothing was settled although something waits."""

    service: str
    partition: int
    head: int
    cursor: int
    settled: int
    epoch: int
    created_at: datetime
    moved_at: datetime
    silent_s: float

    @property
    def backlog(self) -> int:
        """How many events the service has not dealt with."""
        return self.head - self.settled


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One row of the log, for people who look something up."""

    partition: int
    position: int
    event: str
    created_at: datetime


@lru_cache(maxsize=1024)
def _append(partition: int) -> tuple[Part, Part]:
    """Number and insert.

    The head's row lock is taken here and held until COMMIT: that is what makes positions follow commit order. It must
    therefore be the last thing a transaction does, so that the lock is held for one fsync and no more.
    """
    head = Part(
        f"head_{partition}",
        f"""
        UPDATE log_head SET position = position + :count WHERE partition = {partition}
        RETURNING position - :count AS base
        """,  # noqa: S608 - a number
    )
    entries = Part(
        f"appended_{partition}",
        f"""
        INSERT INTO event_log (partition, position, event_id, type, subject, event)
        SELECT {partition}, head.base + e.n, e.event_id, e.type, e.subject, e.event
        FROM head_{partition} AS head,
             unnest(:ids, :types, :subjects, :events) WITH ORDINALITY AS e (event_id, type, subject, event, n)
        RETURNING position
        """,  # noqa: S608 - a number
        ids=UUID,
        types=Text,
        subjects=Text,
        events=Text,
    )
    return head, entries


class EventLog:
    """Reads and appends. Every method works inside the caller's transaction."""

    def __init__(self, partitions: int = 1) -> None:
        """`partitions` is how many new orders are spread over; whoever follows the database raises it."""
        self.partitions = partitions

    def partition_of(self, subject: str) -> int:
        """The partition of a new order's events."""
        return crc32(subject.encode()) % self.partitions

    async def append(self, connection: AsyncConnection, events: Sequence[Envelope]) -> None:
        """Append in the given order. Must be the last statement of the transaction.

        An order stays in the partition of its first event, whatever their number is by now.
        """
        homes = await self._homes(connection, [event.subject for event in events if event.orderversion > 1])
        for partition, its_events in self.by_partition(events, homes):
            await self._append_to(connection, partition, its_events)

    def by_partition(
        self, events: Sequence[Envelope], homes: Mapping[str, int] | None = None
    ) -> list[tuple[int, list[Envelope]]]:
        """The events of each partition, in the order in which everybody appends: two appenders cannot deadlock.

        `homes` says where orders are that are in the log already.
        """
        known = homes or {}
        found: defaultdict[int, list[Envelope]] = defaultdict(list)
        for event in events:
            home = known.get(event.subject)
            found[self.partition_of(event.subject) if home is None else home].append(event)
        return sorted(found.items())

    async def _homes(self, connection: AsyncConnection, subjects: Sequence[str]) -> dict[str, int]:
        if not subjects:
            return {}
        rows = await connection.execute(_HOMES, {"subjects": [*subjects]})
        return {row.subject: row.partition for row in rows}

    async def _append_to(self, connection: AsyncConnection, partition: int, events: Sequence[Envelope]) -> None:
        append = self.appending(partition, events)
        values = {name: value for write in append for name, value in write.values.items()}
        parts = tuple(write.part for write in append)
        statement = together(parts, f"SELECT count(*) FROM {parts[-1].name}")  # noqa: S608 - a name of our own
        if not (await connection.execute(statement, values)).scalar_one():
            # The database was put back to a time when there were fewer.
            await self.open(connection, partition + 1)
            await connection.execute(statement, values)

    def appending(self, partition: int, events: Sequence[Envelope]) -> tuple[Write, Write]:
        """The writes that append events of one partition, to share a round trip with others; both return their rows.

        The second returns nothing when the partition is not there, which `append` would open.
        """
        head, entries = _append(partition)
        return (
            head.write(count=len(events)),
            entries.write(
                ids=[event.id for event in events],
                types=[event.type for event in events],
                subjects=[event.subject for event in events],
                events=[encode(event) for event in events],
            ),
        )

    async def read(self, connection: AsyncConnection, partition: int, after: int, limit: int) -> Sequence[str]:
        """The events at the positions `after` + 1, `after` + 2 and so on. Raises `LogGapError`."""
        found = await connection.execute(_READ, {"partition": partition, "after": after, "upto": after + limit})
        last, events = found.one()
        return without_gap(partition, after, last, events)

    async def head(self, connection: AsyncConnection, partition: int) -> int:
        """The last position that is committed."""
        head = log_head.select().where(log_head.c.partition == partition)
        row = (await connection.execute(head)).one_or_none()
        return row.position if row else 0

    async def opened(self, connection: AsyncConnection) -> int:
        """How many partitions there are."""
        return int((await connection.execute(_OPENED)).scalar_one() or 1)

    async def open(self, connection: AsyncConnection, partitions: int) -> int:
        """Make sure that there are so many partitions, for every service; returns how many were added."""
        await connection.execute(_ONE_AT_A_TIME)
        return int((await connection.execute(_OPEN, {"last": partitions - 1})).scalar_one())

    async def subscribe(self, connection: AsyncConnection, service: str, *, from_now: bool = False) -> bool:
        """Add a service; it gets every event from the beginning of the log, or from now. False: it is there already."""
        await connection.execute(_ONE_AT_A_TIME)
        added = await connection.execute(_SUBSCRIBE, {"service": service, "from_now": from_now})
        return added.rowcount > 0

    async def unsubscribe(self, connection: AsyncConnection, service: str) -> bool:
        """Remove a service; returns whether it was subscribed. Its relays take what is in Redis away."""
        await connection.execute(_ONE_AT_A_TIME)
        removed = await connection.execute(subscriptions.delete().where(subscriptions.c.service == service))
        return removed.rowcount > 0

    async def subscriptions(self, connection: AsyncConnection) -> list[Subscription]:
        """Every subscription, by service and partition."""
        rows = await connection.execute(subscriptions.select().order_by("service", "partition"))
        return [Subscription(row.service, row.partition, row.cursor, row.settled) for row in rows]

    async def readers(self, connection: AsyncConnection) -> list[Reader]:
        """Who reads the log and how far everybody is, by service and partition."""
        return [
            Reader(
                row.service,
                row.partition,
                row.head,
                row.cursor,
                row.settled,
                row.epoch,
                row.created_at,
                row.moved_at,
                row.silent_s if row.oldest else 0.0,
            )
            for row in await connection.execute(_OVERVIEW)
        ]

    async def events_of(
        self, connection: AsyncConnection, subject: str, after: int = 0, limit: int = 1000
    ) -> list[LoggedEvent]:
        """The events of one order behind a position, oldest first."""
        return await _logged(connection, limit, event_log.c.subject == subject, event_log.c.position > after)

    async def events(self, connection: AsyncConnection, partition: int, after: int, limit: int) -> list[LoggedEvent]:
        """The events of everybody behind a position, oldest first."""
        return await _logged(connection, limit, event_log.c.partition == partition, event_log.c.position > after)


async def _logged(connection: AsyncConnection, limit: int, *conditions: ColumnElement[bool]) -> list[LoggedEvent]:
    found = event_log.select().where(*conditions).order_by("position").limit(limit)
    rows = await connection.execute(found)
    return [LoggedEvent(row.partition, row.position, row.event, row.created_at) for row in rows]


def without_gap(partition: int, after: int, last: int | None, events: Sequence[str] | None) -> Sequence[str]:
    """The events behind `after`, of which the last is at `last`, if none is missing; none at all is well too."""
    there = events or ()
    if (last or after) - after != len(there):
        raise LogGapError(f"The log of partition {partition} lacks a position between {after} and {last}.")
    return there
