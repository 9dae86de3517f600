"""A payment intent and its rules: which states it goes through and what a card makes of it."""

import copy
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from deploy.local.payments.cards import (
    AUTHENTICATION_FAILED,
    AUTHENTICATION_REQUIRED,
    GENERIC,
    Decline,
    find_card,
)
from deploy.local.payments.errors import InvalidRequest, encode

Status: TypeAlias = Literal[
    "requires_payment_method", "requires_confirmation", "requires_action", "succeeded", "canceled"
]
CONFIRMABLE = frozenset({"requires_payment_method", "requires_confirmation"})
CANCELLABLE = frozenset({"requires_payment_method", "requires_confirmation", "requires_action"})


@dataclass(slots=True)
class Intent:
    """Changed on a copy only (`evolve`), so that a change whose journal line fails has never happened."""

    id: str
    amount: int
    currency: str
    client_secret: str
    created: int
    metadata: tuple[tuple[str, str], ...] = ()
    status: Status = "requires_payment_method"
    payment_method: str | None = None
    description: str | None = None
    receipt_email: str | None = None
    idempotency_key: str | None = None
    charge: str | None = None
    error: dict[str, Any] | None = None
    action: dict[str, Any] | None = None
    cancellation_reason: str | None = None
    refunded: int = 0
    position: int = field(default=-1, compare=False)

    @property
    def captured(self) -> int:
        return self.amount if self.status == "succeeded" else 0

    def meta(self, name: str) -> str | None:
        return next((value for key, value in self.metadata if key == name), None)


def new_intent(amount: int, currency: str, metadata: Mapping[str, str], now: float) -> Intent:
    token = os.urandom(24).hex()
    intent_id = "pi_3" + token[:23]
    return Intent(
        id=intent_id,
        amount=amount,
        currency=currency,
        client_secret=f"{intent_id}_secret_{token[23:]}",
        created=int(now),
        # Interned, here and below: a million charges share the few names instead of carrying a copy each.
        metadata=tuple((sys.intern(name), value) for name, value in metadata.items()),
    )


def evolve(intent: Intent) -> Intent:
    return copy.copy(intent)


def confirm(intent: Intent, *, challengeable: bool, unlucky: bool, challenge_url: str, return_url: str | None) -> None:
    """Try to take the money; `unlucky` is a decline that the fault settings ask for."""
    require_state(intent, CONFIRMABLE, "confirm")
    if intent.payment_method is None:
        message = "You cannot confirm this PaymentIntent because it's missing a payment method."
        raise InvalidRequest(message, code="payment_intent_unexpected_state", param="payment_method")
    card = find_card(intent.payment_method)
    if card.challenge == "always" and challengeable:
        _challenge(intent, challenge_url, return_url)
    elif card.challenge == "always":
        _decline(intent, AUTHENTICATION_REQUIRED)
    else:
        _charge(intent, GENERIC if unlucky and card.decline is None else card.decline)


def authenticate(intent: Intent, *, passed: bool) -> None:
    """The end of 3-D Secure: passed (the card is charged) or failed (another method is needed)."""
    require_state(intent, frozenset({"requires_action"}), "authenticate")
    intent.action = None
    if passed and intent.payment_method is not None:
        _charge(intent, find_card(intent.payment_method).decline)
    else:
        _decline(intent, AUTHENTICATION_FAILED)


def cancel(intent: Intent, reason: str | None) -> None:
    require_state(intent, CANCELLABLE, "cancel")
    intent.status = "canceled"
    intent.cancellation_reason = reason
    intent.action = None


def require_state(intent: Intent, allowed: frozenset[str], verb: str) -> None:
    if intent.status in allowed:
        return
    states = ", ".join(sorted(allowed))
    message = (
        f"You cannot {verb} this PaymentIntent because it has a status of {intent.status}. "
        f"Only a PaymentIntent with one of the following statuses may be used here: {states}."
    )
    raise InvalidRequest(message, code="payment_intent_unexpected_state")


