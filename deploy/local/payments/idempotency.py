"""Idempotency keys as Stripe keeps them: the first answer again, nothing else with that key, for 24 hours."""

import hashlib
from typing import NamedTuple

from deploy.local.payments.errors import InvalidRequest, KeyInUse, KeyMismatch
from deploy.local.payments.form import Pairs
from deploy.local.payments.journal import Span

MAX_KEY_CHARACTERS = 255
KEPT_SECONDS = 24 * 3600  # Stripe may forget a key after 24 hours; the sandbox does, so that nobody relies on more


class Claim(NamedTuple):
    """One request's hold on a key while it runs, and what it is journalled with."""

    key: str
    path: str
    fingerprint: str


class Stored(NamedTuple):
    path: str
    fingerprint: str
    status: int
    answer: Span
    stored_at: int


def fingerprint(pairs: Pairs) -> str:
    """Of the parameters, not of the bytes: the order in which they were sent does not matter."""
    return hashlib.blake2b(repr(sorted(pairs)).encode(), digest_size=12).hexdigest()


class Keys:
    def __init__(self) -> None:
        self._stored: dict[str, Stored] = {}
        self._running: set[str] = set()

    def __len__(self) -> int:
        return len(self._stored)

    def claim(self, claim: Claim, now: float) -> Stored | None:
        """The stored answer, or None with the key held until `release`. Raises KeyMismatch and KeyInUse."""
        if len(claim.key) > MAX_KEY_CHARACTERS:
            raise InvalidRequest(f"Idempotency-Key is longer than {MAX_KEY_CHARACTERS} characters")
        stored = self._stored.get(claim.key)
        if stored is not None and now - stored.stored_at < KEPT_SECONDS:
            _check_same(stored, claim)
            return stored
        if claim.key in self._running:
            message = (
                f"There is currently another in-progress request using this Stripe-Idempotency-Key "
                f"(that probably means you submitted twice, the other request is still running): {claim.key}"
            )
            raise KeyInUse(message, code="idempotency_key_in_use")
        self._running.add(claim.key)
        return None

    def release(self, claim: Claim) -> None:
        self._running.discard(claim.key)

    def store(self, claim: Claim, status: int, answer: Span, now: int) -> None:
        self._stored[claim.key] = Stored(claim.path, claim.fingerprint, status, answer, now)

    def forget_all(self) -> int:
        count = len(self._stored)
        self._stored.clear()
        return count


def _check_same(stored: Stored, claim: Claim) -> None:
    if stored.path != claim.path:
        raise KeyMismatch(
            "Keys for idempotent requests can only be used for the same endpoint they were first used for "
            f"('{claim.path}' vs '{stored.path}'). Try using a key other than '{claim.key}' "
            "if you meant to execute a different request."
        )
    if stored.fingerprint != claim.fingerprint:
        raise KeyMismatch(
            "Keys for idempotent requests can only be used with the same parameters they were first used "
            f"with. Try using a key other than '{claim.key}' if you meant to execute a different request."
        )
