"""Health: is the process alive, can it do its job, and how is everything that it depends on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import APIRouter
from starlette.responses import JSONResponse

from shared.bus import inspection
from shared.bus.boards import relay_board
from shared.bus.ledger import State
from shared.contracts.envelope import rfc3339
from shared.runtime import metrics
from shared.runtime.supervision import brief

if TYPE_CHECKING:
    from shared.bus.consumer import Gate
    from shared.bus.streams import Streams
    from shared.runtime.db import Database
    from shared.runtime.supervision import Loop

log = structlog.get_logger()

CHECK_LIMIT_S = 2.0
CACHED_S = 1.0


class Status(StrEnum):
    """The three words of https://datatracker.ietf.org/doc/html/draft-inadarei-api-health-check-06."""

    PASS = "pass"  # noqa: S105 - not a password
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Reading:
    """One measurement of one component."""

    value: float | str | bool | None = None
    unit: str | None = None
    status: Status = Status.PASS
    output: str | None = None


Probe = Callable[[], Awaitable[Mapping[str, Reading]]]


@dataclass(frozen=True, slots=True)
class Check:
    """Looks at one component. Its readings are shown as `<name>:<measurement>`; raising means fail."""

    name: str
    probe: Probe
    critical: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What the last look at everything found."""

    status: Status
    readings: Mapping[str, Reading]
    failed: Sequence[str]  # critical checks that failed


class Health:
    """The health of one service.

    *Live* looks at the own loops only, *ready* at the critical checks as well. Looks are shared: however many
    ask, each check runs once a second at the most and gets two seconds.
    """

    def __init__(self, service: str, checks: Sequence[Check] = (), loops: Sequence[Loop] = ()) -> None:
        """`loops` are watched for progress."""
        self.service = service
        self.loops = list(loops)
        self.draining = False
        self._looks = [_Look(check) for check in checks]

    def drain(self) -> None:
        """From now on not ready: the process is about to stop."""
        self.draining = True

    def stalled(self) -> list[str]:
        """The loops that make no progress."""
        return [loop.name for loop in self.loops if loop.stalled]

    async def report(self) -> Report:
        """Look at everything (or use a look that is fresh enough)."""
        found = await asyncio.gather(*(look.readings() for look in self._looks))
        readings = {
            f"{look.check.name}:{name}": one
            for look, part in zip(self._looks, found, strict=True)
            for name, one in part.items()
        }
        failed = [
            look.check.name
            for look, part in zip(self._looks, found, strict=True)
            if look.check.critical and _failed(part)
        ]
        return Report(self._overall(readings, failed), readings, failed)

    def _overall(self, readings: Mapping[str, Reading], failed: Sequence[str]) -> Status:
        if failed or self.draining or self.stalled():
            return Status.FAIL
        worse = any(reading.status is not Status.PASS for reading in readings.values())
        return Status.WARN if worse else Status.PASS


class _Look:
    """Runs one check for everybody who asks at about the same time."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self._task: asyncio.Task[Mapping[str, Reading]] | None = None
        self._known: Mapping[str, Reading] = {}
        self._known_at = float("-inf")

    async def readings(self) -> Mapping[str, Reading]:
        if monotonic() - self._known_at < CACHED_S:
            return self._known
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"check-{self.check.name}")
        # Not cancelled when the time is up: cancelling a call half-way harms some connection pools. It is
        # not started again before it has ended.
        task = self._task
        await asyncio.wait({task}, timeout=CHECK_LIMIT_S)
        if not task.done():
            return {"answer": Reading(status=Status.FAIL, output=f"no answer within {CHECK_LIMIT_S:g} s")}
        return self._known

    async def _run(self) -> Mapping[str, Reading]:
        try:
            self._known = await self.check.probe()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            # The page is open to everybody: the log has the details.
            log.warning("health check failed", check=self.check.name, error=brief(error))
            self._known = {"answer": Reading(status=Status.FAIL, output=type(error).__name__)}
        self._known_at = monotonic()
        self._task = None
        return self._known


def timed(ping: Callable[[], Awaitable[object]]) -> Probe:
    """A probe that only measures how long `ping` takes."""

    async def probe() -> Mapping[str, Reading]:
        started = monotonic()
        await ping()
        return {"responseTime": Reading(round((monotonic() - started) * 1000, 1), "ms")}

    return probe


