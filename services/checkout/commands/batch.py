"""One transaction for many commands: the steps that every batch goes through, in the one order that cannot deadlock.

orders (by compare-and-set) → idempotency keys (sorted) → products (sorted) → inserts → the event log's head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncConnection

from services.checkout.commands import place_order, settle
from services.checkout.commands.answers import Answer
from services.checkout.commands.place_order import KeyTaken, Placed, PlaceOrder, PlaceResult
from services.checkout.commands.settle import Settle, SettleResult
from services.checkout.domain import Order, Status
from services.checkout.store import idempotency, orders, stock
from services.checkout.store.idempotency import FinalAnswer
from services.checkout.store.orders import Change, Transition
from shared.bus.log import EventLog
from shared.contracts.envelope import Envelope

Command = PlaceOrder | Settle
Result = PlaceResult | SettleResult


@dataclass(slots=True)
class Work:
    """What the commands of a batch want written."""

    source: str
    placed: list[Order] = field(default_factory=list)
    settled: list[Order] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    answers: list[FinalAnswer] = field(default_factory=list)
    free: list[tuple[str, str]] = field(default_factory=list)
    events: list[Envelope] = field(default_factory=list)

    def audit(self, order: Order, before: Status | None, cause: str) -> None:
        """Note a transition."""
        self.transitions.append(Transition(order.id, before, order.status, order.version, cause))

    def answer(self, tenant: str, key: str, answer: Answer) -> None:
        """Note the final answer of a key."""
        self.answers.append(FinalAnswer(tenant, key, answer.status, answer.body))


class Batches:
    """Executes batches of commands; the group commit calls it."""

    def __init__(self, event_log: EventLog, source: str, lease_s: float, reservation_s: float) -> None:
        """`source` names this checkout in every event."""
        self._log = event_log
        self._source = source
        self._lease_s = lease_s
        self._reservation_s = reservation_s

    async def execute(self, connection: AsyncConnection, commands: Sequence[Command]) -> list[Result]:
        """Run the commands in one transaction; one result each, in their order."""
        settling = {n: command for n, command in enumerate(commands) if isinstance(command, Settle)}
        placing = {n: command for n, command in enumerate(commands) if isinstance(command, PlaceOrder)}
        changes = await settle.move(connection, settling)
        taken = await place_order.claim(connection, placing)
        shelf = await stock.shelf(connection, _skus(changes, placing, taken))
        work = Work(self._source)
        results: dict[int, Result] = {**taken}
        for n, settled in settling.items():
            results[n] = settle.settle(settled, changes.get(n), shelf, work)
        for n, placed in placing.items():
            if n not in taken:
                results[n] = place_order.decide(placed, shelf, work)
        await stock.move(connection, shelf)
        await self._write(connection, work)
        return [results[n] for n in range(len(commands))]

    async def recall(self, connection: AsyncConnection, command: Command) -> Result | None:
        """What became of a command whose COMMIT got no answer; None when it did not take place."""
        if isinstance(command, PlaceOrder):
            return await self._recall_placed(connection, command)
        found = await orders.some(connection, [command.order.id])
        return settle.recalled(command, found[0]) if found else None

    async def _recall_placed(self, connection: AsyncConnection, command: PlaceOrder) -> Result | None:
        stored = await idempotency.find(connection, command.tenant, command.key)
        if stored is None or stored.order_id != command.order_id:
            return None  # never committed, or somebody else's by now: running it again finds out
        if stored.status is not None and stored.answer is not None:
            return Answer(stored.status, stored.answer)
        order = await orders.one(connection, command.tenant, command.order_id)
        return Placed(order) if order else None

    async def _write(self, connection: AsyncConnection, work: Work) -> None:
        if work.placed:
            await orders.insert(connection, work.placed, self._lease_s, self._reservation_s)
        if work.settled:
            await orders.update_payments(connection, work.settled)
        if work.transitions:
            await orders.audit(connection, work.transitions)
        if work.answers:
            await idempotency.answer(connection, work.answers)
        if work.free:
            await idempotency.free(connection, work.free)
        if work.events:
            await self._log.append(connection, work.events)  # takes the log's lock: always last


def _skus(changes: dict[int, Change], placing: dict[int, PlaceOrder], taken: dict[int, KeyTaken]) -> set[str]:
    skus = {line.sku for change in changes.values() for line in change.after.lines}
    return skus | {line.sku for n, command in placing.items() if n not in taken for line in command.lines}
