"""Loops that live as long as the process, and how they and the HTTP server live and die together."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, cast

import structlog
import uvicorn
from typing_extensions import override

from shared.runtime import metrics
from shared.runtime.connection import Connection, Doorkeeper
from shared.runtime.errors import is_infrastructure

if TYPE_CHECKING:
    from starlette.types import ASGIApp

log = structlog.get_logger()

STALLED_AFTER_S = 30.0  # longer than any single step may take, longer than a starved event loop sleeps
GRACEFUL_S = 25  # above the longest charge: uvicorn cancels what still runs after it
ACCEPTED_AT_ONCE = 32


class Loop(ABC):
    """Something that is done again and again until the process stops.

    `run` loops, waits and survives; `run_once` does one step and says how much it did. Tests call `run_once`.
    """

    idle_s = 1.0  # pause after a step that found nothing to do
    failure_s = 1.0  # pause after a step that failed

    def __init__(self, name: str) -> None:
        """Name the loop, as it is shown in health, logs and metrics."""
        self.name = name
        self.stopping = False
        self._wake = asyncio.Event()
        self._last_beat = monotonic()

    @abstractmethod
    async def run_once(self) -> int:
        """Do one step; return how many things were done (0: nothing to do, wait a little)."""

    async def run(self) -> None:
        """Step until `stop`; no failure of a step ends the loop."""
        while not self.stopping:
            self.beat()
            try:
                pause = 0.0 if await self.run_once() else self.idle_s
            except Exception as error:  # noqa: BLE001 - a loop outlives every failure of a step; `failed` reports it
                pause = self.failed(error)
            if pause:
                await self.wait(pause)
        await self.finish()

    def failed(self, error: Exception) -> float:
        """Report a failed step and return the seconds to wait before the next."""
        metrics.LOOP_FAILURES.labels(self.name, type(error).__name__).inc()
        if is_infrastructure(error):
            # A server is away or busy. It comes back by itself: one line, no stack trace.
            log.warning("step failed", loop=self.name, error=brief(error))
        else:
            # Nobody foresaw this one: somebody has to read the stack trace.
            log.error("step failed unexpectedly", loop=self.name, exc_info=error)
        return self.failure_s

    async def finish(self) -> None:  # noqa: B027 - most loops have nothing to finish
        """Called once after the last step, before the process lets go of its connections."""

    def stop(self) -> None:
        """Ask the loop to end after the step that it is in."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """End the current pause: there is something to do."""
        self._wake.set()

    async def wait(self, seconds: float) -> None:
        """Pause for `seconds`, or until `wake` or `stop`."""
        if not self.stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
        self._wake.clear()

    def beat(self) -> None:
        """Note that the loop makes progress."""
        self._last_beat = monotonic()

    @property
    def stalled(self) -> bool:
        """Whether the loop has made no step for longer than any step may take."""
        return monotonic() - self._last_beat > STALLED_AFTER_S


class Family(Loop):
    """Keeps one group of child loops per key running: partitions and subscriptions come and go at run time."""

    idle_s = 1.0

    def __init__(self, name: str) -> None:
        """Start without children."""
        super().__init__(name)
        self.children: dict[str, Sequence[Loop]] = {}
        self._death: Exception | None = None

    @abstractmethod
    async def wanted(self) -> dict[str, Callable[[], Sequence[Loop]]]:
        """The keys that should have children now, and how to make them."""

    @override
    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            await super().run()
            for loop in self._loops():
                loop.stop()
        if self._death:
            raise self._death

    @override
    async def run_once(self) -> int:
        wanted = await self.wanted()
        for key in self.children.keys() - wanted.keys():
            for loop in self.children.pop(key):
                loop.stop()
        for key in wanted.keys() - self.children.keys():
            self.children[key] = wanted[key]()
            for loop in self.children[key]:
                self._group.create_task(self._run_child(loop), name=loop.name)
        return 0

    async def _run_child(self, loop: Loop) -> None:
        """A child that dies takes the family along: everybody stops in order, then the error goes up."""
        try:
            await _run_to_stop(loop)
        except Exception as error:  # noqa: BLE001 - whatever it was, the family ends
            self._death = self._death or error
            self.stop()

    @property
    @override
    def stalled(self) -> bool:
        return super().stalled or any(loop.stalled for loop in self._loops())

    def wake_children(self) -> None:
        """End the pauses of all children."""
        for loop in self._loops():
            loop.wake()

    def _loops(self) -> list[Loop]:
        return [loop for loops in self.children.values() for loop in loops]


def brief(error: BaseException) -> str:
    """An error as one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the supervisor decides when to stop."""

    @contextlib.contextmanager
    @override
    def capture_signals(self) -> Iterator[None]:
        yield

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        close_port(sockets or [])
        await super().shutdown(sockets)

    def stop_listening(self) -> None:
        """What `serve` does in the end, unless it was cancelled or crashed."""
        for one in getattr(self, "servers", []):  # there are none before it has started
            one.close()


def close_port(handles: Sequence[socket.socket]) -> None:
    """Refuse new connections, although the keeper holds the port too: else they would wait for who comes after us."""
    for one in handles:
        with contextlib.suppress(OSError):  # one handle is enough, and another system may not allow it
            one.shutdown(socket.SHUT_RDWR)


def http_server(app: ASGIApp, protocol: type[Connection] = Connection, door: Doorkeeper | None = None) -> Server:
    """The HTTP server of a service: one worker, no access log, no WebSockets, bounded graceful stop."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # nothing here depends on the client's address
        timeout_keep_alive=65,  # above the 60 s after which common proxies drop an idle connection
        timeout_graceful_shutdown=GRACEFUL_S,
        loop="uvloop",
        http=cast("type[Connection]", partial(protocol, door=door)),  # it is only ever called
        ws="none",
    )
    return Server(config)


