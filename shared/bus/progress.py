"""How far a service's ledger is complete: `settled` moves over rows without gaps, in an epoch of the subscription."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, bindparam, text

from shared.bus.ledger import progress

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one partition is known to be complete, counted in an epoch of the subscription."""

    settled: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """What the relay announces of a subscription's partition: see `shared.bus.rewind`."""

    number: int
    origin: int
    rewound: int
    replay: bool


# Whoever the service was before, it is owed nothing up to the origin. Rows that it has behind the rewound position are
# counted again: there may be holes among them, which is why somebody rewound. And nothing behind it is forgotten: that
# could only be of another log, with positions of its own.
_ADOPT = text(
    """
    INSERT INTO progress AS p (partition, settled, epoch) VALUES (:partition, :origin, :epoch)
    ON CONFLICT (partition) DO UPDATE
    SET settled = greatest(excluded.settled, least(p.settled, :rewound)), epoch = excluded.epoch,
        forgotten = least(p.forgotten, :rewound)
    WHERE p.epoch < excluded.epoch
    """
).bindparams(bindparam("rewound", type_=BigInteger))

# Only while the epoch is not adopted: a peer that has adopted it may have handled its first events already.
# What somebody discarded stays discarded.
_FORGET = text(
    """
    WITH open AS (SELECT 1 FROM progress WHERE partition = :partition AND epoch < :epoch FOR UPDATE)
    DELETE FROM deliveries WHERE event_id IN (
        SELECT event_id FROM deliveries, open
        WHERE partition = :partition AND position > :rewound AND state <> 'discarded' LIMIT :limit
    )
    """
)

# Positions are sorted and distinct, so `position - row number` is `settled` exactly as long as nothing is missing.
_ADVANCE = text(
    """
    UPDATE progress SET settled = reached.position
    FROM (
        SELECT max(position) AS position FROM (
            SELECT position, row_number() OVER (ORDER BY position) AS n FROM (
                SELECT DISTINCT position FROM deliveries
                WHERE partition = :partition AND position > :settled ORDER BY position LIMIT :limit
            ) AS behind
        ) AS numbered WHERE position = :settled + n
    ) AS reached
    WHERE partition = :partition AND settled = :settled AND epoch = :epoch AND reached.position IS NOT NULL
    RETURNING settled
    """
).bindparams(bindparam("settled", type_=BigInteger))


async def read(connection: AsyncConnection, partition: int) -> Progress | None:
    """How far the ledger is known to be complete, or None when the service never read the partition."""
    row = (await connection.execute(progress.select().where(progress.c.partition == partition))).one_or_none()
    return Progress(row.settled, row.epoch) if row else None


async def adopt(connection: AsyncConnection, partition: int, epoch: Epoch) -> None:
    """Count from where the epoch says; nothing happens if it is known already."""
    values = {"partition": partition, "origin": epoch.origin, "rewound": epoch.rewound, "epoch": epoch.number}
    await connection.execute(_ADOPT, values)


async def forget(connection: AsyncConnection, partition: int, epoch: Epoch, limit: int) -> int:
    """Delete rows behind the epoch's beginning, until it is adopted; returns how many."""
    values = {"partition": partition, "rewound": epoch.rewound, "epoch": epoch.number, "limit": limit}
    return (await connection.execute(_FORGET, values)).rowcount


async def advance(connection: AsyncConnection, partition: int, before: Progress, limit: int) -> Progress:
    """Move `settled` over every position that has a row, without gaps; returns where it stands."""
    values = {"partition": partition, "settled": before.settled, "epoch": before.epoch, "limit": limit}
    moved = await connection.execute(_ADVANCE, values)
    return replace(before, settled=moved.scalar_one_or_none() or before.settled)
