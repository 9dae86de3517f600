"""What the payment provider reports by itself."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from services.checkout.payments.notices import NotGenuineError
from services.checkout.routes import documents
from services.checkout.routes.wiring import Wired
from shared.web.problems import Problem
from shared.web.strict_json import parse

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


@router.post(
    "/payments",
    summary="An event of the payment provider",
    responses=documents.WEBHOOK,
    openapi_extra=documents.SIGNED_EVENT,
)
async def payments(wired: Wired, request: Request) -> JSONResponse:
    """A signed event makes checkout ask the provider about its order. What the event itself says is not believed."""
    # Two headers have two times, which no genuine one has.
    signature = ",".join(request.headers.getlist("stripe-signature"))
    if not signature:
        raise Problem(400, "webhook_not_genuine", "The webhook is not genuine", "It has no Stripe-Signature header.")
    if wired.webhooks.off:
        detail = "Webhooks are off: set CHECKOUT_PAYMENTS_WEBHOOK_SECRET to what the provider signs them with."
        raise Problem(404, "webhooks_off", detail=detail)
    body = await request.body()
    try:
        wired.webhooks.verify(body, signature)
    except NotGenuineError as error:
        raise Problem(400, "webhook_not_genuine", "The webhook is not genuine", f"Refused: {error}.") from error
    event = parse(body)
    try:
        await wired.webhooks.receive(event)
    except ValueError as error:
        raise Problem(400, "not_an_event", "The body is not an event", f"Refused: {error}.") from error
    return JSONResponse({"received": True})
