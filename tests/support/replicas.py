"""Replicas of services as processes of their own, ready in a fraction of a second.

Each is forked from a process that has imported everything already, then does what `python -m services.<name>` does.
"""

import asyncio
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import httpx

from tests.support.clocks import go_wrong
from tests.support.servers import free_port

READY_WITHIN_S = 60.0  # a machine with other things to do takes its time
PRELOADED = [f"services.{name}.app" for name in ("checkout", "email", "analytics", "warehouse")]


@dataclass
class Replica:
    """One process of a service; it can die any number of times and be started again on the same port."""

    environment: Mapping[str, str]
    log: Path
    http: httpx.AsyncClient
    port: int = field(default_factory=free_port)
    process: ForkServerProcess | None = None
    service: str = "checkout"
    clock_s: float = 0.0  # by which its clock is fast

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, **changes: str) -> None:
        """Start it and wait until it is ready; `changes` of the environment are for this life only."""
        self.launch(**changes)
        await self.ready()

    def launch(self, **changes: str) -> None:
        """Start it; it may well die before it is ready."""
        prefix = self.service.upper()
        # Without a keeper, or it would come back before anybody has looked at what its death left behind.
        alone = {f"{prefix}_PORT": str(self.port), f"{prefix}_REVIVALS": "0"}
        environment = {**self.environment, **alone, **changes}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pytest", *PRELOADED, "uvicorn.protocols.http.httptools_impl"])
        arguments = (self.service, environment, self.clock_s, str(self.log))
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()

    async def ready(self) -> None:
        """Wait until it says that it is ready."""
        assert self.process
        async with asyncio.timeout(READY_WITHIN_S):
            while not await self._is_ready():
                assert self.process.exitcode is None, f"ended with {self.process.exitcode}: {self.log.read_text()}"
                await asyncio.sleep(0.02)

    async def ended(self) -> int:
        """Wait until it has ended by itself; its exit status, negative for a signal."""
        assert self.process
        while self.process.exitcode is None:
            await asyncio.sleep(0.02)
        return self.process.exitcode

    def reached(self, point: str) -> bool:
        """Whether it, or who had its log before, has come to an armed fail-point."""
        return reached(self.log, point)

    def send(self, how: signal.Signals) -> None:
        assert self.process
        assert self.process.pid
        os.kill(self.process.pid, how)

    async def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Stop it; its exit status."""
        self.send(how)
        return await self.ended()

    def kill(self) -> None:
        """Make sure that it does not run."""
        if self.process:
            self.process.kill()
            self.process.join()

    async def _is_ready(self) -> bool:
        try:
            return (await self.http.get(f"{self.url}/health/ready")).is_success
        except httpx.TransportError:
            return False


def reached(log: Path, point: str) -> bool:
    """Whether somebody who writes this log has come to an armed fail-point."""
    lines = log.read_text().splitlines() if log.exists() else []
    return any("fail-point reached" in line and point in line for line in lines)


def _serve(service: str, environment: Mapping[str, str], clock_s: float, log: str) -> None:
    """In the child: become the service."""
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    go_wrong(clock_s)
    module = f"services.{service}"
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
