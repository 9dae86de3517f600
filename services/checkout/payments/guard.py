"""What stands between checkout and its payment provider: breaker, limits, and the only layer that tries again.

It adds microseconds to a call that goes well: there is no task, no lock and no timer unless something is wrong.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from services.checkout.payments.breaker import Breaker, State
from services.checkout.payments.limits import Rate, RetryBudget
from services.checkout.payments.port import (
    Charge,
    NotExecuted,
    Outcome,
    PaymentProvider,
    PaymentSeen,
    PaymentsUnreadableError,
    Refund,
    RefundOutcome,
    Unknown,
)
from shared.runtime import metrics

if TYPE_CHECKING:
    from shared.runtime.clock import Clock

RETRY_WITHIN_S = 0.1
# A first try that took longer gets no second: both together must end before the order's lease does.
QUICK_S = 0.5

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Lane:
    """The part of the provider's capacity that one kind of caller has, however busy the others are."""

    name: str
    calls: int  # at the same time
    calls_per_s: float
    wait_s: float  # longest wait for one of the `calls`
    retries: bool  # whether what certainly did not happen is tried a second time at once


@dataclass(frozen=True, slots=True)
class _Refused:
    reason: str
    retry_after_s: float


class GuardedProvider:
    """A provider behind a breaker that it shares with other lanes.

    A call that is not let through is `NotExecuted` with the time to come again, and a question is `Unknown`:
    nothing was asked.
    """

    def __init__(self, provider: PaymentProvider, breaker: Breaker, lane: Lane, clock: Clock) -> None:
        """Closing it closes `provider`."""
        self.semantics = provider.semantics
        self._provider = provider
        self._breaker = breaker
        self._lane = lane
        self._clock = clock
        self._now = clock.monotonic
        self._free = asyncio.Semaphore(lane.calls)
        self._rate = Rate(lane.calls_per_s)
        self._budget = RetryBudget()
        self._sent = metrics.PAYMENT_CALLS.labels(lane.name)

    async def charge(self, charge: Charge) -> Outcome:
        """Charge; once more, within the budget, when it is certain at once that nothing happened."""
        self._budget.earn()
        started = self._now()
        outcome: Outcome = _not_executed(await self._guarded(lambda: self._provider.charge(charge), started))
        if isinstance(outcome, NotExecuted) and self._may_repeat(outcome, started):
            metrics.PAYMENT_RETRIES.inc()
            await self._clock.sleep(random.uniform(0, RETRY_WITHIN_S))  # noqa: S311 - jitter
            outcome = _not_executed(await self._guarded(lambda: self._provider.charge(charge), self._now()))
        return outcome

    async def look_up(self, charge: Charge, reference: str | None = None) -> Outcome:
        """Look up, when the provider can be asked."""
        return _unlearnt(await self._guarded(lambda: self._provider.look_up(charge, reference), self._now()))

    async def cancel(self, charge: Charge, reference: str) -> Outcome:
        """Cancel, when the provider can be asked."""
        return _unlearnt(await self._guarded(lambda: self._provider.cancel(charge, reference), self._now()))

    async def refund(self, refund: Refund) -> RefundOutcome:
        """Refund, when the provider can be asked. Its caller comes again: no second try here."""
        return _not_executed(await self._guarded(lambda: self._provider.refund(refund), self._now()))

    async def look_up_refund(self, refund: Refund) -> RefundOutcome:
        """Look up, when the provider can be asked."""
        return _unlearnt(await self._guarded(lambda: self._provider.look_up_refund(refund), self._now()))

    async def payments(self, since: datetime, until: datetime) -> AsyncIterator[PaymentSeen]:
        """List, unless the breaker is open: one page after the other is no load that needs a limit.

        Half-open is good enough: after a quiet night nobody has tried yet whether the provider is back.
        """
        if self._breaker.state is State.OPEN:
            raise PaymentsUnreadableError("the payment provider does not answer")
        async for seen in self._provider.payments(since, until):
            yield seen

    async def ping(self) -> None:
        """Always: a health check wants to know how it is."""
        await self._provider.ping()

    async def close(self) -> None:
        """Close the provider."""
        await self._provider.close()

    async def _guarded(self, call: Callable[[], Awaitable[Result]], now: float) -> Result | _Refused:
        lane = self._lane.name
        ticket = self._breaker.enter(lane, now)
        if ticket is None:
            return self._refused("open", "it does not answer", self._breaker.retry_after_s())
        down: bool | None = None
        try:
            if wait_s := self._rate.wait_s(now):
                return self._refused("rate", "too many calls a second", wait_s)
            if not await self._turn():
                return self._refused("busy", "too many calls at the same time", self._lane.wait_s)
            try:
                self._sent.inc()
                result = await call()
            finally:
                self._free.release()
            down = getattr(result, "down", False)
            return result
        finally:
            self._breaker.leave(ticket, lane, down=down)

    async def _turn(self) -> bool:
        if not self._free.locked():
            return await self._free.acquire()
        try:
            async with asyncio.timeout(self._lane.wait_s):
                return await self._free.acquire()
        except TimeoutError:
            return False

    def _refused(self, why: str, reason: str, retry_after_s: float) -> _Refused:
        metrics.PAYMENT_CALLS_REFUSED.labels(self._lane.name, why).inc()
        return _Refused(reason, retry_after_s)

    def _may_repeat(self, outcome: NotExecuted, started: float) -> bool:
        now = self._now()
        return (
            self._lane.retries
            and outcome.down
            and now - started < QUICK_S
            and self._breaker.state is State.CLOSED
            and self._budget.spend()
        )


def _not_executed(result: Result | _Refused) -> Result | NotExecuted:
    return NotExecuted(result.reason, result.retry_after_s) if isinstance(result, _Refused) else result


def _unlearnt(result: Result | _Refused) -> Result | Unknown:
    return Unknown(result.reason) if isinstance(result, _Refused) else result
