"""One transaction for many commands: the steps that every batch goes through, in the one order that cannot deadlock.

orders (by compare-and-set) → idempotency keys (sorted) → products (sorted) → inserts → the event log's head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncConnection

from services.checkout.commands import place_order, settle
from services.checkout.commands.answers import Answer
from services.checkout.commands.place_order import Placed, PlaceOrder, PlaceResult
from services.checkout.commands.settle import Settle, SettleResult
from services.checkout.domain import Order, Shelf, Status
from services.checkout.store import idempotency, orders, stock
from services.checkout.store.at_once import Assumption, commit
from services.checkout.store.idempotency import Claim, FinalAnswer
from services.checkout.store.opening import begin
from services.checkout.store.orders import Change, Transition
from services.checkout.store.remembered import Remembered
from shared.bus.log import EventLog
from shared.contracts.envelope import Envelope
from shared.runtime.driver import write_together
from shared.runtime.failpoints import reach
from shared.runtime.group_commit import NotAtOnce
from shared.runtime.statements import Write

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


@dataclass(frozen=True, slots=True)
class Asked:
    """What the commands of a batch ask for, under their numbers."""

    settling: Mapping[int, Settle]
    placing: Mapping[int, PlaceOrder]
    changes: Mapping[int, Change]
    claims: Sequence[Claim]

    @classmethod
    def of(cls, commands: Sequence[Command]) -> Asked:
        """Sort the commands."""
        settling = {n: command for n, command in enumerate(commands) if isinstance(command, Settle)}
        placing = {n: command for n, command in enumerate(commands) if isinstance(command, PlaceOrder)}
        changes = {n: settling[n].change for n in settle.first_of_each_order(settling).values()}
        claims = [placing[n].claim for n in place_order.first_of_each_key(placing).values()]
        return cls(settling, placing, changes, claims)

    @property
    def wanted(self) -> set[str]:
        """The products that somebody wants to buy."""
        return {line.sku for command in self.placing.values() for line in command.lines}

    @property
    def skus(self) -> set[str]:
        """Every product whose stock may move."""
        return self.wanted | {line.sku for change in self.changes.values() for line in change.after.lines}


class Batches:
    """Executes batches of commands; the group commit calls it."""

    def __init__(self, event_log: EventLog, source: str, lease_s: float, reservation_s: float) -> None:
        """`source` names this checkout in every event."""
        self._log = event_log
        self._source = source
        self._lease_s = lease_s
        self._reservation_s = reservation_s
        self._catalogue = Remembered()

    async def execute(self, connection: AsyncConnection, commands: Sequence[Command]) -> list[Result]:
        """Run the commands in one transaction; one result each, in their order."""
        asked = Asked.of(commands)
        opening = await begin(connection, [*asked.changes.values()], asked.claims, asked.skus)
        self._catalogue.learn(opening.shelf.products)
        results: dict[int, Result] = {**await place_order.taken(connection, asked.placing, opening.claimed)}
        work = Work(self._source)
        for n, settled in asked.settling.items():
            moved = asked.changes[n] if n in asked.changes and settled.order.id in opening.moved else None
            results[n] = settle.settle(settled, moved, opening.shelf, work)
        for n, placed in asked.placing.items():
            if n not in results:
                results[n] = place_order.decide(placed, opening.shelf, work)
        await write_together(connection, self._writes(work, opening.shelf))
        if work.events:
            await self._log.append(connection, work.events)  # takes the log's lock: always last
        await reach("C1")
        return [results[n] for n in range(len(commands))]

    async def at_once(self, connection: AsyncConnection, commands: Sequence[Command]) -> list[Result]:
        """The same in one statement, if every order goes through; decided on products as they were last seen.

        Raises NotAtOnce when it is not sure to be so, or when the statement finds that it is not.
        """
        asked = Asked.of(commands)
        if len(asked.claims) < len(asked.placing):
            raise NotAtOnce("a key came twice")
        shelf = self._catalogue.shelf(asked.wanted)
        work = Work(self._source)
        results: dict[int, Result] = {
            n: settle.settle(settled, asked.changes.get(n), shelf, work) for n, settled in asked.settling.items()
        }
        results |= {n: place_order.decide(placed, shelf, work) for n, placed in asked.placing.items()}
        if len(work.placed) < len(asked.placing):
            raise NotAtOnce("an order is refused")
        assumption = Assumption([*asked.changes.values()], asked.claims, shelf.products, asked.skus)
        appends = [self._log.appending(*events) for events in self._log.by_partition(work.events)]
        await reach("C1")
        with self._catalogue.doubted():
            left_over = await commit(connection, assumption, self._writes(work, shelf), appends)
        self._catalogue.moved(left_over)
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

    def _writes(self, work: Work, shelf: Shelf) -> list[Write]:
        writes = orders.insert(work.placed, self._lease_s, self._reservation_s) if work.placed else []
        if work.settled:
            writes.append(orders.update_payments(work.settled))
        if work.transitions:
            writes.append(orders.audit(work.transitions))
        if work.answers:
            writes.append(idempotency.answer(work.answers))
        if work.free:
            writes.append(idempotency.free(work.free))
        if moved_stock := stock.move(shelf):
            writes.append(moved_stock)
        return writes
