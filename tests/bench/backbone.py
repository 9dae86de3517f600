"""The backbone alone: how fast relays publish a log that is there already, and one process takes it in."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import psutil
from sqlalchemy import text

from shared.bus.log import EventLog, log_tables
from shared.bus.relays import Relays
from shared.bus.streams import RedisStreams, stream_name
from shared.contracts.envelope import Envelope, encode
from shared.contracts.orders import ORDER_COMPLETED, schema_of
from shared.runtime.db import Database
from shared.runtime.identifiers import new_id, uuid7
from tests.support.platform import ROOT, Platform
from tests.support.servers import free_port

SERVICES = ("email", "analytics", "warehouse")
CONSUMER = "analytics"
FIRST, ALL = 100_000, 200_000  # how many events three services are sent, and one of them takes in
PRODUCTS = 50
LOOK_S = 0.02
DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Backbone:
    """A log and its streams beside the platform's: databases of their own, and another of Redis' sixteen."""

    platform: Platform
    db: Database
    log: EventLog
    streams: RedisStreams

    def database_url(self, name: str) -> str:
        """The server's superuser in one of the databases."""
        return urlsplit(self.platform.env["POSTGRES_URL"])._replace(path=f"/backbone_{name}").geturl()

    @property
    def redis_url(self) -> str:
        """The platform's Redis, where nobody else looks."""
        return f"{self.platform.env['REDIS_URL'].rstrip('/')}/1"


async def measure_backbone(platform: Platform) -> dict[str, Any]:
    """Events per second, and what one event costs this machine, which its other work does not change."""
    async with _backbone(platform) as backbone:
        relayed = await _relay(backbone, FIRST, SERVICES)
        for name in set(SERVICES) - {CONSUMER}:
            await backbone.streams.remove(stream_name(name, 0))
        await _relay(backbone, ALL, (CONSUMER,))
        consumed = await _consume(backbone)
    return {
        "relay: events/s to three subscriptions": round(relayed.rate),
        "  its CPU, µs per event and subscription": round(relayed.cpu_us / len(SERVICES), 1),
        "consumer: events/s, one process with ledger and effect": round(consumed.rate),
        "  its CPU, µs per event": round(consumed.cpu_us, 1),
    }


