"""Overload and freezes: what a platform makes of more orders than it can take, measured against itself.

Nothing here compares with a number of another machine or another minute: capacity is measured first, in the same run.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from tests.support.flood import REFUSED, Flood, flood
from tests.support.load import closed_loop, order_body
from tests.support.platform import Platform

CONNECTIONS = 128  # each waits for its answer: busy, but no overload
CALM = 0.7  # of the capacity: busy, and nobody is turned away
SETTLING_S = 1.0  # at the beginning of a flood, when nothing is answered yet
BUSY = 1.2  # of the capacity, around a freeze
NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Overload:
    """What became of `factor` times the capacity; ratios but for the milliseconds."""

    factor: float
    goodput: float  # of the capacity
    accepted_p99: float  # of what it is at 70 % load
    refused_p99_ms: float
    afterwards: float  # completed of what is offered once it is over, in the last third
    statuses: dict[int, int]


@dataclass(frozen=True, slots=True)
class Freeze:
    """What became of a load that is a little too much while one process stood still."""

    name: str
    recovered: float  # goodput in the last third, of that before the freeze
    statuses: dict[int, int]


class Crowd:
    """Whoever orders from this platform."""

    def __init__(self, platform: Platform, sku: str = "SKU-0002") -> None:
        """All of them want the same."""
        self._platform = platform
        self._body = order_body(sku)
        self.capacity = 0.0
        self.calm_p99_ms = 0.0

    async def measure(self, seconds: float) -> None:
        """What the platform can do, and how fast it answers at 70 % of that."""
        env = self._platform.env
        history = await closed_loop(
            env["CHECKOUT_URL"],
            env["API_KEY"],
            self._body,
            connections=CONNECTIONS,
            seconds=seconds,
            warm_up_s=2,
        )
        assert history.statuses.keys() == {201}, history.statuses
        self.capacity = history.statuses[201] / history.seconds
        self.calm_p99_ms = (await self.order(CALM, seconds)).percentile_ms(0.99)

    async def order(self, factor: float, seconds: float) -> Flood:
        """So many times the capacity."""
        env = self._platform.env
        rate = factor * self.capacity
        return await flood(env["CHECKOUT_URL"], env["API_KEY"], self._body, rate=rate, seconds=seconds)

    async def overload(self, factor: float, seconds: float, afterwards_s: float) -> Overload:
        """Too much for so long, and then a busy day."""
        seen = await self.order(factor, seconds)
        after = await self.order(CALM, afterwards_s)
        return Overload(
            factor=factor,
            goodput=seen.goodput(SETTLING_S, seconds) / self.capacity,
            accepted_p99=seen.percentile_ms(0.99) / self.calm_p99_ms,
            refused_p99_ms=seen.percentile_ms(0.99, REFUSED),
            afterwards=after.completed_of_asked(afterwards_s * 2 / 3, afterwards_s),
            statuses=dict(seen.statuses + after.statuses),
        )

    async def freeze(self, name: str, *, before_s: float, frozen_s: float, after_s: float) -> Freeze:
        """One process stands still for a while, in the middle of a load of 1.2 times the capacity.

        None of them does with `NOTHING`: how much the same minute differs from itself.
        """
        total_s = before_s + frozen_s + after_s

        async def fault() -> None:
            await asyncio.sleep(before_s)
            with standing_still(self._platform, name):
                await asyncio.sleep(frozen_s)

        seen, _ = await asyncio.gather(self.order(BUSY, total_s), fault())
        return Freeze(
            name=name,
            recovered=seen.goodput(total_s - after_s / 3, total_s) / seen.goodput(SETTLING_S, before_s),
            statuses=dict(seen.statuses),
        )


@contextmanager
def standing_still(platform: Platform, name: str) -> Iterator[None]:
    """One of the processes, with all of its children, stopped but not dead."""
    if name == NOTHING:
        yield
        return
    first = psutil.Process(platform.pids[name])
    stopped = [first, *first.children(recursive=True)]
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            if process.is_running():  # Postgres' workers come and go
                process.resume()
