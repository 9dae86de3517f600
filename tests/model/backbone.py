"""Two checkouts with relays, services of two replicas each, a server that forgets, a clock: real but for the last two.

Each service has a database of its own, as in production. A step of a loop runs until it is done, stands still, or its
process has died.
"""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, cast
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from shared.bus.arrivals import Event
from shared.bus.consumer import Consumer, Gate
from shared.bus.delivery import Deliverer, Handler
from shared.bus.log import EventLog
from shared.bus.relays import Relays
from shared.bus.retrier import Retrier
from shared.bus.retry import Backoff
from shared.bus.rewind import Target, rewind
from shared.contracts.envelope import Envelope
from shared.contracts.orders import ORDER_CANCELLED, ORDER_COMPLETED
from shared.runtime import failpoints
from shared.runtime.db import Database
from shared.runtime.errors import DeadEvent, Outage, is_infrastructure
from shared.runtime.supervision import Loop
from tests.model.processes import Operation, Process, Stage, VirtualClock, die
from tests.support.memory_streams import MemoryHand, MemoryServer, MemoryStreams, Stream

SERVICES = ("email", "analytics")
LOG_TABLES = ("event_log", "subscriptions", "log_head")
LEDGER_TABLES = ("deliveries", "effects", "progress")
WINDOW = 6
RETRIES = 2
HANDLED = (ORDER_COMPLETED, ORDER_CANCELLED)
NOT_YET_S = 90.0
OUTAGE_S = 20.0
IDLE_IN_TRANSACTION_S = 10.0  # the database roles' idle_in_transaction_session_timeout

_EFFECT = text(
    """
    INSERT INTO effects (event_id, subject, version)
    SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:subjects AS text[]), CAST(:versions AS int[]))
    """
)
_SLEEPERS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND state LIKE 'idle in transaction%'
"""
_LEDGER = """
    SELECT json_build_object(
        'ledger', (SELECT coalesce(json_agg(d), '[]') FROM (
            SELECT event_id AS id, partition, position, type, subject, order_version AS version, state, attempts
            FROM deliveries) d),
        'effects', (SELECT coalesce(json_agg(e ORDER BY n), '[]') FROM effects e),
        'progress', (SELECT coalesce(json_agg(p), '[]') FROM progress p))
"""
_SUBSCRIPTIONS = "SELECT service, partition, cursor, settled, epoch FROM subscriptions ORDER BY 1, 2"
_LOG = "SELECT partition, position, event_id FROM event_log ORDER BY 1, 2"


class Fate(StrEnum):
    """What happens whenever an event is handled."""

    FINE = "fine"
    NOT_YET = "not yet"  # fails until some time has passed
    POISON = "poison"  # fails always
    HOPELESS = "hopeless"  # the handler says that it can never work
    KILLER = "killer"  # ends the process
    OUTAGE = "outage"  # what the handler needs is down for a while


@dataclass(frozen=True, slots=True)
class Written:
    """An event in the log."""

    event: Envelope
    partition: int
    position: int
    fate: Fate
    at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one service's database holds."""

    ledger: dict[UUID, dict[str, Any]]
    effects: list[dict[str, Any]]
    progress: dict[int, dict[str, Any]]


class Motionless:
    """A task group of a family whose children are stepped by hand."""

    def create_task(self, work: Coroutine[Any, Any, None], **_: str) -> None:
        """Start nothing."""
        work.close()


class Checkout(Process):
    """What checkout runs of the backbone."""

    def __init__(self, world: "Backbone") -> None:
        """With a connection to the server of the moment."""
        super().__init__()
        self.streams = MemoryStreams(world.server, failpoints.reach)
        self.log = EventLog(world.partitions)
        self.family = Relays(world.checkout, self.log, self.streams, WINDOW)
        self.family._group = cast("asyncio.TaskGroup", Motionless())

    @property
    def loops(self) -> list[Loop]:
        """The relays, in order."""
        return _children(self.family.children)


