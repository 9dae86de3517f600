"""What analytics counts: a fact per order, and the minutes that the facts add up to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from shared.contracts.orders import OrderState

MINUTE = timedelta(minutes=1)
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 1, 1, tzinfo=UTC)  # leaves room for rounding up
MAX_BUCKETS = 5_000  # per currency in one answer: a chart cannot show more

# An order that was taken stays a sale when it is cancelled: its money went back as a refund.
SOLD = frozenset({"completed", "cancelled"})
CANCELLED = "cancelled"


class LineFact(NamedTuple):
    """So many units of a product at so much."""

    sku: str
    quantity: int
    subtotal: int


class Fact(NamedTuple):
    """What is known of an order at one version. A tuple, because half a million a minute are made of them."""

    order_id: str
    version: int
    tenant: str
    status: str
    sold: bool  # the payment was taken, whatever happened afterwards
    currency: str
    total: int
    refunded_total: int
    created_at: datetime
    completed_at: datetime | None
    lines: tuple[LineFact, ...]

    @property
    def happened_at(self) -> datetime:
        """The instant that the order counts at: its completion, or its creation if it never came to that."""
        return self.completed_at or self.created_at


def fact_of(order_id: str, version: int, order: OrderState) -> Fact:
    """The fact that an event tells."""
    return Fact(
        order_id=order_id,
        version=version,
        tenant=order.tenant,
        status=order.status,
        sold=order.status in SOLD,
        currency=order.currency,
        total=order.total,
        refunded_total=order.refunded_total,
        created_at=order.created_at,
        completed_at=order.completed_at,
        lines=tuple([LineFact(line.sku, line.quantity, line.subtotal) for line in order.lines]),
    )


def newest_of_each(facts: Iterable[Fact]) -> list[Fact]:
    """One fact per order, the one with the highest version."""
    newest: dict[str, Fact] = {}
    for fact in facts:
        known = newest.get(fact.order_id)
        if known is None or known.version < fact.version:
            newest[fact.order_id] = fact
    return list(newest.values())


def minute_of(instant: datetime) -> datetime:
    """The start of its minute, UTC."""
    return instant.astimezone(UTC).replace(second=0, microsecond=0)


MinuteKey = tuple[datetime, str]  # minute, currency
ProductKey = tuple[datetime, str, str]  # minute, currency, SKU


@dataclass(slots=True)
class MinuteSums:
    """What the orders of one minute and currency add up to, or by how much that changes."""

    orders: int = 0
    gross: int = 0
    refunded: int = 0
    cancelled: int = 0
    payment_failed: int = 0


@dataclass(slots=True)
class ProductSums:
    """What one product sold in one minute, or by how much that changes."""

    orders: int = 0
    quantity: int = 0
    gross: int = 0


@dataclass(slots=True)
class Changes:
    """By how much roll-ups change when facts are replaced."""

    minutes: dict[MinuteKey, MinuteSums] = field(default_factory=dict)
    products: dict[ProductKey, ProductSums] = field(default_factory=dict)

    def add(self, fact: Fact, sign: int = 1) -> None:
        """Count a fact in, or out again with `sign` -1."""
        key = minute_of(fact.happened_at), fact.currency
        sums = self.minutes.get(key)
        if sums is None:
            sums = self.minutes[key] = MinuteSums()
        if not fact.sold:
            sums.payment_failed += sign
            return
        sums.orders += sign
        sums.gross += sign * fact.total
        sums.refunded += sign * fact.refunded_total
        sums.cancelled += sign * (fact.status == CANCELLED)
        self._add_lines(key, fact.lines, sign)

    def _add_lines(self, key: MinuteKey, lines: Sequence[LineFact], sign: int) -> None:
        for line in lines:
            product = (*key, line.sku)
            sums = self.products.get(product)
            if sums is None:
                sums = self.products[product] = ProductSums()
            sums.orders += sign
            sums.quantity += sign * line.quantity
            sums.gross += sign * line.subtotal


class Bucket(StrEnum):
    """How sales are put together over time; days are UTC days."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"

    @property
    def length(self) -> timedelta:
        """How long one is."""
        return {Bucket.MINUTE: MINUTE, Bucket.HOUR: timedelta(hours=1), Bucket.DAY: timedelta(days=1)}[self]


@dataclass(frozen=True, slots=True)
class Period:
    """The half-open time [start, end)."""

    start: datetime = EARLIEST
    end: datetime = LATEST

    def split(self) -> tuple[Period, list[Period]]:
        """The whole minutes in it, which roll-ups answer, and the rest at its edges, which only facts can."""
        first, last = _ceiling(self.start), minute_of(self.end)
        if first >= last:
            return Period(first, first), [self]
        edges = (Period(self.start, first), Period(last, self.end))
        return Period(first, last), [edge for edge in edges if edge.start < edge.end]

    def buckets(self, bucket: Bucket) -> int:
        """How many buckets it touches, about."""
        return (self.end - self.start) // bucket.length + 1


def _ceiling(instant: datetime) -> datetime:
    floor = minute_of(instant)
    return floor if floor == instant else floor + MINUTE
