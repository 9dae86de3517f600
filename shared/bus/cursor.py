"""Where a subscription stands, what comes next for it, and how its cursor moves: the rows behind the relay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.bus.log import Subscription, without_gap
from shared.bus.progress import Epoch
from shared.runtime.driver import Direct, Found

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

_LOOK = Direct(
    """
    SELECT s.cursor, s.settled, s.epoch, h.position AS head FROM subscriptions s JOIN log_head h USING (partition)
    WHERE s.service = :service AND s.partition = :partition
    """
)

# The subscription, the head, and the next entries of the window, in one round trip.
_READ_SQL = """
    WITH taken AS (
        SELECT cursor, settled, epoch, origin, rewound, replay{settings}
        FROM subscriptions
        WHERE service = :service AND partition = :partition
        {lock}
    )
    SELECT t.cursor, t.settled, t.epoch, t.origin, t.rewound, t.replay, h.position AS head, h.dropped,
           e.last, e.events
    FROM taken t
    JOIN log_head h ON h.partition = :partition
    CROSS JOIN LATERAL (
        SELECT max(position) AS last, array_agg(event ORDER BY position) AS events FROM event_log
        WHERE partition = :partition AND position > t.cursor
          AND position <= least(t.cursor + :batch, t.settled + :window)
    ) e
    """
_READ = Direct(_READ_SQL.format(settings="", lock=""))

# synchronous_commit off, for its transaction: a cursor or a settled that a crash takes back is published or mirrored
# again, so waiting for the disk would buy nothing.
_NO_HURRY = "set_config('synchronous_commit', 'off', true)"

# SKIP LOCKED: another replica's relay holds the row for the length of its pass and does the same work.
# idle_in_transaction_session_timeout, for this transaction: a relay that sleeps loses the row, so that another goes on.
# It is as long as a command of Redis may take, and what a sleeper publishes late, the guard refuses.
_TAKE = Direct(
    _READ_SQL.format(
        settings=f", {_NO_HURRY}, set_config('idle_in_transaction_session_timeout', '4s', true)",
        lock="FOR UPDATE SKIP LOCKED",
    )
)

# Whoever finds the row changed or locked was overtaken: by a replica that publishes the same, or by somebody who set
# the subscription back.
_ADVANCE = Direct(
    f"""
    WITH mine AS (
        SELECT service, partition, {_NO_HURRY} FROM subscriptions
        WHERE service = :service AND partition = :partition AND epoch = :epoch AND cursor = :before
        FOR UPDATE SKIP LOCKED
    )
    UPDATE subscriptions s SET cursor = :cursor, settled = greatest(s.settled, :settled),
           moved_at = CASE WHEN s.settled >= :settled THEN s.moved_at ELSE now() END
    FROM mine WHERE s.service = mine.service AND s.partition = mine.partition
    RETURNING s.cursor
    """  # noqa: S608 - a setting
)
_STORE = Direct(
    """
    UPDATE subscriptions SET cursor = :cursor, settled = :settled,
           moved_at = CASE WHEN settled = :settled THEN moved_at ELSE now() END
    WHERE service = :service AND partition = :partition
    """
)


@dataclass(frozen=True, slots=True)
class Taken:
    """A subscription, its epoch, the log's head and what it no longer holds, and what is behind the cursor."""

    subscription: Subscription
    epoch: Epoch
    head: int
    dropped: int
    events: Sequence[str]


class Cursor:
    """The cursor of one service in one partition."""

    def __init__(self, service: str, partition: int, window: int, batch: int) -> None:
        """What comes next are at most `batch` events, and never more than `window` beyond what is settled."""
        self._service = service
        self._partition = partition
        self._bounds = {"window": window, "batch": batch}

    async def look(self, connection: AsyncConnection) -> Found | None:
        """Cursor, settled, epoch and head, without the events."""
        return await _LOOK.one(connection, self._key)

    async def read(self, connection: AsyncConnection) -> Taken | None:
        """Where the subscription stands and what comes next; None when there is no subscription."""
        return self._taken(await _READ.one(connection, self._key | self._bounds))

    async def lock(self, connection: AsyncConnection) -> Taken | None:
        """The same, and the row is the caller's until its transaction ends; None also when somebody else has it."""
        return self._taken(await _TAKE.one(connection, self._key | self._bounds))

    async def advance(self, connection: AsyncConnection, taken: Taken, after: Subscription) -> bool:
        """Move on from where `read` found it, in one statement that commits by itself; False if it is not there."""
        expected = {"before": taken.subscription.cursor, "epoch": taken.epoch.number}
        return await _ADVANCE.one(connection, self._key | expected | _position(after)) is not None

    async def store(self, connection: AsyncConnection, after: Subscription) -> None:
        """Move a row that is locked."""
        await _STORE.fetch(connection, self._key | _position(after))

    def _taken(self, row: Found | None) -> Taken | None:
        if row is None:
            return None
        # The row is the newest there is, the head may be that of a moment ago.
        head = max(row.head, row.cursor)
        subscription = Subscription(self._service, self._partition, row.cursor, row.settled)
        epoch = Epoch(row.epoch, row.origin, row.rewound, row.replay)
        events = without_gap(self._partition, row.cursor, row.last, row.events)
        return Taken(subscription, epoch, head, row.dropped, events)

    @property
    def _key(self) -> dict[str, int | str]:
        return {"service": self._service, "partition": self._partition}


def _position(subscription: Subscription) -> dict[str, int | str]:
    return {"cursor": subscription.cursor, "settled": subscription.settled}
