"""One child process: started so that it dies with the launcher, watched, and stopped."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from deploy.local.errors import PlatformError

TETHER = Path(__file__).with_name("tether.py")
# Every child carries it, so that a later start can tell its own leftovers from other people's processes.
MARKER = "ORDERSTREAM_PLATFORM"
PROBE_S = 0.05
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Program:
    """What to run: `ready` says whether it can do its job; `wrapper` is a command that becomes it.

    A program that `waits` begins when a line arrives on its standard input.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    ready: Callable[[], Awaitable[bool]]
    stop_signal: signal.Signals = signal.SIGTERM
    wrapper: tuple[str, ...] = ()
    user: str = "-"
    share: str = "full"
    waits: bool = False
    folder: Path = field(default=ROOT)


class Process:
    """A running program. `pid` is the program's own: every wrapper replaces itself by it."""

    def __init__(self, program: Program, child: asyncio.subprocess.Process, log_begin: int) -> None:
        self.program = program
        self.pid = child.pid
        self._child = child
        self._log_begin = log_begin

    @classmethod
    async def start(cls, program: Program) -> "Process":
        with program.log.open("ab") as log:
            begin = log.tell()
            return cls(program, await spawn(program, log), begin)

    async def go(self) -> None:
        """Write the line for which a program may wait, and close its input."""
        if self._child.stdin is not None:
            self._child.stdin.write(b"\n")
            self._child.stdin.close()
            with contextlib.suppress(ConnectionError):
                # A program that has ended already says by its exit code why.
                await self._child.stdin.wait_closed()

    async def exited(self) -> int:
        """Wait for the end; negative numbers are signals."""
        return await self._child.wait()

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the program can do its job; raise when it ends before, or takes too long."""
        async with contextlib.AsyncExitStack() as stack:
            ready = asyncio.create_task(self._probe())
            ended = asyncio.create_task(self.exited())
            stack.push_async_callback(_cancel, ready, ended)
            first = asyncio.FIRST_COMPLETED
            done, _ = await asyncio.wait((ready, ended), timeout=timeout_s, return_when=first)
            if ended in done:
                raise PlatformError(self.complaint(f"ended with {describe(ended.result())}"))
            if not done:
                raise PlatformError(self.complaint(f"is not ready after {timeout_s:.0f} s"))

    async def stop(self, grace_s: float) -> None:
        """Ask it to stop, wait, and kill it when it takes longer than `grace_s`."""
        self.send(self.program.stop_signal)
        try:
            await asyncio.wait_for(self.exited(), grace_s)
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.exited()

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)

    async def _probe(self) -> None:
        while not await self.program.ready():  # noqa: ASYNC110 - another process sets no event here
            await asyncio.sleep(PROBE_S)

    def complaint(self, what: str) -> str:
        """What to tell people about it: what happened, and its last words."""
        lines = "".join(f"\n  {line}" for line in last_lines(self.program.log, self._log_begin))
        return f"{self.program.name} {what}; the end of {self.program.log}:{lines}"


async def spawn(program: Program, log: IO[bytes]) -> asyncio.subprocess.Process:
    options = (str(os.getpid()), program.stop_signal.name, program.user, program.share)
    return await asyncio.create_subprocess_exec(
        *program.wrapper,
        sys.executable,
        "-I",
        "-S",
        str(TETHER),
        *options,
        *program.command,
        env=program.environment,
        cwd=program.folder,
        stdin=asyncio.subprocess.PIPE if program.waits else asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=asyncio.subprocess.STDOUT,
        # Ctrl-C in the terminal is for the launcher, which stops its children in order.
        start_new_session=True,
    )


async def run(program: Program, timeout_s: float, when: Awaitable[None] | None = None) -> None:
    """Run a program that ends by itself; raise with the end of its log unless it succeeds.

    It gets a line on its standard input after `when`: until then it may get ready for its work.
    """
    process = await Process.start(program)
    try:
        if when is not None:
            await when
        await process.go()
        code = await asyncio.wait_for(process.exited(), timeout_s)
    except TimeoutError:
        raise PlatformError(process.complaint(f"takes longer than {timeout_s:.0f} s")) from None
    finally:
        process.send(signal.SIGKILL)
    if code != 0:
        raise PlatformError(process.complaint(f"ended with {describe(code)}"))


def environment(**more: str) -> dict[str, str]:
    """The caller's environment, without what steers Postgres behind our back or makes every start slow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def last_lines(log: Path, begin: int = 0, count: int = 15) -> list[str]:
    """The end of a log, as far as it was written after `begin`."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 16_384))
        return file.read().decode(errors="replace").splitlines()[-count:]


async def http_ready(port: int, path: str = "/health/ready") -> bool:
    """Whether `path` on a local port is answered with 200."""
    return b" 200 " in await _first_line(port, f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())


async def valkey_ready(port: int) -> bool:
    return await _first_line(port, b"PING\r\n") == b"+PONG\r\n"


async def _first_line(port: int, request: bytes) -> bytes:
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                return await reader.readline()
            finally:
                writer.close()
    except OSError:
        # Refused, reset or silent (TimeoutError is an OSError): not ready yet.
        return b""


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
