"""Checkout as its clients see it: the whole service in this process, a real Postgres, Redis and payment sandbox."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import text

from services.checkout import app as checkout_app
from services.checkout.routes.wiring import Wiring
from services.checkout.settings import CheckoutSettings
from services.checkout.store import keys
from services.checkout.store.keys import NewKey
from shared.runtime.db import Database
from shared.runtime.migrations import upgrade
from shared.runtime.process import Service
from shared.web.auth import digest
from tests.integration.sandboxes.programs import (
    SECRET_KEY,
    WEBHOOK_SECRET,
    Payments,
    payments_program,
    running_payments,
)

API_KEY = "demo-key"
OPS_KEY = "ops-key"
MIGRATIONS = Path(checkout_app.__file__).parent / "migrations"


@dataclass
class Shop:
    """A running checkout and everything that it stands on."""

    http: httpx.AsyncClient
    db: Database
    payments: Payments
    service: Service
    wiring: Wiring

    async def order(self, key: str | None = None, *, api_key: str = API_KEY, **changes: Any) -> httpx.Response:
        """Post an order of one SKU-0001, with changes."""
        headers = {"Authorization": f"Bearer {api_key}", "Idempotency-Key": key or secrets.token_hex(8)}
        return await self.http.post("/v1/orders", json=body(**changes), headers=headers)

    async def get(self, path: str, *, api_key: str = API_KEY, **query: str | int) -> httpx.Response:
        """Read something."""
        return await self.http.get(path, params=query, headers={"Authorization": f"Bearer {api_key}"})

    async def product(self, sku: str, *, stock: int, price: int = 1000, currency: str = "EUR") -> None:
        """A product of this test's own."""
        headers = {"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": f"stock-{sku}"}
        product = {"name": sku, "unit_price": price, "currency": currency}
        assert (await self.http.put(f"/v1/products/{sku}", json=product, headers=headers)).status_code == 201
        received = {"delta": stock, "reason": "test"}
        answer = await self.http.post(f"/v1/products/{sku}/stock", json=received, headers=headers)
        assert answer.status_code == 200, answer.text

    async def stock(self, sku: str) -> tuple[int, int, int]:
        """Available, reserved, sold."""
        found: tuple[int, int, int] = await self.row(
            "SELECT available, reserved, sold FROM products WHERE sku = :a", a=sku
        )
        return found

    async def row(self, sql: str, **values: object) -> Any:
        """One row, or one value when it has one column."""
        async with self.db.reading() as connection:
            row = (await connection.execute(text(sql), values)).one()
        return row[0] if len(row) == 1 else tuple(row)

    async def is_in(self, order_id: str, *statuses: str) -> bool:
        """Whether the order is in one of these states."""
        return (await self.get(f"/v1/orders/{order_id}")).json()["status"] in statuses

    async def captures(self, order_id: str) -> list[dict[str, Any]]:
        """What the provider's own ledger says about the order."""
        items = (await self.payments.http.get("/_sandbox/ledger")).json()["items"]
        return [item for item in items if item["order_id"] == order_id and item["captured"]]

    async def client(self, tenant: str, api_key: str) -> None:
        """Another client with a key of its own."""
        async with self.db.transaction() as connection:
            await keys.add(
                connection, NewKey(f"key_{tenant}", tenant, digest(api_key), ["orders:write", "orders:read"])
            )

    async def written(self) -> tuple[int, ...]:
        """How many rows there are that an order writes: a refused one must not change it."""
        tables = ("orders", "order_lines", "payments", "idempotency_keys", "order_transitions", "event_log")
        counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
        found: tuple[int, ...] = await self.row(f"SELECT {counts}")
        return found


def body(**changes: Any) -> dict[str, Any]:
    """A valid order request, with changes; None leaves a member out."""
    request = {
        "customer": {"email": "ann@example.com", "name": "Ann"},
        "currency": "EUR",
        "lines": [{"sku": "SKU-0001", "quantity": 2}],
        "payment_method": "pm_card_visa",
        **changes,
    }
    return {name: value for name, value in request.items() if value is not None}


def settings_for(database_url: str, redis_url: str, payments_url: str, **changes: Any) -> CheckoutSettings:
    """Settings with short waits."""
    values: dict[str, Any] = {
        "port": 1,
        "database_url": SecretStr(database_url),
        "redis_url": SecretStr(redis_url),
        "payments_url": payments_url,
        "payments_secret_key": SecretStr(SECRET_KEY),
        "payments_webhook_secret": (SecretStr(WEBHOOK_SECRET),),
        "payments_timeout_s": 1.0,
        "payments_connect_timeout_s": 0.5,
        "lease_s": 3.0,
        "seed_api_key": SecretStr(API_KEY),
        "seed_ops_key": SecretStr(OPS_KEY),
        "docs_enabled": False,
        **changes,
    }
    return CheckoutSettings(**values)


@asynccontextmanager
async def running(settings: CheckoutSettings, payments: Payments) -> AsyncIterator[Shop]:
    """The service with its loops, in this event loop."""
    async with AsyncExitStack() as stack:
        service = await checkout_app.build(settings, stack)
        loops = [*service.loops, *service.foundations]
        tasks = [asyncio.create_task(loop.run(), name=loop.name) for loop in loops]
        transport = httpx.ASGITransport(app=service.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://checkout", timeout=30) as http:
            wiring: Wiring = service.http.state.wiring  # type: ignore[attr-defined]
            yield Shop(http, wiring.db, payments, service, wiring)
        for part in (service.loops, service.foundations):
            for loop in part:
                loop.stop()
            await asyncio.wait([task for loop, task in zip(loops, tasks, strict=True) if loop in part], timeout=15)


@pytest_asyncio.fixture(scope="session")
async def payments_server(tmp_path_factory: Any) -> AsyncIterator[Payments]:
    folder = tmp_path_factory.mktemp("payments")
    program = payments_program(folder)
    async with running_payments(program, folder) as payments:
        yield payments
    await program.end(signal.SIGTERM)


@pytest_asyncio.fixture(scope="module")
async def checkout_database(new_database: Callable[[], Awaitable[str]], redis_url: str) -> str:
    return await seeded(new_database, redis_url)


@pytest_asyncio.fixture
async def own_database(new_database: Callable[[], Awaitable[str]], redis_url: str) -> str:
    """One in which nobody else's loops are at work."""
    return await seeded(new_database, redis_url)


async def seeded(new_database: Callable[[], Awaitable[str]], redis_url: str) -> str:
    url = await new_database()
    await upgrade(url, MIGRATIONS)
    await checkout_app.seed(settings_for(url, redis_url, "http://127.0.0.1:1"))
    return url


@pytest_asyncio.fixture(scope="module")
async def running_shop(checkout_database: str, redis_url: str, payments_server: Payments) -> AsyncIterator[Shop]:
    settings = settings_for(checkout_database, redis_url, payments_server.program.url)
    async with running(settings, payments_server) as made:
        yield made


@pytest_asyncio.fixture
async def shop(running_shop: Shop) -> AsyncIterator[Shop]:
    yield running_shop
    await running_shop.payments.faults()


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.02)
