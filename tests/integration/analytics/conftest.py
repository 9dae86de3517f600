"""Analytics on a database of its own."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest_asyncio
from httpx import ASGITransport, AsyncClient
from sqlalchemy import text

from services.analytics import store
from services.analytics.__main__ import MIGRATIONS
from services.analytics.app import build
from services.analytics.handlers import HANDLERS
from services.analytics.settings import AnalyticsSettings
from shared.bus.delivery import Deliverer
from shared.contracts.envelope import Envelope
from shared.runtime.db import Database
from shared.runtime.migrations import upgrade
from shared.runtime.process import Service
from tests.support.orders import arrivals, as_handled
from tests.support.servers import NewDatabase

Rows = list[tuple[Any, ...]]

# What the roll-ups must be, computed from nothing but the facts.
_MINUTES_OF_FACTS = """
    SELECT date_trunc('minute', happened_at, 'UTC'), currency, count(*) FILTER (WHERE sold),
           coalesce(sum(total) FILTER (WHERE sold), 0), coalesce(sum(refunded_total) FILTER (WHERE sold), 0),
           count(*) FILTER (WHERE status = 'cancelled'), count(*) FILTER (WHERE NOT sold)
    FROM order_facts GROUP BY 1, 2 ORDER BY 1, 2
"""
_PRODUCTS_OF_FACTS = """
    SELECT date_trunc('minute', happened_at, 'UTC'), currency, line ->> 0, count(*),
           sum((line ->> 1)::bigint), sum((line ->> 2)::bigint)
    FROM order_facts, jsonb_array_elements(lines) AS line WHERE sold GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""


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
            await connection.execute(text("DELETE FROM deliveries"))
            for table in store.tables.sorted_tables:
                await connection.execute(table.delete())

    async def tables(self) -> dict[str, Rows]:
        """Everything that the service knows."""
        return {
            table.name: await self.rows(f"SELECT * FROM {table.name} ORDER BY 1, 2, 3")
            for table in store.tables.sorted_tables
        }

    async def rollups(self) -> tuple[Rows, Rows]:
        """The roll-ups as they are stored."""
        tables = await self.tables()
        return tables["sales_minutes"], tables["product_minutes"]

    async def rollups_of_facts(self) -> tuple[Rows, Rows]:
        """The roll-ups as they should be."""
        return await self.rows(_MINUTES_OF_FACTS), await self.rows(_PRODUCTS_OF_FACTS)

    async def rows(self, sql: str) -> Rows:
        """What a query finds."""
        async with self.db.reading() as connection:
            return [tuple(row) for row in await connection.execute(text(sql))]

    async def get(self, path: str, **parameters: str) -> Any:
        """The answer to an authorised request."""
        answer = await self.client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest_asyncio.fixture(scope="module")
async def migrated(new_database: NewDatabase) -> str:
    """The DSN of a database with the service's tables."""
    url = await new_database()
    await upgrade(url, MIGRATIONS)
    return url


@pytest_asyncio.fixture(scope="module")
async def served(migrated: str, redis_url: str) -> AsyncIterator[World]:
    """The whole service, wired, its loops not running."""
    settings = AnalyticsSettings.model_validate(
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
            base_url="http://analytics",
            headers={"Authorization": "Bearer api-key"},
        )
        await stack.enter_async_context(client)
        yield World(service, db, Deliverer(db, HANDLERS), client)


@pytest_asyncio.fixture
async def world(served: World) -> World:
    """The service without any data."""
    await served.clear()
    return served
