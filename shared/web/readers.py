"""Who reads the log, as a health check: somebody must hear of a service that is forgotten, or that lost its past.

It never fails, only warns: orders are taken whoever reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING

from shared.bus.relay import BATCH
from shared.bus.streams import stream_name
from shared.runtime import metrics
from shared.web.health import Check, Reading, Status

if TYPE_CHECKING:
    from shared.bus.log import EventLog, Reader
    from shared.bus.relay import Lack
    from shared.bus.relays import Relays
    from shared.bus.retention import Retention
    from shared.bus.streams import RedisStreams
    from shared.runtime.db import Database


class ReadersProbe:
    """One reading per service: how many events it has not dealt with, and what is wrong with that."""

    def __init__(self, db: Database, log: EventLog, relays: Relays, forgotten_after_s: float) -> None:
        """A service is forgotten when it settled nothing for so long although something waits."""
        self._db = db
        self._log = log
        self._relays = relays
        self._forgotten_after_s = forgotten_after_s

    async def __call__(self) -> Mapping[str, Reading]:
        """Look at every subscription."""
        async with self._db.reading() as connection:
            found = await self._log.readers(connection)
        lacks = {lack.service: lack for lack in self._relays.lacking()}
        metrics.SILENT.clear()
        return {
            service: self._reading(service, list(partitions), lacks.get(service))
            for service, partitions in groupby(found, key=lambda one: one.service)
        }

    def _reading(self, service: str, partitions: list[Reader], lack: Lack | None) -> Reading:
        backlog = sum(one.backlog for one in partitions)
        silent_s = max(one.silent_s for one in partitions)
        metrics.SILENT.labels(service).set(silent_s)
        if lack is not None:
            return Reading(backlog, "events", Status.WARN, _lacks(lack))
        if silent_s > self._forgotten_after_s:
            return Reading(backlog, "events", Status.WARN, _forgotten(service, backlog, silent_s))
        return Reading(backlog, "events")


class StreamsProbe:
    """One reading per service: the entries of its longest stream, and whether streams and groups stay in bounds."""

    def __init__(self, db: Database, log: EventLog, streams: RedisStreams, window: int, consumers: int) -> None:
        """No stream holds more than `window` entries and a batch, and no group more than so many consumers."""
        self._db = db
        self._log = log
        self._streams = streams
        self._window = window
        self._consumers = consumers

    async def __call__(self) -> Mapping[str, Reading]:
        """Look at every stream."""
        async with self._db.reading() as connection:
            found = await self._log.subscriptions(connection)
        readings = {}
        for service, partitions in groupby(found, key=lambda one: one.service):
            names = [stream_name(service, one.partition) for one in partitions]
            sizes = [await self._streams.census(name, service) for name in names]
            readings[service] = self._reading(
                max(size.entries for size in sizes), max(size.consumers for size in sizes)
            )
        return readings

    def _reading(self, entries: int, consumers: int) -> Reading:
        if entries > self._window + BATCH:
            why = f"a stream is longer than its window of {self._window}: somebody else writes to it"
        elif consumers > self._consumers:
            why = (
                f"{consumers} consumers in a group, of {self._consumers} at the most: "
                "give replicas names that outlive a restart"
            )
        else:
            return Reading(entries, "entries")
        return Reading(entries, "entries", Status.WARN, why)


def retention_check(retention: Retention) -> Check:
    """What log or ledger still has although it is past, and who holds it."""

    async def probe() -> Mapping[str, Reading]:
        held = retention.held
        return {"held": Reading(held.size, "bytes", Status.WARN, str(held)) if held else Reading(0, "bytes")}

    return Check("retention", probe)


def _forgotten(service: str, backlog: int, silent_s: float) -> str:
    since = timedelta(seconds=round(silent_s))
    return (
        f"{service} has settled nothing for {since} while {backlog} events wait: start it, or remove its subscription"
    )


def _lacks(lack: Lack) -> str:
    missing = lack.settled - lack.reported
    return (
        f"{lack.service} had settled {missing} events that its database does not have (any more): "
        f"rewind partition {lack.partition} to position {lack.reported}"
    )