class Service(Process):
    """A replica of a service."""

    def __init__(self, world: "Backbone", name: str, replica: str) -> None:
        """A replica's name outlives it."""
        super().__init__()
        self.name = name
        self.replica = replica
        self.streams = MemoryStreams(world.server, failpoints.reach)
        handle = Handling(world)
        handlers: dict[str, Handler] = dict.fromkeys(HANDLED, handle)
        self.deliverer = Deliverer(world.services[name], handlers, Backoff(retries=RETRIES, jitter=0.0))
        gate = Gate(self.deliverer)
        self.family = Consumer(name, replica, self.streams, self.deliverer, gate)
        self.family._group = cast("asyncio.TaskGroup", Motionless())
        self.retrier = Retrier(self.deliverer, gate)

    @property
    def loops(self) -> list[Loop]:
        """A consumer and a reporter for each partition."""
        return _children(self.family.children)

    async def leave(self) -> None:
        """An orderly stop."""
        for loop in self.loops:
            loop.stop()
            await loop.finish()


class Handling:
    """Has an effect that can be counted, and then meets the event's fate."""

    def __init__(self, world: "Backbone") -> None:
        self._world = world

    async def __call__(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        values = {
            "ids": [one.id for one in events],
            "subjects": [one.subject for one in events],
            "versions": [one.version for one in events],
        }
        await connection.execute(_EFFECT, values)
        await failpoints.reach("handling")
        for one in events:
            await self._meet(self._world.written[one.id])

    async def _meet(self, written: Written) -> None:
        age = self._world.clock.monotonic() - written.at
        match written.fate:
            case Fate.KILLER:
                await die()
            case Fate.HOPELESS:
                raise DeadEvent("can never work")
            case Fate.POISON:
                raise RuntimeError("never works")
            case Fate.NOT_YET if age < NOT_YET_S:
                raise RuntimeError("not yet")
            case Fate.OUTAGE if age < OUTAGE_S:
                raise Outage("down")
            case _:
                return


@dataclass
class Databases:
    """Pools for the processes, and a connection to each for whoever looks on."""

    checkout: Database
    services: dict[str, Database]
    eyes: dict[str, asyncpg.Connection]


@dataclass
class Promise:
    """What a service may expect of its subscription."""

    owed_from: dict[int, int]
    again: dict[UUID, int] = field(default_factory=dict)  # how many more times an event may have its effect


class Backbone(Stage[Checkout | Service]):
    """Everything between a committed event and its effect."""

    def __init__(self, databases: Databases, clock: VirtualClock, partitions: int, services: int) -> None:
        """Empty; `open` is to follow."""
        self.databases = databases
        self.checkout = databases.checkout
        self.services = {name: databases.services[name] for name in SERVICES[:services]}
        self.clock = clock
        self.partitions = partitions
        self.log = EventLog(partitions)
        self.server = MemoryServer(clock.monotonic)
        self.written: dict[UUID, Written] = {}
        self.promises: dict[str, Promise] = {}
        self.heads = [0] * partitions
        replicas = [Service(self, name, replica) for name in self.services for replica in ("one", "two")]
        super().__init__([Checkout(self), Checkout(self), *replicas])

    @override
    def successor(self, dead: Checkout | Service) -> Checkout | Service:
        return Checkout(self) if isinstance(dead, Checkout) else Service(self, dead.name, dead.replica)

    @property
    def hand(self) -> MemoryHand:
        """Somebody's hand in the server of the moment."""
        return MemoryHand(self.server)

    def streams(self, name: str) -> list[Stream]:
        """The stream of that name on the server of the moment, if it is there and is one."""
        found = self.server.keys.get(name)
        return [found] if isinstance(found, Stream) else []

    def checkouts(self) -> list[Checkout]:
        return [one for one in self.processes if isinstance(one, Checkout)]

    def replicas(self, service: str) -> list[Service]:
        return [one for one in self.processes if isinstance(one, Service) and one.name == service]

    async def open(self) -> None:
        """Forget everything."""
        for name, eye in self.databases.eyes.items():
            tables = (
                ("event_log", "subscriptions", "log_head")
                if name == "checkout"
                else ("deliveries", "effects", "progress")
            )
            await eye.execute("; ".join(f"DELETE FROM {table}" for table in tables))
        heads = ", ".join(f"({partition}, 0)" for partition in range(self.partitions))
        await self._eye("checkout").execute(f"INSERT INTO log_head (partition, position) VALUES {heads}")
        for name in self.services:
            await self.subscribe(name, from_now=False)
        await self.wait(0.0)

    async def step(self, process: Checkout | Service, loop: Loop) -> Operation:
        """One step of a loop, as `Loop.run` does it."""
        return await self.let(process, _step(loop))

    async def append(self, written: Sequence[tuple[Envelope, Fate]]) -> None:
        """Commit events, in one transaction."""
        async with self.checkout.transaction() as connection:
            await self.log.append(connection, [event for event, _ in written])
        for event, fate in written:
            partition = self.log.partition_of(event.subject)
            self.heads[partition] += 1
            self.written[event.id] = Written(event, partition, self.heads[partition], fate, self.clock.monotonic())

    async def subscribe(self, service: str, *, from_now: bool) -> None:
        """Add a subscription, if there is none."""
        async with self.checkout.transaction() as connection:
            if await self.log.subscribe(connection, service, from_now=from_now):
                starts = dict(enumerate(self.heads if from_now else [0] * self.partitions))
                again = self.promises[service].again if service in self.promises else {}
                self.promises[service] = Promise(starts, again)

    async def unsubscribe(self, service: str) -> None:
        """Remove a subscription."""
        await self.end_long_sleeps()
        await self.checkout.run(lambda c: self.log.unsubscribe(c, service))
        if service in self.promises:
            self.promises[service].owed_from.clear()

    async def rewind(self, service: str, position: int, *, replay: bool) -> None:
        """Let a service have events again."""
        await self.end_long_sleeps()
        target = Target(position=position)
        spans = await self.checkout.run(lambda c: rewind(c, service, target, replay=replay, dry_run=False))
        promise = self.promises[service]
        for span in spans or ():
            promise.owed_from[span.partition] = min(promise.owed_from[span.partition], span.position)
            for one in self.written.values():
                if replay and one.partition == span.partition and one.position > span.position:
                    promise.again[one.event.id] = promise.again.get(one.event.id, 0) + 1

    async def wait(self, seconds: float) -> None:
        """Time passes for everybody."""
        self.clock.passed += timedelta(seconds=seconds)
        if seconds > IDLE_IN_TRANSACTION_S:
            await self.end_long_sleeps()
        for name in ("checkout", *self.services):
            await self._eye(name).execute("UPDATE clock SET at = $1", self.clock.now())

    async def end_long_sleeps(self) -> None:
        """The database does not let anybody sleep with a lock for long."""
        await self._eye("checkout").execute(_SLEEPERS)

    async def split(self, moments: int) -> None:
        """A replica becomes master, that far behind; the first of each kind of process still talks to the old one."""
        self.server = self.server.twin()
        self.server.fall_back(moments)
        for process in self.processes[1::2]:
            process.streams.server = self.server

    async def heal(self) -> None:
        """Everybody talks to the same server, and it has room."""
        self.server.full = False
        for process in self.processes:
            process.streams.server = self.server

    async def subscriptions(self) -> dict[tuple[str, int], dict[str, Any]]:
        """How far each service is believed to be, by service and partition."""
        rows = await self._eye("checkout").fetch(_SUBSCRIPTIONS)
        return {(row["service"], row["partition"]): dict(row) for row in rows}

    async def logged(self) -> list[tuple[int, int, UUID]]:
        """The log."""
        return [(row["partition"], row["position"], row["event_id"]) for row in await self._eye("checkout").fetch(_LOG)]

    async def snapshot(self, service: str) -> Snapshot:
        """What a service has."""
        found = json.loads(await self._eye(service).fetchval(_LEDGER))
        return Snapshot(
            {UUID(row["id"]): row for row in found["ledger"]},
            found["effects"],
            {row["partition"]: row for row in found["progress"]},
        )

    def _eye(self, name: str) -> asyncpg.Connection:
        return self.databases.eyes[name]


async def _step(loop: Loop) -> None:
    try:
        await loop.run_once()
    except Exception as error:
        loop.failed(error)
        if not (is_infrastructure(error) or isinstance(error, Outage)):
            raise


def _children(children: dict[str, Sequence[Loop]]) -> list[Loop]:
    return [loop for key in sorted(children) for loop in children[key]]
