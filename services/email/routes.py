from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from services.email import store
from services.email.domain import Kind, Status
from services.email.mailer.addresses import NoSuchAddress, deliverable
from services.email.mailer.letters import Letters
from services.email.mailer.samples import sample
from shared.contracts.envelope import Instant
from shared.runtime.db import Database
from shared.runtime.identifiers import is_id
from shared.web.auth import Principal, require
from shared.web.pages import DEFAULT_LIMIT, Limit, Page, StartingAfter, page_of
from shared.web.problems import not_found, validation_failed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

router = APIRouter(prefix="/v1", tags=["email"])

# A mail's styles are inline and its text is somebody else's: no scripts, no forms, nothing from the network.
PREVIEW_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the routes need."""

    db: Database
    letters: Letters


def wiring(request: Request) -> Wiring:
    """The process's wiring."""
    found = request.app.state.wiring
    if not isinstance(found, Wiring):
        raise TypeError(found)
    return found


Wired = Annotated[Wiring, Depends(wiring)]
Reader = Annotated[Principal, Depends(require("email:read"))]
Writer = Annotated[Principal, Depends(require("email:write"))]
Email = Annotated[str, Path(max_length=320, description="the address that gets no mail")]


class Message(BaseModel):
    """One mail of the send log."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    order_id: str
    kind: Kind
    to: str
    subject: str
    status: Status
    attempts: int
    message_id: str
    created_at: Instant
    next_attempt_at: Instant | None
    sent_at: Instant | None
    last_error: str | None


class Suppression(BaseModel):
    """An address that gets no mail."""

    model_config = ConfigDict(from_attributes=True)

    email: str
    reason: str
    created_at: Instant


class SuppressionRequest(BaseModel):
    """Why the address gets no mail."""

    model_config = ConfigDict(strict=True, extra="forbid")

    reason: str = Field("requested", min_length=1, max_length=500)


class Form(StrEnum):
    """The two bodies of a mail."""

    HTML = "html"
    TEXT = "text"


@router.get("/messages", summary="The send log, newest first")
async def list_messages(
    wired: Wired,
    _: Reader,
    order_id: Annotated[str | None, Query(max_length=100)] = None,
    status: Status | None = None,
    limit: Limit = DEFAULT_LIMIT,
    starting_after: StartingAfter = None,
) -> Page[Message]:
    if starting_after is not None and not is_id("msg", starting_after):
        raise validation_failed([{"in": "query", "pointer": "/starting_after", "detail": "Not the id of a message."}])
    async with wired.db.reading() as connection:
        found = await store.find(
            connection, order_id=order_id, status=status, limit=limit + 1, starting_after=starting_after
        )
    return page_of([Message.model_validate(one) for one in found], limit)


@router.get("/messages/{message}", summary="One mail")
async def get_message(wired: Wired, _: Reader, message: str) -> Message:
    async with wired.db.reading() as connection:
        found = await store.get(connection, message)
    if found is None:
        raise not_found("message")
    return Message.model_validate(found)


@router.get(
    "/templates/{name}/preview",
    summary="A template with sample data",
    response_class=HTMLResponse,
    responses={200: {"content": {"text/plain": {}}}},
)
async def preview(
    wired: Wired,
    _: Reader,
    name: str,
    format: Form = Form.HTML,  # noqa: A002 - the contract's name
    currency: Annotated[str, Query(pattern="^[A-Z]{3}$")] = "EUR",
) -> Response:
    if name not in set(Kind):
        raise not_found("template")
    kind = Kind(name)
    bodies = wired.letters.render(kind, sample(kind, currency))
    if format is Form.TEXT:
        return PlainTextResponse(bodies.text)
    return HTMLResponse(bodies.html, headers={"Content-Security-Policy": PREVIEW_POLICY})


@router.get("/suppressions", summary="Addresses that get no mail")
async def list_suppressions(
    wired: Wired, _: Reader, limit: Limit = DEFAULT_LIMIT, starting_after: StartingAfter = None
) -> Page[Suppression]:
    async with wired.db.reading() as connection:
        found = await store.suppressed(connection, limit=limit + 1, starting_after=starting_after)
    return page_of([Suppression.model_validate(one) for one in found], limit)


@router.put("/suppressions/{email}", summary="Send no mail to an address", responses={201: {"model": Suppression}})
async def put_suppression(
    wired: Wired,
    _: Writer,
    response: Response,
    email: Email,
    wanted: Annotated[SuppressionRequest | None, Body()] = None,
) -> Suppression:
    address, reason = _address(email), (wanted or SuppressionRequest()).reason

    async def work(connection: AsyncConnection) -> tuple[store.Suppression, bool]:
        return await store.suppress(connection, address, reason)

    suppression, created = await wired.db.run(work)
    response.status_code = 201 if created else 200
    return Suppression.model_validate(suppression)


@router.delete("/suppressions/{email}", status_code=204, summary="Send mail to an address again")
async def delete_suppression(wired: Wired, _: Writer, email: Email) -> None:
    address = _address(email)

    async def work(connection: AsyncConnection) -> None:
        await store.allow(connection, address)

    await wired.db.run(work)


def _address(text: str) -> str:
    try:
        return deliverable(text).lower()
    except NoSuchAddress as error:
        raise validation_failed([{"in": "path", "pointer": "/email", "detail": str(error)}]) from error
