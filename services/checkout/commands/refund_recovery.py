"""Refund recovery: finish refunds whose process died or whose outcome is unknown, without the client coming back."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from services.checkout.commands.recover import backoff_s
from services.checkout.commands.refund import sent
from services.checkout.commands.refund_book import SettleRefund
from services.checkout.payments.port import NotExecuted, RefundOutcome, Unknown
from services.checkout.store import refunds
from services.checkout.store.refunds import TakenOver
from shared.runtime import metrics
from shared.runtime.supervision import Loop, brief

if TYPE_CHECKING:
    from services.checkout.commands.refund import Refunds
    from services.checkout.payments.port import PaymentProvider
    from shared.runtime.clock import Clock
    from shared.runtime.db import Database

log = structlog.get_logger()

AT_ONCE = 8
MARGIN = timedelta(hours=1)  # the provider forgets a key after its window; an hour earlier it is looked up first


class RefundRecovery(Loop):
    """Takes over open refunds whose lease ran out and asks the provider, with the same key, what became of them."""

    idle_s = 0.5

    def __init__(
        self, db: Database, giving_back: Refunds, provider: PaymentProvider, clock: Clock, lease_s: float
    ) -> None:
        """`lease_s` must be longer than the slowest refund."""
        super().__init__("refund recovery")
        self._db = db
        self._giving_back = giving_back
        self._provider = provider
        self._clock = clock
        self._lease_s = lease_s

    @override
    async def run_once(self) -> int:
        """Take over what is due and settle it; returns how many refunds that was."""
        taken = await self._db.run(lambda connection: refunds.take_over(connection, self._lease_s, AT_ONCE))
        results = await asyncio.gather(*(self._recover(one) for one in taken), return_exceptions=True)
        for one, result in zip(taken, results, strict=True):
            if isinstance(result, BaseException):
                # Its lease runs out again: somebody tries again, under a new token.
                log.warning("refund recovery failed", refund_id=one.refund.id, error=brief(result))
        await self._measure()
        return len(taken)

    async def _recover(self, taken: TakenOver) -> None:
        outcome = await self._ask(taken)
        if isinstance(outcome, NotExecuted):
            # Certain of this call only. The one before it, by a process that died or timed out, may have been executed.
            outcome = Unknown(outcome.reason)
        again = backoff_s(taken.recoveries, random.random())  # noqa: S311 - jitter
        settling = SettleRefund(taken.refund, taken.lease_token, outcome, self._clock.now(), "recovery", None, again)
        settled = await self._giving_back.settle(settling)
        if settled and settled.refund.settled_at:
            log.info("refund recovered", refund_id=settled.refund.id, status=settled.refund.status)

    async def _ask(self, taken: TakenOver) -> RefundOutcome:
        """The same key again; once the provider may have forgotten it, only after a look-up that found no refund.

        Such a look-up may lag behind the call of a moment ago, and still nothing is given back twice: that call has
        begun a new window, in which the key is known again.
        """
        refund = sent(taken.refund)
        if taken.age > timedelta(hours=self._provider.semantics.key_window_h) - MARGIN:
            hours = round(taken.age / timedelta(hours=1), 1)
            log.error("refund unknown for too long, looking it up", refund_id=refund.refund_id, hours=hours)
            found = await self._provider.look_up_refund(refund)
            if not isinstance(found, NotExecuted):
                return found
        return await self._provider.refund(refund)

    async def _measure(self) -> None:
        async with self._db.reading() as connection:
            unfinished = await refunds.unfinished(connection)
        metrics.OPEN_REFUNDS.set(sum(one.count for one in unfinished))
