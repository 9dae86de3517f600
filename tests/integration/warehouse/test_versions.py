"""Two versions of the code on one stream and one database, while a deploy rolls forward and back."""

import json
import os
import shutil
import signal
import sys
from asyncio import sleep as pause
from asyncio import subprocess, timeout
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text

from services.warehouse.__main__ import MIGRATIONS
from shared.bus.boards import announcement, relay_board
from shared.bus.progress import Epoch
from shared.bus.streams import RedisStreams
from shared.contracts.envelope import encode
from shared.runtime.db import Database
from shared.runtime.migrations import upgrade
from tests.support.orders import Order
from tests.support.servers import NewDatabase, free_port

ROOT = Path(__file__).parents[3]
STREAM = "events:warehouse:0"
# What the newer version has: a type of its own, which is handled, and a field that no older one knows.
NEWER = {
    "shared/contracts/orders.py": [
        ('ORDER_REFUNDED = "order.refunded"\n', 'ORDER_REFUNDED = "order.refunded"\nORDER_GIFTED = "order.gifted"\n'),
        (
            "    ORDER_REFUNDED: OrderRefunded,\n",
            "    ORDER_REFUNDED: OrderRefunded,\n    ORDER_GIFTED: OrderCompleted,\n",
        ),
        (
            "    completed_at: Instant | None = None\n",
            "    completed_at: Instant | None = None\n    channel: str | None = None\n",
        ),
    ],
    "services/warehouse/handlers.py": [
        ("    ORDER_CANCELLED: receive,\n", '    ORDER_CANCELLED: receive,\n    "order.gifted": receive,\n'),
    ],
}
NEXT_MAJOR = {"shared/contracts/orders.py": [("MAJOR = 1\n", "MAJOR = 2\n")]}


@dataclass
class Fleet:
    """The replicas, a stream that the test writes, and the database that they share."""

    environment: dict[str, str]
    streams: RedisStreams
    db: Database
    position: int = 0
    running: dict[str, subprocess.Process] = field(default_factory=dict)

    async def start(self, name: str, code: Path) -> None:
        """Start a replica from that copy of the code, and wait until it is ready."""
        port = free_port()
        environment = {
            **self.environment,
            "PYTHONPATH": str(code),
            "WAREHOUSE_PORT": str(port),
            "WAREHOUSE_CONSUMER_NAME": name,
        }
        process = await subprocess.create_subprocess_exec(
            sys.executable, "-m", "services.warehouse", env=environment, cwd=code, stdout=subprocess.DEVNULL
        )
        self.running[name] = process
        async with timeout(60), httpx.AsyncClient() as client:
            while not await _ready(client, port):
                assert process.returncode is None
                await pause(0.05)

    async def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0

    async def publish(self, *events: dict[str, Any]) -> None:
        """As a relay does."""
        head = self.position + len(events)
        board = {"partitions": 1, "head:0": head, **announcement(0, Epoch(1, 0, 0, replay=False))}
        await self.streams.report(relay_board("warehouse"), board)
        await self.streams.publish(STREAM, 0, self.position, head, [json.dumps(one) for one in events])
        self.position = head

    async def states(self) -> dict[str, int]:
        async with self.db.reading() as connection:
            rows = await connection.execute(text("SELECT state, count(*) FROM deliveries GROUP BY state"))
        return {row[0]: row[1] for row in rows}

    async def comes_to(self, **states: int) -> None:
        """Wait until the ledger has exactly these states."""
        found: dict[str, int] = {}
        try:
            async with timeout(60):
                while (found := await self.states()) != states:
                    await pause(0.05)
        except TimeoutError:
            assert found == states


@pytest_asyncio.fixture
async def fleet(new_database: NewDatabase, redis_url: str) -> AsyncIterator[Fleet]:
    url = await new_database()
    await upgrade(url, MIGRATIONS)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONSAFEPATH": "1",
        "WAREHOUSE_DATABASE_URL": url,
        "WAREHOUSE_REDIS_URL": redis_url,
    }
    made = Fleet(environment, RedisStreams(redis_url, "test"), Database(url, "test", 2))
    await made.streams.rebuild(STREAM, "warehouse", 0)
    yield made
    for process in made.running.values():
        process.kill()
        await process.wait()
    await made.streams.remove(STREAM)
    await made.streams.remove(relay_board("warehouse"))
    await made.streams.close()
    await made.db.close()


async def _ready(client: httpx.AsyncClient, port: int) -> bool:
    try:
        return (await client.get(f"http://127.0.0.1:{port}/health/ready")).is_success
    except httpx.TransportError:
        return False


def changed(folder: Path, *changes: dict[str, list[tuple[str, str]]]) -> Path:
    """A copy of the service's code with changes."""
    for part in ("shared", "services/warehouse"):
        shutil.copytree(ROOT / part, folder / part)
    (folder / "services" / "__init__.py").touch()
    for path, replacements in (pair for change in changes for pair in change.items()):
        source = (folder / path).read_text()
        for old, new in replacements:
            assert source.count(old) == 1, f"{path} has changed: {old!r}"
            source = source.replace(old, new)
        (folder / path).write_text(source)
    return folder


def completed() -> dict[str, Any]:
    """What an older writer sends."""
    wire: dict[str, Any] = json.loads(encode(Order().completed()))
    return wire


def with_a_channel() -> dict[str, Any]:
    """What a newer one sends."""
    wire = completed()
    return wire | {"partitionkey": "7", "data": wire["data"] | {"channel": "app"}}


def gifted() -> dict[str, Any]:
    return completed() | {"type": "order.gifted", "dataschema": "urn:orderstream:schema:order.gifted/1"}


def of_the_next_major() -> dict[str, Any]:
    return completed() | {"dataschema": "urn:orderstream:schema:order.completed/2"}


@pytest.mark.timeout(600)
async def test_what_the_older_version_does_not_know_waits_for_the_newer_one_and_nothing_else_does(
    fleet: Fleet, tmp_path: Path
) -> None:
    newer, next_major = changed(tmp_path / "newer", NEWER), changed(tmp_path / "next", NEWER, NEXT_MAJOR)

    await fleet.start("old", ROOT)
    await fleet.publish(with_a_channel(), gifted(), completed())
    await fleet.comes_to(done=2, parked=1)  # a newer writer, an older reader

    await fleet.start("new", newer)
    await fleet.publish(*(kind() for kind in (completed, with_a_channel, gifted) for _ in range(10)))
    await fleet.stop("old")
    await fleet.comes_to(done=33)  # an older writer, a newer reader; what the older one parked meanwhile is resumed

    await fleet.stop("new")
    await fleet.start("old", ROOT)
    await fleet.publish(completed(), gifted(), of_the_next_major())
    await fleet.comes_to(done=34, parked=2)  # rolled back: nothing that is done is undone

    await fleet.stop("old")
    await fleet.start("next", next_major)
    await fleet.comes_to(done=35, parked=1)
