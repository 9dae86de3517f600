"""Rehearsal: work that may kill its process is done by a child of it first, which undoes what it wrote.

Signals, exits, memory and endless loops are nothing that an `except` can hold. A process can.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

from sqlalchemy.ext.asyncio import AsyncConnection

from shared.runtime.db import Database

COMPUTING_S = 5.0  # of the processor: whoever needs more keeps everything else in its process from going on
LONGEST_S = 20  # longer than any batch may take
READY = b"ready"
# What somebody else wanted, or our own patience: it says nothing about the work.
_NO_VERDICT = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM}

Work = Callable[[AsyncConnection], Awaitable[object]]


class Rehearsal:
    """Tells whether work kills the process that does it."""

    def __init__(self, database_url: str, application_name: str) -> None:
        """Each child opens a connection of its own under this name: what is open here is not to be shared."""
        self._database_url = database_url
        self._application_name = application_name

    async def death_of(self, work: Work) -> str | None:
        """How the child ended that did `work`, such as `SIGSEGV` or `exit status 70`; None if it survived.

        An error of the work is no death. None as well when nobody can tell: the database was away, or somebody stopped
        the child. What `work` writes over the connection that it is given is rolled back.
        """
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            self._play(work, writing)
        os.close(writing)
        try:
            begun = await _all_of(reading)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            # Its end of the pipe is closed: it is gone, or about to be.
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222
        return _verdict(os.waitstatus_to_exitcode(status)) if begun else None

    def _play(self, work: Work, writing: int) -> NoReturn:
        """All that the child does. It never returns to the event loop that it was forked in."""
        status = 1
        try:
            _let_go_of_inherited(writing)
            _limit()
            asyncio.Runner(loop_factory=asyncio.SelectorEventLoop).run(self._try(work, writing))
            status = 0
        finally:
            os._exit(status)

    async def _try(self, work: Work, writing: int) -> None:
        db = Database(self._database_url, self._application_name, 1)
        with contextlib.suppress(Exception):  # who does the work in earnest will meet it, and knows what to do
            async with db.transaction() as connection:
                os.write(writing, READY)
                await work(connection)
                raise _Undone


class _Undone(Exception):
    """Rolls back what was only a rehearsal."""


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
    for stop in (*_NO_VERDICT, signal.SIGVTALRM):
        signal.signal(stop, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    signal.setitimer(signal.ITIMER_VIRTUAL, COMPUTING_S)
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


def _verdict(code: int) -> str | None:
    if code == 0 or -code in _NO_VERDICT:
        return None
    if -code == signal.SIGVTALRM:
        return f"{COMPUTING_S:g} s of computing"
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
