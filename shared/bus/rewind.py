"""Rewinding a subscription: a service gets events again that it was believed to have dealt with.

A rewind begins an epoch. The service counts its ledger anew from there, says so in its reports, and the relay believes
no report of an earlier epoch. What the ledger has is dropped as a duplicate; with `replay` the ledger forgets it first,
so that the handlers run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Integer, bindparam, text

from shared.bus.log import NEXT_EPOCH
from shared.runtime.statements import Many

if TYPE_CHECKING:
    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

# The log drops nothing while a subscription is locked.
_LOCK = text(
    """
    SELECT s.partition, s.settled, h.opened, h.dropped FROM subscriptions s JOIN log_head h USING (partition)
    WHERE s.service = :service ORDER BY s.partition FOR UPDATE OF s
    """
)
# An event's time is that of the beginning of its transaction, its position that of the end: no transaction takes 10 s.
_WRITTEN_BEFORE = text(
    """
    SELECT created_at + interval '10 seconds' < :instant FROM event_log
    WHERE partition = :partition AND position = :position
    """
)
_REWIND = text(
    f"""
    UPDATE subscriptions s
    SET cursor = r.position, settled = r.position, origin = least(s.origin, r.position), rewound = r.position,
        replay = :replay, epoch = {NEXT_EPOCH.format(epoch="s.epoch")}, moved_at = now()
    FROM unnest(:partitions, :positions) AS r (partition, position)
    WHERE s.service = :service AND s.partition = r.partition
    """  # noqa: S608 - an expression of our own
).bindparams(bindparam("partitions", type_=Many(Integer)), bindparam("positions", type_=Many(BigInteger)))

_DISOWN = text(
    f"""
    UPDATE subscriptions s SET rewound = :head, replay = true, epoch = {NEXT_EPOCH.format(epoch="s.epoch")}
    WHERE service = :service AND partition = :partition
    """  # noqa: S608 - an expression of our own
)


class EventsDroppedError(Exception):
    """The log no longer holds what is asked for; the text says how far back it goes."""


@dataclass(frozen=True, slots=True)
class Target:
    """How far back: behind a position or before a time, in one partition or in all of them."""

    position: int | None = None
    time: datetime | None = None
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """One partition's part of a rewind: events in (position, settled] come again."""

    partition: int
    position: int
    settled: int

    @property
    def events(self) -> int:
        """How many come again."""
        return self.settled - self.position


async def rewind(
    connection: AsyncConnection, service: str, target: Target, *, replay: bool, dry_run: bool
) -> list[Span] | None:
    """Rewind the partitions that stand behind the target; None when there is no such subscription.

    The relay finds the stream without what is owed again, makes it anew and publishes. Raises `EventsDroppedError` when
    some of those events are gone.
    """
    standing = (await connection.execute(_LOCK, {"service": service})).all()
    if not standing:
        return None
    chosen = [row for row in standing if target.partition in {None, row.partition}]
    spans = [Span(row.partition, await _position(connection, row, target), row.settled) for row in chosen]
    spans = [span for span in spans if span.events > 0]
    if spans and not dry_run:
        await _move(connection, service, spans, replay=replay)
    return spans


async def disown(connection: AsyncConnection, service: str, partition: int, head: int) -> None:
    """Begin an epoch in which the service forgets every event behind the log's `head`: they are of a log that is lost.

    Positions behind the head will belong to other events. What is owed to the service stays as it is.
    """
    values = {"service": service, "partition": partition, "head": head}
    await connection.execute(_DISOWN, values)


async def _move(connection: AsyncConnection, service: str, spans: Sequence[Span], *, replay: bool) -> None:
    values = {
        "service": service,
        "replay": replay,
        "partitions": [span.partition for span in spans],
        "positions": [span.position for span in spans],
    }
    await connection.execute(_REWIND, values)


async def _position(connection: AsyncConnection, standing: Row[Any], target: Target) -> int:
    if target.time is None:
        position = max(target.position or 0, int(standing.opened))
        gone = position < standing.dropped
    else:
        position = await _last_before(connection, standing, target.time)
        # Not even the first event that is left was certainly written before: the ones in front of it may be meant too.
        gone = standing.opened < standing.dropped == position
    if gone:
        raise EventsDroppedError(
            f"The log of partition {standing.partition} begins behind position {standing.dropped}, "
            f"what was before it is dropped: rewind to position {standing.dropped}, or later."
        )
    return min(int(standing.settled), position)


async def _last_before(connection: AsyncConnection, standing: Row[Any], instant: datetime) -> int:
    """The last position up to `settled` that was written before `instant`, found by halving: time has no index."""
    low, high = int(standing.dropped), int(standing.settled)
    while low < high:
        middle = (low + high + 1) // 2
        values = {"partition": standing.partition, "position": middle, "instant": instant}
        if (await connection.execute(_WRITTEN_BEFORE, values)).scalar_one_or_none() is not False:
            low = middle
        else:
            high = middle - 1
    return low
