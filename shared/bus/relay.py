"""The relay: takes events from the log to a service's stream and makes good whatever Redis loses.

Think of TCP: a numbered log, a window in flight, cumulative acknowledgement (settled), retransmission. One
invariant carries it: *every position in (settled, cursor] is in the stream*. Each pass checks it; when it does not
hold, the stream is dropped, made anew from `settled` on, and published again. Consumers drop what they have done.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from shared.bus.boards import announcement, dropped_of, relay_board, reported, settled_board
from shared.bus.cursor import Cursor, Taken
from shared.bus.log import LogGapError, Subscription
from shared.bus.rewind import disown
from shared.bus.streams import State, stream_name
from shared.runtime import metrics
from shared.runtime.failpoints import reach
from shared.runtime.supervision import Loop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from shared.bus.log import EventLog
    from shared.bus.streams import Streams
    from shared.runtime.db import Database

log = structlog.get_logger()

WINDOW = 100_000  # entries in a stream at the most: bounds Redis' memory per service, whatever the outage
BATCH = 1_000  # entries per pass: one Lua call of some 700 kB, a few milliseconds of Redis
ANNOUNCE_S = 1.0
REST_S = 0.005
REST_PER_EVENT_S = 0.003
LONGEST_REST_S = 0.25
GAP_S = 5.0
FULL_REST_S = 0.5  # a full Redis gets room when consumers get on, not by being asked
LOSS_REST_S = 0.05  # doubles with every loss
LONGEST_LOSS_REST_S = 1.0  # far longer than a consumer waits that found no stream, so that the two meet
FIT = frozenset({State.PUBLISHED, State.FULL})  # the stream is what it should be
LACKING_AFTER_S = 10.0  # an old report may stand on the board for a second: Redis fell back, or a peer was slow
POLL_S = 0.1  # how soon a relay sees what another replica of checkout appended
BOARD_S = 0.1  # how old a report may be: services report four times a second


@dataclass(frozen=True, slots=True)
class Lack:
    """The service reports `reported` although `settled` was believed before: its ledger lost rows."""

    service: str
    partition: int
    reported: int
    settled: int


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass found and did; `lost` says why the stream had to be made anew, `full` that Redis took nothing."""

    before: Subscription
    after: Subscription
    published: int
    lost: State | None = None
    full: bool = False


