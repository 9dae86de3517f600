"""The rules of the warehouse: what a fulfilment is, and which step may follow which."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from shared.contracts.orders import Line, OrderState
from shared.runtime.identifiers import prefixed, uuid7_of

PREFIX = "ful"
EVENTS_COME_FROM = "checkout"  # the actor in the history rows that events write


class Status(StrEnum):
    """The states of a fulfilment."""

    RECEIVED = "received"
    PICKING = "picking"
    PACKED = "packed"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"


class Step(StrEnum):
    """What the staff do."""

    PICK = "pick"
    PACK = "pack"
    SHIP = "ship"


class Entry(StrEnum):
    """What a history row tells. `cancelled_too_late`: the parcel had left when the order was cancelled."""

    RECEIVED = "received"
    PICKING = "picking"
    PACKED = "packed"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"
    CANCELLED_TOO_LATE = "cancelled_too_late"


# Step -> the state that it leaves and the state that it leads to.
STEPS: Mapping[Step, tuple[Status, Status]] = {
    Step.PICK: (Status.RECEIVED, Status.PICKING),
    Step.PACK: (Status.PICKING, Status.PACKED),
    Step.SHIP: (Status.PACKED, Status.SHIPPED),
}
NEXT_STEP: Mapping[Status, Step] = {leaves: step for step, (leaves, _) in STEPS.items()}


@dataclass(frozen=True, slots=True)
class Parcel:
    """Who carries it, and how it is found."""

    carrier: str
    tracking: str


@dataclass(frozen=True, slots=True)
class Fulfilment:
    """An order as the warehouse sees it."""

    id: str
    order_id: str
    status: Status
    recipient: str | None
    lines: list[dict[str, Any]]
    shipping_address: dict[str, Any] | None
    ordered_at: datetime
    parcel: Parcel | None = None


class WrongState(Exception):
    """The step is not possible in the fulfilment's state."""

    def __init__(self, step: Step, found: Fulfilment) -> None:
        self.step = step
        self.status = found.status
        super().__init__(self._explain(found))

    def _explain(self, found: Fulfilment) -> str:
        if found.parcel and self.step is Step.SHIP:
            return f"It was shipped with {found.parcel.carrier} as {found.parcel.tracking} already."
        return f"It is {found.status}: {self.step} is possible only when it is {STEPS[self.step][0]}."


def advance(found: Fulfilment, step: Step, parcel: Parcel | None = None) -> Fulfilment | None:
    """The fulfilment after a step, or None when that very step was done before; raises `WrongState`."""
    leaves, leads_to = STEPS[step]
    if found.status is leads_to and found.parcel == parcel:
        return None
    if found.status is not leaves:
        raise WrongState(step, found)
    return replace(found, status=leads_to, parcel=parcel)


def fulfilment_id(order_id: str, created_at: datetime) -> str:
    """An order's fulfilment has the same id whichever event comes first; ids sort by the order's age."""
    milliseconds = int(created_at.timestamp() * 1000)
    return prefixed(PREFIX, uuid7_of(milliseconds, hashlib.sha256(order_id.encode()).digest()[:10]))


def pick_list(order: OrderState) -> list[dict[str, Any]]:
    """What is to be fetched from the shelves."""
    return [_position(line) for line in order.lines]


def _position(line: Line) -> dict[str, Any]:
    return {"sku": line.sku, "name": line.name, "quantity": line.quantity}
