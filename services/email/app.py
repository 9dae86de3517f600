from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from services.email import store
from services.email.handlers import handlers
from services.email.mailer.letters import Letters
from services.email.mailer.sender import Recorder, Sender
from services.email.mailer.smtp import Smtp
from services.email.routes import Wiring, router
from services.email.settings import EmailSettings
from shared.bus.consumer import Consumer, Gate
from shared.bus.delivery import Deliverer
from shared.bus.retention import LedgerRetention
from shared.bus.retrier import Retrier
from shared.bus.streams import RedisStreams
from shared.runtime.db import Database
from shared.runtime.process import Service
from shared.runtime.rehearsal import Rehearsal
from shared.web import ops
from shared.web.app import create_app
from shared.web.auth import SettingsKeys
from shared.web.health import Check, Health, Reading, Status, bus_checks
from shared.web.readers import retention_check

NAME = "email"
DESCRIPTION = "Tells customers what became of their orders: the send log, previews, and who wants no mail."


@dataclass(frozen=True, slots=True)
class Bus:
    """What consumes events."""

    consumer: Consumer
    retrier: Retrier
    retention: LedgerRetention
    gate: Gate


async def build(settings: EmailSettings, stack: AsyncExitStack) -> Service:
    """Wire everything; nothing connects before it has to, so the service starts without its dependencies."""
    db = Database(settings.database_url.get_secret_value(), f"orderstream-{NAME}", settings.database_pool_size)
    stack.push_async_callback(db.close)
    streams = RedisStreams(settings.redis_url.get_secret_value(), f"{NAME}-{settings.consumer_name}")
    stack.push_async_callback(streams.close)
    letters = Letters(settings.from_address, settings.from_name)
    transport = Smtp(settings)
    stack.push_async_callback(transport.close)
    recorder = Recorder(db)
    sender = Sender(
        db,
        letters,
        transport,
        recorder,
        owner=settings.consumer_name,
        connections=settings.smtp_connections,
        max_rate=settings.max_rate,
    )
    bus = _bus(settings, db, streams)
    loops = (bus.consumer, bus.retrier, bus.retention, sender)
    checks = [*bus_checks(NAME, db, streams, bus.gate), retention_check(bus.retention)]
    checks.append(Check("mail", _MailCheck(db, sender)))
    health = Health(NAME, checks, [*loops, recorder])
    app = create_app(
        service=NAME,
        settings=settings,
        health=health,
        keys=SettingsKeys(settings),
        routers=[router, ops.router(NAME, db, health)],
        description=DESCRIPTION,
    )
    app.state.wiring = Wiring(db, letters)
    return Service(app, loops, [recorder], health.drain)


def _bus(settings: EmailSettings, db: Database, streams: RedisStreams) -> Bus:
    rehearsal = Rehearsal(settings.database_url.get_secret_value(), f"{NAME}-{settings.consumer_name}-rehearsal")
    deliverer = Deliverer(db, handlers(settings.domain), rehearsal=rehearsal)
    gate = Gate(deliverer)
    consumer = Consumer(NAME, settings.consumer_name, streams, deliverer, gate, settings.claim_idle_s)
    retention = LedgerRetention(db, settings.retention_s, streams, NAME)
    return Bus(consumer, Retrier(deliverer, gate), retention, gate)


class _MailCheck:
    """How many mails wait, and whether the mail server is there."""

    def __init__(self, db: Database, sender: Sender) -> None:
        self._db = db
        self._sender = sender

    async def __call__(self) -> Mapping[str, Reading]:
        async with self._db.reading() as connection:
            queue = await store.queue_state(connection)
        breaker = self._sender.breaker
        away = breaker.state != "closed"
        return {
            "queued": Reading(queue.queued, "mails"),
            "sending": Reading(queue.sending, "mails"),
            "oldest": Reading(round(queue.oldest_s, 1), "s"),
            "server": Reading(
                "misconfigured" if breaker.misconfigured else breaker.state,
                status=Status.WARN if away else Status.PASS,
            ),
        }
