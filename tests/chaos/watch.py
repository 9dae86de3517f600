"""What is looked at while everything goes wrong: rules that hold always, and counters that die with their process."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress

import asyncpg
import httpx

from deploy.local.settings import SERVICES
from deploy.orderctl.rules import CHECKOUT
from tests.support.invariants import broken_rules

AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)  # a fault has taken it away
EVERY_S = 0.1
COUNTERS_EVERY_S = 0.5
# What costs little, whatever has happened before: it is asked ten times a second.
ALWAYS = {
    what: CHECKOUT[what]
    for what in ("available, reserved and sold add up to received", "subscriptions are within the log")
}
DUPLICATES = re.compile(r"^orderstream_deliveries_duplicate_total ([0-9.e+]+)$", re.MULTILINE)


class Watch:
    """Looks past the proxies until it is told to stop."""

    def __init__(self, env: Mapping[str, str], checkout_url: str) -> None:
        """`checkout_url` is that of checkout's database."""
        self._env = env
        self._checkout_url = checkout_url
        self._seen: defaultdict[str, float] = defaultdict(float)
        self.found: set[str] = set()
        self.snapshots = 0
        self.duplicates = 0.0

    async def run(self) -> None:
        """Look again and again; cancel it to stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rules())
            group.create_task(self._counters())

    async def _rules(self) -> None:
        while True:
            with suppress(*AWAY):
                await self._look()
            await asyncio.sleep(EVERY_S)

    async def _look(self) -> None:
        connection = await asyncpg.connect(self._checkout_url, timeout=5, command_timeout=5)
        try:
            while True:
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    self.found.update(await broken_rules(connection, ALWAYS))
                self.snapshots += 1
                await asyncio.sleep(EVERY_S)
        finally:
            with suppress(*AWAY):
                await connection.close(timeout=2)

    async def _counters(self) -> None:
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
            while True:
                for name in SERVICES[1:]:
                    with suppress(httpx.HTTPError):
                        answer = await client.get(f"{self._env[f'{name.upper()}_URL']}/metrics")
                        self._count(name, answer.text)
                await asyncio.sleep(COUNTERS_EVERY_S)

    def _count(self, name: str, text: str) -> None:
        """A counter that is smaller than before belongs to another process, which began at 0."""
        match = DUPLICATES.search(text)
        if match is None:
            return
        now, before = float(match[1]), self._seen[name]
        self.duplicates += now - before if now >= before else now
        self._seen[name] = now
