"""The process of a service: `python -m services.<name>` serves, `… migrate` upgrades its database.

`… revise` writes the next migration.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

import structlog
import uvloop
from typing_extensions import override

from shared.runtime import failpoints, metrics, telemetry
from shared.runtime.connection import Doorkeeper
from shared.runtime.errors import ConfigurationError
from shared.runtime.revival import REVIVABLE, Lockstep, survive
from shared.runtime.settings import AnySettings, load, stop
from shared.runtime.supervision import Loop, http_server, supervise

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp

log = structlog.get_logger()

BACKLOG = 2048  # connections that the kernel holds while the event loop is busy


@dataclass(slots=True)
class Service:
    """What `app.build` made: the HTTP application and the loops that live beside it."""

    http: ASGIApp
    loops: Sequence[Loop] = ()
    foundations: Sequence[Loop] = ()  # serve the requests and the loops, so they stop last
    on_drain: Callable[[], None] = field(default=lambda: None)
    door: Doorkeeper | None = None


Build = Callable[[AnySettings, AsyncExitStack], Awaitable[Service]]
Command = Callable[[AnySettings], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Entry(Generic[AnySettings]):
    """How one service starts: its settings, its wiring, its migrations, its own commands."""

    name: str
    settings: type[AnySettings]
    build: Build[AnySettings]
    migrations: Path
    commands: Mapping[str, Command[AnySettings]] = field(default_factory=dict)

    def main(self) -> None:
        """Do what the command line asks: nothing serves, a word runs that command."""
        words = sys.argv[1:]
        commands: dict[str, Command[AnySettings]] = {
            "migrate": self._migrate,
            "revise": self._revise,
            **self.commands,
        }
        if len(words) > 1 or (words and words[0] not in commands):
            stop(f"usage: python -m services.{self.name} [{' | '.join(commands)}]")
        settings = load(self.settings)
        telemetry.configure(self.name, form=settings.log_format, level=settings.log_level)
        try:
            if words:
                uvloop.run(commands[words[0]](settings))
            else:
                self._serve(settings)
        except ConfigurationError as error:
            stop(str(error))  # one line that says what to do, no stack trace

    # Whoever serves has no use for alembic, and waits a tenth of a second less at every start without it.

    async def _migrate(self, settings: AnySettings) -> None:
        from shared.runtime.migrations import upgrade  # noqa: PLC0415 - see above

        url = settings.migrator_database_url or settings.database_url
        await upgrade(url.get_secret_value(), self.migrations)

    async def _revise(self, settings: AnySettings) -> None:
        from shared.runtime.migrations import revise  # noqa: PLC0415 - see above

        url = settings.migrator_database_url or settings.database_url
        await revise(url.get_secret_value(), self.migrations)

    def _serve(self, settings: AnySettings) -> None:
        listener = listen(settings.host, settings.port, f"{self.name.upper()}_PORT")
        kept = REVIVABLE and settings.revivals > 0
        died = survive(settings.revivals) if kept else 0
        listener.listen(BACKLOG)  # again, if the one before has closed it in its orderly death
        metrics.DEATHS.set(died)
        if not died:  # or the same point would kill the next one too
            failpoints.arm(failpoints.parse(os.environ.get(failpoints.VARIABLE, "")))
        uvloop.run(self._live(settings, listener, [Lockstep()] if kept else []))

    async def _live(self, settings: AnySettings, listener: socket.socket, loops: Sequence[Loop]) -> None:
        async with AsyncExitStack() as stack:
            service = await self.build(settings, stack)
            gc.freeze()  # what exists now lives as long as the process: the collector need not look at it again
            log.info("serving", host=settings.host, port=settings.port)
            await supervise(
                http_server(service.http, door=service.door),
                listener,
                [*service.loops, *loops, LagMeter()],
                service.foundations,
                drain_s=settings.drain_s,
                on_drain=service.on_drain,
            )
        log.info("stopped")


class LagMeter(Loop):
    """Measures how late the event loop wakes a sleeper: the sign of a step that blocks."""

    interval_s = 0.25

    def __init__(self) -> None:
        """Nothing to configure."""
        super().__init__("event-loop")

    @override
    async def run_once(self) -> int:
        """Sleep once and report how much longer it took."""
        clock = asyncio.get_running_loop()
        due = clock.time() + self.interval_s
        await asyncio.sleep(self.interval_s)
        metrics.LOOP_LAG.set(max(0.0, clock.time() - due))
        return 1


def listen(host: str, port: int, setting: str) -> socket.socket:
    """Bind the port before anything else is opened; a taken one ends the process with one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        stop(f"{setting}: cannot listen on {host}:{port} ({error.strerror}); choose another port or stop its holder")
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener
