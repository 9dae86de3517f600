"""What happened to an order, step by step, in checkout and behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel

from services.checkout.commands.downstream import Seen
from services.checkout.domain import Status
from services.checkout.routes.orders import Reader
from services.checkout.routes.wiring import Wired, Wiring
from services.checkout.store import orders, timeline
from services.checkout.store.timeline import Passage
from shared.contracts.envelope import Instant
from shared.web.problems import not_found

router = APIRouter(prefix="/v1/orders/{order_id}/timeline", tags=["orders"])


class StepOut(BaseModel):
    """Something that checkout did; what `detail` has depends on the step."""

    at: Instant
    step: Literal["reserved", "charge", "settled", "refund", "event"]
    detail: dict[str, Any]


class DeliveryOut(BaseModel):
    """An event of the order at a service; `state` is null until the service has it."""

    event_id: UUID
    type: str
    published: bool
    state: str | None = None
    attempts: int | None = None
    last_error: str | None = None
    received_at: Instant | None = None
    next_attempt_at: Instant | None = None
    settled_at: Instant | None = None


class ServiceOut(BaseModel):
    """A service that reads the log: `unreachable` when it does not say, `unknown` when nobody knows its address."""

    service: str
    status: Literal["answered", "unreachable", "unknown"]
    events: list[DeliveryOut]


class TimelineOut(BaseModel):
    """An order's way through checkout and through every service behind it."""

    order_id: str
    status: Status
    steps: list[StepOut]
    services: list[ServiceOut]


@router.get("", summary="What happened to an order")
async def read(wired: Wired, caller: Reader, order_id: str) -> TimelineOut:
    """Every step of checkout, and per service what became of each event. A service that is away is no error."""
    async with wired.db.reading() as connection:
        order = await orders.one(connection, caller.tenant, order_id)
        if order is None:
            raise not_found("order")
        steps = await timeline.steps(connection, order.id)
        passages = await timeline.passages(connection, order.id)
    services = await asyncio.gather(*(_service(wired, order.id, name, its) for name, its in passages.items()))
    return TimelineOut(
        order_id=order.id,
        status=order.status,
        steps=[StepOut.model_validate(step, from_attributes=True) for step in steps],
        services=services,
    )


async def _service(wired: Wiring, order_id: str, name: str, passages: Sequence[Passage]) -> ServiceOut:
    if name not in wired.downstream.addresses:
        return ServiceOut(service=name, status="unknown", events=_merged(passages, []))
    seen = await wired.downstream.seen(name, order_id)
    status: Literal["answered", "unreachable"] = "unreachable" if seen is None else "answered"
    return ServiceOut(service=name, status=status, events=_merged(passages, seen or []))


def _merged(passages: Sequence[Passage], seen: Sequence[Seen]) -> list[DeliveryOut]:
    """What the log has for the service, and what the service knows of it."""
    known = {one.id: one.model_dump(exclude={"id", "type"}) for one in seen}
    return [
        DeliveryOut(event_id=one.event_id, type=one.type, published=one.published, **known.get(one.event_id, {}))
        for one in passages
    ]
