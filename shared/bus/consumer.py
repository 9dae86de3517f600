"""The consumer: reads a service's streams into its ledger, and takes up what it or a peer left open.

Redis only ever holds what the ledger does not have yet: the transaction commits, then the entry is acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from typing_extensions import override

from shared.bus import progress
from shared.bus.arrivals import Arrival
from shared.bus.boards import announced, epoch_of, relay_board, settled_board
from shared.bus.progress import Epoch, Progress
from shared.bus.streams import stream_name
from shared.runtime import metrics
from shared.runtime.errors import Action, Outage, classify
from shared.runtime.failpoints import reach
from shared.runtime.supervision import Family, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shared.bus.arrivals import Delivery
    from shared.bus.delivery import Deliverer
    from shared.bus.ledger import Control
    from shared.bus.streams import StreamEntry, Streams

log = structlog.get_logger()

BATCH = 1_000  # events per transaction
SWEEP_S = 1.0  # how often entries left open by others are looked for
CLAIM_IDLE_S = 15.0  # longer than any batch may take (statement_timeout 5 s), shorter than anybody's patience
REPORT_S = 0.25
STUCK_S = 3.0  # settled has not moved for so long although there is more in the stream: an entry lost its owner
ADVANCE_LIMIT = 50_000
CONTROL_S = 0.5
FORGET_AT_ONCE = 10_000
# The relay makes a stream anew in a moment; where it is soon gone again, whoever sleeps long misses it.
ABSENCE_S = 0.25


class Gate:
    """Whether consuming may go on: paused by somebody (kept in the database) or by an outage (kept here)."""

    def __init__(self, deliverer: Deliverer) -> None:
        """Open until the database says otherwise."""
        self._deliverer = deliverer
        self._read_at = 0.0
        self._outage_until = 0.0
        self._outages = 0
        self.control: Control | None = None

    async def closed(self) -> bool:
        """Whether nothing may be read or tried now."""
        if monotonic() < self._outage_until:
            return True
        if self.control is None or monotonic() - self._read_at > CONTROL_S:
            await self._look()
        return bool(self.control and self.control.paused)

    def outage(self) -> None:
        """A dependency of the handlers is down: wait 1, 2, 4 … 30 s, then let one batch probe."""
        self._outages += 1
        self._outage_until = monotonic() + min(30.0, 2.0 ** (self._outages - 1))

    def success(self) -> None:
        """The handlers work."""
        self._outages = 0

    @property
    def in_outage(self) -> bool:
        """Whether the last thing known about the handlers' dependencies is that one is down."""
        return self._outages > 0

    async def _look(self) -> None:
        async with self._deliverer.db.reading() as connection:
            control = await self._deliverer.ledger.control(connection)
        if self.control and self.control.paused and not control.paused:
            self._deliverer.brake.release()
        self.control, self._read_at = control, monotonic()
        metrics.PAUSED.set(control.paused)


class Batch(NamedTuple):
    """Entries of a stream, and what is to be done about them."""

    entries: Sequence[StreamEntry]
    deliveries: Sequence[Delivery]


