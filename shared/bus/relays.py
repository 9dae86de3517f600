"""All relays: one per subscription and partition, for as long as the tables have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from shared.bus.boards import relay_board, settled_board
from shared.bus.relay import WINDOW, Lack, Relay
from shared.bus.streams import stream_name
from shared.runtime.supervision import Family, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shared.bus.log import EventLog, Subscription
    from shared.bus.streams import Streams
    from shared.runtime.db import Database

log = structlog.get_logger()


class Relays(Family):
    """One relay per subscription and partition; follows the tables, so services and partitions come at run time."""

    def __init__(
        self, db: Database, event_log: EventLog, streams: Streams, window: int = WINDOW, partitions: int = 1
    ) -> None:
        """Start without relays; the first step opens what is missing of `partitions` and reads the subscriptions."""
        super().__init__("relays")
        self._db = db
        self._log = event_log
        self._streams = streams
        self._window = window
        self._partitions = partitions
        self._leftovers: set[str] = set()

    @override
    async def run_once(self) -> int:
        """Follow the table; what a removed subscription leaves in Redis goes one step after its relays were stopped."""
        before = self.children.keys() | set()
        for key in sorted(self._leftovers):
            await self._clear(key)
            self._leftovers.discard(key)
        done = await super().run_once()
        self._leftovers |= before - self.children.keys()
        self._leftovers -= self.children.keys()
        return done

    async def _clear(self, key: str) -> None:
        # The relay's board first: without it no consumer makes a group, nor reports.
        service, partition = key.split("/")
        stream = stream_name(service, int(partition))
        for leftover in (relay_board(service), settled_board(service), stream):
            await self._streams.remove(leftover)
        log.info("subscription removed", service=service, partition=int(partition))

    def lacking(self) -> list[Lack]:
        """The services whose ledgers lost rows, as far as this replica's relays have noticed."""
        relays = (loop for loops in self.children.values() for loop in loops if isinstance(loop, Relay))
        return [relay.lack for relay in relays if relay.lack]

    @override
    async def wanted(self) -> dict[str, Callable[[], Sequence[Loop]]]:
        if self._log.partitions < self._partitions:
            await self._db.run(lambda connection: self._log.open(connection, self._partitions))
        async with self._db.reading() as connection:
            self._log.partitions = await self._log.opened(connection)
            subscribed = await self._log.subscriptions(connection)
        return {f"{one.service}/{one.partition}": self._maker(one) for one in subscribed}

    def _maker(self, subscription: Subscription) -> Callable[[], Sequence[Loop]]:
        def make() -> Sequence[Loop]:
            service, partition = subscription.service, subscription.partition
            return (Relay(self._db, self._log, self._streams, service, partition, self._window),)

        return make
