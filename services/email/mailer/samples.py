from __future__ import annotations

from datetime import UTC, datetime

from services.email.domain import KINDS, Kind
from shared.contracts.orders import EVENTS, OrderState

_EVENT_OF = {kind: event for event, kind in KINDS.items()}


def sample(kind: Kind, currency: str) -> OrderState:
    """An order to look at a template with."""
    placed = datetime(2026, 1, 31, 9, 15, tzinfo=UTC)
    extra = {"refund_id": "ref_sample", "amount": 4900} if kind is Kind.REFUNDED else {}
    return EVENTS[_EVENT_OF[kind]].model_validate(
        {
            "order_id": "ord_0123456789abcdefghjkmnpqrs",
            "tenant": "sample",
            "status": "completed",
            "version": 1,
            "currency": currency,
            "total": 14800,
            "refunded_total": {Kind.REFUNDED: 4900, Kind.CANCELLED: 14800}.get(kind, 0),
            "lines": [
                {"sku": "SKU-0050", "name": "Desk lamp", "quantity": 2, "unit_price": 4950, "subtotal": 9900},
                {
                    "sku": "LIMITED-1",
                    "name": "Print <No. 1>",
                    "quantity": 1,
                    "unit_price": 4900,
                    "subtotal": 4900,
                },
            ],
            "customer": {"email": "ann@example.com", "name": "Ann Example"},
            "shipping_address": {
                "line1": "1 Example Street",
                "city": "Berlin",
                "postal_code": "10115",
                "country": "DE",
            },
            "created_at": placed,
            "completed_at": placed,
            **extra,
        }
    )
