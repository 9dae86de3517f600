"""The port to a payment provider: what is asked, and the closed set of what can come of it."""

from __future__ import annotations

from dataclasses import dataclass
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
class NotExecuted:
    """Certain: this call did nothing (no connection came about, or the rate limit refused it)."""

    reason: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody knows whether money moved: a time-out, a reset after sending, a 5xx, an answer that cannot be believed."""

    reason: str


Outcome = Captured | Declined | RequiresAction | NotExecuted | Unknown


@dataclass(frozen=True, slots=True)
class Semantics:
    """What the provider promises about its idempotency keys."""

    key_window_h: float  # it remembers a key for so long; after that the same key would charge again
    replays_declines: bool  # the same key answers a decline with the same decline
    finds_by_order: bool  # a payment can be looked up by our order id


class PaymentProvider(Protocol):
    """A payment provider. No method raises for what the provider or the network does: that is an `Outcome`."""

    semantics: Semantics

    async def charge(self, charge: Charge) -> Outcome:
        """Make the payment, or learn what became of it: the same key may be sent any number of times."""
        ...

    async def look_up(self, charge: Charge) -> Outcome:
        """Find out what became of a charge without ever making one; `NotExecuted` when there is none."""
        ...

    async def ping(self) -> None:
        """Raise unless the provider can be reached."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
