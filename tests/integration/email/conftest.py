"""Email on a database of its own, with the mail sandbox at the other end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest_asyncio
from httpx import ASGITransport, AsyncClient
from sqlalchemy import text

from deploy.local.mail.faults import FaultPlan, Faults, Refusal, Step
from deploy.local.mail.smtp import listen
from deploy.local.mail.store import Store
from services.email.__main__ import MIGRATIONS
from services.email.app import build
from services.email.handlers import handlers
from services.email.mailer.breaker import Breaker
from services.email.mailer.letters import Letters
from services.email.mailer.sender import Recorder, Sender
from services.email.mailer.smtp import Smtp
from services.email.settings import EmailSettings
from services.email.store import tables
from shared.bus.delivery import Deliverer
from shared.contracts.envelope import Envelope
from shared.runtime.db import Database
from shared.runtime.migrations import upgrade
from shared.runtime.process import Service
from tests.support.orders import arrivals
from tests.support.servers import NewDatabase, free_port


class Mailbox:
    """The mail sandbox, in this process."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.store = Store(folder)
        self.faults = FaultPlan()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await listen("127.0.0.1", self.port, self.store, self.faults)

    def close(self) -> None:
        if self._server:
            self._server.close()
            self._server = None

    def refuse(self, code: int, step: Step) -> None:
        self.faults.set(Faults(refuse_with=Refusal(code, step)))

    def behave(self) -> None:
        self.faults.set(Faults())

    def mails(self) -> list[EmailMessage]:
        """Oldest first."""
        found, _ = self.store.find(None, None, 1000, None)
        return [message_from_bytes(self.store.read(mail), policy=default) for mail in reversed(found)]


@dataclass
class World:
    """The service's parts, as its tests see them."""

    settings: EmailSettings
    service: Service
    db: Database
    deliverer: Deliverer
    recorder: Recorder
    sender: Sender
    mailbox: Mailbox
    client: AsyncClient
    now: float = 0.0

    async def deliver(self, *events: Envelope) -> None:
        """Let events arrive, in one batch."""
        await self.deliverer.deliver(arrivals(events))

    async def send(self) -> None:
        """Send what is due."""
        while await self.sender.run_once():
            await self.sender.settle()

    async def later(self, seconds: float = 7200) -> None:
        """Time passes: every mail is due, and the breaker's pause is over."""
        self.now += seconds
        await self.execute("UPDATE messages SET next_attempt_at = now() - interval '1 second' WHERE status = 'queued'")

    def new_sender(self, owner: str = "test", db: Database | None = None) -> Sender:
        """Another sender on the same queue, over a link of its own if there is a `db`."""
        sender = Sender(
            db or self.db,
            Letters(self.settings.from_address, self.settings.from_name),
            Smtp(self.settings),
            self.recorder,
            owner=owner,
            connections=4,
            max_rate=10_000,
        )
        sender.breaker = Breaker(lambda: self.now)
        return sender

    async def messages(self, columns: str = "kind, status, attempts") -> list[tuple[Any, ...]]:
        """The queue in the order of events."""
        sql = f"SELECT {columns} FROM messages ORDER BY order_id, order_version, id"
        async with self.db.reading() as connection:
            return [tuple(row) for row in await connection.execute(text(sql))]

    async def execute(self, sql: str) -> None:
        async with self.db.transaction() as connection:
            await connection.execute(text(sql))

    async def get(self, path: str, **parameters: str) -> Any:
        """The answer to an authorised request."""
        answer = await self.client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what another task does."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module")
async def migrated(new_database: NewDatabase) -> str:
    """The DSN of a database with the service's tables."""
    url = await new_database()
    await upgrade(url, MIGRATIONS)
    return url


@pytest_asyncio.fixture(scope="module")
async def served(migrated: str, redis_url: str, tmp_path_factory: Any) -> AsyncIterator[World]:
    """The whole service, wired; of its loops only the recorder runs."""
    mailbox = Mailbox(tmp_path_factory.mktemp("mail"))
    settings = EmailSettings.model_validate(
        {
            "port": 1,
            "database_url": migrated,
            "redis_url": redis_url,
            "consumer_name": "test",
            "ops_keys": "ops-key",
            "api_keys": "api-key",
            "smtp_url": f"smtp://127.0.0.1:{mailbox.port}",
            "from_address": "shop@orderstream.example",
        }
    )
    async with AsyncExitStack() as stack:
        service = await build(settings, stack)
        wiring = service.http.state.wiring  # type: ignore[attr-defined]
        transport = ASGITransport(service.http, raise_app_exceptions=False)
        headers = {"Authorization": "Bearer ops-key"}
        client = await stack.enter_async_context(
            AsyncClient(transport=transport, base_url="http://email", headers=headers)
        )
        recorder = Recorder(wiring.db)
        running = asyncio.create_task(recorder.run())
        world = World(
            settings,
            service,
            wiring.db,
            Deliverer(wiring.db, handlers(settings.domain)),
            recorder,
            None,  # type: ignore[arg-type]  # each test gets a new one
            mailbox,
            client,
        )
        yield world
        recorder.stop()
        await running
    mailbox.store.close()


@pytest_asyncio.fixture
async def world(served: World) -> AsyncIterator[World]:
    """An empty queue, an empty mailbox that behaves, and a sender that knows nothing."""
    async with served.db.transaction() as connection:
        await connection.execute(text("DELETE FROM deliveries"))
        await connection.execute(text("DELETE FROM consumer_control"))
        for table in tables.sorted_tables:
            await connection.execute(table.delete())
    served.mailbox.store.clear()
    served.mailbox.behave()
    await served.mailbox.open()
    served.now = 0.0
    served.sender = served.new_sender()
    yield served
    await served.sender.finish()
    served.mailbox.close()