@contextlib.contextmanager
def acceptors(listener: socket.socket) -> Iterator[list[socket.socket]]:
    """The listener and copies of its handle, each of which accepts one connection in a turn of the event loop.

    One is all that libuv accepts from a handle (https://github.com/libuv/libuv/pull/3696). While the loop is busy that
    makes fewer than a hundred a second, and the rest wait in the kernel, where nobody can even be turned away.
    """
    with contextlib.ExitStack() as stack:
        yield [listener, *(stack.enter_context(listener.dup()) for _ in range(ACCEPTED_AT_ONCE - 1))]


async def supervise(
    server: Server,
    listener: socket.socket,
    loops: Sequence[Loop],
    foundations: Sequence[Loop],
    *,
    drain_s: float = 0.0,
    on_drain: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT; end everything when any loop dies, so that no zombie answers 200.

    `foundations` serve the requests and the loops: they stop after them.
    """
    end = _End()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, end.ask, f"signal {number}")
    async with asyncio.TaskGroup() as lower:
        for loop in foundations:
            lower.create_task(_run_for_life(loop, end), name=loop.name)
        async with asyncio.TaskGroup() as upper:
            for loop in loops:
                upper.create_task(_run_for_life(loop, end), name=loop.name)
            upper.create_task(_serve_for_life(server, listener, end), name="http")
            await end.asked.wait()
            on_drain()
            await asyncio.sleep(0.0 if end.death else drain_s)
            for loop in loops:
                loop.stop()
            server.should_exit = True
        for loop in foundations:
            loop.stop()
    if end.death:
        raise end.death


class _End:
    """Why everything stops.

    A death asks for the same orderly stop as a signal does. Leaving it to the task group would cancel the others, and a
    cancelled database call may swallow its cancellation: the process would live on as the zombie that this prevents.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.death: Exception | None = None

    def ask(self, reason: str) -> None:
        if not self.asked.is_set():
            log.info("stopping", reason=reason)
        self.asked.set()

    def died(self, name: str, error: Exception) -> None:
        log.error("died, the process stops with it", loop=name, exc_info=error)
        self.death = self.death or error
        self.ask(f"{name} died")


async def _serve_for_life(server: Server, listener: socket.socket, end: _End) -> None:
    try:
        await _serve_to_stop(server, listener)
    except Exception as error:  # noqa: BLE001 - whatever it was, the process ends
        end.died("http", error)


async def _run_for_life(loop: Loop, end: _End) -> None:
    try:
        await _run_to_stop(loop)
    except Exception as error:  # noqa: BLE001 - whatever it was, the process ends
        end.died(loop.name, error)


async def _serve_to_stop(server: Server, listener: socket.socket) -> None:
    with acceptors(listener) as handles:
        try:
            await server.serve(sockets=handles)
        finally:
            close_port(handles)
            server.stop_listening()
    if not server.should_exit:
        raise RuntimeError("the HTTP server ended by itself")


async def _run_to_stop(loop: Loop) -> None:
    await loop.run()
    if not loop.stopping:
        raise RuntimeError(f"loop {loop.name} ended by itself")
