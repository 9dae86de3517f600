"""What must agree between databases, and with the payment provider: compared in pieces, however much there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from services.checkout.domain import OPEN, Status
from services.checkout.store.reconciliation import SHOWN

if TYPE_CHECKING:
    import asyncpg

    from services.checkout.payments.port import PaymentSeen

PIECE = 10_000  # positions that are held in memory at once

_SUBSCRIPTIONS = """
    SELECT partition, origin, settled, cursor, position AS head FROM subscriptions JOIN log_head USING (partition)
    WHERE service = $1 ORDER BY partition
"""
_LOG = """
    SELECT position, event_id, type, subject FROM event_log
    WHERE partition = $1 AND position > $2 AND position <= $3
"""
_LEDGER = "SELECT position, event_id, state FROM deliveries WHERE partition = $1 AND position > $2 AND position <= $3"
_DROPPED = "SELECT dropped FROM log_head WHERE partition = $1"
_TOLD = """
    SELECT id, status, status IN ('completed', 'cancelled') AS paid, version, total, refunded_total
    FROM orders WHERE version > 0 AND id > $1 ORDER BY id LIMIT 10000
"""
_BOOKED = "SELECT id, status, total, refunded_total, currency FROM orders WHERE id > $1 ORDER BY id LIMIT 10000"
_FOREIGN = """
    SELECT event_id, state FROM deliveries WHERE position IS NULL AND state IN ('done', 'ignored')
