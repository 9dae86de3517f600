"""Recover: finish every open order without its client: its process died, nobody knows, or its customer has to act."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from services.checkout.commands.checkout import charge_of
from services.checkout.commands.settle import Settle, Settled
from services.checkout.domain import Status
from services.checkout.payments.port import Cancelled, Declined, NotExecuted, Outcome, RequiresAction, Unknown
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
# The provider forgets a key after its window: an hour earlier the key is sent no more. Its search may lag behind by
# minutes: an hour after the window, what the search does not find is not there.
MARGIN = timedelta(hours=1)
NEVER_CHARGED = "payment_not_found"


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
        reservation_s: float,
    ) -> None:
        """`lease_s` must be longer than the slowest charge; a customer gets `reservation_s` to authenticate."""
        super().__init__("recovery")
        self._db = db
        self._batches = batches
        self._provider = provider
        self._clock = clock
        self._lease_s = lease_s
        self._reservation_s = reservation_s

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
        outcome = await self._find_out(taken)
        await reach("C4")
        if isinstance(outcome, NotExecuted):
            # Certain of this call only. The one before it, by a process that died or timed out, may have been executed.
            outcome = Unknown(outcome.reason)
        command = Settle(
            order,
            taken.lease_token,
            outcome,
            self._clock.now(),
            "recovery",
            again_in_s=_again_s(taken),
            hold_s=self._reservation_s,
        )
        result = await self._batches.submit(command)
        await reach("C6")
        if isinstance(result, Settled) and result.order.status is not order.status:
            metrics.RECOVERED.labels(str(result.order.status)).inc()
            log.info("order recovered", order_id=order.id, before=order.status, after=result.order.status)

    async def _find_out(self, taken: TakenOver) -> Outcome:
        if taken.order.status is Status.REQUIRES_ACTION:
            return await self._await_customer(taken)
        return await self._ask_again(taken)

    async def _await_customer(self, taken: TakenOver) -> Outcome:
        """How the authentication ended; when it failed or its time is up, the payment is voided before we let go."""
        charge, reference = charge_of(taken.order), taken.order.payment.provider_reference
        seen = await self._look_up(taken, reference)
        late = taken.left is not None and taken.left <= timedelta(0)
        failed = isinstance(seen, Declined) and seen.reference is not None
        if reference is None or not (failed or (late and isinstance(seen, RequiresAction | Unknown))):
            return seen
        # With its client secret the customer could still pay what nobody waits for any more.
        voided = await self._provider.cancel(charge, reference)
        return seen if isinstance(voided, Cancelled) and isinstance(seen, Declined) else voided

    async def _ask_again(self, taken: TakenOver) -> Outcome:
        """The same key again while the provider is sure to know it; afterwards never, because it would charge anew."""
        if taken.age < self._key_window - MARGIN:
            return await self._provider.charge(charge_of(taken.order))
        log.error(
            "payment outcome unknown for too long, looking it up",
            order_id=taken.order.id,
            hours=round(taken.age / timedelta(hours=1), 1),
        )
        return await self._look_up(taken)

    async def _look_up(self, taken: TakenOver, reference: str | None = None) -> Outcome:
        certain = self._provider.semantics.finds_by_order and taken.age > self._key_window + MARGIN
        outcome = await self._provider.look_up(charge_of(taken.order), None if certain else reference)
        return Declined(NEVER_CHARGED) if certain and isinstance(outcome, NotExecuted) else outcome

    @property
    def _key_window(self) -> timedelta:
        return timedelta(hours=self._provider.semantics.key_window_h)


def _again_s(taken: TakenOver) -> float:
    """A customer's time is up to the second, however rarely the order is looked at by then."""
    again = backoff_s(taken.recoveries, random.random())  # noqa: S311 - jitter
    left = taken.left.total_seconds() if taken.left is not None else 0.0
    return min(again, left + 1.0) if left > 0 else again


def backoff_s(recoveries: int, chance: float) -> float:
    """Seconds until an order that is still unknown is looked at again: 1, 2, 4 … 60, full jitter above the first."""
    ceiling = min(BACKOFF_CAP_S, 2.0 ** min(recoveries - 1, 16))
    return 1.0 + chance * (ceiling - 1.0)
