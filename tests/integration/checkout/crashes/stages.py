"""A stage for processes that die: a database of its own, clients that remember, and a look at what is left."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx

from tests.integration.checkout.conftest import API_KEY, until
from tests.integration.sandboxes.programs import SECRET_KEY, Payments
from tests.support.invariants import violations_of_checkout
from tests.support.pgbouncer import direct
from tests.support.replicas import Replica

FINAL = {201, 402, 409, 422}
FINAL_WITHIN_S = 30.0
NOBODY = "redis://127.0.0.1:1"  # streams do not matter here, and orders are taken without
LEASE_S = 2.0


@dataclass
class Client:
    """Posts one order, and the same again, until it knows what became of it."""

    payment_method: str = "pm_card_visa"
    skus: Sequence[str] = ("SKU-0001",)
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    answers: list[httpx.Response] = field(default_factory=list)

    async def post(self, http: httpx.AsyncClient, url: str) -> int:
        """Status, or 0 when no answer came."""
        request = {
            "customer": {"email": "ann@example.com"},
            "currency": "EUR",
            "lines": [{"sku": sku, "quantity": 1} for sku in self.skus],
            "payment_method": self.payment_method,
        }
        headers = {"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": self.key}
        try:
            answer = await http.post(f"{url}/v1/orders", json=request, headers=headers)
        except httpx.TransportError:
            return 0
        self.answers.append(answer)
        return answer.status_code

    async def learn(self, http: httpx.AsyncClient, *urls: str) -> int:
        """Repeat the request, at one replica after the other, until its answer is final."""
        turns = cycle(urls)
        async with asyncio.timeout(FINAL_WITHIN_S):
            while (status := await self.post(http, next(turns))) not in FINAL or self._in_use(self.answers[-1]):
                await asyncio.sleep(0.1)
        return status

    def contradictions(self) -> list[str]:
        """What it was told that cannot all be true."""
        final = [one for one in self.answers if one.status_code in FINAL and not self._in_use(one)]
        bodies = {_without_request_id(one) for one in final}
        orders = {body["id"] for one in self.answers if "id" in (body := one.json())}
        found = [f"{self.key}: {len(bodies)} final answers: {bodies}"] if len(bodies) > 1 else []
        found += [f"{self.key}: answered {one.status_code}: {one.text}" for one in final if one.status_code > 402]
        return found + ([f"{self.key}: {len(orders)} orders"] if len(orders) > 1 else [])

    @staticmethod
    def _in_use(answer: httpx.Response) -> bool:
        return answer.status_code == 409 and answer.json()["code"] == "idempotency_key_in_use"


@dataclass
class Stage:
    """One database, its replicas and its clients."""

    database_url: str
    tenant: str
    payments: Payments
    http: httpx.AsyncClient
    connection: asyncpg.Connection
    folder: Path
    clients: list[Client] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)

    def replica(self, **environment: str) -> Replica:
        """A replica that is not started yet."""
        base = {
            "CHECKOUT_DATABASE_URL": self.database_url,
            "CHECKOUT_REDIS_URL": NOBODY,
            "CHECKOUT_PAYMENTS_URL": self.payments.program.url,
            "CHECKOUT_PAYMENTS_SECRET_KEY": SECRET_KEY,
            "CHECKOUT_PAYMENTS_TIMEOUT_S": "0.7",
            "CHECKOUT_PAYMENTS_CONNECT_TIMEOUT_S": "0.3",
            "CHECKOUT_LEASE_S": str(LEASE_S),
            "CHECKOUT_DATABASE_POOL_SIZE": "4",
            "CHECKOUT_CONSUMER_NAME": f"replica-{len(self.replicas)}",
            "CHECKOUT_DOCS_ENABLED": "false",
        }
        made = Replica({**base, **environment}, self.folder / f"replica-{len(self.replicas)}.log", self.http)
        self.replicas.append(made)
        return made

    async def post(self, replica: Replica, *clients: Client) -> list[int]:
        """All of them at once, each once; the statuses."""
        self.clients += [client for client in clients if client not in self.clients]
        return await asyncio.gather(*(client.post(self.http, replica.url) for client in clients))

    def clear(self) -> None:
        """Kill every replica and forget everybody."""
        for replica in self.replicas:
            replica.kill()
        self.replicas, self.clients = [], []

    async def open_orders(self) -> int:
        """How many orders are not final."""
        count: int = await self.connection.fetchval(
            "SELECT count(*) FROM orders WHERE status IN ('pending', 'payment_unknown', 'requires_action')"
        )
        return count

    async def come_to_rest(self) -> None:
        """Every order becomes final by itself, no client helps."""

        async def at_rest() -> bool:
            return await self.open_orders() == 0

        await until(at_rest, FINAL_WITHIN_S)

    async def complaints(self, replica: Replica) -> list[str]:
        """Let every client learn its answer, then say what does not hold."""
        statuses = await asyncio.gather(*(client.learn(self.http, replica.url) for client in self.clients))
        expected = [402 if "Declined" in client.payment_method else 201 for client in self.clients]
        found = [] if statuses == expected else [f"answered {statuses}, not {expected}"]
        for client in self.clients:
            found += client.contradictions()
        return found + await violations_of_checkout(self.database_url, await self._ledger())

    async def _ledger(self) -> list[Mapping[str, object]]:
        items = (await self.payments.http.get("/_sandbox/ledger")).json()["items"]
        return [item for item in items if item["tenant"] == self.tenant]


Story = Callable[[Stage], Awaitable[list[str]]]


class Theatre:
    """Stages, one for each of the stories that are told at the same time.

    The next story goes on where the last one ended, as long as nothing is wrong there: copying a database takes longer.
    """

    def __init__(self, template: str, payments: Payments, folder: Path, most: int) -> None:
        """`template` is a migrated and seeded database to which nobody is connected."""
        self._template = template
        self._payments = payments
        self._folder = folder
        self._some = asyncio.Semaphore(most)
        self._closing = AsyncExitStack()
        self._idle: list[Stage] = []

    async def tell(self, story: Story) -> list[str]:
        """Tell it on a stage of its own; returns what did not hold."""
        async with self._some:
            stage = self._idle.pop() if self._idle else await self._closing.enter_async_context(self._new())
            try:
                complaints = await story(stage)
            finally:
                stage.clear()
            if not complaints:
                self._idle.append(stage)
            return complaints

    async def close(self) -> None:
        """Kill every replica."""
        await self._closing.aclose()

    @asynccontextmanager
    async def _new(self) -> AsyncIterator[Stage]:
        name = f"stage_{secrets.token_hex(6)}"
        await _copy(self._template, name)
        url = urlsplit(self._template)._replace(path=f"/{name}").geturl()
        connection = await asyncpg.connect(direct(url))
        await connection.execute("INSERT INTO tenants (id) VALUES ($1)", name)
        await connection.execute("UPDATE api_keys SET tenant_id = $1 WHERE id = 'key_demo'", name)
        (self._folder / name).mkdir()
        async with httpx.AsyncClient(timeout=30) as http:
            stage = Stage(url, name, self._payments, http, connection, self._folder / name)
            yield stage
            stage.clear()
        await connection.close()


async def _copy(template: str, name: str) -> None:
    admin = await asyncpg.connect(urlsplit(direct(template))._replace(path="/postgres").geturl())
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {urlsplit(template).path[1:]}")
    await admin.close()


def _without_request_id(answer: httpx.Response) -> str:
    return json.dumps({name: value for name, value in answer.json().items() if name != "request_id"}, sort_keys=True)
