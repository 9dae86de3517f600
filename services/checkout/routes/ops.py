"""The log and who reads it, for people on call."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from jinja2 import Template
from starlette.responses import HTMLResponse, JSONResponse, Response

from services.checkout.routes import documents
from services.checkout.routes.models import SubscriptionIn
from services.checkout.routes.wiring import Wired, Wiring
from services.checkout.store import orders, refunds
from shared.bus.log import Subscription
from shared.contracts.envelope import rfc3339
from shared.web.auth import Principal, require
from shared.web.problems import not_found
from shared.web.templating import environment

router = APIRouter(prefix="/ops", tags=["ops"])

Operator = Annotated[Principal, Depends(require("ops"))]


@cache
def _template() -> Template:
    return environment(Path(__file__).parents[1] / "templates").get_template("ops.html")


@router.get("", include_in_schema=False, response_class=HTMLResponse)
async def page(wired: Wired, caller: Operator) -> HTMLResponse:  # noqa: ARG001 - being let in counts
    """The page for people on call: who reads the log, which orders are not final, how everything else is."""
    readers = await _readers(wired)
    async with wired.db.reading() as connection:
        unfinished = await orders.unfinished(connection)
        open_refunds = await refunds.unfinished(connection)
    report = await wired.health.report()
    shown = _template().render(report=report, subscriptions=readers, unfinished=unfinished, open_refunds=open_refunds)
    return HTMLResponse(shown)


@router.get("/subscriptions", summary="Who reads the log, and how far they are", responses=documents.SUBSCRIPTIONS)
async def subscriptions(wired: Wired, caller: Operator) -> JSONResponse:  # noqa: ARG001 - being let in counts
    """Per service and partition: the log's head, what is published, what is settled, what is still to be dealt with."""
    return JSONResponse({"items": await _readers(wired), "has_more": False})


@router.post("/subscriptions", status_code=201, summary="Subscribe a service", responses=documents.SUBSCRIBE)
async def subscribe(wired: Wired, caller: Operator, request: SubscriptionIn) -> JSONResponse:  # noqa: ARG001
    """From the beginning of the log, or from now; a service that is subscribed already stays as it is."""
    from_now = request.from_ == "now"
    async with wired.db.transaction() as connection:
        await wired.log.subscribe(connection, request.name, from_now=from_now)
    return JSONResponse({"name": request.name, "from": request.from_}, 201)


@router.delete("/subscriptions/{name}", status_code=204, summary="Remove a service")
async def unsubscribe(wired: Wired, caller: Operator, name: str) -> Response:  # noqa: ARG001
    """It gets no further events; what it has is its own."""
    async with wired.db.transaction() as connection:
        if not await wired.log.unsubscribe(connection, name):
            raise not_found("subscription")
    return Response(status_code=204)


@router.get("/events", summary="The events of an order", responses=documents.EVENTS)
async def events(
    wired: Wired,
    caller: Operator,  # noqa: ARG001
    order_id: Annotated[str, Query(min_length=1, max_length=100)],
) -> JSONResponse:
    """Oldest first, as they stand in the log."""
    async with wired.db.reading() as connection:
        found = await wired.log.events_of(connection, order_id)
    items = [
        {
            "partition": one.partition,
            "position": one.position,
            "created_at": rfc3339(one.created_at),
            "event": json.loads(one.event),
        }
        for one in found
    ]
    return JSONResponse({"items": items, "has_more": False})


async def _readers(wired: Wiring) -> list[dict[str, object]]:
    async with wired.db.reading() as connection:
        found = await wired.log.subscriptions(connection)
        heads = {p: await wired.log.head(connection, p) for p in {one.partition for one in found}}
    return [_body(one, heads[one.partition]) for one in found]


def _body(one: Subscription, head: int) -> dict[str, object]:
    return {
        "name": one.service,
        "partition": one.partition,
        "head": head,
        "cursor": one.cursor,
        "settled": one.settled,
        "backlog": head - one.settled,
    }
