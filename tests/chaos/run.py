"""One run: start, load and faults, heal, drain, look at everything."""

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from deploy.local.launcher import Launcher
from deploy.local.settings import Settings
from tests.chaos.clients import Crowd, Customer, contradictions, customers
from tests.chaos.links import Links
from tests.chaos.nemesis import Nemesis
from tests.chaos.report import mails, orders_by_id
from tests.chaos.schedule import Fault
from tests.chaos.servers import PostgresServer, RedisServer
from tests.chaos.watch import Watch
from tests.support.invariants import database, figures, violations
from tests.support.platform import Platform, free_base

INTERRUPTED = 130
READY_S = 90.0
DRAIN_S = 180.0  # the longest of what is due again by itself: one retry of an event or mail after a minute, and some
NOT_YET = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, httpx.HTTPError, KeyError)


@dataclass
class Run:
    """`scratch` is for the platform, `evidence` for what is kept when a rule was broken."""

    seed: int
    seconds: float
    rate: float
    faults: Sequence[Fault]
    scratch: Path
    evidence: Path
    said: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    waited_for: list[str] = field(default_factory=list)

    async def play(self) -> dict[str, Any]:
        """Returns what is reported of the run."""
        # With a file Redis can lose its tail, and come back with what is long settled.
        settings = Settings(self.scratch / "run", free_base(), redis_appendonly=True)
        links = await Links.open(settings, self.seed)
        launcher = Launcher(settings, self._say, links.programs)
        ready = asyncio.Event()
        running = asyncio.create_task(launcher.run(ready.set))
        everybody = customers(self.seed, round(self.rate * self.seconds))
        try:
            await self._started(running, ready)
            platform = Platform(settings.run_dir, settings.port_base)
            playing = asyncio.create_task(self._play(platform, links, everybody))
            await asyncio.wait((playing, running), return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():  # Ctrl-C, which the launcher heard
                playing.cancel()
                raise SystemExit(INTERRUPTED)
            result = playing.result()
        finally:
            launcher.stop()
            await running
            await links.close()
        self._keep(result, everybody, settings)
        return result

    async def _started(self, running: "asyncio.Task[None]", ready: asyncio.Event) -> None:
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((running, waiting), timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if running.done():
            running.result()
        if not ready.is_set():
            raise TimeoutError(f"the platform is not ready after {READY_S:.0f} s")

    async def _play(self, platform: Platform, links: Links, everybody: list[Customer]) -> dict[str, Any]:
        env = platform.env
        nemesis = self._nemesis(platform, links)
        watch, crowd = Watch(env, database(env, "checkout")), Crowd(env, self.seed)
        watching = asyncio.create_task(watch.run())
        arriving = asyncio.create_task(crowd.arrive(everybody, self.rate))
        try:
            await nemesis.run(self.faults)
            await nemesis.heal()
            healed = time.monotonic()
            self._say("healed")
            await arriving
            await crowd.come_back(everybody)
            broken = await self._drained(platform, healed + DRAIN_S)
            drained_s = time.monotonic() - healed
        finally:
            arriving.cancel()
            watching.cancel()
            await asyncio.gather(arriving, watching, return_exceptions=True)
            await crowd.close()
        self.missed = nemesis.missed
        broken += sorted(watch.found)
        broken += contradictions(everybody, await orders_by_id(env))
        copies = await mails(env, platform.run_dir / "mail")
        broken += copies.pop("violations")
        counted = await figures(env)
        return {
            "seed": self.seed,
            **counted,
            "extra %": round(100 * watch.duplicates / max(1, counted["deliveries"]), 2),
            "seconds to drain": round(drained_s, 1),
            "waited for": self.waited_for,
            "faults": dict(Counter(fault.kind for fault in self.faults)),
            "faults that could not be done": len(nemesis.missed),
            "faults late by, s": round(nemesis.late_s, 2),
            "answers": dict(sorted(Counter(str(one.status) for some in everybody for one in some.told).items())),
            "longest answer, s": round(max(one.seconds for some in everybody for one in some.told), 1),
            "snapshots": watch.snapshots,
            **copies,
            "violations": broken,
        }

    def _nemesis(self, platform: Platform, links: Links) -> Nemesis:
        env = platform.env
        sandboxes = {"payments": f"{env['PAYMENTS_URL']}/_sandbox/faults", "mail": f"{env['INBOX_URL']}/api/faults"}
        redis, postgres = RedisServer(platform, env["REDIS_URL"]), PostgresServer(platform, env["POSTGRES_URL"])
        return Nemesis(platform, links, redis, postgres, sandboxes, self.seed)

    async def _drained(self, platform: Platform, until: float) -> list[str]:
        """Wait until every rule holds; returns what is still broken when the time is up."""
        redis = RedisServer(platform, platform.env["REDIS_URL"])
        found: list[str] = []
        while True:
            found, before = ["nothing could be looked at"], found
            with suppress(*NOT_YET):
                found = await violations(platform.env)
                held = {name: count for name, count in (await redis.left_over()).items() if count}
                found += [f"I22 Redis holds unacknowledged entries: {held}"] if held else []
            if not found or time.monotonic() > until:
                self.waited_for = before[:3]
                return found
            await asyncio.sleep(0.5)

    def _say(self, text: str) -> None:
        self.said.append(f"{time.time():.2f} {text}")

    def _keep(self, result: dict[str, Any], everybody: list[Customer], settings: Settings) -> None:
        shutil.rmtree(self.evidence, ignore_errors=True)
        if not result["violations"]:
            return
        self.evidence.mkdir(parents=True)
        shutil.copytree(settings.run_dir, self.evidence / "platform", ignore=shutil.ignore_patterns("lock", "postgres"))
        told = {
            "result": result,
            "schedule": [fault.as_json() for fault in self.faults],
            "missed": self.missed,
            "launcher": self.said,
            "customers": [customer.as_json() for customer in everybody],
        }
        for name, value in told.items():
            (self.evidence / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
