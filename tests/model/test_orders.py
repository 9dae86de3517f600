"""A model of everything that can happen to orders, in any order, with deaths between any two steps.

It drives the real commands on a real Postgres. The rules that it is after (the lease's fence, the claim of a key, the
compare-and-set of a state, what is written together) are SQL: over a store in memory it would test a copy of them.
What it owns is time, the provider and who goes on when: about a hundred steps a second, a day in one of them, and every
failure can be replayed and made smaller.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from typing_extensions import override

from services.checkout import app as checkout_app
from services.checkout.commands import once
from services.checkout.commands.answers import Answer
from services.checkout.commands.place_order import PlaceOrder
from services.checkout.commands.refund_book import GiveBack
from services.checkout.domain import RefundKind, Wanted
from services.checkout.payments.port import Captured
from services.checkout.store import orders
from shared.runtime import failpoints
from shared.runtime.db import Database
from shared.runtime.identifiers import new_id
from shared.runtime.migrations import upgrade
from tests.model.checks import always, at_rest
from tests.model.histories import play
from tests.model.processes import CLOCK, moment
from tests.model.provider import Card, Fate
from tests.model.world import LEASE_S, RESERVATION_S, Process, World
from tests.support.servers import NewDatabase

MIGRATIONS = Path(checkout_app.__file__).parent / "migrations"
# MODEL_EXAMPLES=1000 looks for what nobody has found yet, and makes it small; otherwise the same examples every time.
SEARCHED = os.environ.get("MODEL_EXAMPLES")
EXAMPLES = int(SEARCHED or "40")
STEPS = 30
TENANT = "tenant"
PLENTY, SCARCE = 1000, 5

FORGOTTEN_S = 26 * 3600.0  # by then the provider has forgotten a key, and its search has caught up
WAITS_S = (2.0, LEASE_S + 1, RESERVATION_S + 1, 23.5 * 3600, FORGOTTEN_S)
SHORT_S = 60.0  # no request is on its way for longer, and no process sleeps longer that still has a connection open

processes = st.integers(0, 1)
pauses = st.sampled_from([0.0, LEASE_S + 1])
some = st.integers(0, 999)
fates = st.sampled_from([*Fate, Fate.ANSWERED, Fate.ANSWERED])
moments = st.none() | st.builds(
    moment, st.sampled_from(["C1", "C2", "C3", "C4", "C5", "C6"]), st.sampled_from(["dies", "breaks"])
)
SLEPT_AT = [moment(point, "stands") for point in ("C2", "C3", "C4")]
OTHER_DIED_AT = [None, *(moment(point, "dies") for point in ("C1", "C3", "C4", "C5", "C6"))]
OTHERS_FATES = [Fate.ANSWERED, Fate.ANSWER_LOST]
SLEEPERS_FATES = [Fate.ANSWERED, Fate.REFUSED, Fate.VANISHED]
kinds = st.sampled_from([RefundKind.REFUND, RefundKind.CANCEL])
stops = st.builds(moment, st.sampled_from(["C2", "C3", "C4"]), st.just("stands"))


class Orders(RuleBasedStateMachine):
    """Clients, two processes, a provider, customers and time.

    No rule has a precondition: which rules can be chosen must not depend on how quick the database was.
    """

    loop: ClassVar[asyncio.AbstractEventLoop]
    db: ClassVar[Database]

    @initialize()
    def open_shop(self) -> None:
        self.commands: dict[str, PlaceOrder] = {}
        self.told: dict[str, list[Answer]] = defaultdict(list)
        self.given_back: dict[str, GiveBack] = {}
        self.world = self.await_(self._open())

    @rule(process=processes, card=st.sampled_from(Card), units=st.integers(1, 3), fate=fates, at=moments | stops)
    def place(self, process: int, card: Card, units: int, fate: Fate, at: failpoints.FailPoint | None) -> None:
        lines = tuple(Wanted(sku, units) for sku in ("A", "B")[: 1 + units % 2])
        command = self.placing(f"key-{len(self.commands)}", card, lines)
        self.commands[command.key] = command
        self.run(process, lambda one: one.checkout.place(command), [fate], at, command.key)

    @rule(process=processes, which=some, fate=fates, at=moments | stops)
    def repeat(self, process: int, which: int, fate: Fate, at: failpoints.FailPoint | None) -> None:
        if not self.commands:
            return
        first = _pick(self.commands, which)
        command = self.placing(first.key, first.payment_method, first.lines)
        self.run(process, lambda one: one.checkout.place(command), [fate], at, command.key)

    @rule(process=processes, after_s=pauses, fate=st.lists(fates, max_size=4), at=moments)
    def recover(self, process: int, after_s: float, fate: list[Fate], at: failpoints.FailPoint | None) -> None:
        self.await_(self.world.wait(after_s))
        self.run(process, lambda one: one.recovery.run_once(), fate, at)

    @rule(process=processes, after_s=pauses, fate=st.lists(fates, max_size=3), at=moments)
    def recover_refunds(self, process: int, after_s: float, fate: list[Fate], at: failpoints.FailPoint | None) -> None:
        self.await_(self.world.wait(after_s))
        self.run(process, lambda one: one.refund_recovery.run_once(), fate, at)

    @rule(
        process=processes,
        which=some,
        amount=st.none() | st.integers(1, 300),
        kind=kinds,
        fate=fates,
        at=moments | stops,
    )
    def give_back(
        self,
        process: int,
        which: int,
        amount: int | None,
        kind: RefundKind,
        fate: Fate,
        at: failpoints.FailPoint | None,
    ) -> None:
        found = self._orders("completed") or self._orders("%")
        if not found:
            return
        order_id = found[which % len(found)]
        amount = None if kind is RefundKind.CANCEL else amount
        key = f"back-{len(self.given_back)}"
        command = GiveBack(kind, order_id, TENANT, key, b"r" * 32, self.world.clock.now(), amount)
        self.given_back[key] = command
        self.run(process, lambda one: one.refunds.give_back(command), [fate], at, key)

    @rule(process=processes, which=some, fate=fates, at=moments)
    def repeat_giving_back(self, process: int, which: int, fate: Fate, at: failpoints.FailPoint | None) -> None:
        if not self.given_back:
            return
        command = _pick(self.given_back, which)
        self.run(process, lambda one: one.refunds.give_back(command), [fate], at, command.key)

    @rule(process=processes, card=st.sampled_from(Card), stop=stops, others=fates, at=moments, late=fates)
    def sleep_through_the_lease(
        self,
        process: int,
        card: Card,
        stop: failpoints.FailPoint,
        others: Fate,
        at: failpoints.FailPoint | None,
        late: Fate,
    ) -> None:
        """Chance alone would seldom put these three together."""
        self.place(process, card, 2, Fate.ANSWERED, stop)
        self.recover(1 - process, LEASE_S + 1, [others], at)
        self.go_on(-1, late)

    @rule(process=processes, which=some, kind=kinds, stop=stops, others=fates, at=moments, late=fates)
    def sleep_through_the_lease_of_a_refund(
        self,
        process: int,
        which: int,
        kind: RefundKind,
        stop: failpoints.FailPoint,
        others: Fate,
        at: failpoints.FailPoint | None,
        late: Fate,
    ) -> None:
        self.give_back(process, which, 1, kind, Fate.ANSWERED, stop)
        self.recover_refunds(1 - process, LEASE_S + 1, [others], at)
        self.go_on(-1, late)

    @rule(which=some, fate=fates)
    def go_on(self, which: int, fate: Fate) -> None:
        if not self.world.standing:
            return
        operation = self.world.standing[which % len(self.world.standing)]
        self.world.provider.fates = [fate]
        self.await_(self.world.go_on(operation))
        self._hear(operation)

    @rule(process=processes)
    def kill(self, process: int) -> None:
        self.await_(self.world.kill(process))

    @rule(seconds=st.sampled_from(WAITS_S))
    def wait(self, seconds: float) -> None:
        if seconds > SHORT_S:
            for process in (0, 1):
                self.await_(self.world.kill(process))
            self.deliver_all()
        self.await_(self.world.wait(seconds))

    @rule(which=some)
    def deliver(self, which: int) -> None:
        if waiting := self.world.provider.on_the_way:
            self.world.provider.deliver(waiting[which % len(waiting)])

    @rule(which=some, agrees=st.booleans())
    def customer_acts(self, which: int, agrees: bool) -> None:
        waiting = [one for one in self.world.provider.book.values() if one.status == "requires_action"]
        if waiting:
            payment = waiting[which % len(waiting)]
            payment.status, payment.captured = ("succeeded", payment.charge.amount) if agrees else ("declined", 0)

    @rule(which=some)
    def provider_changes_its_mind(self, which: int) -> None:
        """It must not, and some day it will: a declined payment is captured after all."""
        declined = [one for one in self.world.provider.book.values() if one.status == "declined"]
        if declined:
            payment = declined[which % len(declined)]
            payment.status, payment.captured, payment.late = "succeeded", payment.charge.amount, True

    @rule(process=processes, at=moments)
    def notice_late_payments(self, process: int, at: failpoints.FailPoint | None) -> None:
        self.run(process, self._notice, [], at)

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert self.await_(always(self.world, self.told)) == []

    @override
    def teardown(self) -> None:
        """Faults end, time passes, and everything has to come to rest."""
        if not hasattr(self, "world"):
            return
        try:
            self.await_(self._come_to_rest())
            for payment in self.world.provider.book.values():
                if payment.status == "requires_action":  # the customer comes back when nobody waits any more
                    payment.status, payment.captured = "succeeded", payment.charge.amount
            assert self.await_(always(self.world, self.told)) == []
            assert self.await_(at_rest(self.world, self.told)) == []
        finally:
            self.await_(self.world.close())

    def run(
        self,
        process: int,
        work: Callable[[Process], Coroutine[Any, Any, Any]],
        fate: list[Fate],
        at: failpoints.FailPoint | None,
        key: str | None = None,
    ) -> None:
        self.world.provider.fates = fate
        failpoints.arm([failpoints.FailPoint(at.point, at.act, hit=1)] if at else [])
        self._hear(self.await_(self.world.run(process, work, key)))

    def placing(self, key: str, card: str, lines: tuple[Wanted, ...]) -> PlaceOrder:
        """A request to place an order; the same key always comes with the same order."""
        order_id = new_id("ord")
        self.world.provider.numbers[order_id] = len(self.world.provider.numbers)
        return PlaceOrder(
            order_id=order_id,
            tenant=TENANT,
            key=key,
            request_sha256=key.encode().ljust(32, b"x"),
            currency="EUR",
            lines=lines,
            payment_method=card,
            customer={"email": "ann@example.com"},
            shipping_address=None,
            metadata={},
            expected_total=None,
            at=self.world.clock.now(),
        )

    def deliver_all(self) -> None:
        for request in list(self.world.provider.on_the_way):
            self.world.provider.deliver(request)

    def await_(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def _hear(self, operation: Any) -> None:
        if operation.task.done() and isinstance(answer := operation.result, Answer) and operation.key:
            self.told[operation.key].append(answer)

    def _orders(self, status: str) -> list[str]:
        numbers = self.world.provider.numbers
        found = self.await_(self.world.rows(f"SELECT id FROM orders WHERE status LIKE '{status}'"))
        return sorted((row["id"] for row in found), key=numbers.__getitem__)

    async def _open(self) -> World:
        tables = "orders, order_lines, payments, order_transitions, refunds, idempotency_keys, event_log, products"
        world = World(self.db)
        await world.change(f"TRUNCATE {tables}")
        await world.change("UPDATE log_head SET position = 0")
        await world.wait(0)
        await world.change(
            "INSERT INTO products (sku, name, unit_price, currency, available, received)"
            f" VALUES ('A', 'A', 100, 'EUR', {PLENTY}, {PLENTY}), ('B', 'B', 10, 'EUR', {SCARCE}, {SCARCE})"
        )
        return world

    async def _notice(self, process: Process) -> None:
        for payment in [one for one in self.world.provider.book.values() if one.captured]:
            async with self.db.reading() as connection:
                order = await orders.one(connection, TENANT, payment.charge.order_id)
            if order:
                await process.refunds.reverse(order, Captured(payment.reference))

    async def _come_to_rest(self) -> None:
        world = self.world
        world.provider.fates = []
        for operation in list(world.standing):
            await world.go_on(operation)
        for process in (0, 1):
            await world.kill(process)
        for request in list(world.provider.on_the_way):
            world.provider.deliver(request)
        await self._recover_all()
        await self._ask_again()
        await self._recover_all()  # a key that was given back has made a new order just now
        await self._ask_again()

    async def _ask_again(self) -> None:
        for first in self.commands.values():
            command = self.placing(first.key, first.payment_method, first.lines)
            self._hear(await self.world.run(0, lambda one, c=command: one.checkout.place(c), command.key))
        for again in self.given_back.values():
            self._hear(await self.world.run(0, lambda one, c=again: one.refunds.give_back(c), again.key))

    async def _recover_all(self) -> None:
        world = self.world
        for seconds in (RESERVATION_S + 1, RESERVATION_S + 1, FORGOTTEN_S, RESERVATION_S + 1):
            await world.wait(seconds)
            await world.run(0, lambda one: one.recovery.run_once(), None)
            await world.run(1, self._notice, None)
            await world.run(1, lambda one: one.refund_recovery.run_once(), None)


def _pick(things: dict[str, Any], which: int) -> Any:
    return list(things.values())[which % len(things)]


def test_whoever_sleeps_through_a_lease_does_no_harm_whatever_the_others_did_meanwhile(machine: type[Orders]) -> None:
    """What chance would seldom put together, in every combination."""
    shop = machine()
    shop.open_shop()

    for stop, others, at, late in product(SLEPT_AT, OTHERS_FATES, OTHER_DIED_AT, SLEEPERS_FATES):
        shop.sleep_through_the_lease(0, Card.GOOD, stop, others, at, late)
        shop.sleep_through_the_lease_of_a_refund(0, -1, RefundKind.REFUND, stop, others, at, late)
    shop.nothing_is_wrong()

    shop.teardown()


@pytest.fixture
def machine(model_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Orders]]:
    monkeypatch.setattr(once, "KEY_WAIT_S", 0.0)  # nobody waits for another: the test decides who goes on
    Orders.loop = asyncio.new_event_loop()
    Orders.db = Orders.loop.run_until_complete(_connected(model_database))
    yield Orders
    Orders.loop.run_until_complete(Orders.db.close())
    Orders.loop.close()


async def _connected(url: str) -> Database:
    return Database(url, "model", 8)


@pytest.fixture
async def model_database(new_database: NewDatabase) -> str:
    url = await new_database()
    connection = await asyncpg.connect(url)
    await connection.execute(CLOCK)
    await connection.close()
    await upgrade(url, MIGRATIONS)
    return url


@pytest.mark.timeout(600)
def test_whatever_happens_in_whatever_order_no_money_stock_or_order_is_lost(machine: type[Orders]) -> None:
    play(machine, EXAMPLES, STEPS, search=SEARCHED is not None)
