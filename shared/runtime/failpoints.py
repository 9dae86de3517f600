"""Named moments at which a test may let the process die, lose a connection or stand still; off unless armed.

    ORDERSTREAM_FAILPOINTS="C3=exit; C4=hang:5; C5/orders=raise@2"

A point, the name of the task that must be the one to reach it (optional), what happens there (`exit` without any
cleaning up, `raise` what a lost connection raises, `hang` for so many seconds), and at which hit only (optional).

C1  inside a batch's transaction, everything is written, COMMIT is not sent
C2  the payment intent is committed, the provider is not asked yet
C3  the request to the provider is sent, its answer is not there
C4  the provider has answered, nothing of it is recorded
C5  COMMIT took place, its answer is lost on the way
C6  the outcome is committed, nobody is told

R1  the relay has read the log (and locked the subscription, when something is not as usual)
R2  the stream has the events, Redis' answer is lost on the way
R3  the events are published, the cursor is not committed
R4  what the service reports as settled is read, not mirrored

K1  the consumer was given entries, its transaction is not begun
K2  ledger and effects are written, COMMIT is not sent
K3  COMMIT took place, its answer is lost on the way: C5 in the consumer's task, C5/consumer-email-0
K4  ledger and effects are committed, the entries are not acknowledged
K5  the entries are acknowledged, what is settled is not reported

E1  the mail server is about to be connected to
E2  it has taken sender and recipient
E3  it waits for the mail, nothing of which is sent
E4  the final dot is sent, its answer is not there
E5  it has answered, nothing of that is recorded
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from shared.runtime.errors import ConfigurationError

log = structlog.get_logger()

VARIABLE = "ORDERSTREAM_FAILPOINTS"
EXIT_STATUS = 70  # sysexits.h: an internal error; told from a kill and from an orderly stop
POINTS = (
    *("C1", "C2", "C3", "C4", "C5", "C6"),
    *("R1", "R2", "R3", "R4"),
    *("K1", "K2", "K4", "K5"),
    *("E1", "E2", "E3", "E4", "E5"),
)
_SPEC = re.compile(
    r"(?P<point>\w+)(/(?P<task>[^=]+))?=(?P<action>exit|raise|hang:(?P<seconds>\d+(\.\d+)?))(@(?P<hit>[1-9]\d*))?"
)


Action = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class FailPoint:
    """What happens at a point."""

    point: str
    act: Action
    task: str | None = None
    hit: int | None = None  # at every hit when None
    hits: int = 0

    async def reached(self) -> None:
        """Count the hit, and act if it is the one."""
        if self.task is not None and self.task != _task_name():
            return
        self.hits += 1
        if self.hit in {None, self.hits}:
            log.warning("fail-point reached", point=self.point, hits=self.hits)
            await self.act()


_armed: list[FailPoint] = []


async def reach(point: str) -> None:
    """The code has come to `point`."""
    if _armed:
        for one in [one for one in _armed if one.point == point]:
            await one.reached()


def arm(points: Sequence[FailPoint]) -> None:
    """From now on these, and only these, are armed."""
    _armed[:] = points
    if points:
        log.warning("fail-points armed", points=[one.point for one in points])


def parse(text: str) -> list[FailPoint]:
    """The fail-points that `VARIABLE` asks for; raises ConfigurationError for what makes no sense."""
    return [_parse_one(spec.strip()) for spec in text.split(";") if spec.strip()]


def _parse_one(spec: str) -> FailPoint:
    found = _SPEC.fullmatch(spec)
    if found is None or found["point"] not in POINTS:
        raise ConfigurationError(f"{VARIABLE}: {spec!r} is not like C3=exit, C4=hang:5 or C5/orders=raise@2")
    act = _action(found["point"], found["action"], float(found["seconds"] or 0))
    return FailPoint(found["point"], act, found["task"], int(found["hit"]) if found["hit"] else None)


def _action(point: str, name: str, seconds: float) -> Action:
    if name == "exit":
        return _exit
    return partial(_raise, point) if name == "raise" else partial(asyncio.sleep, seconds)


async def _exit() -> None:
    await asyncio.sleep(0.01)  # what was written to a socket a moment ago leaves the process
    os._exit(EXIT_STATUS)


async def _raise(point: str) -> None:
    raise ConnectionResetError(f"fail-point {point}")


def _task_name() -> str:
    task = asyncio.current_task()
    return task.get_name() if task else ""
