"""Orders and the events that they go through, for tests of the services behind checkout."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from shared.bus.arrivals import Arrival, Event
from shared.bus.delivery import Deliverer
from shared.contracts.envelope import Envelope, encode
from shared.contracts.orders import (
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    ORDER_PAYMENT_FAILED,
    ORDER_REFUNDED,
    schema_of,
)
from shared.runtime.identifiers import new_id, uuid7

NOON = datetime(2026, 3, 14, 12, 0, 30, tzinfo=UTC)


class Order:
    """An order; each method is one thing that happens to it, and returns the event that tells of it."""

    def __init__(
        self,
        *lines: tuple[str, int, int],
        order_id: str | None = None,
        currency: str = "EUR",
        at: datetime = NOON,
    ) -> None:
        """Lines are SKU, quantity and unit price."""
        self.id = order_id or new_id("ord")
        self.currency = currency
        self.created_at = at
        self.lines = [
            {"sku": sku, "name": f"Product {sku}", "quantity": n, "unit_price": price, "subtotal": n * price}
            for sku, n, price in lines or (("SKU-0001", 2, 100),)
        ]
        self.total = sum(n * price for _, n, price in lines) if lines else 200
        self.version = 0
        self.status = "pending"
        self.refunded_total = 0
        self.completed_at: datetime | None = None

    def completed(self, after: timedelta = timedelta(seconds=1)) -> Envelope:
        self.status, self.completed_at = "completed", self.created_at + after
        return self._tell(ORDER_COMPLETED)

    def payment_failed(self) -> Envelope:
        self.status = "failed"
        return self._tell(ORDER_PAYMENT_FAILED, decline_code="card_declined")

    def refunded(self, amount: int) -> Envelope:
        self.refunded_total += amount
        return self._tell(ORDER_REFUNDED, refund_id=new_id("ref"), amount=amount)

    def cancelled(self, reason: str | None = None) -> Envelope:
        self.status, self.refunded_total = "cancelled", self.total
        return self._tell(ORDER_CANCELLED, reason=reason)

    def _tell(self, kind: str, **more: str | int | None) -> Envelope:
        self.version += 1
        state = {
            "order_id": self.id,
            "tenant": "demo",
            "status": self.status,
            "version": self.version,
            "currency": self.currency,
            "total": self.total,
            "refunded_total": self.refunded_total,
            "lines": self.lines,
            "customer": {"email": "ann@example.com", "name": "Ann"},
            "shipping_address": {
                "line1": "Ring 1",
                "city": "Berlin",
                "postal_code": "10115",
                "country": "DE",
            },
            "created_at": self.created_at.isoformat(),
            "completed_at": self.completed_at.isoformat() if self.completed_at else None,
        }
        return Envelope(
            id=uuid7(),
            source="urn:test",
            type=kind,
            subject=self.id,
            time=self.created_at + timedelta(minutes=self.version),
            dataschema=schema_of(kind),
            orderversion=self.version,
            data=state | more,
        )


def arrivals(events: Iterable[Envelope], first: int = 1) -> list[Arrival]:
    """Events as they come out of a stream."""
    return [Arrival(0, first + n, encode(event)) for n, event in enumerate(events)]


def as_handled(deliverer: Deliverer, events: Sequence[Envelope]) -> list[Event]:
    """Events as a handler gets them."""
    sorted_out = [delivery.event for delivery in deliverer.sort(arrivals(events))]
    return [event for event in sorted_out if event]
