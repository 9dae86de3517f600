"""The events that the payment sandbox reports, in the shape of Stripe's."""

import os
from typing import Literal, NamedTuple, TypeAlias

from deploy.local.payments.errors import encode
from deploy.local.payments.idempotency import Claim
from deploy.local.payments.journal import Span

API_VERSION = "2026-10-28.endive"

EventType: TypeAlias = Literal[
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.requires_action",
    "payment_intent.canceled",
    "charge.refunded",
]
NOWHERE = Span(0, 0)


class Event(NamedTuple):
    """`object` is where the journal holds the object as it was then."""

    id: str
    type: EventType
    subject: str
    created: int
    idempotency_key: str | None
    object: Span


def new_event(event_type: EventType | None, subject: str, now: float, claim: Claim | None) -> Event | None:
    if event_type is None:
        return None
    key = None if claim is None else claim.key
    return Event("evt_3" + os.urandom(12).hex(), event_type, subject, int(now), key, NOWHERE)


def render(event: Event, obj: bytes) -> bytes:
    body = {
        "id": event.id,
        "object": "event",
        "api_version": API_VERSION,
        "created": event.created,
        "livemode": False,
        "pending_webhooks": 0,
        "request": {"id": None, "idempotency_key": event.idempotency_key},
        "type": event.type,
    }
    return encode(body)[:-1].encode() + b',"data":{"object":' + obj + b"}}"
