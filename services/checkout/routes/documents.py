"""What the OpenAPI document says about answers. Nothing here runs while a request is served."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, BaseModel

from services.checkout.domain import RefundKind, RefundStatus, Status
from services.checkout.routes.models import IDEMPOTENCY_KEY
from shared.web.docs import problem_document
from shared.web.pages import Page

Responses = dict[int | str, dict[str, Any]]


class LineOut(BaseModel):
    """A line of an order, at the price it was sold for."""

    sku: str
    name: str
    quantity: int
    unit_price: int
    subtotal: int


class PaymentOut(BaseModel):
    """The payment of an order."""

    status: str
    provider_reference: str | None
    decline_code: str | None
    client_secret: str | None


class CustomerOut(BaseModel):
    """Who ordered."""

    email: str
    name: str | None = None


class AddressOut(BaseModel):
    """Where the goods go."""

    line1: str
    line2: str | None = None
    city: str
    postal_code: str
    region: str | None = None
    country: str


class OrderOut(BaseModel):
    """An order as it stands; amounts are in minor units of the currency."""

    id: str
    status: Status
    version: int
    currency: str
    total: int
    refunded_total: int
    lines: list[LineOut]
    customer: CustomerOut
    shipping_address: AddressOut | None
    metadata: dict[str, str]
    payment: PaymentOut
    created_at: AwareDatetime
    completed_at: AwareDatetime | None


class RefundOut(BaseModel):
    """Money that goes back; the amount is in minor units of the currency."""

    id: str
    order_id: str
    kind: RefundKind
    status: RefundStatus
    amount: int
    currency: str
    reason: str | None
    provider_reference: str | None
    refusal_code: str | None
    created_at: AwareDatetime
    settled_at: AwareDatetime | None


class ProductOut(BaseModel):
    """A product and its stock, in units."""

    sku: str
    name: str
    unit_price: int
    currency: str
    available: int
    reserved: int


class StockOut(BaseModel):
    """The stock of a product, in units."""

    sku: str
    available: int
    reserved: int


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_REPLAYED = {"Idempotency-Replayed": _header("`true` when this is the first answer again")}
_LOCATION = {"Location": _header("where the order is")}
_RETRY_AFTER = {"Retry-After": _header("seconds to wait")}

# Added to operations by `openapi_extra`: the routes themselves answer a missing key with 400, not with FastAPI's 422.
WITH_KEY: dict[str, Any] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": True,
            "description": "1 to 255 printable ASCII characters, bare or quoted; a new one per intent",
            "schema": {"type": "string", "minLength": 1, "maxLength": 257, "pattern": f"^(?:{IDEMPOTENCY_KEY})$"},
        }
    ]
}

PLACE: Responses = {
    201: {"model": OrderOut, "description": "Paid and completed", "headers": _LOCATION | _REPLAYED},
    202: {
        "model": OrderOut,
        "description": "The outcome of the payment is not known yet (`payment_unknown`), or the customer has to act "
        "(`requires_action`): read the order again",
        "headers": _LOCATION | _RETRY_AFTER,
    },
    402: problem_document(
        "`payment_declined`: nothing was charged, and the key repeats it; `decline_code` is the provider's, and "
        "`invalid_payment_method` when it knows no such method: order again with another method and a new key. "
        "`payment_expired`: the customer did not authenticate in time",
        headers=_REPLAYED,
        decline_code={"type": ["string", "null"]},
        order_id={"type": "string"},
    ),
    409: problem_document(
        "`out_of_stock`, with the lines and what is left; `idempotency_key_in_use`",
        headers=_RETRY_AFTER | _REPLAYED,
        lines={
            "type": "array",
            "items": {
                "type": "object",
                "required": ["sku", "requested", "available"],
                "properties": {
                    "sku": {"type": "string"},
                    "requested": {"type": "integer"},
                    "available": {"type": "integer"},
                },
            },
        },
    ),
    429: problem_document("`rate_limited`: the key is free, nothing was done", headers=_RETRY_AFTER),
    503: problem_document(
        "`overloaded`: nothing was done, and the key is free; `payment_provider_unavailable`, `service_unavailable`: "
        "nothing was charged, or the same key finds out",
        headers=_RETRY_AFTER,
    ),
}
WEBHOOK: Responses = {
    400: problem_document("`webhook_not_genuine`, `malformed_json`, `not_an_event`: nothing was done"),
    404: problem_document("`webhooks_off`: no secret is set"),
    413: problem_document("`body_too_large`"),
}
SIGNED_EVENT: dict[str, Any] = {
    "parameters": [
        {
            "name": "Stripe-Signature",
            "in": "header",
            "required": True,
            "description": "`t=<time>,v1=<HMAC-SHA256 of time, dot and body>`, not older than five minutes",
            "schema": {"type": "string", "pattern": "^t=[0-9]{10},v1=[0-9a-f]{64}$"},
        }
    ],
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
}
READ_ORDER: Responses = {200: {"model": OrderOut}}
ORDERS: Responses = {200: {"model": Page[OrderOut]}}
_REFUND_PARTS: dict[str, Any] = {"order_status": {"type": "string"}, "refusal_code": {"type": ["string", "null"]}}
_REFUNDS_503 = problem_document(
    "`payment_provider_unavailable`, `service_unavailable`: nothing was given back, or the same key finds out",
    headers=_RETRY_AFTER,
)
CANCEL: Responses = {
    200: {"model": OrderOut, "description": "Cancelled: money and stock are back", "headers": _REPLAYED},
    202: {
        "model": OrderOut,
        "description": "It is not known yet whether the money went back: read the order again, or repeat the request",
        "headers": _LOCATION | _RETRY_AFTER,
    },
    409: problem_document(
        "`not_cancellable`: the order is not completed; `refund_in_progress`, `idempotency_key_in_use`: try again; "
        "`refund_refused` by the payment provider",
        headers=_RETRY_AFTER | _REPLAYED,
        **_REFUND_PARTS,
    ),
    503: _REFUNDS_503,
}
REFUND: Responses = {
    201: {"model": RefundOut, "description": "Given back", "headers": _LOCATION | _REPLAYED},
    202: {
        "model": RefundOut,
        "description": "It is not known yet whether the money went back: read the refund, or repeat the request",
        "headers": _LOCATION | _RETRY_AFTER,
    },
    409: problem_document(
        "`refund_in_progress`: a cancellation is; `idempotency_key_in_use`; try again", headers=_RETRY_AFTER
    ),
    422: problem_document(
        "`refund_exceeds_total`, with what is left; `not_refundable`: the order is not completed; `refund_refused` by "
        "the payment provider; `validation_failed`, `idempotency_key_reused`",
        headers=_REPLAYED,
        refundable={"type": "integer"},
        **_REFUND_PARTS,
    ),
    503: _REFUNDS_503,
}
REFUNDS: Responses = {200: {"model": Page[RefundOut]}}
READ_REFUND: Responses = {200: {"model": RefundOut}}
PRODUCTS: Responses = {200: {"model": Page[ProductOut]}}
READ_PRODUCT: Responses = {200: {"model": ProductOut}}
PUT_PRODUCT: Responses = {
    200: {"model": ProductOut, "description": "Changed"},
    201: {"model": ProductOut, "description": "Created"},
}
ADJUST: Responses = {
    200: {"model": StockOut, "headers": _REPLAYED},
    409: problem_document(
        "`below_zero`, `idempotency_key_in_use`",
        headers=_RETRY_AFTER | _REPLAYED,
        available={"type": "integer"},
    ),
}


class SubscriptionOut(BaseModel):
    """How far a service is with one partition of the log."""

    name: str
    partition: int
    head: int
    cursor: int
    settled: int
    backlog: int
    created_at: AwareDatetime
    moved_at: AwareDatetime


class PartitionsOut(BaseModel):
    """How many partitions the log has."""

    partitions: int


class SpanOut(BaseModel):
    """What comes again of one partition: as many events behind a position."""

    partition: int
    position: int
    events: int


class RewoundOut(BaseModel):
    """What comes again, or would."""

    name: str
    events: int
    replay: bool
    dry_run: bool
    items: list[SpanOut]


class EventOut(BaseModel):
    """An event where it stands in the log."""

    partition: int
    position: int
    created_at: AwareDatetime
    event: dict[str, Any]


class SubscribedOut(BaseModel):
    """A subscription as it was asked for."""

    name: str


SUBSCRIPTIONS: Responses = {200: {"model": Page[SubscriptionOut]}}
SUBSCRIBE: Responses = {
    200: {"model": SubscribedOut, "description": "Subscribed before, and left as it was"},
    201: {"model": SubscribedOut, "description": "Subscribed"},
}
NO_SUBSCRIPTION: Responses = {404: problem_document("`not_found`")}
REWIND: Responses = {
    200: {"model": RewoundOut},
    **NO_SUBSCRIPTION,
    409: problem_document("`nothing_to_rewind`, `events_dropped`"),
}
PARTITIONS: Responses = {200: {"model": PartitionsOut}}
RAISE_PARTITIONS: Responses = {**PARTITIONS, 409: problem_document("`partitions_only_grow`")}
EVENTS: Responses = {200: {"model": Page[EventOut]}}
