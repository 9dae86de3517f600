"""What the guard lets through, what it refuses, and what a refusal means to whom."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from services.checkout.app import payment_lanes
from services.checkout.payments.breaker import FAILURES, Breaker, State
from services.checkout.payments.guard import QUICK_S, RETRY_WITHIN_S, GuardedProvider, Lane
from services.checkout.payments.port import (
    Captured,
    Charge,
    Declined,
    NotExecuted,
    Outcome,
    PaymentSeen,
    PaymentsUnreadableError,
    Refund,
    RefundOutcome,
    Semantics,
    Unknown,
)
from services.checkout.settings import CheckoutSettings

CHARGE = Charge("charge:ord_1:1", "ord_1", "demo", 1999, "EUR", "pm_card_visa")
REFUND = Refund("refund:ord_1:1", "ref_1", "ord_1", "demo", "pi_1", 500, "EUR")
REFUSED = NotExecuted("ConnectionRefusedError", down=True)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Watch:
    """A clock that a test sets, and whose sleepers are woken at once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return EPOCH

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Provider:
    """Answers what it is told to, and counts how often it was asked."""

    semantics = Semantics(24.0, replays_declines=True, finds_by_order=True)

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.asked = 0
        self.takes: Callable[[], None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()

    async def _answer(self) -> Any:
        self.asked += 1
        await self.gate.wait()
        self.takes()
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    async def charge(self, _: Charge) -> Outcome:
        outcome: Outcome = await self._answer()
        return outcome

    async def look_up(self, _: Charge, __: str | None = None) -> Outcome:
        outcome: Outcome = await self._answer()
        return outcome

    async def cancel(self, _: Charge, __: str) -> Outcome:
        outcome: Outcome = await self._answer()
        return outcome

    async def refund(self, _: Refund) -> RefundOutcome:
        outcome: RefundOutcome = await self._answer()
        return outcome

    async def look_up_refund(self, _: Refund) -> RefundOutcome:
        outcome: RefundOutcome = await self._answer()
        return outcome

    async def payments(self, _: datetime, __: datetime) -> AsyncIterator[PaymentSeen]:
        yield PaymentSeen("pi_1", None, None, 1, "EUR", 1, 0, "succeeded", EPOCH)

    async def ping(self) -> None:
        self.asked += 1

    async def close(self) -> None:
        self.asked = -1


def guarded(
    provider: Provider,
    watch: Watch,
    breaker: Breaker | None = None,
    *,
    name: str = "orders",
    calls: int = 100,
    rate: float = 1e6,
) -> GuardedProvider:
    lane = Lane(name, calls, rate, wait_s=0.05, retries=name == "orders")
    return GuardedProvider(provider, breaker or Breaker(watch.monotonic), lane, watch)


async def test_a_call_that_goes_well_is_made_once_and_its_outcome_is_passed_on() -> None:
    provider = Provider(Captured("pi_1"), Declined("lost_card"))
    guard = guarded(provider, Watch())

    assert [await guard.charge(CHARGE), await guard.charge(CHARGE)] == [Captured("pi_1"), Declined("lost_card")]
    assert provider.asked == 2


async def test_a_charge_that_certainly_did_not_happen_is_tried_once_more_after_a_moment() -> None:
    watch = Watch()
    provider = Provider(REFUSED, Captured("pi_1"))

    assert await guarded(provider, watch).charge(CHARGE) == Captured("pi_1")
    assert provider.asked == 2
    assert all(0 <= slept <= 0.1 for slept in watch.slept)


@pytest.mark.parametrize(
    "outcome",
    [Unknown("a reset", down=True), Unknown("409"), NotExecuted("401"), NotExecuted("429", 7.0), Declined("lost_card")],
    ids=str,
)
async def test_nothing_else_is_tried_again(outcome: Outcome) -> None:
    provider = Provider(outcome)

    assert await guarded(provider, Watch()).charge(CHARGE) == outcome
    assert provider.asked == 1


async def test_a_first_try_that_took_long_gets_no_second_so_that_the_lease_outlasts_the_charge() -> None:
    watch = Watch()
    provider = Provider(REFUSED)

    def take_a_second() -> None:
        watch.seconds += 1.0

    provider.takes = take_a_second

    await guarded(provider, watch).charge(CHARGE)

    assert provider.asked == 1


async def test_a_provider_that_fails_often_gets_a_tenth_more_calls() -> None:
    """Three failures, one success, again and again: the breaker stays closed, and the budget holds."""
    outcomes: list[Outcome] = [REFUSED, REFUSED, REFUSED, Captured("pi_1")]
    provider = Provider(*outcomes * 1000, REFUSED)
    guard = guarded(provider, Watch())

    for _ in range(1000):
        await guard.charge(CHARGE)

    assert 1050 <= provider.asked <= 1102


async def test_a_provider_that_is_gone_is_soon_not_called_at_all() -> None:
    provider = Provider(REFUSED)
    guard = guarded(provider, Watch())

    outcomes = [await guard.charge(CHARGE) for _ in range(1000)]

    assert provider.asked == FAILURES
    assert isinstance(outcomes[-1], NotExecuted)
    assert outcomes[-1].retry_after_s is not None
    assert 0 < outcomes[-1].retry_after_s <= 0.5


async def test_while_it_is_not_called_a_charge_did_not_happen_but_a_question_was_not_answered() -> None:
    """`NotExecuted` from a look-up would say that there is no payment, and the customer would pay twice."""
    provider = Provider(REFUSED)
    guard = guarded(provider, Watch())
    while guard._breaker.state is State.CLOSED:
        await guard.charge(CHARGE)

    assert isinstance(await guard.charge(CHARGE), NotExecuted)
    assert isinstance(await guard.refund(REFUND), NotExecuted)
    assert isinstance(await guard.look_up(CHARGE), Unknown)
    assert isinstance(await guard.cancel(CHARGE, "pi_1"), Unknown)
    assert isinstance(await guard.look_up_refund(REFUND), Unknown)
    with pytest.raises(PaymentsUnreadableError):
        await anext(guard.payments(EPOCH, EPOCH))
    assert provider.asked == FAILURES


async def test_the_ledger_is_read_as_soon_as_the_provider_may_be_back_without_waiting_for_an_order() -> None:
    watch = Watch()
    guard = guarded(Provider(REFUSED), watch)
    while guard._breaker.state is State.CLOSED:
        await guard.charge(CHARGE)

    watch.seconds += 1.0

    assert [seen.reference async for seen in guard.payments(EPOCH, EPOCH)] == ["pi_1"]


async def test_a_breaker_that_opens_for_orders_is_open_for_the_recovery_and_each_tries_for_itself() -> None:
    watch = Watch()
    provider = Provider(REFUSED)
    breaker = Breaker(watch.monotonic)
    orders, recovery = (guarded(provider, watch, breaker, name=name) for name in ("orders", "recovery"))
    while breaker.state is State.CLOSED:
        await orders.charge(CHARGE)
    provider.outcomes = [Captured("pi_1")]
    provider.gate.clear()
    watch.seconds += 1.0

    trying = [asyncio.create_task(lane.charge(CHARGE)) for lane in (orders, recovery, orders, recovery)]
    await asyncio.sleep(0)
    provider.gate.set()
    outcomes = await asyncio.gather(*trying)

    assert [type(outcome) for outcome in outcomes] == [Captured, Captured, NotExecuted, NotExecuted]


async def test_a_lane_that_is_full_refuses_after_its_wait_and_does_not_touch_the_other() -> None:
    watch = Watch()
    provider = Provider(Captured("pi_1"))
    provider.gate.clear()
    breaker = Breaker(watch.monotonic)
    orders, recovery = (guarded(provider, watch, breaker, name=name, calls=2) for name in ("orders", "recovery"))

    full = [asyncio.create_task(orders.charge(CHARGE)) for _ in range(5)]
    await asyncio.sleep(0)
    other = asyncio.create_task(recovery.charge(CHARGE))
    done, _ = await asyncio.wait(full, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.1)
    provider.gate.set()

    outcomes = [await one for one in full]
    assert done
    assert [type(outcome) for outcome in outcomes] == [Captured] * 2 + [NotExecuted] * 3
    assert await other == Captured("pi_1")
    assert breaker.state is State.CLOSED, "that it is busy here says nothing about the provider"


async def test_who_waits_for_a_full_lane_gets_the_place_that_becomes_free() -> None:
    provider = Provider(Captured("pi_1"))
    provider.gate.clear()
    guard = guarded(provider, Watch(), calls=1)

    both = [asyncio.create_task(guard.charge(CHARGE)) for _ in range(2)]
    await asyncio.sleep(0)
    provider.gate.set()

    assert await asyncio.gather(*both) == [Captured("pi_1")] * 2


async def test_calls_over_the_rate_are_told_when_to_come_again() -> None:
    watch = Watch()
    provider = Provider(Captured("pi_1"))
    guard = guarded(provider, watch, rate=2.0)

    outcomes = [await guard.charge(CHARGE) for _ in range(3)]
    watch.seconds += 0.5

    assert outcomes[2] == NotExecuted("too many calls a second", 0.5)
    assert await guard.charge(CHARGE) == Captured("pi_1")


async def test_a_provider_that_breaks_its_promise_and_raises_does_not_use_up_the_lane() -> None:
    provider = Provider(Captured("pi_1"))
    guard = guarded(provider, Watch(), calls=1)

    def fail() -> None:
        raise RuntimeError("a bug")

    provider.takes = fail
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await guard.charge(CHARGE)
    provider.takes = lambda: None

    assert await guard.charge(CHARGE) == Captured("pi_1")


@pytest.mark.parametrize(
    ("timeout_s", "connecting_s", "lease_s"), [(8.0, 2.0, 20.0), (8.0, 2.0, 11.0), (0.7, 0.3, 2.0), (20.0, 10.0, 31.5)]
)
async def test_the_slowest_charge_ends_before_the_orders_lease(
    timeout_s: float, connecting_s: float, lease_s: float
) -> None:
    settings = CheckoutSettings.model_construct(
        payments_timeout_s=timeout_s,
        payments_connect_timeout_s=connecting_s,
        lease_s=lease_s,
        payments_connections=1,
        payments_recovery_connections=1,
        payments_rate=1.0,
    )

    for lane in payment_lanes(settings):
        assert 0 <= lane.wait_s <= connecting_s
        assert QUICK_S + RETRY_WITHIN_S + lane.wait_s + connecting_s + timeout_s < lease_s
