"""The two transactions around a refund: the intent before the provider is asked, the outcome after it has answered.

Both take their locks in the order that everybody keeps: order → key → products → inserts → the event log's head.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, assert_never

import structlog

from services.checkout.commands import refund_answers
from services.checkout.commands.answers import Answer
from services.checkout.commands.events import event_of
from services.checkout.commands.place_order import KeyTaken
from services.checkout.domain import Order, Refund, RefundKind, RefundStatus, Status, refunded
from services.checkout.payments.port import NotExecuted, Refunded, RefundOutcome, RefundRefused, Unknown
from services.checkout.store import idempotency, orders, refunds
from services.checkout.store.idempotency import Claim, FinalAnswer, StoredAnswer
from services.checkout.store.orders import Transition
from services.checkout.store.refunds import Account
from shared.contracts.envelope import Envelope
from shared.contracts.orders import ORDER_CANCELLED, ORDER_REFUNDED
from shared.runtime.driver import write_together
from shared.runtime.identifiers import new_id
from shared.runtime.statements import Write

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from shared.bus.log import EventLog

log = structlog.get_logger()

LATE = "the payment succeeded after the order had ended"
ENDED_UNPAID = frozenset({Status.FAILED, Status.EXPIRED})


@dataclass(frozen=True, slots=True)
class GiveBack:
    """A valid request to refund an order in part, or (`kind` cancel) to refund what is left and end it."""

    kind: RefundKind
    order_id: str
    tenant: str
    key: str
    request_sha256: bytes
    at: datetime
    amount: int | None = None  # minor units; None is all that is left
    reason: str | None = None
    traceparent: str | None = None

    @property
    def claim(self) -> Claim:
        """The key stands for this call on this order too, so the same body elsewhere is another request."""
        meant = f"{self.kind}:{self.order_id}:".encode() + self.request_sha256
        return Claim(self.tenant, self.key, hashlib.sha256(meant).digest())


@dataclass(frozen=True, slots=True)
class Begun:
    """The intent is committed and belongs to this process until its lease runs out."""

    refund: Refund
    lease_token: int = 1


@dataclass(frozen=True, slots=True)
class SettleRefund:
    """What came of a refund, found out under a lease."""

    refund: Refund
    lease_token: int
    outcome: RefundOutcome
    at: datetime
    cause: str = "request"
    traceparent: str | None = None
    again_in_s: float = 1.0  # while the outcome is unknown: when to ask again

    @property
    def after(self) -> Refund:
        """The refund as the outcome leaves it."""
        match self.outcome:
            case Refunded(reference):
                return self._ended(RefundStatus.SUCCEEDED, provider_reference=reference)
            case RefundRefused(code):
                return self._ended(RefundStatus.REFUSED, refusal=code)
            case NotExecuted():
                return self._ended(RefundStatus.REFUSED, refusal=refund_answers.NOT_EXECUTED)
            case Unknown():
                return replace(self.refund, status=RefundStatus.UNKNOWN)
        assert_never(self.outcome)

    def _ended(
        self, status: RefundStatus, *, provider_reference: str | None = None, refusal: str | None = None
    ) -> Refund:
        return replace(
            self.refund,
            status=status,
            provider_reference=provider_reference,
            refusal=refusal,
            settled_at=self.at,
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """The outcome is committed."""

    refund: Refund
    answer: Answer


class RefundBook:
    """Writes refunds. Every method works inside the caller's transaction."""

    def __init__(self, event_log: EventLog, source: str, lease_s: float) -> None:
        """`source` names this checkout in every event; `lease_s` must be longer than the slowest refund."""
        self._log = event_log
        self._source = source
        self._lease_s = lease_s

    async def begin(self, connection: AsyncConnection, command: GiveBack) -> Begun | KeyTaken | Answer:
        """Claim the key and write the intent, or say why not; an order with nothing left is cancelled at once."""
        order = await refunds.lock_order(connection, command.order_id, command.tenant)
        if order is None:
            return refund_answers.no_such_order()
        claim = command.claim
        if not await idempotency.claim_one(connection, claim):
            stored = await idempotency.find(connection, claim.tenant, claim.key)
            # None: the transaction that held the key gave it back this very moment. In use, for one more moment.
            return KeyTaken(stored or StoredAnswer(claim.request_sha256, None, None, None))
        account = await refunds.account(connection, order.id)
        if objection := _objection(command, order, account):
            await write_together(connection, [idempotency.free([(claim.tenant, claim.key)])])
            return objection
        refund = _intent(command, order, account)
        if refund.amount == 0:
            return await self._cancel_refunded(connection, order, refund, command.traceparent)
        written = await refunds.insert(connection, refund, self._lease_s)
        return Begun(written or refund)

    async def begin_reversal(self, connection: AsyncConnection, order_id: str, reference: str, at: datetime) -> bool:
        """Write the intent to give a late payment back, due at once; False when there is none to be written.

        Once per order and payment, and only for an order that ended unpaid.
        """
        order = await refunds.lock_order(connection, order_id)
        if order is None or order.status not in ENDED_UNPAID:
            return False
        account = await refunds.account(connection, order.id)
        number = account.last_number + 1
        refund = _refund(order, RefundKind.LATE_SUCCESS, number, reference, order.total, at, reason=LATE)
        return await refunds.insert(connection, refund, lease_s=0) is not None

    async def settle(self, connection: AsyncConnection, command: SettleRefund) -> Settled | None:
        """Record the outcome and everything that follows from it; None when somebody else took the refund over."""
        order = await refunds.lock_order(connection, command.refund.order_id)
        if order is None:
            raise LookupError(command.refund.order_id)
        refund = command.after
        again = command.again_in_s if refund.status is RefundStatus.UNKNOWN else None
        if not await refunds.settle(connection, refund, command.lease_token, again):
            return None
        if refund.status is RefundStatus.SUCCEEDED:
            answer = await self._give_back(connection, order, refund, command.cause, command.traceparent)
        else:
            answer = _not_given(order, refund, command.outcome)
            await write_together(connection, _key_writes(refund, answer))
        return Settled(refund, answer)

    async def _cancel_refunded(
        self, connection: AsyncConnection, order: Order, refund: Refund, traceparent: str | None
    ) -> Answer:
        """All money went back before: there is nothing to ask the provider for, and no refund to be written."""
        done = replace(refund, status=RefundStatus.SUCCEEDED, settled_at=refund.created_at)
        return await self._give_back(connection, order, done, "request", traceparent)

    async def _give_back(
        self, connection: AsyncConnection, order: Order, refund: Refund, cause: str, traceparent: str | None
    ) -> Answer:
        """The money is on its way: count it, take the goods back if the order ends, tell the world, answer the key."""
        at = refund.settled_at or refund.created_at
        after = refunded(order, refund, at)
        answer = refund_answers.of_refund(after, refund)
        await refunds.update_order(connection, after)
        if after.status is Status.CANCELLED:
            await refunds.take_stock_back(connection, order)
        entry = f"{cause}: {refund.kind} of {refund.amount} {refund.currency}"
        writes = [orders.audit([Transition(order.id, order.status, after.status, after.version, entry)])]
        writes += _key_writes(refund, answer)
        await write_together(connection, writes)
        # Takes the log's lock: always last.
        await self._log.append(connection, [_event(after, refund, at, self._source, traceparent)])
        return answer


