"""Retention: what is past goes by itself, as soon as nobody needs it any more, and never before.

The log keeps an event until every subscription has settled it, and for the retention time at least. A ledger keeps a
delivery for as long as the log could send it again. Whatever is kept for longer than that is said, with who holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import BigInteger, Double, Integer, Row, bindparam, text
from typing_extensions import override

from shared.bus.boards import dropped_of, relay_board
from shared.bus.slices import LEDGER_SLICE_MS, LOG_SLICE
from shared.runtime import metrics
from shared.runtime.statements import Many
from shared.runtime.supervision import Loop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import TextClause

    from shared.bus.streams import Streams
    from shared.runtime.db import Database

log = structlog.get_logger()

EVERY_S = 20.0  # below the time after which a loop counts as stalled
MOST_PARTITIONS = 1024

_LOG_UPKEEP = text("SELECT * FROM log_upkeep(:keep_s, :slice)").bindparams(
    bindparam("keep_s", type_=Double), bindparam("slice", type_=BigInteger)
)
_LEDGER_UPKEEP = text("SELECT * FROM ledger_upkeep(:keep_s, :slice_ms, :partitions, :dropped)").bindparams(
    bindparam("keep_s", type_=Double),
    bindparam("slice_ms", type_=BigInteger),
    bindparam("partitions", type_=Many(Integer)),
    bindparam("dropped", type_=Many(BigInteger)),
)


@dataclass(frozen=True, slots=True)
class Held:
    """What is past and cannot go: how many bytes of the disk, and because of whom or what."""

    size: int
    by: Sequence[str]

    @override
    def __str__(self) -> str:
        """One line for people."""
        return f"{self.size / 1e6:,.0f} MB that are past are held by {', '.join(self.by)}"


class Retention(Loop):
    """Makes the slices ahead and drops one that is past with each step. Any number of replicas may run it."""

    idle_s = EVERY_S

    def __init__(self, table: str, db: Database, keep_s: float) -> None:
        """Keep what is in `table` for `keep_s` seconds at least."""
        super().__init__(f"retention-{table}")
        self._table = table
        self._db = db
        self._keep_s = keep_s
        self.held: Held | None = None

    @property
    def kept(self) -> timedelta:
        """For how long everything is kept."""
        return timedelta(seconds=self._keep_s)

    async def _keep_up(self, statement: TextClause, values: dict[str, Any]) -> Row[Any]:
        async with self._db.reading() as connection:
            done = (await connection.execute(statement, {"keep_s": self._keep_s, **values})).one()
        if done.made or done.dropped:
            log.info("slices", table=self._table, made=done.made, dropped=done.dropped)
        metrics.SLICES_DROPPED.labels(self._table).inc(done.dropped)
        metrics.HELD_BYTES.labels(self._table).set(done.held_bytes)
        return done


class LogRetention(Retention):
    """Of checkout's log."""

    def __init__(self, db: Database, keep_s: float, width: int = LOG_SLICE) -> None:
        """Keep events for `keep_s` seconds at least, and until everybody has settled them; `width` is in positions."""
        super().__init__("event_log", db, keep_s)
        self._width = width

    @override
    async def run_once(self) -> int:
        """One step; returns whether something was dropped, because then there may be more."""
        done = await self._keep_up(_LOG_UPKEEP, {"slice": self._width})
        self.held = Held(done.held_bytes, done.held_by) if done.held_by else None
        return int(done.dropped)


class LedgerRetention(Retention):
    """Of one service's ledger."""

    def __init__(
        self, db: Database, keep_s: float, streams: Streams, service: str, width_ms: int = LEDGER_SLICE_MS
    ) -> None:
        """Keep deliveries for `keep_s` seconds at least, and for as long as the log has their events."""
        super().__init__("deliveries", db, keep_s)
        self._width_ms = width_ms
        self._streams = streams
        self._board = relay_board(service)

    @override
    async def run_once(self) -> int:
        """One step; returns whether something was dropped, because then there may be more."""
        board = await self._streams.board(self._board)
        gone = {one: board[dropped_of(one)] for one in range(MOST_PARTITIONS) if dropped_of(one) in board}
        values = {"slice_ms": self._width_ms, "partitions": [*gone], "dropped": [*gone.values()]}
        done = await self._keep_up(_LEDGER_UPKEEP, values)
        self.held = Held(done.held_bytes, (f"{done.held} deliveries that are not settled",)) if done.held else None
        return int(done.dropped)
