"""Is the stream server set up as it should be? Nothing is lost if not, but everything comes again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from shared.runtime import metrics
from shared.runtime.supervision import Loop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.bus.streams import RedisStreams

log = structlog.get_logger()

WHAT_TO_DO = {
    "evicts": "Redis throws streams away when it is full: set maxmemory-policy to noeviction",
    "forgets": "Redis keeps nothing over a restart: set appendonly to yes, or every event that waits comes again",
    "old": "Redis is older than 6.2: consumers cannot take over what others left open",
}


class FitnessCheck(Loop):
    """Looks at start and every ten seconds; a server that cannot be asked is somebody else's finding."""

    idle_s = 10.0
    failure_s = 5.0

    def __init__(self, streams: RedisStreams) -> None:
        """Nothing is known of the server yet."""
        super().__init__("redis-fitness")
        self._streams = streams
        self._known: set[str] = set()

    @override
    async def run_once(self) -> int:
        """Warn in one line of what has become wrong since the last look."""
        found = unfit(await self._streams.facts(), has_autoclaim=await self._streams.knows("xautoclaim"))
        for reason in sorted(found - self._known):
            log.warning(WHAT_TO_DO[reason], loop=self.name)
        for reason in WHAT_TO_DO:
            metrics.UNFIT.labels(reason).set(reason in found)
        self._known = found
        return 0


def unfit(facts: Mapping[str, object], *, has_autoclaim: bool) -> set[str]:
    """What is wrong with a server that says so of itself (INFO); what it does not say is taken for right."""
    evicts = str(facts.get("maxmemory_policy", "noeviction")) != "noeviction"
    forgets = str(facts.get("aof_enabled", 1)) == "0"
    wrong = {"evicts": evicts, "forgets": forgets, "old": not has_autoclaim}
    return {reason for reason, is_so in wrong.items() if is_so}
