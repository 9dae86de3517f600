"""A small world: a log, a relay, a stream server, and a service whose handler counts every effect it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.bus.arrivals import Event
from shared.bus.clients import StreamClient, connect
from shared.bus.consumer import Gate, PartitionConsumer, Reporter
from shared.bus.delivery import Deliverer, Handler
from shared.bus.ledger import ledger_tables
from shared.bus.log import EventLog, log_tables
from shared.bus.relay import Relay
from shared.bus.retrier import Retrier
from shared.bus.retry import Backoff
from shared.bus.streams import RedisStreams
from shared.contracts.envelope import Envelope
from shared.contracts.orders import ORDER_CANCELLED, ORDER_COMPLETED, schema_of
from shared.runtime.db import Database
from shared.runtime.identifiers import new_id, uuid7
from shared.runtime.supervision import Family, Loop

SERVICE = "email"
STREAM = "events:email:0"


def event(subject: str | None = None, *, kind: str = ORDER_COMPLETED, version: int = 1) -> Envelope:
    """An event of an order of one line."""
    subject = subject or new_id("ord")
    now = datetime.now(UTC)
    line = {"sku": "SKU-0001", "name": "Product 1", "quantity": 1, "unit_price": 100, "subtotal": 100}
    state = {
        "order_id": subject,
        "tenant": "demo",
        "status": "completed",
        "version": version,
        "currency": "EUR",
        "total": 100,
        "refunded_total": 0,
        "lines": [line],
        "customer": {"email": "ann@example.com"},
        "created_at": now.isoformat(),
    }
    return Envelope(
        id=uuid7(),
        source="urn:test",
        type=kind,
        subject=subject,
        time=now,
        dataschema=schema_of(kind),
        orderversion=version,
        data=state,
    )


class Handling:
    """A handler that writes one row per effect, so that a second application would show; it can be told to fail."""

    def __init__(self) -> None:
        self.failing: dict[str, Exception] = {}
        self.seen: list[str] = []

    async def __call__(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        failing = next((n for n, one in enumerate(events) if one.subject in self.failing), None)
        tried = events if failing is None else events[: failing + 1]
        self.seen += [one.subject for one in tried]
        effects = [{"id": one.id, "subject": one.subject, "version": one.version} for one in tried]
        await connection.execute(text("INSERT INTO effects VALUES (:id, :subject, :version)"), effects)
        if failing is not None:
            raise self.failing[events[failing].subject]


@dataclass
class World:
    """Everything between a committed event and its effect."""

    db: Database
    log: EventLog
    streams: RedisStreams
    redis: StreamClient
    handling: Handling
    deliverer: Deliverer
    gate: Gate
    database_url: str
    running: list[tuple[Loop, asyncio.Task[None]]] = field(default_factory=list)

    async def append(self, *events: Envelope) -> None:
        """Commit events to the log, in one transaction."""
        async with self.db.transaction() as connection:
            await self.log.append(connection, events)

    def relay(self, window: int = 100_000, batch: int = 1_000) -> Relay:
        """A relay of the service."""
        return Relay(self.db, self.log, self.streams, SERVICE, 0, window, batch)

    def consumer(self, name: str = "one") -> PartitionConsumer:
        """A replica of the service."""
        return PartitionConsumer(SERVICE, 0, name, self.streams, self.deliverer, self.gate)

    def reporter(self, consumer: PartitionConsumer) -> Reporter:
        """Its reporter."""
        return Reporter(SERVICE, 0, self.streams, self.deliverer, consumer)

    def retrier(self) -> Retrier:
        """Its retrier."""
        return Retrier(self.deliverer, self.gate)

    def start(self, *loops: Loop) -> None:
        """Run loops until the test ends."""
        self.running += [(loop, asyncio.create_task(loop.run(), name=loop.name)) for loop in loops]

    def start_service(self, name: str = "one") -> PartitionConsumer:
        """Run one whole replica."""
        consumer = self.consumer(name)
        self.start(consumer, self.reporter(consumer), self.retrier())
        return consumer

    async def stop(self) -> None:
        """Stop what runs."""
        for loop, _ in self.running:
            loop.stop()
        for _, task in self.running:
            await asyncio.wait_for(task, 10)
        self.running.clear()

    async def kill(self) -> None:
        """End what runs as kill -9 would: no clean-up."""
        for loop, task in self.running:
            while not task.done():  # a database call may swallow a cancellation, and the loop goes on
                task.cancel()
                for child in loop._loops() if isinstance(loop, Family) else ():
                    child.stop()  # a task group cancels each of them only once
                await asyncio.wait({task}, timeout=0.2)
        self.running.clear()

    async def scalar(self, sql: str) -> int:
        """One number."""
        async with self.db.reading() as connection:
            return (await connection.execute(text(sql))).scalar_one() or 0

    async def effects(self) -> tuple[int, int]:
        """How many effects there are, and of how many events."""
        async with self.db.reading() as connection:
            row = (await connection.execute(text("SELECT count(*), count(DISTINCT event_id) FROM effects"))).one()
        return row[0], row[1]

    async def states(self) -> dict[str, int]:
        """The ledger's census."""
        async with self.db.reading() as connection:
            rows = await connection.execute(text("SELECT state, count(*) FROM deliveries GROUP BY state"))
        return {row[0]: row[1] for row in rows}

    async def settled(self) -> int:
        """What the relay has mirrored."""
        return await self.scalar("SELECT settled FROM subscriptions")


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def world_over(database_url: str, redis_url: str) -> AsyncIterator[World]:
    """A world of its own, in an empty database and over a stream server that it empties."""
    async with another_process(database_url, redis_url) as made:
        async with made.db.engine.begin() as connection:
            await connection.run_sync(log_tables.create_all)
            await connection.run_sync(ledger_tables.create_all)
            await connection.execute(text("CREATE TABLE effects (event_id uuid, subject text, version int)"))
            await connection.execute(text("INSERT INTO log_head VALUES (0, 0)"))
        async with made.db.transaction() as connection:
            await made.log.subscribe(connection, SERVICE)
        await made.redis.flushall()
        yield made


@asynccontextmanager
async def another_process(database_url: str, redis_url: str) -> AsyncIterator[World]:
    """The world as one more process of it has it."""
    db = Database(database_url, "test", 10)
    streams = RedisStreams(redis_url, "test")
    redis = connect(redis_url, "nemesis")
    handling = Handling()
    handlers: dict[str, Handler] = {ORDER_COMPLETED: handling, ORDER_CANCELLED: handling}
    deliverer = Deliverer(db, handlers, Backoff(base_s=0.05, retries=3))
    made = World(db, EventLog(), streams, redis, handling, deliverer, Gate(deliverer), database_url)
    try:
        yield made
    finally:
        await made.kill()
        await streams.close()
        await redis.aclose()
        await db.close()


@pytest_asyncio.fixture(loop_scope="session")
async def world(new_database: Callable[[], Awaitable[str]], redis_url: str) -> AsyncIterator[World]:
    async with world_over(await new_database(), redis_url) as made:
        yield made
