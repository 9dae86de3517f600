"""The retrier: tries due ledger rows again. Delays live in Postgres, so no stream entry waits for them."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from shared.runtime.errors import Outage
from shared.runtime.supervision import Loop

if TYPE_CHECKING:
    from shared.bus.consumer import Gate
    from shared.bus.delivery import Deliverer
    from shared.bus.ledger import Row

log = structlog.get_logger()

FRESH_BATCH = 200
# A batch that kills the process is due again after this, one by one. The lease only has to last until the first
# statement of the rehearsal or the work, which locks the rows. Whoever is slower, or between the two, may be overtaken
# by a peer, and finds nothing to settle then.
FRESH_LEASE_S = 1.0
FAILED_BATCH = 20
RESUME_S = 5.0


class Retrier(Loop):
    """Runs what the ledger says is due.

    Rows that were never tried go in batches; rows that failed before go one by one, so that what kills the process
    takes nobody with it. Attempts are counted and committed before the work.
    """

    idle_s = 0.25

    def __init__(self, deliverer: Deliverer, gate: Gate) -> None:
        """Share the gate with the consumer: a pause stops both."""
        super().__init__("retrier")
        self._deliverer = deliverer
        self._gate = gate
        self._resumed_at = float("-inf")

    @override
    async def run_once(self) -> int:
        """One pass over what is due; returns how many rows were tried."""
        if monotonic() - self._resumed_at > RESUME_S:
            await self._resume_parked()
        if await self._gate.closed() or not await self._anything_open():
            return 0
        released = await self._release()
        fresh = await self._take(fresh=True, lease_s=FRESH_LEASE_S, limit=FRESH_BATCH)
        if fresh:
            await self._try(fresh)
        return released + len(fresh) + await self._retry_failed()

    async def _anything_open(self) -> bool:
        """A look without a lock: four times a second, and nearly always in vain."""
        async with self._deliverer.db.reading() as connection:
            return await self._deliverer.ledger.anything_open(connection)

    async def _retry_failed(self) -> int:
        done = 0
        while done < FAILED_BATCH:
            self.beat()  # each of them may take as long as a batch
            # The longest delay of the next attempt as lease: if this one kills the process, the row simply becomes due.
            lease = self._deliverer.backoff.base_s
            rows = await self._take(fresh=False, lease_s=lease, limit=1)
            if not rows:
                break
            await self._try(rows)
            done += 1
        return done

    async def _take(self, *, fresh: bool, lease_s: float, limit: int) -> list[Row]:
        ledger = self._deliverer.ledger
        return await self._deliverer.db.run(lambda c: ledger.take(c, fresh=fresh, lease_s=lease_s, limit=limit))

    async def _try(self, rows: list[Row]) -> None:
        try:
            await self._deliverer.retry(rows)
        except Outage as error:
            # A dependency is down: nobody's attempt is spent, and everybody waits for the probe.
            self._gate.outage()
            await self._deliverer.give_back(rows, str(error))
        else:
            self._gate.success()

    async def _release(self) -> int:
        return await self._deliverer.db.run(self._deliverer.ledger.release)

    async def _resume_parked(self) -> None:
        """After a deploy, what an older version of the code did not know may be known now.

        Again and again, because while a deploy rolls, replicas of the older version still park what this one knows.
        """
        async with self._deliverer.db.reading() as connection:
            # Rubbish is looked at once: it does not get better while the same code runs.
            types = [] if self._resumed_at < 0 else self._deliverer.types
            parked = await self._deliverer.ledger.parked(connection, types)
        known = [event_id for event_id, raw in parked if self._deliverer.knows(event_id, raw)]
        if known:
            resumed = await self._deliverer.db.run(lambda c: self._deliverer.ledger.resume_parked(c, known))
            log.info("parked events resumed", resumed=resumed)
        self._resumed_at = monotonic()
