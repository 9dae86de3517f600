"""Relays and replicas of a service as processes of their own, so that they can really die."""

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from shared.runtime import failpoints
from shared.runtime.supervision import Loop
from tests.integration.bus.conftest import World, another_process, world_over
from tests.integration.bus.flowing import Flow
from tests.support.clocks import go_wrong
from tests.support.redis_server import RedisServer, redis_server
from tests.support.replicas import reached

RELAY, SERVICE = "relay", "service"


@dataclass
class Stage:
    """A world, and the processes in it."""

    world: World
    server: RedisServer
    database_url: str
    log: Path
    flow: Flow
    processes: list[ForkServerProcess] = field(default_factory=list)

    async def start(self, role: str, name: str = "one", armed: str = "", clock_s: float = 0.0) -> ForkServerProcess:
        """Start a relay, or the replica `name` of the service.

        `armed` are its fail-points, and its clock is fast by `clock_s`.
        """
        arguments = (role, name, armed, clock_s, self.database_url, self.server.url, str(self.log))
        process = _context().Process(target=_live, args=arguments, daemon=True)
        process.start()
        self.processes.append(process)
        return process

    def reached(self, point: str) -> bool:
        """Whether some process has come to an armed point."""
        return reached(self.log, point)

    def clear(self) -> None:
        """Kill every process."""
        for process in self.processes:
            process.kill()
            process.join()


@asynccontextmanager
async def stage(database_url: str, log: Path) -> AsyncIterator[Stage]:
    """An empty world on a stream server of its own."""
    # The first process waits until everything is imported. Whoever starts one also looks after those that have ended,
    # so only this one is started in a thread: two that look at the same time take its exit status from each other.
    await asyncio.to_thread(_context().Process(target=_nothing).start)
    async with redis_server() as server, world_over(database_url, server.url) as world:
        made = Stage(world, server, database_url, log, Flow(world))
        try:
            yield made
        finally:
            made.clear()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "tests.integration.bus.processes"])
    return context


def _nothing() -> None:
    """Enough to be there."""


async def ended(process: ForkServerProcess) -> int:
    """Its exit status, when it has ended by itself."""
    while process.exitcode is None:
        await asyncio.sleep(0.02)
    return process.exitcode


def _live(role: str, name: str, armed: str, clock_s: float, database_url: str, redis_url: str, log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    go_wrong(clock_s)
    asyncio.run(_run(role, name, armed, database_url, redis_url))


async def _run(role: str, name: str, armed: str, database_url: str, redis_url: str) -> None:
    failpoints.arm(failpoints.parse(armed))
    async with another_process(database_url, redis_url) as world:
        loops = LOOPS[role](world, name)
        await asyncio.gather(*(asyncio.create_task(loop.run(), name=loop.name) for loop in loops))


def _relay(world: World, _: str) -> Sequence[Loop]:
    return (world.relay(batch=20),)


def _service(world: World, name: str) -> Sequence[Loop]:
    consumer = world.consumer(name)
    return consumer, world.reporter(consumer), world.retrier()


LOOPS: dict[str, Callable[[World, str], Sequence[Loop]]] = {RELAY: _relay, SERVICE: _service}
