"""Refunds: money back, in parts if wanted, never more than was captured."""

import os
from dataclasses import dataclass
from typing import Any

from deploy.local.payments.errors import InvalidRequest
from deploy.local.payments.intents import Intent

REASONS = frozenset({"duplicate", "fraudulent", "requested_by_customer"})


@dataclass(frozen=True, slots=True)
class Refund:
    id: str
    payment_intent: str
    charge: str | None
    amount: int
    currency: str
    created: int
    reason: str | None
    metadata: tuple[tuple[str, str], ...]


def new_refund(intent: Intent, amount: int | None, reason: str | None, metadata: dict[str, str], now: float) -> Refund:
    """`amount` None refunds all that is left."""
    left = _refundable(intent)
    wanted = left if amount is None else amount
    if wanted > left:
        currency = intent.currency.upper()
        message = f"Refund amount ({wanted} {currency}) is greater than unrefunded amount ({left} {currency})"
        raise InvalidRequest(message, code="amount_too_large", param="amount")
    if reason is not None and reason not in REASONS:
        raise InvalidRequest(f"Invalid reason: must be one of {', '.join(sorted(REASONS))}", param="reason")
    return Refund(
        id="re_3" + os.urandom(12).hex(),
        payment_intent=intent.id,
        charge=intent.charge,
        amount=wanted,
        currency=intent.currency,
        created=int(now),
        reason=reason,
        metadata=tuple(metadata.items()),
    )


def _refundable(intent: Intent) -> int:
    if intent.captured == 0:
        message = f"This PaymentIntent ({intent.id}) does not have a successful charge to refund."
        raise InvalidRequest(message, code="charge_not_refundable", param="payment_intent")
    left = intent.captured - intent.refunded
    if left == 0:
        raise InvalidRequest(f"Charge {intent.charge} has already been refunded.", code="charge_already_refunded")
    return left


def render(refund: Refund) -> dict[str, Any]:
    return {
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "charge": refund.charge,
        "created": refund.created,
        "currency": refund.currency,
        "metadata": dict(refund.metadata),
        "payment_intent": refund.payment_intent,
        "reason": refund.reason,
        "status": "succeeded",
    }


def restore(body: dict[str, Any]) -> Refund:
    return Refund(
        id=body["id"],
        payment_intent=body["payment_intent"],
        charge=body["charge"],
        amount=body["amount"],
        currency=body["currency"],
        created=body["created"],
        reason=body["reason"],
        metadata=tuple(body["metadata"].items()),
    )
