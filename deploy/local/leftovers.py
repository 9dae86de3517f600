"""What an earlier launcher left behind when it could not clean up: found by our mark, never by name alone."""

import os
import signal
from pathlib import Path

import psutil

from deploy.local.process import MARKER

GRACE_S = 5


def clean(run_dir: Path) -> list[str]:
    """Stop every process of this run folder and return what they were. The caller holds the lock."""
    found = [process for process in psutil.process_iter() if _is_ours(process, run_dir)]
    names = [f"{process.pid} ({process.name()})" for process in found]
    for process in found:
        # Postgres stops on SIGINT; SIGTERM would let it wait for its clients.
        _send(process, signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)
    for process in _wait(found):
        _send(process, signal.SIGKILL)
    _wait(found)
    return names


def _is_ours(process: psutil.Process, run_dir: Path) -> bool:
    try:
        return process.environ().get(MARKER) == str(run_dir) and process.pid != os.getpid()
    except (psutil.Error, OSError):
        # Gone meanwhile, or not ours to look into, so not ours.
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _wait(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are still there after the grace time."""
    _, alive = psutil.wait_procs([process for process in processes if process.is_running()], timeout=GRACE_S)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
