"""The ops pages of a service: its stream, its dead letters, retry, discard, pause and resume."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from shared.bus import inspection
from shared.bus.inspection import Seen, Selection
from shared.bus.ledger import Control, Ledger, State
from shared.contracts.envelope import Instant
from shared.web.auth import OPS, Principal, require
from shared.web.pages import DEFAULT_LIMIT, Limit, Page, page_of
from shared.web.problems import Problem, not_found
from shared.web.templating import environment

if TYPE_CHECKING:
    from shared.runtime.db import Database
    from shared.web.health import Health

Operator = Annotated[Principal, Depends(require(OPS))]
Reader = Annotated[Principal, Depends(require("deliveries:read"))]
Text = Annotated[str, StringConstraints(max_length=100)]
Result = TypeVar("Result")


AuditId = Annotated[int, Query(ge=0, lt=2**63, description="the last id of the page before")]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Filter(_Request):
    """Deliveries that fit every criterion given."""

    state: Annotated[State | None, Field(strict=False)] = None
    order_id: Text | None = None
    type: Text | None = None
    error: str | None = Field(None, max_length=2000, description="the whole text of last_error")


class RetryRequest(_Request):
    """Which deliveries: some ids, or a filter."""

    ids: list[Annotated[UUID, Field(strict=False)]] | None = Field(None, min_length=1, max_length=1000)
    filter: Filter | None = None
    dry_run: bool = Field(default=False, description="only count what fits")

    @model_validator(mode="after")
    def _one_of_both(self) -> RetryRequest:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either ids or filter")
        if self.filter is not None and not self.filter.model_dump(exclude_none=True):
            raise ValueError("an empty filter would mean everything: name a state at least")
        return self

    def selection(self) -> Selection:
        """What the ledger understands."""
        wanted = self.filter or Filter()
        return Selection(self.ids, wanted.state, wanted.order_id, wanted.type, wanted.error)


class DiscardRequest(RetryRequest):
    """Which deliveries to give up, and why."""

    reason: str = Field(min_length=1, max_length=500)


class PauseRequest(_Request):
    """Why consuming stops."""

    reason: str = Field("paused by hand", min_length=1, max_length=500)


class Delivery(BaseModel):
    """One row of the ledger."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    partition: int
    position: int | None
    type: str
    order_id: str
    order_version: int
    state: State
    attempts: int
    next_attempt_at: Instant | None
    last_error: str | None
    received_at: Instant
    settled_at: Instant | None


class Detail(Delivery):
    """One row of the ledger with all that is kept in it."""

    event: str | None = Field(description="the event as it came, while it is not settled")


class Changed(BaseModel):
    """How many deliveries fitted and how many were changed."""

    matched: int
    changed: int
    dry_run: bool


class Paused(BaseModel):
    """Whether the service consumes."""

    paused: bool
    reason: str


