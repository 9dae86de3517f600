"""The warehouse on a database of its own."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest_asyncio
from httpx import ASGITransport, AsyncClient, Response
from sqlalchemy import text

from services.warehouse.__main__ import MIGRATIONS
from services.warehouse.app import build
from services.warehouse.handlers import HANDLERS
from services.warehouse.settings import WarehouseSettings
from shared.bus.delivery import Deliverer
from shared.contracts.envelope import Envelope
from shared.runtime.db import Database
from shared.runtime.migrations import upgrade
from shared.runtime.process import Service
from tests.support.orders import Order, arrivals, as_handled
from tests.support.servers import NewDatabase

Rows = list[tuple[Any, ...]]


@dataclass
class World:
    """The service, as its tests see it."""

    service: Service
    db: Database
    deliverer: Deliverer
    client: AsyncClient

    async def deliver(self, *events: Envelope) -> None:
        """Let events arrive, in one batch."""
        await self.deliverer.deliver(arrivals(events))

    async def handle(self, events: Sequence[Envelope]) -> None:
        """Give events to the handler past the ledger, which would drop the duplicates among them."""
        handled = as_handled(self.deliverer, events)
        await self.db.run(lambda connection: HANDLERS[handled[0].type](connection, handled))

    async def clear(self) -> None:
        """Forget everything."""
        async with self.db.transaction() as connection:
            for table in ("deliveries", "history", "fulfilments"):
                await connection.execute(text(f"DELETE FROM {table}"))

    async def tables(self) -> tuple[Rows, Rows]:
        """Everything that the service knows, but for the number of a history row."""
        columns = "fulfilment_id, at, actor, entry, detail, order_version"
        return (
            await self.rows("SELECT * FROM fulfilments ORDER BY id"),
            await self.rows(f"SELECT {columns} FROM history ORDER BY {columns}"),
        )

    async def rows(self, sql: str) -> Rows:
        """What a query finds."""
        async with self.db.reading() as connection:
            return [tuple(row) for row in await connection.execute(text(sql))]

    async def received(self, order: Order | None = None) -> str:
        """The id of a fulfilment that was just received."""
        order = order or Order()
        await self.deliver(order.completed())
        found = await self.client.get("/v1/fulfilments", params={"order_id": order.id})
        return str(found.json()["items"][0]["id"])

    async def step(self, wanted: str, *steps: str) -> Response:
        """Take the steps one after the other; the answer to the last."""
        answers = [
            await self.client.post(
                f"/v1/fulfilments/{wanted}/{step}",
                json={"carrier": "DHL", "tracking": "JD01"} if step == "ship" else None,
            )
            for step in steps
        ]
        return answers[-1]


@pytest_asyncio.fixture(scope="module")
async def migrated(new_database: NewDatabase) -> str:
    """The DSN of a database with the service's tables."""
    url = await new_database()
    await upgrade(url, MIGRATIONS)
    return url


@pytest_asyncio.fixture(scope="module")
async def served(migrated: str, redis_url: str) -> AsyncIterator[World]:
    """The whole service, wired, its loops not running."""
    settings = WarehouseSettings.model_validate(
        {
            "port": 1,
            "database_url": migrated,
            "redis_url": redis_url,
            "consumer_name": "test",
            "ops_keys": "ops-key",
            "api_keys": "api-key",
        }
    )
    async with AsyncExitStack() as stack:
        service = await build(settings, stack)
        db = Database(migrated, "tests", 4)
        stack.push_async_callback(db.close)
        client = AsyncClient(
            transport=ASGITransport(service.http),
            base_url="http://warehouse",
            headers={"Authorization": "Bearer api-key"},
        )
        await stack.enter_async_context(client)
        yield World(service, db, Deliverer(db, HANDLERS), client)


@pytest_asyncio.fixture
async def world(served: World) -> World:
    """The service without any data."""
    await served.clear()
    return served
