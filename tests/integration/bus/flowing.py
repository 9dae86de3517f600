"""Events that flow on, whatever happens meanwhile, and what must be so when it is over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

import structlog

from shared.runtime import metrics
from tests.integration.bus.conftest import World, event, until

log = structlog.get_logger()

BURST = 10
PAUSE_S = 0.03  # between bursts: some 300 events a second
RESUMED_WITHIN_S = 15.0  # the aim is 5 s; a machine with other things to do may take three times as long
AT_REST_WITHIN_S = 60.0


@dataclass
class Flow:
    """A checkout that commits events all the time."""

    world: World
    appended: int = 0
    ebbing: bool = False

    async def run(self) -> None:
        """Append until told to ebb; a transaction is not cancelled half-way."""
        while not self.ebbing:
            await self.world.append(*(event() for _ in range(BURST)))
            self.appended += BURST
            await asyncio.sleep(PAUSE_S)

    async def more(self, events: int) -> None:
        """Wait until so many more were appended."""
        enough = self.appended + events
        await until(lambda: self._reached(enough), AT_REST_WITHIN_S)

    async def resumes(self) -> float:
        """Wait until another event has its effect; returns the seconds."""
        before, began = (await self.world.effects())[0], monotonic()
        await until(lambda: self._more_effects(before), RESUMED_WITHIN_S)
        seconds = monotonic() - began
        log.info("resumed", seconds=round(seconds, 1))
        return seconds

    async def catches_up(self) -> float:
        """Wait until whatever was appended up to now, and something after it, has its effect; returns the seconds."""
        began, before = monotonic(), self.appended
        await until(lambda: self._more_effects(before), RESUMED_WITHIN_S)
        seconds = monotonic() - began
        log.info("caught up", seconds=round(seconds, 1))
        return seconds

    async def _reached(self, enough: int) -> bool:
        await asyncio.sleep(0)
        return self.appended >= enough

    async def _more_effects(self, before: int) -> bool:
        return (await self.world.effects())[0] > before


@asynccontextmanager
async def flowing(world: World, flow: Flow | None = None) -> AsyncIterator[Flow]:
    """Events flow during the block; then everything comes to rest, and nothing was lost or applied twice."""
    flow = flow or Flow(world)
    appending = asyncio.create_task(flow.run(), name="flow")
    try:
        yield flow
    finally:
        flow.ebbing = True
        await appending
    await comes_to_rest(world)


async def comes_to_rest(world: World, within_s: float = AT_REST_WITHIN_S) -> None:
    """Everything that was committed is settled and has its effect, once."""
    await until(lambda: at_rest(world), within_s)
    head = await world.scalar("SELECT position FROM log_head")
    assert await world.effects() == (head, head)


def rebuilds() -> float:
    """How many streams the relays of this process had to make anew, whatever they lacked."""
    return sum(sample.value for one in metrics.REBUILDS.collect() for sample in one.samples if "_total" in sample.name)


async def at_rest(world: World) -> bool:
    head = await world.scalar("SELECT position FROM log_head")
    return await world.settled() == head and await world.states() == {"done": head}