@dataclass(frozen=True, slots=True)
class Speed:
    """So many events, the time they took, and the CPU time of the process."""

    events: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU per event."""
        return self.cpu_s / self.events * 1e6


async def _relay(backbone: Backbone, until: int, services: tuple[str, ...]) -> Speed:
    """Publish to all of `services` up to position `until`; nobody reads."""
    async with backbone.db.transaction() as connection:
        await connection.execute(text("UPDATE log_head SET position = :until"), {"until": until})
        for name in SERVICES:
            if name in services:
                await backbone.log.subscribe(connection, name)
            else:
                await backbone.log.unsubscribe(connection, name)
    before = await _slowest(backbone)
    relays = Relays(backbone.db, backbone.log, backbone.streams, window=ALL)
    began, cpu = time.monotonic(), time.process_time()
    running = asyncio.create_task(relays.run())
    async with asyncio.timeout(DEADLINE_S):
        while await _slowest(backbone) < until:
            await asyncio.sleep(LOOK_S)
    speed = Speed(until - before, time.monotonic() - began, time.process_time() - cpu)
    relays.stop()
    await running
    return speed


async def _slowest(backbone: Backbone) -> int:
    async with backbone.db.reading() as connection:
        return int((await connection.execute(text("SELECT min(cursor) FROM subscriptions"))).scalar_one())


async def _consume(backbone: Backbone) -> Speed:
    """Start the service as people start it, and wait until its ledger has everything."""
    url = backbone.database_url(CONSUMER)
    environment = _environment(backbone, url)
    command = [sys.executable, "-m", f"services.{CONSUMER}"]
    log = (backbone.platform.run_dir / "logs" / "backbone.log").open("wb")
    migrating = await asyncio.create_subprocess_exec(
        *command, "migrate", cwd=ROOT, env=environment, stdout=log, stderr=log
    )
    await migrating.wait()
    ledger = await asyncpg.connect(url)
    process = psutil.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        await _first(ledger)
        began, cpu, before = time.monotonic(), _cpu_s(process), await ledger.fetchval(COUNT)
        async with asyncio.timeout(DEADLINE_S):
            while (settled := await ledger.fetchval(COUNT)) < ALL:
                await asyncio.sleep(LOOK_S)
        return Speed(settled - before, time.monotonic() - began, _cpu_s(process) - cpu)
    finally:
        process.terminate()
        process.wait(30)
        log.close()
        await ledger.close()


# The last position that is there: cheap, and true because a single process commits in order.
COUNT = "SELECT coalesce(max(position), 0) FROM deliveries WHERE partition = 0"


async def _first(ledger: "asyncpg.Connection[Any]") -> None:
    """Starting Python is not what is measured."""
    async with asyncio.timeout(DEADLINE_S):
        while not await ledger.fetchval(COUNT):
            await asyncio.sleep(LOOK_S)


def _cpu_s(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


def _environment(backbone: Backbone, database_url: str) -> dict[str, str]:
    own = {
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "DATABASE_URL": database_url,
        "REDIS_URL": backbone.redis_url,
        "CONSUMER_NAME": "bench",
        "REVIVALS": "0",  # one process, whose processor time is what is measured
    }
    path = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    return {**os.environ, **path, **{f"{CONSUMER.upper()}_{name}": value for name, value in own.items()}}


@asynccontextmanager
async def _backbone(platform: Platform) -> AsyncIterator[Backbone]:
    server = await asyncpg.connect(platform.env["POSTGRES_URL"])
    for name in ("log", CONSUMER):
        await server.execute(f"CREATE DATABASE backbone_{name}")
    await server.close()
    log_url = urlsplit(platform.env["POSTGRES_URL"])._replace(path="/backbone_log").geturl()
    db = Database(log_url, "backbone", 8)
    streams = RedisStreams(f"{platform.env['REDIS_URL'].rstrip('/')}/1", "backbone")
    try:
        await _fill(db, log_url)
        yield Backbone(platform, db, EventLog(), streams)
    finally:
        for name in SERVICES:
            await streams.remove(stream_name(name, 0))
        await streams.close()
        await db.close()


async def _fill(db: Database, log_url: str) -> None:
    """Orders of one line each, as checkout writes them."""
    async with db.engine.begin() as connection:
        await connection.run_sync(log_tables.create_all)
        await connection.execute(text("INSERT INTO log_head VALUES (0, 0)"))
    columns = ("partition", "position", "event_id", "type", "subject", "event")
    driver = await asyncpg.connect(log_url)
    await driver.copy_records_to_table("event_log", records=map(_record, range(1, ALL + 1)), columns=columns)
    await driver.execute("VACUUM ANALYZE event_log")
    await driver.close()


def _record(position: int) -> tuple[int, int, UUID, str, str, str]:
    event_id, order_id = uuid7(), new_id("ord")
    event = TEMPLATE.replace(str(EVENT_ID), str(event_id)).replace(ORDER_ID, order_id)
    event = event.replace("SKU-0000", f"SKU-{position % PRODUCTS:04}")
    return 0, position, event_id, ORDER_COMPLETED, order_id, event


EVENT_ID, ORDER_ID, NOW = UUID(int=0), "ord_template", datetime.now(UTC)
TEMPLATE = encode(
    Envelope(
        id=EVENT_ID,
        source="urn:orderstream:checkout",
        type=ORDER_COMPLETED,
        subject=ORDER_ID,
        time=NOW,
        dataschema=schema_of(ORDER_COMPLETED),
        orderversion=1,
        data={
            "order_id": ORDER_ID,
            "tenant": "demo",
            "status": "completed",
            "version": 1,
            "currency": "EUR",
            "total": 4950,
            "refunded_total": 0,
            "lines": [{"sku": "SKU-0000", "name": "Desk lamp", "quantity": 1, "unit_price": 4950, "subtotal": 4950}],
            "customer": {"email": "customer@example.com"},
            "created_at": NOW.isoformat(),
            "completed_at": NOW.isoformat(),
        },
    )
)
