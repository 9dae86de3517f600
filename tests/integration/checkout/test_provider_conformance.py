"""What a payment provider must be for checkout: the same tests for Stripe's adapter and for one that is unlike it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.checkout import app as checkout_app
from services.checkout.payments.port import (
    Cancelled,
    Captured,
    Charge,
    Declined,
    NotExecuted,
    PaymentProvider,
    PaymentSeen,
    PaymentsUnreadableError,
    Refund,
    Refunded,
    RefundRefused,
    RequiresAction,
    Unknown,
)
from services.checkout.payments.stripe import StripeProvider
from shared.runtime.identifiers import new_id
from tests.integration.checkout.conftest import running, settings_for, until
from tests.integration.sandboxes.programs import SECRET_KEY, Payments
from tests.support import cashier
from tests.support.cashier_provider import CashierProvider
from tests.support.servers import free_port

TIMEOUT_S = 0.5
LOST = ["hang", "reset", "500", "truncated"]
UNBELIEVABLE = ["wrong_amount", "wrong_currency", "other_order"]


@dataclass
class Subject:
    """An adapter, and the means to see and to spoil what is behind it."""

    provider: PaymentProvider
    good: str
    bad: str
    careful: str  # waits for its customer
    break_: Callable[[str | None], Awaitable[None]]  # the next answer about money, until None
    authenticate: Callable[[str], Awaitable[None]]
    nobody: PaymentProvider  # the same adapter, where nobody listens

    def charge(self, method: str | None = None, amount: int = 1999) -> Charge:
        order_id = new_id("ord")
        return Charge(f"charge:{order_id}:1", order_id, "demo", amount, "EUR", method or self.good)

    async def seen(self, order_id: str) -> list[PaymentSeen]:
        """The order's payments in the provider's ledger."""
        now = datetime.now(UTC)
        listed = self.provider.payments(now - timedelta(minutes=5), now + timedelta(minutes=5))
        return [one async for one in listed if one.order_id == order_id]

    async def captured(self, charge: Charge) -> list[int]:
        return [one.captured for one in await self.seen(charge.order_id) if one.captured]


@pytest.fixture(params=["stripe", "cashier"])
async def subject(request: pytest.FixtureRequest, payments_server: Payments) -> AsyncIterator[Subject]:
    async with cashier.serving() as till:
        made = stripe_subject(payments_server) if request.param == "stripe" else cashier_subject(till)
        yield made
        await made.break_(None)
        await made.provider.close()
        await made.nobody.close()


def stripe_subject(sandbox: Payments) -> Subject:
    def at(url: str) -> StripeProvider:
        return StripeProvider(url, SECRET_KEY, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, connections=20)

    async def break_(fault: str | None) -> None:
        names = {None: {}, "decline": {"decline_rate": 1}, "too_many": {"too_many": 1}}
        await sandbox.faults(**names.get(fault, {f"charge_then_{fault}": 1}))

    async def authenticate(reference: str) -> None:
        await sandbox.http.post(f"/_sandbox/3ds/{reference}", json={"outcome": "complete"})

    methods = ("pm_card_visa", "pm_card_visa_chargeDeclined", "pm_card_authenticationRequired")
    return Subject(at(sandbox.program.url), *methods, break_, authenticate, at(nowhere()))


def cashier_subject(till: cashier.Cashier) -> Subject:
    def at(url: str) -> CashierProvider:
        return CashierProvider(url, TIMEOUT_S)

    async def break_(fault: str | None) -> None:
        till.fault = fault

    async def authenticate(reference: str) -> None:
        till.finish(reference)

    return Subject(at(till.url), "full", "empty", "careful", break_, authenticate, at(nowhere()))


async def test_the_same_key_charges_once(subject: Subject) -> None:
    charge = subject.charge()

    first = await subject.provider.charge(charge)
    second = await subject.provider.charge(charge)

    assert isinstance(first, Captured)
    assert second == first
    assert await subject.captured(charge) == [1999]


async def test_the_same_key_at_the_same_time_charges_once(subject: Subject) -> None:
    charge = subject.charge()

    outcomes = await asyncio.gather(*(subject.provider.charge(charge) for _ in range(10)))

    assert {type(outcome) for outcome in outcomes} <= {Captured, Unknown}
    assert isinstance(await subject.provider.charge(charge), Captured)
    assert await subject.captured(charge) == [1999]


@pytest.mark.parametrize("fault", [*LOST, *UNBELIEVABLE])
async def test_an_answer_that_is_lost_or_not_ours_is_unknown_until_the_key_is_sent_again(
    subject: Subject, fault: str
) -> None:
    charge = subject.charge()
    await subject.break_(fault)

    lost = await subject.provider.charge(charge)
    await subject.break_(None)

    assert isinstance(lost, Unknown)
    assert isinstance(await subject.provider.look_up(charge), Captured)
    assert isinstance(await subject.provider.charge(charge), Captured)
    assert await subject.captured(charge) == [1999]


async def test_a_look_up_finds_what_there_is_and_never_charges(subject: Subject) -> None:
    never, made = subject.charge(), subject.charge()
    await subject.provider.charge(made)

    assert isinstance(await subject.provider.look_up(never), NotExecuted)
    assert isinstance(await subject.provider.look_up(made), Captured)
    assert await subject.seen(never.order_id) == []


async def test_a_look_up_does_not_believe_another_amount(subject: Subject) -> None:
    charge = subject.charge()
    await subject.provider.charge(charge)

    assert isinstance(await subject.provider.look_up(replace(charge, amount=1)), Unknown)


async def test_a_decline_moves_nothing_and_is_as_final_as_the_semantics_say(subject: Subject) -> None:
    charge = subject.charge()
    await subject.break_("decline")

    declined = await subject.provider.charge(charge)
    await subject.break_(None)
    nothing = await subject.captured(charge)
    again = await subject.provider.charge(charge)

    assert isinstance(declined, Declined)
    assert nothing == []
    assert isinstance(again, Declined if subject.provider.semantics.replays_declines else Captured)
    assert len(await subject.captured(charge)) == isinstance(again, Captured)


async def test_without_a_connection_nothing_is_charged_and_nothing_is_known(subject: Subject) -> None:
    charge, refund = subject.charge(), refund_of(subject.charge(), "pi_1", 1)
    nobody = subject.nobody

    assert isinstance(outcome := await nobody.charge(charge), NotExecuted)
    assert outcome.down
    assert isinstance(await nobody.refund(refund), NotExecuted)
    assert isinstance(await nobody.look_up(charge), Unknown)
    assert isinstance(await nobody.look_up(charge, "pi_1"), Unknown)
    assert isinstance(await nobody.cancel(charge, "pi_1"), Unknown)
    assert isinstance(await nobody.look_up_refund(refund), Unknown)
    with pytest.raises(PaymentsUnreadableError):
        await anext(nobody.payments(datetime.now(UTC), datetime.now(UTC)))


async def test_over_its_rate_it_says_when_to_come_again(subject: Subject) -> None:
    charge = subject.charge()
    await subject.break_("too_many")

    outcome = await subject.provider.charge(charge)
    await subject.break_(None)

    assert isinstance(outcome, NotExecuted)
    assert outcome.retry_after_s == 1.0
    assert not outcome.down
    assert await subject.captured(charge) == []


async def test_a_payment_that_waits_for_its_customer_is_seen_to_be_paid(subject: Subject) -> None:
    charge = subject.charge(subject.careful)

    waiting = await subject.provider.charge(charge)
    assert isinstance(waiting, RequiresAction)
    still = await subject.provider.charge(charge)
    await subject.authenticate(waiting.reference)

    assert isinstance(still, RequiresAction)
    assert await subject.provider.charge(charge) == Captured(waiting.reference), "not what it was, but what it is"
    assert await subject.provider.look_up(charge, waiting.reference) == Captured(waiting.reference)


async def test_a_payment_that_waits_is_cancelled_and_never_moves_money_again(subject: Subject) -> None:
    charge = subject.charge(subject.careful)
    waiting = await subject.provider.charge(charge)
    assert isinstance(waiting, RequiresAction)

    first = await subject.provider.cancel(charge, waiting.reference)
    second = await subject.provider.cancel(charge, waiting.reference)

    assert [first, second] == [Cancelled(), Cancelled()]
    assert await subject.provider.look_up(charge) == Cancelled()
    assert await subject.captured(charge) == []


async def test_a_payment_that_was_paid_in_the_meantime_is_not_cancelled(subject: Subject) -> None:
    charge = subject.charge(subject.careful)
    waiting = await subject.provider.charge(charge)
    assert isinstance(waiting, RequiresAction)
    await subject.authenticate(waiting.reference)

    assert await subject.provider.cancel(charge, waiting.reference) == Captured(waiting.reference)
    assert await subject.captured(charge) == [1999]


async def test_refunds_add_up_to_what_was_captured_and_no_further(subject: Subject) -> None:
    charge, reference = await paid(subject)
    parts = [refund_of(charge, reference, amount) for amount in (1500, 499, 1)]

    outcomes = [await subject.provider.refund(part) for part in parts]
    again = await subject.provider.refund(parts[0])

    assert [type(outcome) for outcome in outcomes] == [Refunded, Refunded, RefundRefused]
    assert again == outcomes[0]
    assert [one.refunded for one in await subject.seen(charge.order_id)] == [1999]


@pytest.mark.parametrize("fault", [*LOST, *UNBELIEVABLE])
async def test_a_refund_whose_answer_is_lost_or_not_ours_is_unknown_until_somebody_asks_again(
    subject: Subject, fault: str
) -> None:
    charge, reference = await paid(subject)
    refund = refund_of(charge, reference, 500)
    await subject.break_(fault)

    lost = await subject.provider.refund(refund)
    await subject.break_(None)
    found = await subject.provider.look_up_refund(refund)

    assert isinstance(lost, Unknown)
    assert isinstance(found, Refunded)
    assert await subject.provider.refund(refund) == found
    assert [one.refunded for one in await subject.seen(charge.order_id)] == [500]


async def test_a_refund_that_was_never_made_is_not_found_and_not_made(subject: Subject) -> None:
    charge, reference = await paid(subject)
    await subject.provider.refund(refund_of(charge, reference, 500))

    assert isinstance(await subject.provider.look_up_refund(refund_of(charge, reference, 500)), NotExecuted)
    assert [one.refunded for one in await subject.seen(charge.order_id)] == [500]


async def test_the_ledger_shows_what_moved_and_when(subject: Subject) -> None:
    started = datetime.now(UTC).replace(microsecond=0)
    charge, reference = await paid(subject)

    [seen] = await subject.seen(charge.order_id)

    assert (seen.reference, seen.tenant, seen.amount, seen.currency) == (reference, "demo", 1999, "EUR")
    assert (seen.captured, seen.refunded) == (1999, 0)
    assert started <= seen.created <= datetime.now(UTC)
    early = subject.provider.payments(started - timedelta(hours=1), started - timedelta(minutes=1))
    assert charge.order_id not in [one.order_id async for one in early]


@pytest.mark.parametrize("fault", [None, "reset", "wrong_amount"])
async def test_checkout_takes_orders_with_it(
    subject: Subject, fault: str | None, checkout_database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout_app, "payment_provider", lambda _: subject.provider)
    async with running(settings_for(checkout_database, redis_url, "http://unused.invalid"), None) as shop:  # type: ignore[arg-type]
        sku = new_id("sku").upper().replace("_", "-")
        await shop.product(sku, stock=2)
        wish: dict[str, Any] = {"lines": [{"sku": sku, "quantity": 1}]}

        refused = await shop.order(payment_method=subject.bad, **wish)
        await subject.break_(fault)
        answer = await shop.order(payment_method=subject.good, **wish)
        order_id = answer.json()["id"]
        await subject.break_(None)

        async def is_completed() -> bool:
            return bool((await shop.get(f"/v1/orders/{order_id}")).json()["status"] == "completed")

        await until(is_completed)
        assert (refused.status_code, answer.status_code) == (402, 202 if fault else 201)
        assert await shop.stock(sku) == (1, 0, 1)
        assert [one.captured for one in await subject.seen(order_id)] == [1000]


def nowhere() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def paid(subject: Subject) -> tuple[Charge, str]:
    charge = subject.charge()
    captured = await subject.provider.charge(charge)
    assert isinstance(captured, Captured)
    return charge, captured.reference


def refund_of(charge: Charge, reference: str, amount: int) -> Refund:
    refund_id = new_id("ref")
    key = f"refund:{refund_id}"
    return Refund(key, refund_id, charge.order_id, charge.tenant, reference, amount, charge.currency)
