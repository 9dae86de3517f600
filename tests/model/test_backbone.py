"""A model of everything that can happen between a committed event and its effect, in any order.

Relay, consumer, reporter, retrier, ledger and log are the real ones, on a real Postgres: their rules are SQL, and a
store in memory would test a copy of them. The streams are in memory, because no server can be made to lose exactly this
in exactly that moment a hundred times a second; `test_stream_conformance` says that they are like a server's.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from typing import Any, ClassVar
from uuid import UUID

import asyncpg
import pytest
import structlog
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from typing_extensions import override

from shared.bus import consumer, relay
from shared.bus.consumer import PartitionConsumer, Reporter
from shared.bus.ledger import ledger_tables
from shared.bus.log import log_tables
from shared.contracts.envelope import Envelope
from shared.contracts.orders import ORDER_CANCELLED, ORDER_COMPLETED, ORDER_REFUNDED, schema_of
from shared.runtime import failpoints
from shared.runtime.db import Database
from shared.runtime.supervision import Loop
from tests.model.backbone import SERVICES, Backbone, Checkout, Databases, Fate, Service
from tests.model.backbone_checks import always, at_rest, believed, dense
from tests.model.backbone_losses import LOSSES, lose
from tests.model.histories import play
from tests.model.processes import CLOCK, Operation, VirtualClock, moment
from tests.support.servers import NewDatabase

# BACKBONE_EXAMPLES=5000 looks for what nobody has found yet, and makes it small; otherwise always the same examples.
SEARCHED = os.environ.get("BACKBONE_EXAMPLES")
EXAMPLES = int(SEARCHED or "20")
STEPS = 25
ORDERS = 3
AFTER_CLAIM_S = 16.0
# Enough for what is open to be claimed, for boards to be written anew, and then for every retry there is.
TO_REST_S = (0.0, *[1.1] * 4, 4.0, 4.0, 16.0, *[1.1] * 8, *[130.0] * 30)

EFFECTS = """
    CREATE TABLE effects (n bigserial, event_id uuid, subject text, version int,
                          transaction bigint DEFAULT txid_current())
