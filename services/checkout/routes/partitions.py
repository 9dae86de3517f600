"""How many partitions the log has: more of them share its work among more relays, streams and consumers."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse

from services.checkout.routes import documents
from services.checkout.routes.models import PartitionsIn
from services.checkout.routes.ops import Operator
from services.checkout.routes.wiring import Wired
from shared.bus import inspection
from shared.web.problems import Problem

router = APIRouter(prefix="/ops/partitions", tags=["ops"])


@router.get("", summary="How many partitions the log has", responses=documents.PARTITIONS)
async def read(wired: Wired, caller: Operator) -> JSONResponse:  # noqa: ARG001 - being let in counts
    """New orders are spread over all of them; an order stays in the partition of its first event."""
    async with wired.db.reading() as connection:
        return JSONResponse({"partitions": await wired.log.opened(connection)})


@router.put("", summary="Raise the number of partitions", responses=documents.RAISE_PARTITIONS)
async def raised(wired: Wired, caller: Operator, request: PartitionsIn) -> JSONResponse:
    """Every replica and every service follows within seconds, and nothing has to be stopped. There is no way back."""

    async def work(connection: AsyncConnection) -> None:
        added = await wired.log.open(connection, request.partitions)
        now = await wired.log.opened(connection)
        if now > request.partitions:
            detail = f"There are {now} partitions, which hold events: their number can only be raised."
            raise Problem(409, "partitions_only_grow", detail=detail)
        if added:
            await inspection.record(connection, caller.key_id, "partitions", f"from {now - added} to {now}")

    await wired.db.run(work)
    return JSONResponse({"partitions": request.partitions})
