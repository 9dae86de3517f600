"""A process that dies is replaced at once by another one, forked from a keeper that has imported everything.

A new interpreter takes most of a second to import a service, and several times as long on a busy machine.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from shared.runtime.settings import EX_CONFIG
from shared.runtime.supervision import Loop

if TYPE_CHECKING:
    import socket

log = structlog.get_logger()

REVIVABLE = sys.platform == "linux"  # elsewhere nobody would see to it that a service dies with its keeper
PERIOD_S = 60.0
_PR_SET_PDEATHSIG = 1
_PASSED_ON = {signal.SIGTERM, signal.SIGINT}
_AWAITED = {signal.SIGCHLD, *_PASSED_ON}


def survive(listener: socket.socket, revivals: int) -> int:
    """Return in a child of this process, and again in another one whenever that dies; how many have died before.

    Connections that come meanwhile wait in `listener`. The process that calls stays behind as the keeper. It passes
    SIGTERM and SIGINT on. It ends with its child's exit status (a signal's is 128 more than its number) when that
    has stopped in order or complains about its configuration, and when it dies after `revivals` deaths in a minute.
    Whatever kills the keeper kills the child.
    """
    keeper, deaths, died = os.getpid(), deque[float](maxlen=revivals), 0
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    gc.freeze()  # so that the children's garbage collection touches, and thereby copies, nothing that they share
    while child := os.fork():
        code, told = _outlive(child, listener)
        if told or code in {0, EX_CONFIG}:
            sys.exit(code)
        now = time.monotonic()
        if len(deaths) == revivals and now - deaths[0] < PERIOD_S:
            log.error("died too often, the keeper ends with it", exit_status=code, deaths_before=revivals)
            sys.exit(code)
        deaths.append(now)
        died += 1
        log.error("died, another one takes its place", exit_status=code)
    _be_kept_by(keeper)
    return died


def _outlive(child: int, listener: socket.socket) -> tuple[int, bool]:
    """Wait for its end: its exit status, and whether somebody wanted it."""
    told = False
    while True:
        # Signals are awaited, not handled: none can come just before a system call that would sleep through it.
        number = signal.sigwait(_AWAITED)
        if number != signal.SIGCHLD:
            told = True
            listener.close()  # or the kernel goes on accepting for a service that does not
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
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _be_kept_by(keeper: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL.value, 0, 0, 0)
    if os.getppid() != keeper:  # it died before the signal was asked for
        os._exit(1)
    os.setpgid(0, 0)  # Ctrl-C is for the keeper, which passes it on, and not for both
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)


class Lockstep(Loop):
    """Stands still while the keeper is stopped (SIGSTOP, Ctrl-Z): whoever stops a service means all of it."""

    interval_s = 0.02

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
