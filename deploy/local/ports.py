"""Whether our ports are free, and who holds one that is not."""

import contextlib
import shlex
import socket
from itertools import chain

import psutil

from deploy.local.errors import PlatformError
from deploy.local.settings import HIGHEST_BASE, MIN_PORT, PORTS, Settings

MAX_COMMAND = 60


def require_free(settings: Settings) -> None:
    """Raise with one line that names the first taken port, its holder and a way out."""
    for name in settings.own:
        port = settings.port(name)
        if not is_free(port):
            raise PlatformError(
                f"Port {port} ({name}) is taken by {holder(port)}: stop that, or choose other ports, "
                f"for example PORT_BASE={_free_base(settings)} make run."
            )


def _free_base(settings: Settings) -> int:
    for base in chain(range(9000, HIGHEST_BASE, 1000), range(MIN_PORT, HIGHEST_BASE, 100)):
        if all(is_free(base + PORTS[name]) for name in settings.own):
            return base
    return settings.port_base


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Process id and command of whoever listens there, as far as we may see it."""
    found = [entry for entry in psutil.net_connections("tcp") if entry.laddr and entry.laddr.port == port]
    listening = [entry for entry in found if entry.status == psutil.CONN_LISTEN]
    for entry in listening or found:
        if entry.pid is not None:
            with contextlib.suppress(psutil.Error):
                process = _forebear(psutil.Process(entry.pid))
                return f"process {process.pid} ({_command(process)})"
    return "another user's process"


def _forebear(process: psutil.Process) -> psutil.Process:
    """Of a process and those that it was forked from, the first: the others come back when they are stopped."""
    parent = process.parent()
    return _forebear(parent) if parent and parent.cmdline() == process.cmdline() else process


def _command(process: psutil.Process) -> str:
    command = shlex.join(process.cmdline()) or process.name()
    return command if len(command) <= MAX_COMMAND else command[: MAX_COMMAND - 1] + "…"