"""


@dataclass(slots=True)
class Census:
    """Where the events that a service is owed are: each is in one place. `lost` and `unknown` must be 0."""

    service: str
    places: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def blame(self, line: str) -> None:
        """Note a violation, unless there are too many already."""
        if len(self.lines) < SHOWN:
            self.lines.append(line)


async def census(service: str, checkout: asyncpg.Connection, ledger: asyncpg.Connection) -> Census:
    """Compare the log with a service's ledger.

    `checkout` must look at a snapshot that is not younger than the one of `ledger`: what was settled then is there now.
    """
    found = Census(service)
    for subscription in await checkout.fetch(_SUBSCRIPTIONS, service):
        partition, head = subscription["partition"], subscription["head"]
        start = max(subscription["origin"], await checkout.fetchval(_DROPPED, partition))
        for after in range(start, head, PIECE):
            limits = (partition, after, min(after + PIECE, head))
            log = {row["position"]: row for row in await checkout.fetch(_LOG, *limits)}
            _compare(found, subscription, log, await ledger.fetch(_LEDGER, *limits))
    for row in await ledger.fetch(_FOREIGN):
        found.blame(f"event {row['event_id']} is {row['state']}, and the log never had it")
    return found


def _compare(
    found: Census, subscription: Mapping[str, int], log: Mapping[int, Any], ledger: Sequence[Mapping[str, Any]]
) -> None:
    missing = dict(log)
    for row in ledger:
        position = row["position"]
        written = log.get(position)
        if written is None or written["event_id"] != row["event_id"]:
            found.places["unknown"] += 1
            found.blame(f"event {row['event_id']} is {row['state']} at {position}, where the log has another or none")
            continue
        missing.pop(position, None)
        found.places[row["state"]] += 1
    for position, event in missing.items():
        place = _place(subscription, position)
        found.places[place] += 1
        if place == "lost":
            name = f"event {event['event_id']} ({event['type']} of {event['subject']})"
            found.blame(f"{name} at {position} counts as settled and is not in the ledger: it was lost")


def _place(subscription: Mapping[str, int], position: int) -> str:
    """Where an event is that the ledger does not have."""
    if position > subscription["cursor"]:
        return "in the log"
    return "in the stream" if position > subscription["settled"] else "lost"


async def effects(service: str, checkout: asyncpg.Connection, theirs: asyncpg.Connection) -> list[str]:
    """What a service made of the orders, both at rest; one that is not known here is believed."""
    if service not in _EFFECTS:
        return []
    of_theirs, expected = _EFFECTS[service]
    found = []
    async for orders in _pages(checkout, _TOLD):
        effects_of = {row["id"]: row for row in await theirs.fetch(f"{of_theirs} = ANY($1)", list(orders))}
        for order_id, order in orders.items():
            if complaint := expected(order, effects_of.get(order_id)):
                found.append(f"{order_id}: {complaint}")
        if len(found) > SHOWN:
            return found[:SHOWN]
    async for some in _pages(theirs, f"{of_theirs} > $1 ORDER BY id LIMIT 10000"):
        known = await checkout.fetch("SELECT id FROM orders WHERE id = ANY($1) AND version > 0", list(some))
        found += [f"{order_id}: there is no such order" for order_id in some.keys() - {row["id"] for row in known}]
    return found[:SHOWN]


async def _pages(connection: asyncpg.Connection, query: str) -> AsyncIterator[dict[str, Any]]:
    last = ""
    while rows := await connection.fetch(query, last):
        yield {row["id"]: row for row in rows}
        last = rows[-1]["id"]


Row = Mapping[str, Any]


def _mailed(order: Row, message: Row | None) -> str | None:
    if not order["paid"]:
        return None
    return None if message else "it was paid, and no confirmation was written"


def _fulfilled(order: Row, fulfilment: Row | None) -> str | None:
    if not order["paid"]:
        return f"it was not paid, and its fulfilment is {fulfilment['status']}" if fulfilment else None
    if fulfilment is None:
        return "it was paid, and there is no fulfilment"
    if order["status"] == "cancelled" and fulfilment["status"] not in {"cancelled", "shipped"}:
        return f"it is cancelled, and its fulfilment is {fulfilment['status']}"
    return None


def _counted(order: Row, fact: Row | None) -> str | None:
    if fact is None:
        return "analytics does not have it"
    names = ("version", "total", "refunded_total", "paid")
    different = [f"{name} {order[name]}, not {fact[name]}" for name in names if order[name] != fact[name]]
    return f"the order has {', '.join(different)}" if different else None


_EFFECTS = {
    "email": ("SELECT order_id AS id FROM messages WHERE kind = 'completed' AND order_id", _mailed),
    "warehouse": ("SELECT order_id AS id, status FROM fulfilments WHERE order_id", _fulfilled),
    "analytics": (
        "SELECT order_id AS id, version, total, refunded_total, sold AS paid FROM order_facts WHERE order_id",
        _counted,
    ),
}


async def money(checkout: asyncpg.Connection, payments: AsyncIterable[PaymentSeen]) -> AsyncIterator[tuple[str, bool]]:
    """Compare what the provider has with the orders: lines, and whether work under way may explain them.

    `checkout` must look at a snapshot that is older than the payments.
    """
    captured: dict[str, list[PaymentSeen]] = {}
    async for payment in payments:
        if payment.order_id is not None and payment.captured:
            captured.setdefault(payment.order_id, []).append(payment)
    async for orders in _pages(checkout, _BOOKED):
        for order_id, order in orders.items():
            some = captured.pop(order_id, [])
            for complaint in _paid_once(order, some):
                yield f"{order_id}: {complaint}", False
            for complaint in _booked(order, some):
                yield f"{order_id}: {complaint}", True
    for order_id, some in captured.items():
        yield f"{order_id}: {_list(some)} captured, and there is no such order", True


def _paid_once(order: Row, payments: Sequence[PaymentSeen]) -> Iterator[str]:
    if len(payments) > 1:
        yield f"captured {len(payments)} times: {_list(payments)}"
    paid = order["status"] in {Status.COMPLETED, Status.CANCELLED}
    if paid and not payments:
        yield f"it is {order['status']}, and nothing was captured"
    if paid and any((one.captured, one.currency.upper()) != (order["total"], order["currency"]) for one in payments):
        yield f"its total is {order['total']} {order['currency']}, captured were {_list(payments)}"


def _booked(order: Row, payments: Sequence[PaymentSeen]) -> Iterator[str]:
    if order["status"] in OPEN:
        return
    kept = [one for one in payments if one.captured > one.refunded]
    if kept and (order["status"] != Status.COMPLETED or order["refunded_total"] == order["total"]):
        yield f"it is {order['status']}, and {_list(kept)} was captured and not given back"
    refunded = sum(one.refunded for one in payments)
    if refunded != order["refunded_total"]:
        yield f"{refunded} given back, {order['refunded_total']} booked"


def _list(payments: Sequence[PaymentSeen]) -> str:
    return ", ".join(f"{one.reference}: {one.captured} {one.currency}" for one in payments)
