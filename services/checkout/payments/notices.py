"""What the provider reports by itself: signed, and never believed further than that it is time to look.

https://docs.stripe.com/webhooks#verify-manually, https://docs.stripe.com/api/events/object
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from services.checkout.domain import Notice

TOLERANCE_S = 300  # how old a notice may be, or how far ahead its sender's clock: an old one was recorded and replayed
PAID = "payment_intent.succeeded"
TELLING = frozenset({PAID, "payment_intent.payment_failed", "payment_intent.canceled"})
_LONGEST_STAMP = 12  # digits: 30,000 years

Word = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]


class NotGenuineError(Exception):
    """The notice is not the provider's, or not fresh. The text says why, for whoever set the endpoint up."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Subject(_Part):
    id: Word
    metadata: Mapping[str, str]


class _Data(_Part):
    object: _Subject


class _Head(_Part):
    id: Word
    type: Word


class _Event(_Head):
    data: _Data


def verify(body: bytes, signature: str, secrets: Sequence[str], now: datetime) -> None:
    """Raise `NotGenuineError` unless one of `secrets` signed exactly these bytes within the last five minutes."""
    stamps, digests = _read(signature)
    if len(stamps) != 1 or not (stamps[0].isascii() and stamps[0].isdigit() and len(stamps[0]) <= _LONGEST_STAMP):
        raise NotGenuineError("the Stripe-Signature header has no time, or more than one")
    signed = stamps[0].encode() + b"." + body
    expected = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode() for secret in secrets]
    # Every pair is compared, and each in constant time: how long it takes says nothing about how near a guess was.
    matches = [hmac.compare_digest(one, digest) for one in expected for digest in digests]
    if not any(matches):
        raise NotGenuineError("no signature fits the body and a secret of this endpoint")
    if abs(now.timestamp() - int(stamps[0])) > TOLERANCE_S:
        raise NotGenuineError(f"it was signed more than {TOLERANCE_S} s before or after now")


def notice_of(event: object) -> Notice | None:
    """What an event of the provider is about; None when it is nothing to us. Raises ValueError for no event at all."""
    try:
        head = _Head.model_validate(event)
        subject = _Event.model_validate(event).data.object if head.type in TELLING else None
    except ValidationError as error:
        raise ValueError(f"not an event: {error.error_count()} errors") from error
    order_id = subject.metadata.get("order_id") if subject else None
    if subject is None or order_id is None:
        return None
    return Notice(head.id, head.type, order_id, subject.id, paid=head.type == PAID)


def _read(signature: str) -> tuple[list[str], list[bytes]]:
    """The times and the digests of version 1; other versions are for other ways to sign."""
    pairs = [part.strip().partition("=") for part in signature.split(",")]
    stamps = [value for name, _, value in pairs if name == "t"]
    return stamps, [value.encode() for name, _, value in pairs if name == "v1"]