class Relay(Loop):
    """Keeps one service's stream of one partition filled. Any number of replicas may run the same one."""

    idle_s = POLL_S

    def __init__(
        self,
        db: Database,
        event_log: EventLog,
        streams: Streams,
        service: str,
        partition: int,
        window: int = WINDOW,
        batch: int = BATCH,
    ) -> None:
        """Publish `service`'s events of `partition`, at most `window` of them ahead of what it has settled."""
        super().__init__(f"relay-{service}-{partition}")
        self._db = db
        self._log = event_log
        self._streams = streams
        self._service = service
        self._partition = partition
        self._stream = stream_name(service, partition)
        self._window = window
        self._batch = batch
        self._cursor = Cursor(service, partition, window, batch)
        self._announced_at = 0.0
        self._whole_at = monotonic()
        self._board: Mapping[str, int] = {}
        self._board_read_at = float("-inf")
        self._hinted = False
        self._failing = False
        self._losses = 0  # since the service last got on
        self._reached = (0, 0)  # an epoch, and how far it was published when the stream was last put right
        self.full = False
        self.lack: Lack | None = None

    @override
    def wake(self) -> None:
        self._hinted = True  # somebody appended: no need to look whether there is something to do
        if self.stopping or not self._failing:  # Redis is away: a thousand commits a second must not ask it as often
            super().wake()

    @override
    def failed(self, error: Exception) -> float:
        self._failing = True
        if isinstance(error, LogGapError):
            # Foreseen, but not to be healed from here: one line until somebody fills it.
            metrics.LOOP_FAILURES.labels(self.name, type(error).__name__).inc()
            log.error("gap in the log, nothing behind it is published", loop=self.name, error=str(error))
            return GAP_S
        return super().failed(error)

    @override
    async def run_once(self) -> int:
        """One pass: mirror settled, check the stream, publish the next entries. Returns how many were published."""
        hinted, self._hinted, self._failing = self._hinted, False, False
        board = await self._reports(hinted=hinted)
        if not hinted and not await self._something_to_do(board):
            return 0
        await reach("R4")
        # Each stands in for the other: what is not as usual needs the row, and a peer may sleep with the row in hand.
        first, second = self._go_on, self._put_right
        if self._announcement_is_due:
            first, second = second, first
        done = await first(board) or await second(board)
        if done is None:
            return 0
        self._report(done)
        await asyncio.sleep(self._rest_after(done))
        return done.published

    async def _go_on(self, board: Mapping[str, int]) -> Pass | None:
        """The usual pass, which needs no lock: the guard makes a repeat harmless, and the cursor moves only from here.

        None when something is not as usual.
        """
        async with self._db.reading() as connection:
            taken = await self._cursor.read(connection)
            # A stream that is not there is no loss while nothing was published: only whoever holds the row makes it.
            if taken is None or not taken.subscription.cursor or self._is_beyond(taken, board):
                return None
            await reach("R1")
            before, events = taken.subscription, self._due(taken, board)
            now = replace(before, settled=self._mirror(taken, board))
            answer = await self._streams.publish(self._stream, now.settled, now.cursor, taken.head, events)
            await reach("R2")
            if answer is not State.PUBLISHED:
                return None
            after = replace(now, cursor=now.cursor + len(events))
            await reach("R3")
            if after == before:
                return Pass(before, after, 0)
            moved = await self._cursor.advance(connection, taken, after)
        return Pass(before, after, len(events)) if moved else Pass(before, before, 0)

    async def _put_right(self, board: Mapping[str, int]) -> Pass | None:
        """A pass that holds the row: nobody else rebuilds, removes or rewinds meanwhile. None if a peer has it."""
        async with self._db.transaction() as connection:
            taken = await self._cursor.lock(connection)
            if taken is None:
                return None
            await reach("R1")
            if self._log_was_put_back(taken, board):
                await disown(connection, self._service, self._partition, taken.head)
                self._announced_at = 0.0
                return Pass(taken.subscription, taken.subscription, 0)
            done = await self._pass(connection, taken, board)
            if done.after != done.before:
                await self._cursor.store(connection, done.after)
            # While the row is locked: whoever removes the subscription waits, and what is said here is not said after.
            await self._announce(taken, anew=done.lost is not None)
            self._compare(taken, board)
            await reach("R3")
        return done

    def _rest_after(self, done: Pass) -> float:
        if done.full:
            return FULL_REST_S
        if done.lost and done.published:
            # Where a Redis without room evicts the stream for its next entries, consumers need the time to read what
            # there is: published again at once and gone again, it would never reach anybody.
            return min(LONGEST_LOSS_REST_S, LOSS_REST_S * 2.0 ** min(self._losses - 1, 8))
        return rest_s(done.published) if done.published < self._batch else 0.0

    async def _reports(self, *, hinted: bool) -> Mapping[str, int]:
        """What the service reports. With every commit there is an event to publish, but rarely a new report."""
        if not hinted or monotonic() - self._board_read_at > BOARD_S:
            self._board = await self._streams.board(settled_board(self._service))
            self._board_read_at = monotonic()
        return self._board

    async def _something_to_do(self, board: Mapping[str, int]) -> bool:
        """A look without a lock: an idle relay must cost the database next to nothing."""
        async with self._db.reading() as connection:
            row = await self._cursor.look(connection)
        if row is None:
            return False
        metrics.LOG_HEAD.labels(str(self._partition)).set(row.head)
        room = row.cursor - row.settled < self._window
        settled = reported(board, self._partition, row.epoch) or 0
        if (row.head > row.cursor and room) or settled > row.settled or self._announcement_is_due:
            return True
        answer = await self._streams.publish(self._stream, row.settled, row.cursor, row.head, ())
        return answer not in FIT

    async def _pass(self, connection: AsyncConnection, taken: Taken, board: Mapping[str, int]) -> Pass:
        before, events, lost = taken.subscription, self._due(taken, board), None
        self._reached = max(self._reached, (taken.epoch.number, before.cursor))
        now = replace(before, settled=self._mirror(taken, board))
        answer = await self._streams.publish(self._stream, now.settled, now.cursor, taken.head, events)
        await reach("R2")
        if answer not in FIT:
            # Replicas publish and trim without the row, by what was committed and reported since our looks at it.
            board = await self._streams.board(settled_board(self._service))
            taken = replace(taken, head=await self._log.head(connection, self._partition))
            now = replace(before, settled=self._mirror(taken, board))
            answer = await self._streams.publish(self._stream, now.settled, now.cursor, taken.head, events)
        if answer not in FIT:
            # Retransmission: everything that is not settled comes again, and consumers drop what they have done. The
            # log is read before the stream is dropped: a relay that slept until it lost its lock destroys nothing.
            settled = self._mirror(taken, board, again=True)
            lost, now = answer, replace(now, settled=settled, cursor=settled)
            limit = 0 if self._waits(taken, board) else min(self._batch, self._window)
            events = await self._log.read(connection, self._partition, now.settled, limit)
            await self._streams.rebuild(self._stream, self._service, now.settled)
            answer = await self._streams.publish(self._stream, now.settled, now.cursor, taken.head, events)
        published = len(events) if answer is State.PUBLISHED else 0
        after = replace(now, cursor=now.cursor + published)
        return Pass(before, after, published, lost, full=answer is State.FULL)

    def _due(self, taken: Taken, board: Mapping[str, int]) -> Sequence[str]:
        return () if self._waits(taken, board) else taken.events

    def _waits(self, taken: Taken, board: Mapping[str, int]) -> bool:
        """What comes before the service has forgotten would be forgotten with the rest, and handled a second time."""
        return taken.epoch.replay and reported(board, self._partition, taken.epoch.number) is None

    def _mirror(self, taken: Taken, board: Mapping[str, int], *, again: bool = False) -> int:
        """Settled only moves forward, and never beyond what was published; if `again`, before the last loss too.

        That loss set the cursor back, but the service may settle what it had read before. If it did not count at the
        next loss, a Redis that never has room for so much would hold the two apart for ever.
        """
        known = taken.subscription
        settled = reported(board, self._partition, taken.epoch.number) or 0
        epoch, reached = self._reached
        published = max(known.cursor, reached) if again and epoch == taken.epoch.number else known.cursor
        return max(known.settled, settled) if settled <= published else known.settled

    def _is_beyond(self, taken: Taken, board: Mapping[str, int]) -> bool:
        return (reported(board, self._partition, taken.epoch.number) or 0) > taken.head

    def _log_was_put_back(self, taken: Taken, board: Mapping[str, int]) -> bool:
        """Whether the service has settled what the log does not know: then the two are not of the same log."""
        if not self._is_beyond(taken, board):
            return False
        settled = reported(board, self._partition, taken.epoch.number)
        metrics.REFUSED_SETTLED.labels(self._service).inc()
        log.error("settled report refused: beyond the log", loop=self.name, reported=settled, head=taken.head)
        return True

    @override
    async def finish(self) -> None:
        # A subscription that is removed must not look as if it fell behind for ever.
        for gauge in (metrics.CURSOR, metrics.SETTLED, metrics.LACKING, metrics.HELD_BACK):
            gauge.remove(*self._labels)

    def _compare(self, taken: Taken, board: Mapping[str, int]) -> None:
        """Notice a service whose database was put back: it keeps reporting less than it had settled before."""
        known = taken.subscription
        settled = reported(board, self._partition, taken.epoch.number)
        if settled is None or settled >= known.settled:
            self._whole_at, self.lack = monotonic(), None
        elif monotonic() - self._whole_at > LACKING_AFTER_S:
            self.lack = Lack(self._service, self._partition, settled, known.settled)
        metrics.LACKING.labels(*self._labels).set(self.lack.settled - self.lack.reported if self.lack else 0)

    def _report(self, done: Pass) -> None:
        labels = self._labels
        if done.after.settled > done.before.settled:
            self._losses = 0
        if done.lost:
            self._losses += bool(done.published)
            metrics.REBUILDS.labels(*labels, done.lost).inc()
            log.warning("stream rebuilt", loop=self.name, reason=done.lost, **_span(done))
        if done.full != self.full:
            self.full = done.full
            log.warning("Redis is full, events wait" if done.full else "Redis has room again", loop=self.name)
        metrics.HELD_BACK.labels(*labels).set(done.full)
        metrics.PUBLISHED.labels(*labels).inc(done.published)
        metrics.CURSOR.labels(*labels).set(done.after.cursor)
        metrics.SETTLED.labels(*labels).set(done.after.settled)

    @property
    def _announcement_is_due(self) -> bool:
        return monotonic() - self._announced_at >= ANNOUNCE_S

    async def _announce(self, taken: Taken, *, anew: bool) -> None:
        """Tell the service where its subscription stands; at once after a loss, which may have taken that along."""
        if not (anew or self._announcement_is_due):
            return
        board = {
            "partitions": self._log.partitions,
            f"head:{self._partition}": taken.head,
            dropped_of(self._partition): taken.dropped,
            **announcement(self._partition, taken.epoch),
        }
        await self._streams.report(relay_board(self._service), board)
        self._announced_at = monotonic()

    @property
    def _labels(self) -> tuple[str, str]:
        return self._service, str(self._partition)


def rest_s(published: int) -> float:
    """How long to rest after a pass, so that commits can gather: every commit wakes every relay.

    At 100 events a second 7 ms, above 300 soon the full 250 ms: the busier it is, the more a pass and each of the
    services behind it save by taking more at once, and nobody waits for them.
    """
    return min(LONGEST_REST_S, REST_S + published * REST_PER_EVENT_S)


def _span(done: Pass) -> dict[str, int]:
    return {"cursor": done.before.cursor, "settled": done.after.settled, "published": done.published}
