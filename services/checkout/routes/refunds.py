"""Refunds and cancellations: ask for them, read them, list them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic_core import to_json
from starlette.responses import Response

from services.checkout.commands.refund_answers import refund_body
from services.checkout.commands.refund_book import GiveBack
from services.checkout.domain import RefundKind
from services.checkout.routes import documents
from services.checkout.routes.models import CancelIn, RefundIn, fingerprint, parse_key
from services.checkout.routes.orders import Key, Reader, Writer, response
from services.checkout.routes.wiring import Wired
from services.checkout.store import orders, refunds
from shared.web import context
from shared.web.auth import Principal
from shared.web.problems import not_found

router = APIRouter(prefix="/v1/orders/{order_id}", tags=["orders"])


@router.post("/cancel", summary="Cancel an order", responses=documents.CANCEL, openapi_extra=documents.WITH_KEY)
async def cancel(
    wired: Wired, caller: Writer, order_id: str, request: CancelIn | None = None, idempotency_key: Key = None
) -> Response:
    """Give back what was not refunded yet, and put the goods back into the stock."""
    return await _give_back(wired, caller, order_id, request or CancelIn(), idempotency_key)


@router.post(
    "/refunds", status_code=201, summary="Refund an order", responses=documents.REFUND, openapi_extra=documents.WITH_KEY
)
async def refund(
    wired: Wired, caller: Writer, order_id: str, request: RefundIn | None = None, idempotency_key: Key = None
) -> Response:
    """Give `amount` back, or all that is left; refunds add up to the total at the most. The goods stay sold."""
    return await _give_back(wired, caller, order_id, request or RefundIn(), idempotency_key)


@router.get("/refunds", summary="The refunds of an order, newest first", responses=documents.REFUNDS)
async def page(
    wired: Wired,
    caller: Reader,
    order_id: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    starting_after: Annotated[str | None, Query(pattern="^rfd_[0-9a-hjkmnp-tv-z]{26}$")] = None,
) -> Response:
    """Cancellations and late payments that were given back are among them, see `kind`."""
    async with wired.db.reading() as connection:
        if await orders.one(connection, caller.tenant, order_id) is None:
            raise not_found("order")
        found = await refunds.page(connection, caller.tenant, order_id, limit=limit + 1, before=starting_after)
    body = {"items": [refund_body(one) for one in found[:limit]], "has_more": len(found) > limit}
    return Response(to_json(body), media_type="application/json")


@router.get("/refunds/{refund_id}", summary="One refund", responses=documents.READ_REFUND)
async def read(wired: Wired, caller: Reader, order_id: str, refund_id: str) -> Response:
    """The refund as it stands."""
    async with wired.db.reading() as connection:
        found = await refunds.one(connection, caller.tenant, order_id, refund_id)
    if found is None:
        raise not_found("refund")
    return Response(to_json(refund_body(found)), media_type="application/json")


async def _give_back(
    wired: Wired, caller: Principal, order_id: str, request: CancelIn | RefundIn, idempotency_key: str | None
) -> Response:
    key = parse_key(idempotency_key)
    sha256 = fingerprint(request)
    command = GiveBack(
        kind=RefundKind.REFUND if isinstance(request, RefundIn) else RefundKind.CANCEL,
        order_id=order_id,
        tenant=caller.tenant,
        key=key,
        request_sha256=sha256,
        at=wired.clock.now(),
        amount=request.amount if isinstance(request, RefundIn) else None,
        reason=request.reason,
        traceparent=context.traceparent.get(),
    )
    return response(await wired.refunds.give_back(command))
