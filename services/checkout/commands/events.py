"""From an order to the event that tells of it."""

from __future__ import annotations

from datetime import datetime

from services.checkout.domain import Order
from shared.contracts.envelope import Envelope, rfc3339
from shared.contracts.orders import ORDER_PAYMENT_FAILED, schema_of
from shared.runtime.identifiers import uuid7


def event_of(kind: str, order: Order, at: datetime, source: str, traceparent: str | None, **more: object) -> Envelope:
    """The event of type `kind` with the order's state at its version; `more` is what the type has beside it."""
    return Envelope.model_construct(
        id=uuid7(),
        source=source,
        type=kind,
        subject=order.id,
        time=at,
        dataschema=schema_of(kind),
        orderversion=order.version,
        traceparent=traceparent,
        data=_state(order) | _extras(kind, order) | more,
    )


def _state(order: Order) -> dict[str, object]:
    return {
        "order_id": order.id,
        "tenant": order.tenant,
        "status": str(order.status),
        "version": order.version,
        "currency": order.currency,
        "total": order.total,
        "refunded_total": order.refunded_total,
        "lines": [
            {
                "sku": line.sku,
                "name": line.name,
                "quantity": line.quantity,
                "unit_price": line.unit_price,
                "subtotal": line.subtotal,
            }
            for line in order.lines
        ],
        "customer": order.customer,
        "shipping_address": order.shipping_address,
        "created_at": rfc3339(order.created_at),
        "completed_at": rfc3339(order.completed_at) if order.completed_at else None,
    }


def _extras(kind: str, order: Order) -> dict[str, object]:
    return {"decline_code": order.payment.decline_code} if kind == ORDER_PAYMENT_FAILED else {}