class PartitionConsumer(Loop):
    """Reads one stream."""

    idle_s = 0.0  # the blocking read is the pause
    paused_s = 0.5
    unknown_s = 0.2

    def __init__(
        self,
        service: str,
        partition: int,
        name: str,
        streams: Streams,
        deliverer: Deliverer,
        gate: Gate,
        claim_idle_s: float = CLAIM_IDLE_S,
    ) -> None:
        """`name` must be unique among the replicas; if it is the same after a restart, nobody waits for a claim.

        A peer that is silent for `claim_idle_s` loses what it left open to this one, and then its name.
        """
        super().__init__(f"consumer-{service}-{partition}")
        self._service = service
        self._partition = partition
        self._stream = stream_name(service, partition)
        self._name = name
        self._streams = streams
        self._deliverer = deliverer
        self._gate = gate
        self._claim_idle_ms = int(claim_idle_s * 1000)
        self._recovered = False
        self._swept_at = 0.0
        self._ahead: Batch | None = None

    @override
    async def run_once(self) -> int:
        """Take one batch through: recover if something broke, sweep if it is time, then read what is new."""
        if await self._gate.closed():
            await self.wait(self.paused_s)
            return 1
        if not self._recovered and not await self._recover():
            await self.wait(self.unknown_s)
            return 1
        if monotonic() - self._swept_at > SWEEP_S:
            await self._sweep()
        batch, self._ahead = self._ahead or await self._read(), None
        if len(batch.entries) == BATCH:
            self._ahead = await self._deliver_and_read(batch)
        elif batch.entries:
            await self._deliver(batch)
        return 1

    @override
    def failed(self, error: Exception) -> float:
        # A cancelled or failed read loses its answer, not its entries: they are among the own open ones.
        self._recovered, self._ahead = False, None
        if isinstance(error, Outage):
            self._gate.outage()
            log.warning("outage, consuming pauses", loop=self.name, error=str(error))
            return self.paused_s
        if classify(error) is Action.REBUILD:
            log.warning("stream or group is gone, taking it up again", loop=self.name, error=str(error)[:100])
            return ABSENCE_S
        return super().failed(error)

    @override
    async def finish(self) -> None:
        # What was read and not begun goes into the ledger, where any replica takes it up at once. If the ledger is away
        # a peer's next sweep takes it; if Redis is away, peers wait for the claim.
        with contextlib.suppress(Exception):
            await self._hand_over_own()
        with contextlib.suppress(Exception):
            await self._streams.give_back(self._stream, self._service, self._name)

    async def _read(self) -> Batch:
        """A blocking read that `stop` interrupts."""
        read = asyncio.ensure_future(self._streams.read_new(self._stream, self._service, self._name, BATCH))
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({read, woken}, return_when=asyncio.FIRST_COMPLETED)
            entries = read.result() if read.done() else []
            return Batch(entries, await self._deliverer.sort_beside(self._arrivals(entries)))
        finally:
            woken.cancel()
            await _abandon(read)

    async def _deliver_and_read(self, batch: Batch) -> Batch:
        """Under a backlog the next batch is read and decoded while the database works on this one."""
        ahead = asyncio.ensure_future(self._read())
        try:
            await self._deliver(batch)
            return await ahead
        finally:
            await _abandon(ahead)

    async def _deliver(self, batch: Batch) -> None:
        await reach("K1")
        await self._deliverer.settle(batch.deliveries)
        self._gate.success()
        await self._acknowledge(batch.entries)

    async def _recover(self) -> bool:
        """Make sure that the group exists, then take up what this consumer was given before it stopped or failed.

        False while the relay says nothing of a subscription: a stream made now would belong to nobody.
        """
        standing = await stand(self._service, self._partition, self._streams, self._deliverer)
        if standing is None:
            return False
        await self._streams.create_group(self._stream, self._service, standing.settled)
        await self._hand_over_own()
        self._recovered = True
        return True

    async def _hand_over_own(self) -> None:
        after = "0"
        while entries := await self._streams.read_own(self._stream, self._service, self._name, after, BATCH):
            await self._hand_over(entries)
            after = entries[-1].id

    async def _sweep(self) -> None:
        """Take over what others left open, and what lost its owner altogether."""
        idle_ms = self._claim_idle_ms
        idle = await self._streams.claim_idle(self._stream, self._service, self._name, idle_ms, BATCH)
        if idle:
            metrics.CLAIMED.inc(len(idle))
            log.info("claimed entries of an idle consumer", loop=self.name, entries=len(idle))
            await self._hand_over(idle)
        await self._streams.forget_idle(self._stream, self._service, idle_ms)
        self._swept_at = monotonic()

    async def adopt(self, settled: int) -> int:
        """Take up entries behind `settled` that are in nobody's hands (XGROUP DELCONSUMER drops what was open)."""
        if await self._gate.closed():
            return 0
        entries = await self._streams.read_range(self._stream, settled + 1, BATCH)
        await self._hand_over(entries)
        return len(entries)

    async def _hand_over(self, entries: Sequence[StreamEntry]) -> None:
        await self._deliverer.hand_over(self._arrivals(entries))
        await self._acknowledge(entries)

    async def _acknowledge(self, entries: Sequence[StreamEntry]) -> None:
        """Entries without an event were trimmed while open or written by a stranger; the log has what belongs there."""
        await reach("K4")
        await self._streams.ack(self._stream, self._service, [entry.id for entry in entries if entry.event is not None])
        for entry in (entry for entry in entries if entry.event is None):
            await self._streams.delete(self._stream, entry.id)
            await self._streams.ack(self._stream, self._service, [entry.id])

    def _arrivals(self, entries: Sequence[StreamEntry]) -> list[Arrival]:
        return [Arrival(self._partition, entry.position, entry.event) for entry in entries if entry.event is not None]


