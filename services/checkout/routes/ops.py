"""The page for people on call, and the log itself."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from jinja2 import Template
from starlette.responses import HTMLResponse, JSONResponse

from services.checkout.routes import documents
from services.checkout.routes.wiring import Wired
from services.checkout.store import orders, refunds
from shared.bus import inspection
from shared.contracts.envelope import rfc3339
from shared.web.auth import Principal, require
from shared.web.ops import Action, AuditId, audited
from shared.web.pages import DEFAULT_LIMIT, Limit, Page
from shared.web.templating import environment

router = APIRouter(prefix="/ops", tags=["ops"])

Operator = Annotated[Principal, Depends(require("ops"))]


@cache
def _template() -> Template:
    return environment(Path(__file__).parents[1] / "templates").get_template("ops.html")


@router.get("", include_in_schema=False, response_class=HTMLResponse)
async def page(wired: Wired, caller: Operator) -> HTMLResponse:  # noqa: ARG001 - being let in counts
    """The page for people on call: who reads the log, which orders are not final, how everything else is."""
    async with wired.db.reading() as connection:
        readers = await wired.log.readers(connection)
        audit = await inspection.audit(connection)
        unfinished = await orders.unfinished(connection)
        open_refunds = await refunds.unfinished(connection)
    report = await wired.health.report()
    shown = _template().render(
        report=report, subscriptions=readers, unfinished=unfinished, open_refunds=open_refunds, audit=audit
    )
    return HTMLResponse(shown)


@router.get("/audit", summary="Who changed what, newest first")
async def actions(
    wired: Wired,
    caller: Operator,  # noqa: ARG001 - being let in counts
    limit: Limit = DEFAULT_LIMIT,
    starting_after: AuditId | None = None,
) -> Page[Action]:
    """Which key, when, and what: subscriptions, rewinds and whatever else is changed over this API."""
    return await audited(wired.db, limit, starting_after)


@router.get("/events", summary="The log, or the events of an order", responses=documents.EVENTS)
async def events(
    wired: Wired,
    caller: Operator,  # noqa: ARG001
    order_id: Annotated[str | None, Query(min_length=1, max_length=100)] = None,
    after: Annotated[int, Query(ge=0, lt=2**63, description="the last position of the page before")] = 0,
    partition: Annotated[int, Query(ge=0, lt=1024, description="of the log, when no order is named")] = 0,
    limit: Limit = DEFAULT_LIMIT,
) -> JSONResponse:
    """Oldest first, as they stand in the log."""
    async with wired.db.reading() as connection:
        if order_id is None:
            found = await wired.log.events(connection, partition, after, limit + 1)
        else:
            found = await wired.log.events_of(connection, order_id, after, limit + 1)
    items = [
        {
            "partition": one.partition,
            "position": one.position,
            "created_at": rfc3339(one.created_at),
            "event": json.loads(one.event),
        }
        for one in found[:limit]
    ]
    return JSONResponse({"items": items, "has_more": len(found) > limit})
