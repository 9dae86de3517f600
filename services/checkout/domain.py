"""The rules of checkout: orders, their states, prices and stock. No framework, no database."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from shared.contracts.currencies import DECIMALS

# Minor units. What payment providers take: Stripe charges at most eight digits and never nothing.
MIN_TOTAL, MAX_TOTAL = 1, 99_999_999
# Stripe counts ISK and UGX in hundredths and MGA in whole ones: what ISO calls 500 would be charged as 5, or as 50,000.
CHARGEABLE = frozenset(DECIMALS) - {"ISK", "MGA", "UGX"}
CARDS_ROUND = 3  # amounts of currencies with so many decimals end in 0: https://docs.stripe.com/currencies


class Status(StrEnum):
    """The states of an order."""

    PENDING = "pending"
    PAYMENT_UNKNOWN = "payment_unknown"
    REQUIRES_ACTION = "requires_action"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


# Which state may follow which: the same table stands in the database as a trigger.
TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.COMPLETED, Status.FAILED, Status.PAYMENT_UNKNOWN, Status.REQUIRES_ACTION}),
    Status.PAYMENT_UNKNOWN: frozenset({Status.COMPLETED, Status.FAILED, Status.REQUIRES_ACTION}),
    Status.REQUIRES_ACTION: frozenset({Status.COMPLETED, Status.FAILED, Status.EXPIRED}),
    Status.COMPLETED: frozenset({Status.CANCELLED}),
    Status.FAILED: frozenset(),
    Status.EXPIRED: frozenset(),
    Status.CANCELLED: frozenset(),
}

OPEN = frozenset({Status.PENDING, Status.PAYMENT_UNKNOWN, Status.REQUIRES_ACTION})


@dataclass(frozen=True, slots=True)
class Line:
    """One position of an order, at the catalogue's price."""

    sku: str
    name: str
    quantity: int
    unit_price: int

    @property
    def subtotal(self) -> int:
        """Minor units."""
        return self.quantity * self.unit_price


@dataclass(frozen=True, slots=True)
class Payment:
    """The payment of an order: one attempt, under one provider key, with frozen parameters."""

    attempt: int
    provider_key: str
    method: str
    status: str = "created"
    provider_reference: str | None = None
    decline_code: str | None = None
    client_secret: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it stands."""

    id: str
    tenant: str
    status: Status
    version: int
    currency: str
    total: int
    lines: tuple[Line, ...]
    customer: Mapping[str, Any]
    payment: Payment
    created_at: datetime
    idempotency_key: str
    refunded_total: int = 0
    shipping_address: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    completed_at: datetime | None = None

    @property
    def quantities(self) -> dict[str, int]:
        """Units per SKU."""
        return {line.sku: line.quantity for line in self.lines}


@dataclass(frozen=True, slots=True)
class Notice:
    """What the provider says of an order's payment: a reason to ask, and nothing more."""

    event_id: str
    type: str
    order_id: str
    reference: str
    paid: bool  # whether it says that money has moved


class RefundKind(StrEnum):
    """Why money goes back: asked for, with the whole order, or because it came after the order had ended."""

    REFUND = "refund"
    CANCEL = "cancel"
    LATE_SUCCESS = "late_success"


class RefundStatus(StrEnum):
    """The states of a refund; the last two are final."""

    CREATED = "created"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Refund:
    """Money on its way back, under one provider key, with frozen parameters; in minor units."""

    id: str
    order_id: str
    tenant: str
    number: int  # 1, 2, 3 … per order
    kind: RefundKind
    status: RefundStatus
    payment_reference: str
    amount: int
    currency: str
    created_at: datetime
    reason: str | None = None
    idempotency_key: str | None = None
    provider_reference: str | None = None
    refusal: str | None = None
    settled_at: datetime | None = None

    @property
    def provider_key(self) -> str:
        """The provider's idempotency key (at most 64 characters)."""
        return f"refund:{self.order_id}:{self.number}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A line as the client asked for it."""

    sku: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Product:
    """A product and its stock, in units."""

    sku: str
    name: str
    unit_price: int
    currency: str
    available: int
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Complaint:
    """Why an order cannot be taken as it was asked for: `pointer` names the place in the request."""

    code: str
    detail: str
    pointer: str = ""


@dataclass(frozen=True, slots=True)
class Shortage:
    """A line that cannot be served, and how much of it could."""

    sku: str
    requested: int
    available: int


