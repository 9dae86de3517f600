"""Who reads the log: services are added, removed and rewound at run time."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse, Response

from services.checkout.routes import documents
from services.checkout.routes.models import RewindIn, SubscriptionIn
from services.checkout.routes.ops import Operator
from services.checkout.routes.wiring import Wired
from shared.bus import inspection
from shared.bus.log import Reader
from shared.bus.rewind import EventsDroppedError, Span, rewind
from shared.contracts.envelope import rfc3339
from shared.web.problems import Problem, not_found

router = APIRouter(prefix="/ops/subscriptions", tags=["ops"])

Name = Annotated[str, Path(max_length=100, pattern=r"^[^\x00]*$")]


@router.get("", summary="Who reads the log, and how far they are", responses=documents.SUBSCRIPTIONS)
async def listed(wired: Wired, caller: Operator) -> JSONResponse:  # noqa: ARG001 - being let in counts
    """Per service and partition: the log's head, what is published, what is settled, what is still to be dealt with."""
    async with wired.db.reading() as connection:
        found = await wired.log.readers(connection)
    return JSONResponse({"items": [_body(one) for one in found], "has_more": False})


@router.post("", status_code=201, summary="Subscribe a service", responses=documents.SUBSCRIBE)
async def subscribe(wired: Wired, caller: Operator, request: SubscriptionIn) -> JSONResponse:
    """From the beginning of the log, or from now; a service that is subscribed already stays as it is (200)."""

    async def work(connection: AsyncConnection) -> bool:
        added = await wired.log.subscribe(connection, request.name, from_now=request.from_ == "now")
        if added:
            await inspection.record(connection, caller.key_id, "subscribe", f"{request.name} from {request.from_}")
        return added

    added = await wired.db.run(work)
    return JSONResponse({"name": request.name, "from": request.from_}, 201 if added else 200)


@router.delete("/{name}", status_code=204, summary="Remove a service", responses=documents.NO_SUBSCRIPTION)
async def unsubscribe(wired: Wired, caller: Operator, name: Name) -> Response:
    """It gets no further events; what it has is its own. Its keys in Redis are gone some seconds later."""

    async def work(connection: AsyncConnection) -> None:
        if not await wired.log.unsubscribe(connection, name):
            raise not_found("subscription")
        await inspection.record(connection, caller.key_id, "unsubscribe", name)

    await wired.db.run(work)
    return Response(status_code=204)


@router.post("/{name}/rewind", summary="Let a service have events again", responses=documents.REWIND)
async def rewound(wired: Wired, caller: Operator, name: Name, request: RewindIn) -> JSONResponse:
    """What its ledger lacks is handled; what it has is dropped as a duplicate, unless `replay` makes it forget it."""

    async def work(connection: AsyncConnection) -> list[Span]:
        target, replay, dry_run = request.target(), request.replay, request.dry_run
        try:
            spans = await rewind(connection, name, target, replay=replay, dry_run=dry_run)
        except EventsDroppedError as error:
            raise Problem(409, "events_dropped", detail=str(error)) from error
        if spans is None:
            raise not_found("subscription")
        if not spans:
            detail = f"{name} has settled nothing behind that: those events are still to come."
            raise Problem(409, "nothing_to_rewind", detail=detail)
        if not dry_run:
            places = ", ".join(f"partition {one.partition} from {one.settled} to {one.position}" for one in spans)
            detail = f"{name}: {places}{', replay' if replay else ''}"
            await inspection.record(connection, caller.key_id, "rewind", detail)
        return spans

    spans = await wired.db.run(work)
    items = [{"partition": one.partition, "position": one.position, "events": one.events} for one in spans]
    return JSONResponse(
        {
            "name": name,
            "events": sum(one.events for one in spans),
            "replay": request.replay,
            "dry_run": request.dry_run,
            "items": items,
        }
    )


def _body(one: Reader) -> dict[str, object]:
    return {
        "name": one.service,
        "partition": one.partition,
        "head": one.head,
        "cursor": one.cursor,
        "settled": one.settled,
        "backlog": one.backlog,
        "created_at": rfc3339(one.created_at),
        "moved_at": rfc3339(one.moved_at),
    }
