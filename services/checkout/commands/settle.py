"""Settle: record the charge's outcome, sell or release, append the event, store the answer, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, assert_never

from services.checkout.commands import answers
from services.checkout.commands.answers import Answer
from services.checkout.commands.events import event_of
from services.checkout.domain import OPEN, Order, Payment, Shelf, Status, moved
from services.checkout.payments.port import (
    Cancelled,
    Captured,
    Declined,
    NotExecuted,
    Outcome,
    RequiresAction,
    Unknown,
)
from services.checkout.store.orders import Change
from shared.contracts.orders import ORDER_COMPLETED, ORDER_PAYMENT_FAILED

if TYPE_CHECKING:
    from services.checkout.commands.batch import Work


@dataclass(frozen=True, slots=True)
class Settle:
    """What came of an order's charge, found out under a lease."""

    order: Order
    lease_token: int
    outcome: Outcome
    at: datetime
    cause: str = "charge"
    traceparent: str | None = None
    again_in_s: float = 1.0  # while the outcome is open: when to ask again
    hold_s: float | None = None  # how long the customer gets from now on; None: what the order was placed with

    @property
    def change(self) -> Change:
        """The transition that the outcome asks for."""
        status, payment, told = _consequence(self.order, self.outcome)
        if status is self.order.status:  # still open: only the time of the next look changes
            return Change(self.order, self.order, self.lease_token, self.again_in_s)
        after = moved(self.order, status, payment, self.at, told=told)
        again = self.again_in_s if status in OPEN else None
        return Change(self.order, after, self.lease_token, again, self.hold_s)


@dataclass(frozen=True, slots=True)
class Settled:
    """The transition is committed."""

    order: Order
    answer: Answer


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Somebody else took the order over in the meantime: nothing was written, look at the order again."""


SettleResult = Settled | Overtaken


def first_of_each_order(commands: Mapping[int, Settle]) -> dict[str, int]:
    """The number of the command that came first, for each order.

    An order settled twice in one batch (a slow call and its recovery): the first wins, as it would in two batches.
    """
    return {command.order.id: n for n, command in reversed([*commands.items()])}


def settle(command: Settle, change: Change | None, shelf: Shelf, work: Work) -> SettleResult:
    """Sell or release, tell the world, answer the key; what is to be written goes into `work`."""
    if change is None:
        return Overtaken()
    before, after = change.before, change.after
    answer = _answer(after, command.outcome)
    if after.status is before.status:
        return Settled(after, answer)
    if after.status is Status.COMPLETED:
        shelf.sell(after.lines)
    elif after.status not in OPEN:
        shelf.release(after.lines)
    work.settled.append(after)
    work.audit(after, before.status, f"{command.cause}: {type(command.outcome).__name__}")
    if after.version > before.version:
        kind = ORDER_COMPLETED if after.status is Status.COMPLETED else ORDER_PAYMENT_FAILED
        work.events.append(event_of(kind, after, command.at, work.source, command.traceparent))
    if answer.final:
        work.answer(after.tenant, after.idempotency_key, answer)
    elif after.status is Status.FAILED:
        work.free.append((after.tenant, after.idempotency_key))
    return Settled(after, answer)


def recalled(command: Settle, found: Order) -> SettleResult | None:
    """What became of a command whose COMMIT got no answer, seen from the order as it is now."""
    after = command.change.after
    if found.status is after.status and found.version == after.version:
        return Settled(after, _answer(after, command.outcome))
    return None


def _consequence(order: Order, outcome: Outcome) -> tuple[Status, Payment, bool]:
    """New status, new payment, and whether the world hears of it."""
    payment = order.payment
    match outcome:
        case Captured(reference):
            found = Status.COMPLETED, replace(payment, status="captured", provider_reference=reference), True
        case Declined(code, reference):
            declined = replace(payment, status="declined", decline_code=code, provider_reference=reference)
            found = Status.FAILED, declined, True
        case NotExecuted():
            # Nothing happened and the client is asked to come again: no reason to write a mail.
            found = Status.FAILED, replace(payment, status="not_executed"), False
        case RequiresAction(reference, secret):
            waiting = replace(payment, status="requires_action", provider_reference=reference, client_secret=secret)
            found = Status.REQUIRES_ACTION, waiting, False
        case Cancelled():
            found = _of_voided(order)
        case Unknown():
            found = _of_unknown(order)
        case _:
            assert_never(outcome)
    return found


def _of_voided(order: Order) -> tuple[Status, Payment, bool]:
    if order.status is Status.REQUIRES_ACTION:
        return Status.EXPIRED, replace(order.payment, status="cancelled"), True
    # Not by us: we void only what waits for its customer.
    return Status.FAILED, replace(order.payment, status="cancelled", decline_code="canceled"), True


def _of_unknown(order: Order) -> tuple[Status, Payment, bool]:
    if order.status is Status.REQUIRES_ACTION:
        return order.status, order.payment, False  # it still waits for its customer, for all that anybody knows
    return Status.PAYMENT_UNKNOWN, replace(order.payment, status="unknown"), False


def _answer(order: Order, outcome: Outcome) -> Answer:
    if isinstance(outcome, NotExecuted):
        return answers.provider_unavailable(outcome.reason, outcome.retry_after_s)
    return answers.of_order(order)
