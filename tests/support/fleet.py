"""Replicas of the services behind checkout as real processes, fed from a log of the test's own."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import httpx
from redis.exceptions import ResponseError

from deploy.local.mail.faults import FaultPlan
from deploy.local.mail.smtp import listen
from deploy.local.mail.store import Store
from shared.bus.clients import StreamClient, connect
from shared.bus.log import EventLog
from shared.bus.relays import Relays
from shared.bus.streams import RedisStreams
from shared.contracts.envelope import Envelope
from shared.runtime.db import Database
from shared.runtime.failpoints import VARIABLE
from shared.runtime.migrations import upgrade
from tests.support.orders import Order
from tests.support.pgbouncer import direct
from tests.support.platform import ROOT, fetch, until
from tests.support.replicas import Replica
from tests.support.servers import NewDatabase, free_port

BEHIND = ("email", "analytics", "warehouse")
CLAIM_IDLE_S = 2.0
AT_REST_WITHIN_S = 90.0
LIMITS = {"statement_timeout": "5s", "lock_timeout": "1s", "idle_in_transaction_session_timeout": "2s"}
OPEN = {
    "email": "SELECT count(*) FROM messages WHERE status IN ('queued', 'sending')",
    "analytics": "SELECT 0",
    "warehouse": "SELECT 0",
}


@dataclass
class Fleet:
    """Any number of replicas of any service, and everything that they share."""

    databases: dict[str, str]
    redis_url: str
    redis: StreamClient
    db: Database
    log: EventLog
    mails: Store
    smtp_port: int
    folder: Path
    http: httpx.AsyncClient
    replicas: dict[str, Replica] = field(default_factory=dict)
    orders: list[str] = field(default_factory=list)

    async def start(
        self,
        service: str,
        *names: str,
        claim_idle_s: float = CLAIM_IDLE_S,
        clock_s: float = 0.0,
        armed: str = "",
    ) -> list[Replica]:
        """Start replicas with these names and wait until they are ready; a name that died comes back.

        Their clocks are fast by `clock_s`; `armed` are their fail-points in this life.
        """
        made = [self.replicas.setdefault(name, self._replica(service, name, claim_idle_s, clock_s)) for name in names]
        await asyncio.gather(*(one.start(**{VARIABLE: armed}) for one in made))
        return made

    async def place(self, count: int) -> None:
        """Commit the events of so many new orders."""
        orders = [Order() for _ in range(count)]
        await self.append(*(order.completed() for order in orders))
        self.orders += [order.id for order in orders]

    async def append(self, *events: Envelope) -> None:
        """Commit events."""
        async with self.db.transaction() as connection:
            await self.log.append(connection, events)

    async def place_for(self, seconds: float, *, every_s: float = 0.05, count: int = 10) -> None:
        """Orders come in for a while."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await self.place(count)
            await asyncio.sleep(every_s)

    async def value(self, service: str, query: str) -> Any:
        """The one value that a query finds in a service's database."""
        [(found,)] = await fetch(self.databases[service], query)
        return found

    async def pending(self, service: str, name: str, partition: int = 0) -> int:
        """How many entries a replica has been given and not acknowledged."""
        found: Any = await self.redis.xpending_range(f"events:{service}:{partition}", service, "-", "+", 1000, name)
        return len(found)

    async def put_to_sleep(self, service: str, name: str) -> None:
        """Stop a replica in the middle of something: it has been given entries."""
        give_up_at = monotonic() + AT_REST_WITHIN_S
        while not await self._fell_asleep_in_the_middle(service, name):
            assert monotonic() < give_up_at, f"{name} is never given anything"
            self.replicas[name].send(signal.SIGCONT)

    async def _fell_asleep_in_the_middle(self, service: str, name: str) -> bool:
        """If it does not happen to be reading, it gets nothing in its sleep."""
        await self.place(5)
        self.replicas[name].send(signal.SIGSTOP)
        for _ in range(10):
            await self.place(5)
            if await self.pending(service, name):
                return True
        return False

    async def handled(self, name: str) -> float:
        """How many deliveries a replica has handled since its start."""
        text = (await self.http.get(f"{self.replicas[name].url}/metrics")).text
        counted = [line.split()[-1] for line in text.splitlines() if line.startswith("orderstream_deliveries_total")]
        return sum(map(float, counted))

    async def names(self, service: str, partition: int = 0) -> set[str]:
        """The consumers that Redis knows; none while there is no stream."""
        try:
            found: Any = await self.redis.xinfo_consumers(f"events:{service}:{partition}", service)
        except ResponseError:
            return set()
        return {one["name"].decode() for one in found}

    async def only_known(self, service: str, names: set[str], partition: int = 0) -> None:
        """Wait until Redis knows these consumers and no others.

        Before 7 it does so only while it has something for them, so they get something, one after the other.
        """
        met: set[str] = set()

        async def all_met() -> bool:
            known = await self.names(service, partition)
            met.update(known)
            if not names <= met:
                await self.place(len(names))
            return known <= names <= met

        await until(all_met, AT_REST_WITHIN_S)

    async def done(self, service: str) -> bool:
        """Whether a service's ledger has everything."""
        ledger = "SELECT count(*) FROM deliveries WHERE state IN ('done', 'ignored')"
        return bool(
            await self.value(service, ledger) == await self.value("checkout", "SELECT count(*) FROM event_log")
            and not await self.value(service, OPEN[service])
        )

    async def come_to_rest(self, *services: str) -> None:
        """Wait until these services have done everything."""
        for service in services:
            await until(lambda service=service: self.done(service), AT_REST_WITHIN_S)  # type: ignore[misc]

    async def violations(self, *services: str) -> list[str]:
        """What does not hold at rest: each order has had its effect once in each of these services."""
        found = []
        expected = Counter(self.orders)
        for service in services:
            effects = Counter(await getattr(self, f"_{service}")())
            found += [f"{service}: {count} effects too many" for count in [(effects - expected).total()] if count]
            found += [f"{service}: {count} effects too few" for count in [(expected - effects).total()] if count]
        return found

    async def _warehouse(self) -> list[str]:
        return [row[0] for row in await fetch(self.databases["warehouse"], "SELECT order_id FROM fulfilments")]

    async def _email(self) -> list[str]:
        """Of the mails that arrived, not of those that the service believes to have sent."""
        orders = dict(await fetch(self.databases["email"], "SELECT message_id, order_id FROM messages"))
        mails, _ = self.mails.find(None, None, 1_000_000, None)
        return [orders[mail.message_id] for mail in mails]

    async def _analytics(self) -> list[str]:
        counted = await self.value("analytics", "SELECT coalesce(sum(orders), 0)::bigint FROM sales_minutes")
        return self.orders[:counted] + ["an order too many"] * (counted - len(self.orders))

    def _replica(self, service: str, name: str, claim_idle_s: float, clock_s: float) -> Replica:
        settings = {
            "DATABASE_URL": self.databases[service],
            "REDIS_URL": self.redis_url,
            "CONSUMER_NAME": name,
            "CLAIM_IDLE_S": str(claim_idle_s),
            "DOCS_ENABLED": "false",
            "SMTP_URL": f"smtp://127.0.0.1:{self.smtp_port}",
            "FROM_ADDRESS": "shop@example.com",
            "MAX_RATE": "1000",
        }
        environment = {f"{service.upper()}_{key}": value for key, value in settings.items()}
        return Replica(environment, self.folder / f"{name}.log", self.http, service=service, clock_s=clock_s)