class Action(BaseModel):
    """Something that somebody changed, and what came of it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    key_id: str
    action: str
    detail: str
    at: Instant


class Ops:
    """What the routes do. One instance per service."""

    def __init__(self, service: str, db: Database, health: Health) -> None:
        """`health` is shown on the page as well."""
        self._service = service
        self._db = db
        self._health = health
        self._ledger = Ledger()
        self._templates = environment()

    async def page(self, _: Operator, said: Annotated[str, Query(pattern="^[a-z0-9 ]{0,40}$")] = "") -> HTMLResponse:
        """The page itself."""
        async with self._db.reading() as connection:
            census = await inspection.census(connection)
            groups = await inspection.errors(connection)
            control = await self._ledger.control(connection)
            audit = await inspection.audit(connection)
        html = self._templates.get_template("ops.html").render(
            service=self._service,
            report=await self._health.report(),
            counts={state: census.counts.get(state, 0) for state in State if state in census.counts},
            settled=census.settled,
            groups=groups,
            control=control,
            audit=audit,
            said=said,
        )
        return HTMLResponse(html)

    async def deliveries(
        self,
        _: Operator,
        state: State | None = None,
        order_id: Annotated[Text | None, Query()] = None,
        type: Annotated[Text | None, Query()] = None,  # noqa: A002 - the contract's name
        limit: Limit = DEFAULT_LIMIT,
        starting_after: UUID | None = None,
    ) -> Page[Delivery]:
        """Deliveries, newest first."""
        wanted = Selection(None, state, order_id, type)
        async with self._db.reading() as connection:
            found = await inspection.find(connection, wanted, limit=limit + 1, starting_after=starting_after)
        return page_of([_shown(one) for one in found], limit)

    async def delivery(self, _: Operator, delivery_id: UUID) -> Detail:
        """One delivery, with its event."""
        async with self._db.reading() as connection:
            found = await inspection.show(connection, delivery_id)
        if found is None:
            raise not_found("delivery")
        seen, event = found
        return Detail(**_shown(seen).model_dump(), event=event)

    async def of_order(
        self, _: Reader, order_id: Annotated[Text, Query(min_length=1)], limit: Limit = DEFAULT_LIMIT
    ) -> Page[Delivery]:
        """What became of an order's events here, newest first. Any key of the service opens it."""
        async with self._db.reading() as connection:
            found = await inspection.find(connection, Selection(order_id=order_id), limit=limit + 1)
        return page_of([_shown(one) for one in found], limit)

    async def retry(self, caller: Operator, wanted: RetryRequest) -> Changed:
        """Try deliveries again now."""

        async def work(connection: AsyncConnection) -> inspection.Change:
            return await inspection.retry(connection, wanted.selection(), dry_run=wanted.dry_run)

        return await self._change(caller, "retry", wanted, work)

    async def discard(self, caller: Operator, wanted: DiscardRequest) -> Changed:
        """Give deliveries up."""

        async def work(connection: AsyncConnection) -> inspection.Change:
            return await inspection.discard(connection, wanted.selection(), wanted.reason, dry_run=wanted.dry_run)

        return await self._change(caller, "discard", wanted, work)

    async def pause(self, caller: Operator, wanted: Annotated[PauseRequest | None, Body()] = None) -> Paused:
        """Stop consuming until somebody resumes it, also over restarts."""
        return await self._control(caller, "pause", (wanted or PauseRequest()).reason)

    async def resume(self, caller: Operator) -> Paused:
        """Consume again."""
        return await self._control(caller, "resume", "")

    async def actions(
        self, _: Operator, limit: Limit = DEFAULT_LIMIT, starting_after: AuditId | None = None
    ) -> Page[Action]:
        """Who changed what, newest first: which key, when, and how many deliveries."""
        return await audited(self._db, limit, starting_after)

    async def form(self, caller: Operator, request: Request) -> Response:
        """What the page's forms post."""
        fields = dict(parse_qsl((await request.body()).decode("utf-8", "replace"), max_num_fields=20))
        try:
            said = await self._act(caller, fields)
        except ValidationError as error:
            raise Problem(422, "validation_failed", detail=str(error.errors()[0]["msg"])) from error
        return RedirectResponse(f"/ops?said={said}", 303)

    async def _act(self, caller: Principal, fields: dict[str, str]) -> str:
        criteria = {name: fields[name] for name in ("state", "type", "error") if fields.get(name)}
        wanted = Filter.model_validate(criteria)
        match fields.get("action"):
            case "retry":
                return f"{(await self.retry(caller, RetryRequest(filter=wanted))).changed}+retried"
            case "discard":
                order = DiscardRequest(filter=wanted, reason=fields.get("reason", ""))
                return f"{(await self.discard(caller, order)).changed}+discarded"
            case "pause":
                await self.pause(caller, PauseRequest(reason=fields.get("reason") or "paused by hand"))
                return "paused"
            case "resume":
                await self.resume(caller)
                return "resumed"
            case _:
                raise Problem(422, "validation_failed", detail="No such action.")

    async def _change(
        self,
        caller: Principal,
        action: str,
        wanted: RetryRequest,
        work: Callable[[AsyncConnection], Awaitable[inspection.Change]],
    ) -> Changed:
        async def recorded(connection: AsyncConnection) -> inspection.Change:
            change = await work(connection)
            if not wanted.dry_run:
                detail = f"{change.changed} of {change.matched}: {wanted.model_dump_json(exclude_none=True)}"
                await inspection.record(connection, caller.key_id, action, detail)
            return change

        change = await self._db.run(recorded)
        return Changed(matched=change.matched, changed=change.changed, dry_run=wanted.dry_run)

    async def _control(self, caller: Principal, action: str, reason: str) -> Paused:
        paused = action == "pause"

        async def work(connection: AsyncConnection) -> Control:
            await self._ledger.set_control(connection, paused=paused, reason=reason, by=caller.key_id)
            await inspection.record(connection, caller.key_id, action, reason)
            return await self._ledger.control(connection)

        control = await self._db.run(work)
        return Paused(paused=control.paused, reason=control.reason)


def router(service: str, db: Database, health: Health) -> APIRouter:
    """The routes under `/ops` of a service that consumes events."""
    ops = Ops(service, db, health)
    routes = APIRouter(tags=["ops"])
    routes.add_api_route("/ops", ops.page, methods=["GET"], include_in_schema=False, response_class=HTMLResponse)
    routes.add_api_route("/ops/actions", ops.form, methods=["POST"], include_in_schema=False)
    routes.add_api_route("/ops/deliveries", ops.deliveries, methods=["GET"], summary="Deliveries, newest first")
    one = "/ops/deliveries/{delivery_id:uuid}"  # retry and discard are no ids
    routes.add_api_route(one, ops.delivery, methods=["GET"], summary="One delivery, with its event")
    routes.add_api_route("/ops/deliveries/retry", ops.retry, methods=["POST"], summary="Try deliveries again")
    routes.add_api_route("/ops/deliveries/discard", ops.discard, methods=["POST"], summary="Give deliveries up")
    routes.add_api_route("/ops/pause", ops.pause, methods=["POST"], summary="Stop consuming")
    routes.add_api_route("/ops/resume", ops.resume, methods=["POST"], summary="Consume again")
    routes.add_api_route("/ops/audit", ops.actions, methods=["GET"], summary="Who changed what, newest first")
    routes.add_api_route("/v1/deliveries", ops.of_order, methods=["GET"], summary="What became of an order's events")
    return routes


async def audited(db: Database, limit: int, starting_after: int | None) -> Page[Action]:
    """A page of what people changed."""
    async with db.reading() as connection:
        found = await inspection.audit(connection, limit + 1, starting_after)
    return page_of([Action.model_validate(one) for one in found], limit)


def _shown(one: Seen) -> Delivery:
    return Delivery.model_validate(one)
