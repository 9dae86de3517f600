"""What a client is told about refunds and cancellations."""

from __future__ import annotations

from math import ceil
from typing import Any, assert_never

from pydantic_core import to_json

from services.checkout.commands.answers import UNAVAILABLE_RETRY_S, UNKNOWN_RETRY_S, Answer, order_body, problem
from services.checkout.domain import Order, Refund, RefundKind, RefundStatus, Status
from shared.contracts.envelope import rfc3339

NOT_EXECUTED = "not_executed"  # a refusal that is no provider's: the call certainly did nothing


def of_refund(order: Order, refund: Refund) -> Answer:
    """The answer to the request that asked for `refund`, in its present state."""
    match refund.status:
        case RefundStatus.SUCCEEDED:
            return _done(order, refund)
        case RefundStatus.REFUSED if refund.refusal == NOT_EXECUTED:
            return provider_unavailable()
        case RefundStatus.REFUSED:
            return _refused(refund)
        case RefundStatus.CREATED | RefundStatus.UNKNOWN:
            headers = {"Location": location(refund), "Retry-After": str(UNKNOWN_RETRY_S)}
            return Answer(202, _body(order, refund), headers, final=False)
    assert_never(refund.status)


def location(refund: Refund) -> str:
    """Where to look for what comes of it."""
    order = f"/v1/orders/{refund.order_id}"
    return order if refund.kind is RefundKind.CANCEL else f"{order}/refunds/{refund.id}"


def refund_body(refund: Refund) -> dict[str, Any]:
    """A refund as the API shows it."""
    return {
        "id": refund.id,
        "order_id": refund.order_id,
        "kind": refund.kind,
        "status": refund.status,
        "amount": refund.amount,
        "currency": refund.currency,
        "reason": refund.reason,
        "provider_reference": refund.provider_reference,
        "refusal_code": refund.refusal,
        "created_at": rfc3339(refund.created_at),
        "settled_at": rfc3339(refund.settled_at) if refund.settled_at else None,
    }


def cancelled(order: Order) -> Answer:
    """The order is over, its money and its stock are back."""
    return Answer(200, to_json(order_body(order)).decode())


def no_such_order() -> Answer:
    """Missing and somebody else's look the same."""
    return problem(404, "not_found", "Not found", "No such order.", final=False)


def not_cancellable(status: Status) -> Answer:
    """Only a completed order can be cancelled."""
    detail = f"the order is {status}; only a completed one can be cancelled"
    title = "The order cannot be cancelled"
    return problem(409, "not_cancellable", title, detail, final=False, order_status=status)


def not_refundable(status: Status) -> Answer:
    """Only of a completed order can money be given back."""
    detail = f"the order is {status}; only a completed one can be refunded"
    title = "The order cannot be refunded"
    return problem(422, "not_refundable", title, detail, final=False, order_status=status)


def exceeds_total(order: Order, left: int) -> Answer:
    """More than what is left was asked for."""
    detail = f"{left} of {order.total} {order.currency} minor units are left to be refunded"
    return problem(422, "refund_exceeds_total", "More than what is left", detail, final=False, refundable=left)


def in_progress() -> Answer:
    """Another refund has to be settled first: what is left depends on it."""
    detail = "another refund of this order is under way; repeat this request in a moment"
    headers = {"Retry-After": str(UNKNOWN_RETRY_S)}
    return problem(409, "refund_in_progress", "A refund is under way", detail, final=False, headers=headers)


def provider_unavailable(retry_after_s: float | None = None) -> Answer:
    """The refund certainly was not executed, and the key is free again."""
    detail = "the payment provider cannot be reached; nothing was refunded, repeat with the same key"
    headers = {"Retry-After": str(ceil(retry_after_s or UNAVAILABLE_RETRY_S))}
    title = "The payment provider is unavailable"
    return problem(503, "payment_provider_unavailable", title, detail, final=False, headers=headers)


def _done(order: Order, refund: Refund) -> Answer:
    if refund.kind is RefundKind.CANCEL:
        return cancelled(order)
    return Answer(201, _body(order, refund), {"Location": location(refund)})


def _refused(refund: Refund) -> Answer:
    status = 409 if refund.kind is RefundKind.CANCEL else 422
    detail = f"the payment provider refused: {refund.refusal}; nothing was refunded"
    return problem(status, "refund_refused", "The refund was refused", detail, refusal_code=refund.refusal)


def _body(order: Order, refund: Refund) -> str:
    shown = order_body(order) if refund.kind is RefundKind.CANCEL else refund_body(refund)
    return to_json(shown).decode()
