from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from services.warehouse import store
from services.warehouse.domain import NEXT_STEP, PREFIX, Fulfilment, Parcel, Status, Step, WrongState, advance
from shared.contracts.envelope import Instant
from shared.runtime.clock import Clock
from shared.runtime.db import Database
from shared.runtime.identifiers import is_id
from shared.web.auth import Principal, require
from shared.web.pages import DEFAULT_LIMIT, Limit, Page, page_of
from shared.web.problems import Problem, not_found, validation_failed
from shared.web.templating import environment

FOLDER = Path(__file__).parent
ASSETS = {"board.js": "text/javascript", "board.css": "text/css"}
CARDS = 50  # per column of the board; the API has the rest
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"

Reader = Annotated[Principal, Depends(require("fulfilments:read"))]
Worker = Annotated[Principal, Depends(require("fulfilments:write"))]


class ShipRequest(BaseModel):
    """Who carries the parcel, and how it is found."""

    model_config = ConfigDict(strict=True, extra="forbid", str_strip_whitespace=True)

    carrier: str = Field(min_length=1, max_length=50, pattern=_PRINTABLE)
    tracking: str = Field(min_length=1, max_length=100, pattern=_PRINTABLE)

    def parcel(self) -> Parcel:
        """What the rules understand."""
        return Parcel(self.carrier, self.tracking)


class PickLine(BaseModel):
    """So many units of a product."""

    sku: str
    name: str
    quantity: int


class Happening(BaseModel):
    """What happened, when, and who did it: `checkout`, or the name of a key."""

    at: Instant
    actor: str
    entry: str
    detail: str | None


class FulfilmentBody(BaseModel):
    """A fulfilment with its pick list and its history, oldest first."""

    id: str
    order_id: str
    status: Status
    recipient: str | None
    lines: list[PickLine]
    shipping_address: dict[str, str] | None
    carrier: str | None
    tracking: str | None
    ordered_at: Instant
    history: list[Happening]


