"""What a client is told: the order or the problem, as the bytes that are stored with the idempotency key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from pydantic_core import to_json

from services.checkout.domain import Complaint, Order, Shortage, Status
from shared.contracts.envelope import rfc3339

UNKNOWN_RETRY_S = 2
UNAVAILABLE_RETRY_S = 2
ANSWERED_WHILE_OPEN = frozenset({Status.PAYMENT_UNKNOWN, Status.REQUIRES_ACTION})


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and headers of a response. `final` answers are stored and given again to the same key."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)
    final: bool = True
    replayed: bool = False

    @property
    def media_type(self) -> str:
        """Problems and resources have their own."""
        return "application/json" if self.status < 400 else "application/problem+json"  # noqa: PLR2004


def of_order(order: Order) -> Answer:
    """The answer to `POST /v1/orders` for an order in its present state."""
    if order.payment.status == "not_executed":
        return provider_unavailable("it did not take the charge")
    if order.status is Status.FAILED:
        code = order.payment.decline_code
        return problem(
            402,
            "payment_declined",
            "The payment was declined",
            f"the provider declined: {code}",
            decline_code=code,
            order_id=order.id,
        )
    if order.status is Status.EXPIRED:
        detail = "the payment was not authenticated in time; nothing was charged, order again with a new key"
        return problem(402, "payment_expired", "The payment was not authenticated in time", detail, order_id=order.id)
    body = to_json(order_body(order)).decode()
    location = {"Location": f"/v1/orders/{order.id}"}
    if order.status in {Status.PENDING, Status.PAYMENT_UNKNOWN, Status.REQUIRES_ACTION}:
        return Answer(202, body, {**location, "Retry-After": str(UNKNOWN_RETRY_S)}, final=False)
    return Answer(201, body, location)


def order_body(order: Order) -> dict[str, Any]:
    """An order as the API shows it."""
    return {
        "id": order.id,
        "status": order.status,
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
        "metadata": order.metadata,
        "payment": {
            "status": order.payment.status,
            "provider_reference": order.payment.provider_reference,
            "decline_code": order.payment.decline_code,
            "client_secret": order.payment.client_secret,
        },
        "created_at": rfc3339(order.created_at),
        "completed_at": rfc3339(order.completed_at) if order.completed_at else None,
    }


def out_of_stock(shortages: Sequence[Shortage]) -> Answer:
    """Which lines cannot be served, and how many units are left."""
    lines = [{"sku": one.sku, "requested": one.requested, "available": one.available} for one in shortages]
    detail = ", ".join(f"{one.sku}: {one.requested} wanted, {one.available} left" for one in shortages[:5])
    return problem(409, "out_of_stock", "Not enough in stock", detail, lines=lines)


def refused(complaint: Complaint) -> Answer:
    """The request cannot be taken as it is; nothing was written."""
    errors = [{"pointer": complaint.pointer, "detail": complaint.detail}] if complaint.pointer else []
    return problem(
        422,
        complaint.code,
        "The order cannot be taken as it is",
        complaint.detail,
        final=False,
        errors=errors,
    )


def key_reused() -> Answer:
    """The key was first used with another body."""
    detail = "this Idempotency-Key was used with another request; take a new key for a new request"
    return problem(422, "idempotency_key_reused", "Idempotency-Key reused", detail, final=False)


def key_in_use() -> Answer:
    """The first request with the key still runs."""
    detail = "the first request with this Idempotency-Key is still running; repeat this one in a moment"
    headers = {"Retry-After": "1"}
    return problem(409, "idempotency_key_in_use", "Idempotency-Key in use", detail, final=False, headers=headers)


def provider_unavailable(reason: str, retry_after_s: float | None = None) -> Answer:
    """The charge certainly was not executed; stock and key are free again."""
    detail = f"the payment provider cannot be reached ({reason}); nothing was charged, repeat with the same key"
    headers = {"Retry-After": str(ceil(retry_after_s or UNAVAILABLE_RETRY_S))}
    title = "The payment provider is unavailable"
    return problem(503, "payment_provider_unavailable", title, detail, final=False, headers=headers)


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    final: bool = True,
    headers: Mapping[str, str] | None = None,
    **members: object,
) -> Answer:
    """An RFC 9457 problem as an answer."""
    body = {
        "type": f"urn:orderstream:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        **members,
    }
    return Answer(status, to_json(body).decode(), headers or {}, final=final)
