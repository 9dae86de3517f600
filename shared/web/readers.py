"""Who reads the log, as a health check: somebody must hear of a service that is forgotten, or that lost its past.

It never fails, only warns: orders are taken whoever reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING

from shared.runtime import metrics
from shared.web.health import Reading, Status

if TYPE_CHECKING:
    from shared.bus.log import EventLog, Reader
    from shared.bus.relay import Lack, Relays
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