class Fulfilments:
    """What the routes do."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._templates = environment(FOLDER / "templates")

    async def page(
        self,
        _: Reader,
        order_id: Annotated[str | None, Query(max_length=100)] = None,
        status: Status | None = None,
        limit: Limit = DEFAULT_LIMIT,
        starting_after: Annotated[str | None, Query(max_length=100, description="the last id")] = None,
    ) -> Page[FulfilmentBody]:
        """Newest order first."""
        if starting_after is not None and not is_id(PREFIX, starting_after):
            detail = "Not the id of a fulfilment."
            raise validation_failed([{"in": "query", "pointer": "/starting_after", "detail": detail}])
        async with self._db.reading() as connection:
            found = await store.page(
                connection, order_id=order_id, status=status, limit=limit + 1, starting_after=starting_after
            )
            past = await store.history_of(connection, [one.id for one in found[:limit]])
        bodies = [_body(one, past.get(one.id, [])) for one in found]
        return page_of(bodies, limit)

    async def find(self, _: Reader, fulfilment_id: str) -> FulfilmentBody:
        """One fulfilment."""
        if not is_id(PREFIX, fulfilment_id):
            raise not_found("fulfilment")
        async with self._db.reading() as connection:
            found = await store.find(connection, fulfilment_id)
            past = await store.history_of(connection, [fulfilment_id])
        if found is None:
            raise not_found("fulfilment")
        return _body(found, past[fulfilment_id])

    async def pick(self, caller: Worker, fulfilment_id: str) -> FulfilmentBody:
        """Somebody goes and fetches the goods."""
        return await self._advance(caller, fulfilment_id, Step.PICK)

    async def pack(self, caller: Worker, fulfilment_id: str) -> FulfilmentBody:
        """The goods are in the parcel."""
        return await self._advance(caller, fulfilment_id, Step.PACK)

    async def ship(self, caller: Worker, fulfilment_id: str, sent: ShipRequest) -> FulfilmentBody:
        """The carrier has the parcel."""
        return await self._advance(caller, fulfilment_id, Step.SHIP, sent.parcel())

    async def _advance(
        self, caller: Principal, fulfilment_id: str, step: Step, parcel: Parcel | None = None
    ) -> FulfilmentBody:
        if not is_id(PREFIX, fulfilment_id):
            raise not_found("fulfilment")

        async def work(connection: AsyncConnection) -> FulfilmentBody:
            found = await store.lock(connection, fulfilment_id)
            if found is None:
                raise not_found("fulfilment")
            moved = advance(found, step, parcel)
            if moved:
                await store.move(connection, moved, self._clock.now(), caller.key_id)
            return _body(moved or found, (await store.history_of(connection, [fulfilment_id]))[fulfilment_id])

        try:
            return await self._db.run(work)
        except WrongState as error:
            members = {"state": error.status}
            raise Problem(409, "wrong_state", "Wrong state", str(error), members=members) from error

    async def board(self, _: Reader, said: Annotated[str, Query(pattern="^[a-z_]{0,20}$")] = "") -> HTMLResponse:
        """A column per state, newest first."""
        async with self._db.reading() as connection:
            counts = await store.count_open(connection)
            columns = {status: await store.page(connection, status=status, limit=CARDS) for status in Status}
        html = self._templates.get_template("board.html").render(
            columns=columns, counts=counts, steps=NEXT_STEP, limit=CARDS, said=said
        )
        return HTMLResponse(html)

    async def form(self, caller: Worker, request: Request) -> Response:
        """What the board's forms post."""
        fields = dict(parse_qsl((await request.body()).decode("utf-8", "replace"), max_num_fields=20))
        try:
            step = Step(fields.get("step", ""))
            sent = None
            if step is Step.SHIP:
                sent = ShipRequest(carrier=fields.get("carrier", ""), tracking=fields.get("tracking", ""))
        except (ValueError, ValidationError):
            return RedirectResponse("/?said=incomplete", 303)
        try:
            await self._advance(caller, fields.get("id", ""), step, sent.parcel() if sent else None)
        except Problem as problem:
            return RedirectResponse(f"/?said={problem.code}", 303)
        return RedirectResponse("/", 303)

    async def asset(self, name: str) -> FileResponse:
        """The board's script and style."""
        if name not in ASSETS:
            raise not_found("file")
        return FileResponse(FOLDER / "static" / name, media_type=ASSETS[name], headers={"Cache-Control": "no-cache"})


def router(db: Database, clock: Clock) -> APIRouter:
    """The service's own routes."""
    work = Fulfilments(db, clock)
    routes = APIRouter()
    one = "/v1/fulfilments/{fulfilment_id}"
    tags: dict[str, Any] = {"tags": ["fulfilments"]}
    page: dict[str, Any] = {"include_in_schema": False}
    routes.add_api_route("/v1/fulfilments", work.page, methods=["GET"], summary="Fulfilments", **tags)
    routes.add_api_route(one, work.find, methods=["GET"], summary="One fulfilment", **tags)
    routes.add_api_route(f"{one}/pick", work.pick, methods=["POST"], summary="Start picking", **tags)
    routes.add_api_route(f"{one}/pack", work.pack, methods=["POST"], summary="It is packed", **tags)
    routes.add_api_route(f"{one}/ship", work.ship, methods=["POST"], summary="It is shipped", **tags)
    routes.add_api_route("/", work.board, methods=["GET"], **page)
    routes.add_api_route("/steps", work.form, methods=["POST"], **page)
    routes.add_api_route("/assets/{name}", work.asset, methods=["GET"], **page)
    return routes


def _body(found: Fulfilment, past: list[Row[Any]]) -> FulfilmentBody:
    return FulfilmentBody(
        id=found.id,
        order_id=found.order_id,
        status=found.status,
        recipient=found.recipient,
        lines=[PickLine(**line) for line in found.lines],
        shipping_address=found.shipping_address,
        carrier=found.parcel.carrier if found.parcel else None,
        tracking=found.parcel.tracking if found.parcel else None,
        ordered_at=found.ordered_at,
        history=[Happening(at=row.at, actor=row.actor, entry=row.entry, detail=row.detail) for row in past],
    )