@asynccontextmanager
async def fleet(new_database: NewDatabase, redis_url: str, folder: Path) -> AsyncIterator[Fleet]:
    """Databases of its own, an empty Redis, a mailbox, and the relays of a checkout; no replica runs yet."""
    async with AsyncExitStack() as stack:
        databases = dict(zip(("checkout", *BEHIND), await _databases(new_database), strict=True))
        redis = connect(redis_url, "harbour-master")
        stack.push_async_callback(redis.aclose)
        await redis.flushall()
        db = Database(databases["checkout"], "fleet", 10)
        stack.push_async_callback(db.close)
        streams = RedisStreams(redis_url, "fleet")
        stack.push_async_callback(streams.close)
        (folder / "mail").mkdir()
        mails, port = Store(folder / "mail"), free_port()
        stack.callback(mails.close)
        stack.callback((await listen("127.0.0.1", port, mails, FaultPlan())).close)
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=10))
        made = Fleet(databases, redis_url, redis, db, EventLog(), mails, port, folder, http)
        relays = Relays(db, made.log, streams)
        running = asyncio.create_task(relays.run())
        try:
            yield made
        finally:  # or a test that failed goes on in the Redis that it shares with the next ones
            for replica in made.replicas.values():
                replica.kill()
            relays.stop()
            await running


async def _databases(new_database: NewDatabase) -> list[str]:
    urls = [await new_database() for _ in ("checkout", *BEHIND)]
    for name, url in zip(("checkout", *BEHIND), urls, strict=True):
        await upgrade(direct(url), ROOT / "services" / name / "migrations")
        await _limit(url)
    return urls


async def _limit(url: str) -> None:
    """What the services' roles have, so that nobody holds a lock in his sleep."""
    connection = await asyncpg.connect(direct(url))
    for name, value in LIMITS.items():
        database = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {database} SET {name} = '{value}'")
    await connection.close()