def _challenge(intent: Intent, challenge_url: str, return_url: str | None) -> None:
    url = f"{challenge_url}/{intent.id}?client_secret={intent.client_secret}"
    intent.status = "requires_action"
    intent.error = None
    intent.action = {"type": "redirect_to_url", "redirect_to_url": {"return_url": return_url, "url": url}}


def _charge(intent: Intent, decline: Decline | None) -> None:
    intent.charge = "ch_3" + intent.id[4:]
    if decline is not None:
        _decline(intent, decline)
        return
    intent.status = "succeeded"
    intent.error = None


def _decline(intent: Intent, decline: Decline) -> None:
    """As at Stripe, the method is taken off the intent and stays visible in the error."""
    intent.status = "requires_payment_method"
    error = {"type": "card_error", "code": decline.code, "message": decline.message}
    if decline.decline_code is not None:
        error["decline_code"] = decline.decline_code
    intent.error = {
        **error,
        "payment_method": {"id": intent.payment_method, "object": "payment_method", "type": "card"},
    }
    if intent.charge is not None:
        intent.error["charge"] = intent.charge
    intent.payment_method = None


def render(intent: Intent) -> dict[str, Any]:
    return {
        "id": intent.id,
        "object": "payment_intent",
        "amount": intent.amount,
        "amount_capturable": 0,
        "amount_received": intent.captured,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": intent.cancellation_reason,
        "capture_method": "automatic",
        "client_secret": intent.client_secret,
        "confirmation_method": "automatic",
        "created": intent.created,
        "currency": intent.currency,
        "customer": None,
        "description": intent.description,
        "last_payment_error": intent.error,
        "latest_charge": intent.charge,
        "livemode": False,
        "metadata": dict(intent.metadata),
        "next_action": intent.action,
        "payment_method": intent.payment_method,
        "payment_method_types": ["card"],
        "receipt_email": intent.receipt_email,
        "status": intent.status,
    }


def restore(body: dict[str, Any]) -> Intent:
    """The inverse of `render`, for the replay of the journal (the ledger adds key and refunds)."""
    return Intent(
        id=body["id"],
        amount=body["amount"],
        currency=body["currency"],
        client_secret=body["client_secret"],
        created=body["created"],
        metadata=tuple(body["metadata"].items()),
        status=body["status"],
        payment_method=body["payment_method"],
        description=body["description"],
        receipt_email=body["receipt_email"],
        charge=body["latest_charge"],
        error=body["last_payment_error"],
        action=body["next_action"],
        cancellation_reason=body["cancellation_reason"],
    )


def card_error_body(intent: Intent, rendered: bytes) -> bytes:
    """The 402 answer of a declined confirmation, the intent inside."""
    error = {"doc_url": "https://docs.stripe.com/error-codes", **(intent.error or {})}
    return encode({"error": error})[:-2].encode() + b',"payment_intent":' + rendered + b"}}"


def render_charge(intent: Intent, refunded: int) -> dict[str, Any]:
    return {
        "id": intent.charge,
        "object": "charge",
        "amount": intent.amount,
        "amount_captured": intent.captured,
        "amount_refunded": refunded,
        "captured": intent.captured > 0,
        "created": intent.created,
        "currency": intent.currency,
        "livemode": False,
        "metadata": dict(intent.metadata),
        "paid": intent.captured > 0,
        "payment_intent": intent.id,
        "payment_method": intent.payment_method,
        "refunded": refunded == intent.amount and intent.captured > 0,
        "status": "succeeded" if intent.captured else "failed",
    }


def render_with_charge(intent: Intent) -> dict[str, Any]:
    """With `latest_charge` expanded."""
    charge = None if intent.charge is None else render_charge(intent, intent.refunded)
    return {**render(intent), "latest_charge": charge}
