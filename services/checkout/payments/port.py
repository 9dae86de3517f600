"""The port to a payment provider: what is asked, and the closed set of what can come of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Charge:
    """A payment to be made. The parameters are frozen with the key: the same key is never sent with others."""

    key: str  # the provider's idempotency key
    order_id: str
    tenant: str
    amount: int  # minor units
    currency: str
    method: str


@dataclass(frozen=True, slots=True)
class Refund:
    """Money to be given back. As with a charge, the parameters are frozen with the key."""

    key: str  # the provider's idempotency key
    refund_id: str
    order_id: str
    tenant: str
    payment_reference: str  # the captured payment that it is taken from
    amount: int  # minor units
    currency: str


@dataclass(frozen=True, slots=True)
class Captured:
    """The money has moved; the answer was checked against the charge."""

    reference: str


@dataclass(frozen=True, slots=True)
class Declined:
    """The provider refused for good. No money moved, and this key never moves any."""

    code: str
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class RequiresAction:
    """The customer has to authenticate (3-D Secure) before money can move."""

    reference: str
    client_secret: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The payment was voided before any money moved, and none moves any more."""


@dataclass(frozen=True, slots=True)
class NotExecuted:
    """Certain: this call did nothing (no connection came about, or the rate limit refused it)."""

    reason: str
    retry_after_s: float | None = None
    down: bool = False  # the provider could not be reached: what a circuit breaker counts


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody knows whether money moved: a time-out, a reset after sending, a 5xx, an answer that cannot be believed."""

    reason: str
    down: bool = False  # no answer, or a 5xx: what a circuit breaker counts


Outcome = Captured | Declined | RequiresAction | Cancelled | NotExecuted | Unknown


@dataclass(frozen=True, slots=True)
class Refunded:
    """The money is on its way back; the answer was checked against the refund."""

    reference: str


@dataclass(frozen=True, slots=True)
class RefundRefused:
    """The provider refused for good: nothing moved, and this key never moves anything."""

    code: str


RefundOutcome = Refunded | RefundRefused | NotExecuted | Unknown


@dataclass(frozen=True, slots=True)
class PaymentSeen:
    """A payment as the provider's own ledger has it."""

    reference: str
    order_id: str | None  # None: not made by this system
    tenant: str | None
    amount: int  # minor units, as are the next two
    currency: str
    captured: int
    refunded: int
    status: str  # the provider's word
    created: datetime


class PaymentsUnreadableError(Exception):
    """The provider's ledger could not be read to its end: what was read so far proves nothing about the rest."""


@dataclass(frozen=True, slots=True)
class Semantics:
    """What the provider promises. Checkout acts on this alone, so that providers may differ in it.

    While a key is sure to be known, an unknown outcome is learnt by sending it again; later it is looked up, because
    the same key would charge anew. If payments are found by order, a look-up that finds none then ends the order;
    otherwise the order stays unknown, and somebody is alerted. Where declines are not replayed, a key that is sent
    again may capture after all: right for an order that is still open, and no other is charged. What a process that
    slept through all of this captures nonetheless, the provider's ledger shows and a refund gives back.
    """

    key_window_h: float  # it remembers a key for so long; after that the same key would charge again
    replays_declines: bool  # the same key answers a decline with the same decline
    finds_by_order: bool  # a payment can be looked up by our order id


class PaymentProvider(Protocol):
    """A payment provider. Only `payments` raises for what the provider or the network does: the rest is an outcome."""

    semantics: Semantics

    async def charge(self, charge: Charge) -> Outcome:
        """Make the payment, or learn what became of it: the same key may be sent any number of times."""
        ...

    async def look_up(self, charge: Charge, reference: str | None = None) -> Outcome:
        """Find out what became of a charge without ever making one; `NotExecuted` when there is none.

        With the `reference` of a payment the answer is that payment as it is at this moment. Without one the payment
        is searched for, and a search may lag behind.
        """
        ...

    async def cancel(self, charge: Charge, reference: str) -> Outcome:
        """Void a payment that waits for its customer.

        `Cancelled` when it is certain that no money moves any more, `Captured` when it was too late, else `Unknown`.
        """
        ...

    async def refund(self, refund: Refund) -> RefundOutcome:
        """Give money back, or learn what became of it: the same key may be sent any number of times."""
        ...

    async def look_up_refund(self, refund: Refund) -> RefundOutcome:
        """Find out what became of a refund without ever making one; `NotExecuted` when there certainly is none."""
        ...

    def payments(self, since: datetime, until: datetime) -> AsyncIterator[PaymentSeen]:
        """Every payment made from `since` to before `until`, newest first; raises `PaymentsUnreadableError`."""
        ...

    async def ping(self) -> None:
        """Raise unless the provider can be reached."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