"""

some = st.integers(0, 99)
services = st.integers(0, 1)
replicas = st.integers(0, 1)
kinds = st.sampled_from([ORDER_COMPLETED, ORDER_COMPLETED, ORDER_CANCELLED, ORDER_REFUNDED, "order.gifted"])
fates = st.sampled_from([Fate.FINE, Fate.FINE, Fate.FINE, *Fate])


@dataclass(frozen=True)
class Moment:
    """What happens when a step comes to a point for the n-th time."""

    point: str
    what: str
    hit: int


FAULTS = ("dies", "breaks", "stands")
COMMANDS = {
    "relay": ("board", "publish", "rebuild", "report"),
    "consumer": ("board", "create_group", "read_own", "read_new", "claim_idle", "ack", "read_range", "report"),
}
RELAYING = ["R1", "R3", "R4", *(f"{when} {what}" for what in COMMANDS["relay"] for when in ("before", "after"))]
CONSUMING = ["K1", "K4", "K5", *(f"{when} {what}" for what in COMMANDS["consumer"] for when in ("before", "after"))]
losses = st.sampled_from(sorted(LOSSES))
hits = st.sampled_from([1, 1, 2])


def moments(points: Sequence[str]) -> st.SearchStrategy[Moment | None]:
    """No fault at all in every third step; elsewhere any fault or loss at any point."""
    named = st.builds(Moment, st.sampled_from([*points, "C5"]), st.sampled_from(FAULTS) | losses, hits)
    return st.none() | named | st.builds(Moment, st.sampled_from([*points, "C5"]), st.sampled_from(FAULTS), hits)


class Pipeline(RuleBasedStateMachine):
    """Appends, steps of every loop, deaths, losses and time.

    No rule has a precondition: which rules can be chosen must not depend on how quick the database was.
    """

    loop: ClassVar[asyncio.AbstractEventLoop]
    databases: ClassVar[Databases]
    clock: ClassVar[VirtualClock]

    @initialize(partitions=st.integers(1, 2), services=st.integers(1, 2))
    def begin(self, partitions: int, services: int) -> None:
        self.versions: Counter[str] = Counter()
        self.world = Backbone(self.databases, self.clock, partitions, services)
        self.await_(self.world.open())
        self.before = {name: self.await_(self.world.snapshot(name)) for name in self.world.services}
        self.believed = self.await_(self.world.subscriptions())

    @rule(orders=st.lists(st.tuples(st.integers(0, ORDERS - 1), kinds, fates), min_size=1, max_size=4))
    def append(self, orders: list[tuple[int, str, Fate]]) -> None:
        self.await_(self.world.append([(self.event(number, kind), fate) for number, kind, fate in orders]))

    @rule(replica=replicas, which=some, at=moments(RELAYING))
    def relay(self, replica: int, which: int, at: Moment | None) -> None:
        process = self.world.checkouts()[replica]
        self.step(process, which, process.loops or [process.family], at)

    @rule(replica=replicas, service=services, which=some, at=moments([*CONSUMING, "handling"]))
    def consume(self, replica: int, service: int, which: int, at: Moment | None) -> None:
        process = self.service(service, replica)
        loops = [loop for loop in process.loops if isinstance(loop, PartitionConsumer)]
        self.step(process, which, loops or [process.family], at)

    @rule(replica=replicas, service=services, which=some, at=moments(CONSUMING))
    def report(self, replica: int, service: int, which: int, at: Moment | None) -> None:
        process = self.service(service, replica)
        loops = [loop for loop in process.loops if isinstance(loop, Reporter)]
        self.step(process, which, loops or [process.family], at)

    @rule(replica=replicas, service=services, after_s=st.sampled_from([0.0, 6.0, 61.0]), at=moments(["handling"]))
    def retry(self, replica: int, service: int, after_s: float, at: Moment | None) -> None:
        self.await_(self.world.wait(after_s))
        process = self.service(service, replica)
        self.step(process, 0, [process.retrier], at)

    @rule(replica=replicas)
    def everything_moves(self, replica: int) -> None:
        """A round without faults: otherwise chance would seldom get far enough."""
        self.await_(self.round(replica))
        self.await_(self.world.wait(1.1))

    @rule(replica=replicas, service=services, at=moments(CONSUMING))
    def sleep_until_others_have_claimed(self, replica: int, service: int, at: Moment | None) -> None:
        """Chance alone would seldom put these together: a zombie wakes up when its work is done."""
        self.consume(replica, service, 0, Moment("after read_new", "stands", 1))
        self.await_(self.world.wait(AFTER_CLAIM_S))
        self.consume(1 - replica, service, 0, at)
        self.retry(1 - replica, service, 0.0, None)
        self.go_on(-1)

    @rule(loss=losses, which=some)
    def lose(self, loss: str, which: int) -> None:
        self.await_(lose(self.world, loss, which))

    @rule(seconds=st.sampled_from([0.3, 1.1, 4.0, AFTER_CLAIM_S, 61.0, 3700.0]))
    def wait(self, seconds: float) -> None:
        self.await_(self.world.wait(seconds))

    @rule(which=some)
    def go_on(self, which: int) -> None:
        if self.world.standing:
            operation = self.world.standing[which % len(self.world.standing)]
            self.await_(self.world.go_on(operation))
            _unforeseen(operation)

    @rule(which=st.integers(0, 5))
    def kill(self, which: int) -> None:
        self.await_(self.world.kill(which % len(self.world.processes)))

    @rule(replica=replicas, service=services)
    def leave(self, replica: int, service: int) -> None:
        process = self.service(service, replica)
        self.await_(self.world.let(process, process.leave()))
        self.await_(self.world.kill(self.world.processes.index(process)))

    @rule(service=services, from_now=st.booleans(), moving=st.booleans())
    def subscribe_again(self, service: int, from_now: bool, moving: bool) -> None:
        """A subscription that is removed, noticed or not, and added again."""
        name = self.service(service, 0).name
        self.await_(self.world.unsubscribe(name))
        if moving:
            self.await_(self.round(0))
        self.await_(self.world.subscribe(name, from_now=from_now))

    @rule(service=services, position=st.integers(0, 8), replay=st.booleans())
    def rewind(self, service: int, position: int, replay: bool) -> None:
        self.await_(self.world.rewind(self.service(service, 0).name, position, replay=replay))

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.await_(self._look())

    @override
    def teardown(self) -> None:
        """Faults end, one replica of each kind comes back, time passes, and everything has to come to rest."""
        if not hasattr(self, "world"):
            return
        try:
            self.await_(self._come_to_rest())
            self.await_(self._look())
            assert self.await_(dense(self.world)) == []
        finally:
            self.await_(self.world.close())

    def step(self, process: Checkout | Service, which: int, loops: Sequence[Loop], at: Moment | None) -> None:
        failpoints.arm([self.failpoint(at)] if at else [])
        operation = self.await_(self.world.step(process, loops[which % len(loops)]))
        _unforeseen(operation)

    def step_at(self, at: Moment) -> None:
        """The steps of one replica of everything, in one of which it happens."""
        self.relay(0, 0, at if at.point in RELAYING else None)
        self.consume(0, 0, 0, at if at.point in CONSUMING else None)
        self.report(0, 0, 0, at if at.point in CONSUMING else None)

    def failpoint(self, at: Moment) -> failpoints.FailPoint:
        if at.what not in FAULTS:
            return failpoints.FailPoint(at.point, partial(lose, self.world, at.what, at.hit), hit=at.hit)
        if at.point == "handling" and at.what == "stands":
            return moment(at.point, "dies", at.hit)  # it would sleep with locks that others wait for
        return moment(at.point, at.what, at.hit)

    async def round(self, replica: int) -> None:
        """Every loop of one replica of everything makes a step."""
        world = self.world
        await self.steps(checkout := world.checkouts()[replica], [checkout.family])
        await self.steps(checkout, checkout.loops)
        for name in world.services:
            await self.steps(process := world.replicas(name)[replica], [process.family])
            await self.steps(process, [*process.loops, process.retrier])

    async def steps(self, process: Checkout | Service, loops: Sequence[Loop]) -> None:
        for loop in loops:
            if not process.dead:
                _unforeseen(await self.world.step(process, loop))

    def event(self, number: int, kind: str) -> Envelope:
        """The next version of an order."""
        subject = f"ord_{number}"
        self.versions[subject] += 1
        return _event(subject, kind, self.versions[subject], sum(self.versions.values()))

    def service(self, service: int, replica: int) -> Service:
        names = list(self.world.services)
        return self.world.replicas(names[service % len(names)])[replica]

    def await_(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def _look(self) -> None:
        self.world.server.remember()
        subscriptions = await self.world.subscriptions()
        found = believed(self.believed, subscriptions, self.world.heads)
        self.believed = subscriptions
        for name in self.world.services:
            now = await self.world.snapshot(name)
            found += always(self.world, name, self.before[name], now, subscriptions)
            self.before[name] = now
        assert found == []

    async def _come_to_rest(self) -> None:
        world = self.world
        for operation in list(world.standing):
            if operation in world.standing:
                await world.go_on(operation)
                _unforeseen(operation)
        for number in range(len(world.processes)):
            await world.kill(number)
        for name in world.services:
            await world.subscribe(name, from_now=False)
        await self.rest()

    async def rest(self) -> None:
        """The server is whole, nobody does anything else, time passes: everything has to be settled by itself."""
        world = self.world
        await world.heal()
        wrong: list[str] = ["not looked yet"]
        for seconds in TO_REST_S:
            await world.wait(seconds)
            await self.round(0)
            wrong = await at_rest(world)
            if not wrong:
                break
        assert wrong == []


def _unforeseen(operation: Operation) -> None:
    if operation.task.done():
        _ = operation.result


def _event(subject: str, kind: str, version: int, number: int) -> Envelope:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    line = {"sku": "A", "name": "A", "quantity": 1, "unit_price": 100, "subtotal": 100}
    data = {
        "order_id": subject, "tenant": f"t-{subject}", "status": "completed", "version": version, "currency": "EUR",
        "total": 100, "refunded_total": 0, "lines": [line], "customer": {"email": "ann@example.com"},
        "created_at": at.isoformat(), "refund_id": "re", "amount": 1,
    }  # fmt: skip
    milliseconds = int(at.timestamp() * 1000) + number
    return Envelope(
        id=UUID(int=milliseconds << 80 | 0x7 << 76 | 0x2 << 62 | number),
        source="urn:test",
        type=kind,
        subject=subject,
        time=at,
        dataschema=schema_of(kind),
        orderversion=version,
        data=data,
    )


@pytest.fixture
def pipeline(backbone_databases: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Pipeline]]:
    """Time is the test's, nothing pauses, and a batch is small enough to be cut."""
    clock = VirtualClock()
    for module in (relay, consumer):
        monkeypatch.setattr(module, "monotonic", lambda: 1000.0 + clock.monotonic())
    monkeypatch.setattr(relay, "rest_s", lambda _: 0.0)
    monkeypatch.setattr(relay, "FULL_REST_S", 0.0)
    monkeypatch.setattr(consumer, "BATCH", 4)
    monkeypatch.setattr(PartitionConsumer, "paused_s", 0.0)
    monkeypatch.setattr(PartitionConsumer, "unknown_s", 0.0)
    Pipeline.loop, Pipeline.clock = asyncio.new_event_loop(), clock
    Pipeline.databases = Pipeline.loop.run_until_complete(_connected(backbone_databases))
    with structlog.testing.capture_logs():  # what would be said about all these faults is too much to be read
        yield Pipeline
    Pipeline.loop.run_until_complete(_closed(Pipeline.databases))
    Pipeline.loop.close()


