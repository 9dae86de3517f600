"""Place: claim the key, price, reserve all lines or none, write order and payment intent, in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from services.checkout.commands import answers
from services.checkout.commands.answers import Answer
from services.checkout.domain import Line, Order, Payment, Shelf, Status, Wanted, charge_key, price
from services.checkout.store import idempotency
from services.checkout.store.idempotency import Claim, StoredAnswer

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from services.checkout.commands.batch import Work


@dataclass(frozen=True, slots=True)
class PlaceOrder:
    """A valid request to place an order."""

    order_id: str
    tenant: str
    key: str
    request_sha256: bytes
    currency: str
    lines: tuple[Wanted, ...]
    payment_method: str
    customer: Mapping[str, Any]
    shipping_address: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    expected_total: int | None
    at: datetime
    traceparent: str | None = None

    @property
    def claim(self) -> Claim:
        """The idempotency key of the request."""
        return Claim(self.tenant, self.key, self.request_sha256, self.order_id)


@dataclass(frozen=True, slots=True)
class Placed:
    """The order is committed as pending and belongs to this process until its lease runs out."""

    order: Order
    lease_token: int = 1


@dataclass(frozen=True, slots=True)
class KeyTaken:
    """Somebody came first with this key; what is known of it."""

    stored: StoredAnswer


PlaceResult = Placed | KeyTaken | Answer


def first_of_each_key(commands: Mapping[int, PlaceOrder]) -> dict[tuple[str, str], int]:
    """The number of the command that came first, for each tenant and key."""
    return {(command.tenant, command.key): n for n, command in reversed([*commands.items()])}


async def taken(
    connection: AsyncConnection, commands: Mapping[int, PlaceOrder], claimed: Collection[tuple[str, str]]
) -> dict[int, KeyTaken]:
    """The commands that came second, with what is known of the first, under their number."""
    first = first_of_each_key(commands)
    found = {}
    for n, command in commands.items():
        pair = (command.tenant, command.key)
        if pair not in claimed or first[pair] != n:
            stored = await idempotency.find(connection, *pair)
            # None: the transaction that held the key gave it back this very moment. In use, for one more moment.
            found[n] = KeyTaken(stored or StoredAnswer(command.request_sha256, None, None, None))
    return found


def decide(command: PlaceOrder, shelf: Shelf, work: Work) -> PlaceResult:
    """Price and reserve, in arrival order; what is to be written goes into `work`."""
    lines = price(command.lines, command.currency, command.expected_total, shelf)
    if not isinstance(lines, tuple):
        work.free.append((command.tenant, command.key))
        return answers.refused(lines)
    if shortages := shelf.shortages(lines):
        answer = answers.out_of_stock(shortages)
        work.answer(command.tenant, command.key, answer)
        return answer
    shelf.reserve(lines)
    order = _order(command, lines)
    work.placed.append(order)
    work.audit(order, None, "placed")
    return Placed(order)


def _order(command: PlaceOrder, lines: tuple[Line, ...]) -> Order:
    return Order(
        id=command.order_id,
        tenant=command.tenant,
        status=Status.PENDING,
        version=0,
        currency=command.currency,
        total=sum(line.subtotal for line in lines),
        lines=lines,
        customer=command.customer,
        shipping_address=command.shipping_address,
        metadata=command.metadata,
        payment=Payment(1, charge_key(command.order_id, 1), command.payment_method),
        created_at=command.at,
        idempotency_key=command.key,
    )
