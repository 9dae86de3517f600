"""Recover: finish orders whose process died or whose charge has an unknown outcome, without the client coming back."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from services.checkout.commands.checkout import charge_of
from services.checkout.commands.settle import Settle, Settled
from services.checkout.domain import Order
from services.checkout.payments.port import NotExecuted, Outcome, Unknown
from services.checkout.store import orders
from services.checkout.store.orders import TakenOver
from shared.runtime import metrics
from shared.runtime.failpoints import reach
from shared.runtime.supervision import Loop, brief

if TYPE_CHECKING:
    from services.checkout.commands.batch import Command, Result
    from services.checkout.payments.port import PaymentProvider
    from shared.runtime.clock import Clock
    from shared.runtime.db import Database
    from shared.runtime.group_commit import GroupCommit

log = structlog.get_logger()

AT_ONCE = 16
BACKOFF_CAP_S = 60.0
MARGIN_H = 1.0  # the provider forgets a key after its window; an hour earlier the key is sent no more


class Recovery(Loop):
    """Takes over open orders whose lease ran out and asks the provider, with the same key, what became of them."""

    idle_s = 0.5

    def __init__(
        self,
        db: Database,
        batches: GroupCommit[Command, Result],
        provider: PaymentProvider,
        clock: Clock,
        lease_s: float,
    ) -> None:
        """`lease_s` must be longer than the slowest charge."""
        super().__init__("recovery")
        self._db = db
        self._batches = batches
        self._provider = provider
        self._clock = clock
        self._lease_s = lease_s

    @override
    async def run_once(self) -> int:
        """Take over what is due and settle it; returns how many orders that was."""
        taken = await self._db.run(lambda connection: orders.take_over(connection, self._lease_s, AT_ONCE))
        results = await asyncio.gather(*(self._recover(one) for one in taken), return_exceptions=True)
        for one, result in zip(taken, results, strict=True):
            if isinstance(result, BaseException):
                # Its lease runs out again: somebody tries again, under a new token.
                log.warning("recovery failed", order_id=one.order.id, error=brief(result))
        return len(taken)

    async def _recover(self, taken: TakenOver) -> None:
        order = taken.order
        await reach("C2")
        outcome = await self._ask(order)
        await reach("C4")
        if isinstance(outcome, NotExecuted):
            # Certain of this call only. The one before it, by a process that died or timed out, may have been executed.
            outcome = Unknown(outcome.reason)
        again = backoff_s(taken.recoveries, random.random())  # noqa: S311 - jitter
        command = Settle(order, taken.lease_token, outcome, self._clock.now(), "recovery", again_in_s=again)
        result = await self._batches.submit(command)
        await reach("C6")
        if isinstance(result, Settled) and result.order.status is not order.status:
            metrics.RECOVERED.labels(str(result.order.status)).inc()
            log.info("order recovered", order_id=order.id, before=order.status, after=result.order.status)

    async def _ask(self, order: Order) -> Outcome:
        charge = charge_of(order)
        age = self._clock.now() - order.created_at
        if age < timedelta(hours=self._provider.semantics.key_window_h - MARGIN_H):
            return await self._provider.charge(charge)
        log.error(
            "payment outcome unknown for too long, looking it up",
            order_id=order.id,
            hours=age / timedelta(hours=1),
        )
        return await self._provider.look_up(charge)


def backoff_s(recoveries: int, chance: float) -> float:
    """Seconds until an order that is still unknown is looked at again: 1, 2, 4 … 60, full jitter above the first."""
    ceiling = min(BACKOFF_CAP_S, 2.0 ** min(recoveries - 1, 16))
    return 1.0 + chance * (ceiling - 1.0)