def _objection(command: GiveBack, order: Order, account: Account) -> Answer | None:
    left = order.total - account.promised
    if command.kind is RefundKind.CANCEL:
        if order.status is not Status.COMPLETED:
            return refund_answers.not_cancellable(order.status)
        return refund_answers.in_progress() if account.open else None
    if order.status is not Status.COMPLETED:
        return refund_answers.not_refundable(order.status)
    if account.cancelling:
        return refund_answers.in_progress()
    if (command.amount or 1) > left:
        return refund_answers.exceeds_total(order, left)
    return None


def _intent(command: GiveBack, order: Order, account: Account) -> Refund:
    reference = order.payment.provider_reference
    if reference is None:
        raise LookupError(f"{order.id} is completed without a payment reference")
    amount = order.total - account.promised if command.amount is None else command.amount
    number = account.last_number + 1
    return _refund(order, command.kind, number, reference, amount, command.at, command.reason, command.key)


def _refund(
    order: Order,
    kind: RefundKind,
    number: int,
    reference: str,
    amount: int,
    at: datetime,
    reason: str | None = None,
    key: str | None = None,
) -> Refund:
    return Refund(
        id=new_id("rfd"),
        order_id=order.id,
        tenant=order.tenant,
        number=number,
        kind=kind,
        status=RefundStatus.CREATED,
        payment_reference=reference,
        amount=amount,
        currency=order.currency,
        created_at=at,
        reason=reason,
        idempotency_key=key,
    )


def _not_given(order: Order, refund: Refund, outcome: RefundOutcome) -> Answer:
    if isinstance(outcome, NotExecuted):
        return refund_answers.provider_unavailable(outcome.retry_after_s)
    return refund_answers.of_refund(order, refund)


def _key_writes(refund: Refund, answer: Answer) -> list[Write]:
    """Answer the key for good, give it back, or leave it to the one who finds out."""
    key = refund.idempotency_key
    if key is None:
        return []
    if answer.final:
        return [idempotency.answer([FinalAnswer(refund.tenant, key, answer.status, answer.body)])]
    return [idempotency.free([(refund.tenant, key)])] if refund.status is RefundStatus.REFUSED else []


def _event(order: Order, refund: Refund, at: datetime, source: str, traceparent: str | None) -> Envelope:
    if refund.kind is RefundKind.CANCEL:
        return event_of(ORDER_CANCELLED, order, at, source, traceparent, reason=refund.reason)
    told = {"refund_id": refund.id, "amount": refund.amount, "reason": refund.reason}
    return event_of(ORDER_REFUNDED, order, at, source, traceparent, **told)
