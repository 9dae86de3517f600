"""Orders: place, read, list."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from pydantic_core import to_json
from starlette.responses import Response

from services.checkout.commands.answers import Answer, order_body
from services.checkout.commands.place_order import PlaceOrder
from services.checkout.domain import Status, Wanted
from services.checkout.routes import documents
from services.checkout.routes.models import Instant, OrderIn, fingerprint, parse_key
from services.checkout.routes.wiring import Wired
from services.checkout.store import orders
from shared.runtime.identifiers import is_id, new_id
from shared.web import context
from shared.web.auth import Principal, require
from shared.web.direct import read_model
from shared.web.problems import Problem, not_found, validation_failed
from shared.web.strict_json import StrictRequest

router = APIRouter(prefix="/v1/orders", tags=["orders"])

_may_write = require("orders:write")
Writer = Annotated[Principal, Depends(_may_write)]
Reader = Annotated[Principal, Depends(require("orders:read"))]
Key = Annotated[str | None, Header(alias="Idempotency-Key", include_in_schema=False)]  # see `documents.WITH_KEY`


@router.post("", status_code=201, summary="Place an order", responses=documents.PLACE, openapi_extra=documents.WITH_KEY)
async def place(wired: Wired, caller: Writer, request: OrderIn, idempotency_key: Key = None) -> Response:
    """Reserve the stock and take the payment; both or neither."""
    key = parse_key(idempotency_key)
    sha256 = fingerprint(request)  # first: what is complained about below repeats what the client sent
    refuse_repeated(request)
    command = PlaceOrder(
        order_id=new_id("ord"),
        tenant=caller.tenant,
        key=key,
        request_sha256=sha256,
        currency=request.currency,
        lines=tuple(Wanted(line.sku, line.quantity) for line in request.lines),
        payment_method=request.payment_method,
        customer=request.customer.model_dump(),
        shipping_address=request.shipping_address.model_dump() if request.shipping_address else None,
        metadata=request.metadata,
        expected_total=request.expected_total,
        at=wired.clock.now(),
        traceparent=context.traceparent.get(),
    )
    return response(await wired.checkout.place(command))


async def place_directly(request: StrictRequest) -> Response:
    """`place`, with its arguments found by hand: every order comes this way."""
    order = await read_model(request, OrderIn)
    caller = await _may_write(request)
    return await place(request.app.state.wiring, caller, order(), request.headers.get("idempotency-key"))


@router.get("/{order_id}", summary="One order", responses=documents.READ_ORDER)
async def read(wired: Wired, caller: Reader, order_id: str) -> Response:
    """The order as it stands."""
    async with wired.db.reading() as connection:  # malformed ids too: how long a 404 takes must not tell why it is one
        found = await orders.one(connection, caller.tenant, order_id)
    if found is None:
        raise not_found("order")
    return Response(to_json(order_body(found)), media_type="application/json")


@router.get("", summary="Orders, newest first", responses=documents.ORDERS)
async def page(
    wired: Wired,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    starting_after: Annotated[str | None, Query(max_length=64)] = None,
    status: Status | None = None,
    idempotency_key: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    created_gte: Instant | None = None,
) -> Response:
    """A page of orders; `starting_after` is the last id of the page before."""
    if starting_after is not None and not is_id("ord", starting_after):
        raise validation_failed([{"in": "query", "pointer": "/starting_after", "detail": "no order has this id"}])
    async with wired.db.reading() as connection:
        found = await orders.page(
            connection,
            caller.tenant,
            limit=limit + 1,
            before=starting_after,
            status=status,
            key=idempotency_key,
            since=created_gte,
        )
    body = {"items": [order_body(order) for order in found[:limit]], "has_more": len(found) > limit}
    return Response(to_json(body), media_type="application/json")


def refuse_repeated(request: OrderIn) -> None:
    """A SKU may stand in one line only."""
    seen: set[str] = set()
    for index, line in enumerate(request.lines):
        if line.sku in seen:
            detail = f"{line.sku} stands in two lines"
            raise validation_failed([{"in": "body", "pointer": f"/lines/{index}/sku", "detail": detail}])
        seen.add(line.sku)


def response(answer: Answer) -> Response:
    """An answer as HTTP."""
    headers = dict(answer.headers)
    if answer.replayed:
        headers["Idempotency-Replayed"] = "true"
    if answer.status < 400:  # noqa: PLR2004
        return Response(answer.body, answer.status, headers, "application/json")
    body = json.loads(answer.body)
    standard = ("type", "title", "status", "detail", "code")
    members = {name: value for name, value in body.items() if name not in standard}
    problem = Problem(answer.status, body["code"], body["title"], body["detail"], headers=headers, members=members)
    return problem.response()
