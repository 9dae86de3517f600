"""The local platform as a whole: started by the launcher as people start it, with real processes."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil

from deploy.local.demo import read_environment
from deploy.local.ports import is_free
from deploy.local.process import MARKER
from deploy.local.settings import PORTS, SERVICES
from tests.support.pgbouncer import direct

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"checkout", "email", "analytics", "warehouse", "payments", "mail", "postgres", "redis"}
URLS = ("CHECKOUT", "EMAIL", "ANALYTICS", "WAREHOUSE", "PAYMENTS", "INBOX", "POSTGRES", "REDIS")


@dataclass(frozen=True)
class Platform:
    """A run folder and its ports."""

    run_dir: Path
    port_base: int

    def do(self, command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "deploy.local", command],
            cwd=ROOT,
            env={**self.environment(), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def environment(self) -> dict[str, str]:
        theirs = {"POSTGRES_URL", "REDIS_URL", "PAYMENTS_URL", "SMTP_URL"}
        kept = {name: value for name, value in os.environ.items() if name not in theirs}
        ours = {"RUN_DIR": str(self.run_dir), "PORT_BASE": str(self.port_base)}
        return {**kept, **ours, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}

    @property
    def pids(self) -> dict[str, int]:
        pids: dict[str, int] = json.loads((self.run_dir / "pids.json").read_text())
        return pids

    @property
    def env(self) -> dict[str, str]:
        return read_environment(self.run_dir / "env")

    @property
    def launcher(self) -> int:
        return int((self.run_dir / "lock").read_text())

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one of the processes; the launcher starts again what dies."""
        os.kill(self.pids[name], how)

    def serving(self, name: str) -> psutil.Process:
        """The process that does the work: of a service, its keeper's child."""
        return working(self.pids[name]) if name in SERVICES else psutil.Process(self.pids[name])

    def processes(self) -> list[psutil.Process]:
        """Whatever of ours is still alive, whether or not anybody remembers it."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARKER) == str(self.run_dir)
        except (psutil.Error, OSError):
            return False


def working(service: int) -> psutil.Process:
    """Of a service that was started as `service`, the process that does the work."""
    keeper = psutil.Process(service)
    return next(iter(keeper.children()), keeper)


def free_base() -> int:
    """A PORT_BASE whose ports are all free, below those that the kernel gives to outgoing connections."""
    while True:
        base = secrets.choice(range(10_000, 32_000, 100))
        if all(is_free(base + offset) for offset in PORTS.values()):
            return base


async def fetch(url: str, query: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(direct(url))
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def all_ready(platform: Platform) -> bool:
    env = platform.env
    async with httpx.AsyncClient() as client:
        for name in URLS[:6]:
            try:
                answer = await client.get(f"{env[f'{name}_URL']}/health/ready")
            except httpx.TransportError:
                return False
            if answer.status_code != httpx.codes.OK:
                return False
    return True


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    """Other processes send no signal here: look until it is so, or until the time is up."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)
