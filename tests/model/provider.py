"""A payment provider as bad as one can be that keeps its promises: answers get lost, requests arrive late or never."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from typing_extensions import override

from services.checkout.payments.port import (
    Cancelled,
    Captured,
    Charge,
    Declined,
    NotExecuted,
    Outcome,
    PaymentProvider,
    PaymentSeen,
    Refund,
    Refunded,
    RefundOutcome,
    RefundRefused,
    RequiresAction,
    Semantics,
    Unknown,
)
from shared.runtime.failpoints import reach

KEY_WINDOW = timedelta(hours=24)


class Fate(StrEnum):
    """What becomes of a call."""

    ANSWERED = "answered"
    ANSWER_LOST = "answer lost"  # done, and nobody hears of it
    LATE = "late"  # the caller gives up, the request is still on its way
    VANISHED = "vanished"  # it never arrives, and the caller cannot know
    REFUSED = "refused"  # no connection came about: the one failure that is certain


class Card(StrEnum):
    """Payment methods, by what they lead to."""

    GOOD = "good"
    DECLINED = "declined"
    AUTHENTICATED = "authenticated"  # its owner has to act first


@dataclass
class Payment:
    """A payment in the provider's books, in minor units."""

    reference: str
    charge: Charge
    status: str
    captured: int = 0
    refunded: int = 0
    late: bool = False  # captured after the provider had said that it never would be


@dataclass
class Provider(PaymentProvider):
    """One for all processes: it outlives every one of them."""

    fates: list[Fate] = field(default_factory=list)  # of the calls about an order, by its number; none: answered
    numbers: dict[str, int] = field(default_factory=dict)  # of the orders: the order in which calls come is chance
    book: dict[str, Payment] = field(default_factory=dict)
    on_the_way: list[Charge | Refund] = field(default_factory=list)
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    _payment_of_key: dict[str, tuple[datetime, Payment]] = field(default_factory=dict)
    _refund_of_key: dict[str, tuple[datetime, RefundOutcome]] = field(default_factory=dict)
    _refund_of_id: dict[str, RefundOutcome] = field(default_factory=dict)

    semantics = Semantics(key_window_h=24.0, replays_declines=True, finds_by_order=True)

    @override
    async def charge(self, charge: Charge) -> Outcome:
        fate = await self._send(charge)
        if fate is Fate.REFUSED:
            return NotExecuted("refused")
        outcome = self._arrive(charge, fate)
        return self._of(outcome) if isinstance(outcome, Payment) and fate is Fate.ANSWERED else Unknown(fate)

    @override
    async def refund(self, refund: Refund) -> RefundOutcome:
        fate = await self._send(refund)
        if fate is Fate.REFUSED:
            return NotExecuted("refused")
        outcome = self._arrive(refund, fate)
        return outcome if outcome and not isinstance(outcome, Payment) and fate is Fate.ANSWERED else Unknown(fate)

    @override
    async def look_up(self, charge: Charge, reference: str | None = None) -> Outcome:
        if self._fate(charge.order_id) is not Fate.ANSWERED:
            return Unknown("no answer")
        found = [one for one in self.book.values() if one.charge.order_id == charge.order_id]
        return self._of(found[0]) if found else NotExecuted("no such payment")

    @override
    async def cancel(self, charge: Charge, reference: str) -> Outcome:
        fate, payment = self._fate(charge.order_id), self.book[reference]
        if fate in {Fate.ANSWERED, Fate.ANSWER_LOST} and payment.status == "requires_action":
            payment.status = "canceled"
        return self._of(payment) if fate is Fate.ANSWERED else Unknown(fate)

    @override
    async def look_up_refund(self, refund: Refund) -> RefundOutcome:
        if self._fate(refund.order_id) is not Fate.ANSWERED:
            return Unknown("no answer")
        return self._refund_of_id.get(refund.refund_id) or NotExecuted("no such refund")

    @override
    async def payments(self, since: datetime, until: datetime) -> AsyncIterator[PaymentSeen]:
        for one in reversed(self.book.values()):
            charge = one.charge
            yield PaymentSeen(
                one.reference,
                charge.order_id,
                charge.tenant,
                charge.amount,
                charge.currency,
                one.captured,
                one.refunded,
                one.status,
                self.now,
            )

    @override
    async def ping(self) -> None:
        return

    @override
    async def close(self) -> None:
        return

    def deliver(self, request: Charge | Refund) -> None:
        """A request arrives whose sender does not wait any more, or is dead."""
        self.on_the_way.remove(request)
        self._arrive(request, Fate.ANSWER_LOST)

    async def _send(self, request: Charge | Refund) -> Fate:
        self.on_the_way.append(request)
        await reach("C3")
        fate = self._fate(request.order_id)
        if request in self.on_the_way and fate is not Fate.LATE:
            self.on_the_way.remove(request)
        elif fate is Fate.REFUSED:
            return Fate.ANSWER_LOST  # it has arrived meanwhile, so it cannot have been refused
        return fate

    def _fate(self, order_id: str) -> Fate:
        return self.fates[self.numbers[order_id] % len(self.fates)] if self.fates else Fate.ANSWERED

    def _arrive(self, request: Charge | Refund, fate: Fate) -> Payment | RefundOutcome | None:
        if fate in {Fate.LATE, Fate.VANISHED}:
            return None
        return self._charge(request) if isinstance(request, Charge) else self._give_back(request)

    def _charge(self, charge: Charge) -> Payment:
        made_at, payment = self._payment_of_key.get(charge.key, (self.now, None))
        if payment is None or self.now - made_at > KEY_WINDOW:
            statuses = {Card.GOOD: "succeeded", Card.AUTHENTICATED: "requires_action"}
            payment = Payment(f"pi_{len(self.book)}", charge, statuses.get(Card(charge.method), "declined"))
            payment.captured = charge.amount if payment.status == "succeeded" else 0
            self.book[payment.reference] = payment
            self._payment_of_key[charge.key] = (self.now, payment)
        return payment

    def _give_back(self, refund: Refund) -> RefundOutcome:
        given_at, outcome = self._refund_of_key.get(refund.key, (self.now, None))
        if outcome is None or self.now - given_at > KEY_WINDOW:
            payment = self.book[refund.payment_reference]
            outcome = RefundRefused("charge_already_refunded")
            if payment.refunded + refund.amount <= payment.captured:
                payment.refunded += refund.amount
                outcome = Refunded(f"re_{len(self._refund_of_key)}")
            self._refund_of_key[refund.key] = (self.now, outcome)
            self._refund_of_id[refund.refund_id] = outcome
        return outcome

    @staticmethod
    def _of(payment: Payment) -> Outcome:
        outcomes: dict[str, Outcome] = {
            "succeeded": Captured(payment.reference),
            "requires_action": RequiresAction(payment.reference, "secret"),
            "canceled": Cancelled(),
        }
        return outcomes.get(payment.status) or Declined("card_declined", payment.reference)
