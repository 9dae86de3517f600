"""Everything is restarted: one process after the other under load, and all at once without what they stand on."""

import asyncio
import json
import random
import secrets
import signal
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from deploy.local import postgres
from services.checkout import app as checkout_app
from tests.integration.checkout.conftest import API_KEY, body, settings_for
from tests.integration.sandboxes.programs import SECRET_KEY, Payments
from tests.support.fleet import BEHIND, Fleet, fleet
from tests.support.redis_server import redis_server
from tests.support.replicas import Replica
from tests.support.servers import NewDatabase, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXIT_WITHIN_S = 25.0
DRAIN_S = 3.0
LOOK_S = 0.1
WITHOUT_ANYTHING_S = 8.0


@dataclass
class Balancer:
    """Sends orders to replicas of checkout that say that they are ready, as a load balancer does."""

    replicas: list[Replica]
    http: httpx.AsyncClient
    ready: list[Replica] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def look(self) -> None:
        while not self.enough.is_set():
            found = await asyncio.gather(*(one._is_ready() for one in self.replicas))
            self.ready = [one for one, is_ready in zip(self.replicas, found, strict=True) if is_ready]
            await asyncio.sleep(LOOK_S)

    async def order(self, number: int) -> None:
        while not self.ready:
            await asyncio.sleep(LOOK_S)
        headers = {"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": secrets.token_hex(8)}
        url = self.ready[number % len(self.ready)].url
        try:
            answer = await self.http.post(f"{url}/v1/orders", json=body(), headers=headers)
        except httpx.TransportError as error:
            self.answers.append((0, repr(error)))
        else:
            self.answers.append((answer.status_code, answer.text))

    async def load(self) -> None:
        """Twenty orders a second, whether or not the ones before were answered."""
        number = 0
        async with asyncio.TaskGroup() as group:
            while not self.enough.is_set():
                group.create_task(self.order(number := number + 1))
                await asyncio.sleep(0.05)


async def test_a_rolling_restart_of_everything_under_load_fails_no_request(
    new_database: NewDatabase, redis_url: str, payments_server: Payments, tmp_path: Path
) -> None:
    async with fleet(new_database, redis_url, tmp_path) as ours, httpx.AsyncClient(timeout=30) as http:
        replicas = await checkouts(ours, payments_server, http)
        balancer = Balancer(replicas, http)
        for service in BEHIND:
            replicas = [*replicas, *await ours.start(service, f"{service}-1", f"{service}-2")]

        load = asyncio.gather(balancer.look(), balancer.load())
        endings = [await restarted(replica) for replica in replicas]
        balancer.enough.set()
        await load
        await ours.come_to_rest(*BEHIND)

        assert {status for status, _ in endings} == {0}
        assert max(took for _, took in endings) < EXIT_WITHIN_S
        assert {status for status, _ in balancer.answers} == {201}, balancer.answers
        ours.orders = [json.loads(text)["id"] for _, text in balancer.answers]
        assert await ours.violations(*BEHIND) == []


async def test_everything_is_killed_and_started_in_any_order_with_redis_and_postgres_last(tmp_path: Path) -> None:
    dice = random.Random(5)  # noqa: S311 - the same order every time
    database = postgres.Postgres(tmp_path / "postgres", free_port(), secrets.token_urlsafe(), tmp_path / "postgres.log")
    server = await postgres.start(database)
    (tmp_path / "fleet").mkdir()
    async with redis_server() as redis, fleet(creator(database.url), redis.url, tmp_path / "fleet") as ours:
        await asyncio.gather(*(ours.start(service, service) for service in BEHIND))
        await ours.place(50)

        for replica in ours.replicas.values():
            await replica.end(signal.SIGKILL)
        await redis.kill()
        server.send(signal.SIGKILL)
        await server.exited()
        for replica in dice.sample([*ours.replicas.values()], len(BEHIND)):
            replica.launch()
        await asyncio.sleep(WITHOUT_ANYTHING_S)  # long enough to start, look for everything, and give up
        alive = [one.process.exitcode for one in ours.replicas.values() if one.process]
        await redis.start()
        server = await postgres.start(database)
        for replica in ours.replicas.values():
            await replica.ready()
        await ours.db.engine.dispose()  # this test's own connections are broken as well
        await ours.place(50)
        await ours.come_to_rest(*BEHIND)

        assert alive == [None] * len(BEHIND)
        assert await ours.violations(*BEHIND) == []
    await postgres.stop(server)


async def checkouts(ours: Fleet, payments: Payments, http: httpx.AsyncClient) -> list[Replica]:
    """Two replicas, which take their time to leave."""
    await checkout_app.seed(settings_for(ours.databases["checkout"], ours.redis_url, payments.program.url))
    environment = {
        "CHECKOUT_DATABASE_URL": ours.databases["checkout"],
        "CHECKOUT_REDIS_URL": ours.redis_url,
        "CHECKOUT_PAYMENTS_URL": payments.program.url,
        "CHECKOUT_PAYMENTS_SECRET_KEY": SECRET_KEY,
        "CHECKOUT_DRAIN_S": str(DRAIN_S),
    }
    for name in ("checkout-1", "checkout-2"):
        named = {**environment, "CHECKOUT_CONSUMER_NAME": name}
        ours.replicas[name] = Replica(named, ours.folder / f"{name}.log", http)
    made = [ours.replicas[name] for name in ("checkout-1", "checkout-2")]
    await asyncio.gather(*(one.start() for one in made))
    return made


async def restarted(replica: Replica) -> tuple[int, float]:
    """Stopped by somebody impatient, and started again; its exit status and how long it took to leave."""
    began = monotonic()
    replica.send(signal.SIGTERM)
    await asyncio.sleep(0.2)
    if replica.process and replica.process.exitcode is None:
        replica.send(signal.SIGTERM)
    status = await replica.ended()
    took = monotonic() - began
    await replica.start()
    return status, took


def creator(url: str) -> NewDatabase:
    """Makes databases on that server."""

    async def create() -> str:
        name = f"test_{secrets.token_hex(6)}"
        connection = await asyncpg.connect(url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        return urlsplit(url)._replace(path=f"/{name}").geturl()

    return create