class Shelf:
    """The products of one transaction, with what its commands have taken and given back so far."""

    def __init__(self, products: Mapping[str, Product]) -> None:
        """`products` are locked rows, or remembered ones that are checked before anything is written."""
        self._products = dict(products)
        self.available: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self.sold: dict[str, int] = {}

    def product(self, sku: str) -> Product | None:
        """The product, if the catalogue has it."""
        return self._products.get(sku)

    @property
    def products(self) -> Collection[Product]:
        """The products as they were found."""
        return self._products.values()

    def shortages(self, lines: Sequence[Line]) -> list[Shortage]:
        """The lines that cannot be served from what is left."""
        return [
            Shortage(line.sku, line.quantity, left) for line in lines if (left := self._left(line.sku)) < line.quantity
        ]

    def reserve(self, lines: Sequence[Line]) -> None:
        """Hold all lines; the caller has looked at `shortages`."""
        for line in lines:
            _add(self.available, line.sku, -line.quantity)
            _add(self.reserved, line.sku, line.quantity)

    def sell(self, lines: Sequence[Line]) -> None:
        """Turn a reservation into a sale."""
        for line in lines:
            _add(self.reserved, line.sku, -line.quantity)
            _add(self.sold, line.sku, line.quantity)

    def release(self, lines: Sequence[Line]) -> None:
        """Give a reservation back."""
        for line in lines:
            _add(self.reserved, line.sku, -line.quantity)
            _add(self.available, line.sku, line.quantity)

    def _left(self, sku: str) -> int:
        return self._products[sku].available + self.available.get(sku, 0)


def price(
    wanted: Sequence[Wanted], currency: str, expected_total: int | None, shelf: Shelf
) -> tuple[Line, ...] | Complaint:
    """The lines at the catalogue's prices, or the first reason why they cannot be priced."""
    lines = []
    for index, want in enumerate(wanted):
        product = shelf.product(want.sku)
        if product is None:
            return Complaint("unknown_sku", f"no product {want.sku}", f"/lines/{index}/sku")
        if product.currency != currency:
            detail = f"{want.sku} is sold in {product.currency}, not in {currency}"
            return Complaint("currency_mismatch", detail, "/currency")
        lines.append(Line(product.sku, product.name, want.quantity, product.unit_price))
    total = sum(line.subtotal for line in lines)
    if not chargeable(total, currency):
        detail = f"the total is {total} minor units; {MIN_TOTAL} to {MAX_TOTAL} can be charged{_whole_steps(currency)}"
        return Complaint("total_not_chargeable", detail, "/lines")
    if expected_total is not None and expected_total != total:
        return Complaint("total_mismatch", f"the total is {total}, not {expected_total}", "/expected_total")
    return tuple(lines)


def chargeable(amount: int, currency: str) -> bool:
    """Whether a payment provider moves so many minor units; of a currency with three decimals, cards know two."""
    return MIN_TOTAL <= amount <= MAX_TOTAL and (amount % 10 == 0 or DECIMALS.get(currency) != CARDS_ROUND)


def charge_key(order_id: str, attempt: int) -> str:
    """The provider's idempotency key of one charge attempt (at most 64 characters)."""
    return f"charge:{order_id}:{attempt}"


def moved(order: Order, status: Status, payment: Payment, at: datetime, *, told: bool) -> Order:
    """The order after a transition; raises ValueError when the table does not allow it.

    `told`: whether the world hears of it. `version` counts these events, so that readers see 1, 2, 3 … per order.
    """
    if status not in TRANSITIONS[order.status]:
        raise ValueError(f"{order.status} -> {status} is no legal transition")
    completed_at = at if status is Status.COMPLETED else order.completed_at
    version = order.version + told
    return replace(order, status=status, payment=payment, version=version, completed_at=completed_at)


def refunded(order: Order, refund: Refund, at: datetime) -> Order:
    """The order after the money of `refund` went back, which the world hears of; raises ValueError like `moved`."""
    cancelled = refund.kind is RefundKind.CANCEL
    after = moved(order, Status.CANCELLED, order.payment, at, told=True) if cancelled else order
    return replace(after, version=order.version + 1, refunded_total=order.refunded_total + refund.amount)


def _whole_steps(currency: str) -> str:
    return ", in steps of 10" if DECIMALS.get(currency) == CARDS_ROUND else ""


def _add(book: dict[str, int], sku: str, quantity: int) -> None:
    book[sku] = book.get(sku, 0) + quantity