async def _abandon(task: asyncio.Future[Any]) -> None:
    """Whoever waited for it has an error of its own by now."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


class Reporter(Loop):
    """Tells the relay how far the service's ledger is complete."""

    idle_s = REPORT_S
    repeat_s = 1.0

    def __init__(
        self,
        service: str,
        partition: int,
        streams: Streams,
        deliverer: Deliverer,
        consumer: PartitionConsumer,
    ) -> None:
        """Report for the partition that `consumer` reads."""
        super().__init__(f"reporter-{service}-{partition}")
        self._service = service
        self._partition = partition
        self._streams = streams
        self._deliverer = deliverer
        self._consumer = consumer
        self._standing: Progress | None = None
        self._stood_at = 0.0
        self._moved_at = monotonic()
        self._reported_at = 0.0

    @override
    async def run_once(self) -> int:
        """Advance settled over what the ledger has got, report it, look after entries that lost their owner."""
        before = self._standing
        self._standing = now = await self._look()
        if now is None:
            return 0
        if now != before:
            self._moved_at = monotonic()
        elif monotonic() - self._moved_at > STUCK_S:
            await self._consumer.adopt(now.settled)
            self._moved_at = monotonic()
        if now != before or monotonic() - self._reported_at > self.repeat_s:
            await self._report(now)
        return 0

    @override
    async def finish(self) -> None:
        with contextlib.suppress(Exception):  # only saves the relay a redelivery that the ledger would drop anyway
            await self.run_once()

    async def _look(self) -> Progress | None:
        """Where the ledger stands; once a second also in which epoch, and whether there is a subscription at all."""
        if self._standing is None or monotonic() - self._stood_at > self.repeat_s:
            standing = await stand(self._service, self._partition, self._streams, self._deliverer)
            self._stood_at = monotonic()
        else:
            async with self._deliverer.db.reading() as connection:
                standing = await progress.read(connection, self._partition)
        if standing is None:
            return None
        async with self._deliverer.db.reading() as connection:
            return await progress.advance(connection, self._partition, standing, ADVANCE_LIMIT)

    async def _report(self, now: Progress) -> None:
        await reach("K5")
        partition = str(self._partition)
        report = {partition: now.settled, epoch_of(partition): now.epoch}
        await self._streams.report(settled_board(self._service), report)
        self._reported_at = monotonic()


class Consumer(Family):
    """All of a service's partitions; grows when the log gets more of them."""

    def __init__(
        self,
        service: str,
        name: str,
        streams: Streams,
        deliverer: Deliverer,
        gate: Gate,
        claim_idle_s: float = CLAIM_IDLE_S,
    ) -> None:
        """One `PartitionConsumer` and one `Reporter` per partition."""
        super().__init__("consumer")
        self._claim_idle_s = claim_idle_s
        self._service = service
        self._consumer_name = name
        self._streams = streams
        self._deliverer = deliverer
        self._gate = gate
        self._partitions = 1

    @override
    async def wanted(self) -> dict[str, Callable[[], Sequence[Loop]]]:
        board = await self._streams.board(relay_board(self._service))
        self._partitions = max(self._partitions, min(board.get("partitions", 1), 1024))
        return {str(partition): self._maker(partition) for partition in range(self._partitions)}

    def _maker(self, partition: int) -> Callable[[], Sequence[Loop]]:
        def make() -> Sequence[Loop]:
            consumer = PartitionConsumer(
                self._service,
                partition,
                self._consumer_name,
                self._streams,
                self._deliverer,
                self._gate,
                self._claim_idle_s,
            )
            return consumer, Reporter(self._service, partition, self._streams, self._deliverer, consumer)

        return make


async def stand(service: str, partition: int, streams: Streams, deliverer: Deliverer) -> Progress | None:
    """Where the service's ledger stands in the newest epoch of its subscription; None while there is no subscription.

    A new ledger begins where the subscription does. It never believes that it has what checkout thinks it has: if it
    was put back from an older backup, the difference shows, and somebody can rewind.
    """
    epoch = announced(await streams.board(relay_board(service)), partition)
    if epoch is None:
        return None
    async with deliverer.db.reading() as connection:
        known = await progress.read(connection, partition)
        if known is not None and known.epoch >= epoch.number:
            return known
        if known is not None and epoch.replay:
            await _forget(deliverer, partition, epoch)
        await progress.adopt(connection, partition, epoch)
        log.info("epoch begun", service=service, partition=partition, epoch=epoch.number, replay=epoch.replay)
        return await progress.read(connection, partition)


async def _forget(deliverer: Deliverer, partition: int, epoch: Epoch) -> None:
    """In slices, to stay below statement_timeout."""
    forgotten = FORGET_AT_ONCE
    while forgotten == FORGET_AT_ONCE:
        forgotten = await deliverer.db.run(
            lambda connection: progress.forget(connection, partition, epoch, FORGET_AT_ONCE)
        )