async def _connected(urls: dict[str, str]) -> Databases:
    eyes = {name: await asyncpg.connect(url) for name, url in urls.items()}
    pools = {name: Database(url, f"model-{name}", 20) for name, url in urls.items()}
    return Databases(pools["checkout"], {name: pools[name] for name in SERVICES}, eyes)


async def _closed(databases: Databases) -> None:
    for eye in databases.eyes.values():
        await eye.close()
    for pool in (databases.checkout, *databases.services.values()):
        await pool.close()


@pytest.fixture
async def backbone_databases(new_database: NewDatabase) -> dict[str, str]:
    urls = {name: await new_database() for name in ("checkout", *SERVICES)}
    for name, url in urls.items():
        eye = await asyncpg.connect(url)
        await eye.execute(CLOCK)
        await eye.close()
        db = Database(url, "model", 1)
        async with db.engine.begin() as connection:
            await connection.run_sync((log_tables if name == "checkout" else ledger_tables).create_all)
            await connection.exec_driver_sql(EFFECTS)
        await db.close()
    return urls


def test_whatever_happens_in_the_middle_of_a_step_heals_by_itself(pipeline: type[Pipeline]) -> None:
    """What chance would seldom put together: events were handled, nobody has said so yet, and they come again."""
    line = pipeline()
    line.begin(1, 1)

    points = cycle([*RELAYING, *CONSUMING])
    for number, what in enumerate(["dies", "breaks", *LOSSES] * 2):
        point = next(points)
        line.append([(0, ORDER_COMPLETED, Fate.FINE), (1, ORDER_CANCELLED, Fate.FINE)])
        line.everything_moves(0)
        line.append([(number % ORDERS, ORDER_COMPLETED, Fate.FINE)])
        line.step_at(Moment(point, what, 1))
        line.everything_moves(1)
        line.nothing_is_wrong()
        line.await_(line.rest())

    line.teardown()


@pytest.mark.timeout(3600 if SEARCHED else 600)
def test_whatever_is_lost_in_whatever_moment_every_event_has_its_effect_once(pipeline: type[Pipeline]) -> None:
    play(pipeline, EXAMPLES, STEPS, search=SEARCHED is not None)