def bus_checks(service: str, db: Database, streams: Streams, gate: Gate) -> list[Check]:
    """What every consumer service is asked about: database, Redis, its ledger, and whether it consumes."""

    async def redis() -> None:
        await streams.ping()

    async def ledger() -> Mapping[str, Reading]:
        async with db.reading() as connection:
            census = await inspection.census(connection)
        return _ledger_readings(census)

    async def consumer() -> Mapping[str, Reading]:
        async with db.reading() as connection:
            settled = (await inspection.census(connection)).settled
        board = await streams.board(relay_board(service))
        return _consumer_readings(settled, board, gate)

    return [
        Check("postgres", timed(db.ping), critical=True),
        Check("redis", timed(redis), critical=True),
        Check("ledger", ledger, critical=True),  # fails while the database is not migrated
        Check("consumer", consumer),
    ]


def _ledger_readings(census: inspection.Census) -> dict[str, Reading]:
    counts = {state: census.counts.get(state, 0) for state in inspection.UNSETTLED}
    for state, count in counts.items():
        metrics.LEDGER.labels(state).set(count)
    metrics.OLDEST_UNSETTLED.set(census.oldest_s or 0.0)
    readings = {
        str(state): Reading(count, "events", _warn_if(count > 0 and state in {State.DEAD, State.PARKED}))
        for state, count in sorted(counts.items())
    }
    readings["oldestUnsettled"] = Reading(round(census.oldest_s or 0.0, 1), "s")
    return readings


def _consumer_readings(settled: Mapping[int, int], board: Mapping[str, int], gate: Gate) -> dict[str, Reading]:
    heads = {int(name[5:]): head for name, head in board.items() if name.startswith("head:")}
    backlog = sum(max(0, head - settled.get(partition, 0)) for partition, head in heads.items())
    control = gate.control
    paused = bool(control and control.paused)
    return {
        "settled": Reading(sum(settled.values()), "events"),
        "backlog": Reading(backlog if heads else None, "events", output=None if heads else "the relay is silent"),
        "paused": Reading(paused, status=_warn_if(paused), output=control.reason if control and paused else None),
        "breaker": Reading("open" if gate.in_outage else "closed", status=_warn_if(gate.in_outage)),
    }


def _warn_if(condition: bool) -> Status:
    return Status.WARN if condition else Status.PASS


class HealthDocument(JSONResponse):
    """JSON by the health check draft."""

    media_type = "application/health+json"


def _answers(media_type: str) -> dict[int | str, dict[str, Any]]:
    schema = {"type": "object", "required": ["status"], "properties": {"status": {"enum": list(Status)}}}
    content = {media_type: {"schema": schema}}
    return {200: {"content": content}, 503: {"description": "No", "content": content}}


_PLAIN = _answers("application/json")
_DOCUMENT = _answers(HealthDocument.media_type)


def router(health: Health) -> APIRouter:
    """`/health/live`, `/health/ready` and `/health`."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health/live", summary="Do the process's own loops make progress?", responses=_PLAIN)
    async def live() -> JSONResponse:
        stalled = health.stalled()
        return _plain(fine=not stalled, stalled=stalled)

    @routes.get("/health/ready", summary="Can the service do its job?", responses=_PLAIN)
    async def ready() -> JSONResponse:
        if health.draining:
            return _plain(fine=False, draining=True)
        failed = (await health.report()).failed
        return _plain(fine=not failed and not health.stalled(), failed=failed)

    @routes.get(
        "/health",
        summary="Everything that the service depends on",
        response_class=HealthDocument,
        responses=_DOCUMENT,
    )
    async def everything() -> JSONResponse:
        return _document(health, await health.report())

    return routes


def _plain(*, fine: bool, **members: object) -> JSONResponse:
    status = Status.PASS if fine else Status.FAIL
    return JSONResponse({"status": status, **members}, 200 if fine else 503)


def _document(health: Health, report: Report) -> JSONResponse:
    now = rfc3339(datetime.now(UTC))
    stalled = health.stalled()
    checks = {name: [_entry(reading, now)] for name, reading in report.readings.items()}
    state = Reading(len(stalled), status=Status.FAIL if stalled else Status.PASS, output=", ".join(stalled) or None)
    checks["loops:stalled"] = [_entry(state, now)]
    body = {
        "status": report.status,
        "serviceId": health.service,
        "draining": health.draining,
        "checks": checks,
    }
    code = 503 if report.status is Status.FAIL else 200
    return HealthDocument(body, code)


def _entry(reading: Reading, now: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"status": reading.status, "time": now}
    if reading.value is not None:
        entry["observedValue"] = reading.value
    if reading.unit:
        entry["observedUnit"] = reading.unit
    if reading.output:
        entry["output"] = reading.output
    return entry


def _failed(readings: Mapping[str, Reading]) -> bool:
    return any(reading.status is Status.FAIL for reading in readings.values())
