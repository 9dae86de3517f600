"""A process that dies is replaced at once by another one, forked from a keeper that has imported everything.

A new interpreter takes most of a second to import a service, and several times as long on a busy machine.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import NoReturn

import structlog
from typing_extensions import override

from shared.runtime.kinship import die_with
from shared.runtime.settings import EX_CONFIG
from shared.runtime.supervision import Loop

log = structlog.get_logger()

REVIVABLE = Path("/proc/self/stat").exists()  # Linux: only there a service dies with its keeper
PERIOD_S = 60.0
_PASSED_ON = {signal.SIGTERM, signal.SIGINT}
_AWAITED = {signal.SIGCHLD, *_PASSED_ON}


def survive(revivals: int) -> int:
    """Return in a child of this process, and again in another one whenever that dies; how many have died before.

    The process that calls stays behind as the keeper, with all that it has open. It passes SIGTERM and SIGINT on. It
    ends as its child does when that has stopped in order, was told to, or complains about its configuration, and when
    it dies after `revivals` deaths in a minute. Whatever kills the keeper kills the child.
    """
    keeper, deaths, died = os.getpid(), deque[float](maxlen=revivals), 0
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us may have ignored it, and then nobody is told
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    gc.freeze()  # so that the children's garbage collection touches, and thereby copies, nothing that they share
    while child := os.fork():
        code, told = _outlive(child)
        if told or code in {0, EX_CONFIG}:
            _end_like(code)
        now = time.monotonic()
        if len(deaths) == revivals and now - deaths[0] < PERIOD_S:
            log.error("died too often, the keeper ends with it", exit_status=code, deaths_before=revivals)
            _end_like(code)
        deaths.append(now)
        died += 1
        log.error("died, another one takes its place", exit_status=code)
    die_with(keeper)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
    return died


def _outlive(child: int) -> tuple[int, bool]:
    """Wait for its end: its exit status, negative for a signal, and whether somebody wanted it."""
    told = False
    while True:
        # Signals are awaited, not handled: none can come just before a system call that would sleep through it.
        number = signal.sigwait(_AWAITED)
        if number != signal.SIGCHLD:
            told = True
            os.kill(child, number)
        elif (code := _buried(child)) is not None:
            return code, told


def _buried(child: int) -> int | None:
    """Its exit status if it has ended. The first process of a container also gets the children of those that died."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return None
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _end_like(code: int) -> NoReturn:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has left its own
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        os.kill(os.getpid(), -code)  # which the first process of a container survives
    sys.exit(code if code >= 0 else 128 - code)


class Lockstep(Loop):
    """Stands still while the keeper is stopped (SIGSTOP): whoever stops a service means all of it."""

    interval_s = 0.05  # costs 0.4 % of a processor

    def __init__(self) -> None:
        """Look at the parent of this process."""
        super().__init__("lockstep")
        self._stat = os.open(f"/proc/{os.getppid()}/stat", os.O_RDONLY)

    @override
    async def run_once(self) -> int:
        """Block the event loop, and with it everything, until the keeper goes on."""
        await asyncio.sleep(self.interval_s)
        while self._keeper_stands():
            time.sleep(self.interval_s)  # noqa: ASYNC251, TID251 - as it says
        return 1

    def _keeper_stands(self) -> bool:
        return os.pread(self._stat, 512, 0).rpartition(b")")[2].split()[0] == b"T"

    @override
    async def finish(self) -> None:
        os.close(self._stat)
