"""Rehearsal: work that may kill its process is done by a child of it first, which undoes what it wrote.

Signals, exits, memory and endless loops are nothing that an `except` can hold. A process can.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.runtime.db import Database
from shared.runtime.kinship import die_with

log = structlog.get_logger()

COMPUTING_S = 5.0  # of the processor: whoever needs more keeps everything else in its process from going on
LONGEST_S = 15  # longer than any batch may take
BEGUN, ENDED = b"<", b">"
# What somebody else wanted: it says nothing about the work.
_STOPPED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

Work = Callable[[AsyncConnection], Awaitable[object]]


class Played(NamedTuple):
    """What became of a rehearsal of some works: how many were begun, how many of them ended without an error."""

    begun: int = 0
    ended: int = 0
    death: str | None = None  # how the work that was begun last ended its process, such as `SIGSEGV`
    too_long: bool = False  # all together took too long: that was the death, and it may be nobody's fault


class Rehearsal:
    """Tells whether work kills the process that does it."""

    def __init__(self, database_url: str, application_name: str) -> None:
        """Each child opens a connection of its own under this name: what is open here is not to be shared."""
        self._database_url = database_url
        self._application_name = application_name

    async def play(self, works: Sequence[Work]) -> Played:
        """Let a child do the works, one after the other, each in a transaction that is rolled back.

        An error of a work is no death, and the next one follows. Nothing is begun when there is no child, or it does
        not reach the database.
        """
        try:
            return await self._play(works)
        except OSError as error:
            log.warning("no child to rehearse in", error=str(error))
            return Played()

    async def _play(self, works: Sequence[Work]) -> Played:
        reading, writing = os.pipe()
        parent = os.getpid()
        try:
            child = os.fork()
        except OSError:
            os.close(reading)
            raise
        else:
            if not child:
                self._act(works, writing, parent)
        finally:
            os.close(writing)
        try:
            told = await _all_of(reading)
        except BaseException:  # whoever is cancelled must not wait for what may take as long as it likes
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            # Its end of the pipe is closed: it is gone, or about to be.
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222
        return _played(told.count(BEGUN), told.count(ENDED), os.waitstatus_to_exitcode(status))

    def _act(self, works: Sequence[Work], writing: int, parent: int) -> NoReturn:
        """All that the child does. It never returns to the event loop that it was forked in."""
        status = 1
        try:
            die_with(parent)  # and let go of what it has locked
            _let_go_of_inherited(writing)
            _limit()
            asyncio.Runner(loop_factory=asyncio.SelectorEventLoop).run(self._do(works, writing))
            status = 0
        finally:
            os._exit(status)

    async def _do(self, works: Sequence[Work], writing: int) -> None:
        db = Database(self._database_url, self._application_name, 1)
        with contextlib.suppress(Exception):
            await db.ping()
            for work in works:
                signal.setitimer(signal.ITIMER_VIRTUAL, COMPUTING_S)
                os.write(writing, BEGUN)
                # Errors are for whoever does the work in earnest, and will meet them.
                with contextlib.suppress(Exception):
                    await _undone(db, work)
                    os.write(writing, ENDED)


class _Undone(Exception):
    """Rolls back what was only a rehearsal."""


async def _undone(db: Database, work: Work) -> None:
    with contextlib.suppress(_Undone):
        async with db.transaction() as connection:
            await work(connection)
            raise _Undone


def _let_go_of_inherited(writing: int) -> None:
    """Sockets, the event loop's selector, pipes: they are the parent's, and a port must be free when it dies.

    Every number stays taken, by a file that swallows everything: the objects that were copied with the process may
    still close theirs, and must not hit what is opened from now on.
    """
    gc.disable()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        if number > 2 and number not in {writing, nowhere}:  # noqa: PLR2004 - stdin, stdout, stderr
            with contextlib.suppress(OSError):  # the one that listed them
                os.fstat(number)
                os.dup2(nowhere, number)


def _limit() -> None:
    """Die by default, before the parent if memory is short, and not too late."""
    signal.set_wakeup_fd(-1)
    for number in (*_STOPPED, signal.SIGALRM, signal.SIGVTALRM):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    signal.alarm(LONGEST_S)


async def _all_of(reading: int) -> bytes:
    stream = asyncio.StreamReader()
    connecting = asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reading, "rb", 0)
    )
    transport, _ = await connecting
    try:
        return await stream.read()
    finally:
        transport.close()


def _played(begun: int, ended: int, code: int) -> Played:
    if not begun or -code in _STOPPED:
        log.warning("a rehearsal was of no use", begun=begun, exit_status=code)
        return Played()
    if code == 0:
        return Played(begun, ended)
    if -code == signal.SIGALRM:
        return Played(begun, ended, f"{LONGEST_S} s without an end", too_long=True)
    if -code == signal.SIGVTALRM:
        return Played(begun, ended, f"{COMPUTING_S:g} s of computing")
    return Played(begun, ended, signal.Signals(-code).name if code < 0 else f"exit status {code}")
