"""The wiring of a service that does nothing but consume events and answer questions about what it made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from fastapi import APIRouter

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
from shared.web.health import Health, bus_checks
from shared.web.readers import retention_check

if TYPE_CHECKING:
    from shared.bus.delivery import Handlers
    from shared.runtime.settings import ServiceSettings

Routers = Callable[[Database], Sequence[APIRouter]]


def consuming_service(
    name: str,
    settings: ServiceSettings,
    stack: AsyncExitStack,
    handlers: Handlers,
    routers: Routers,
    description: str = "",
) -> Service:
    """Everything from the stream to the HTTP port; what is opened here is closed by `stack`, in reverse order.

    `routers` gets the service's database and returns its own API; health, metrics and `/ops` come by themselves.
    """
    itself = f"{name}-{settings.consumer_name}"
    db = Database(settings.database_url.get_secret_value(), itself, settings.database_pool_size)
    stack.push_async_callback(db.close)
    streams = RedisStreams(settings.redis_url.get_secret_value(), itself)
    stack.push_async_callback(streams.close)
    rehearsal = Rehearsal(settings.database_url.get_secret_value(), f"{itself}-rehearsal")
    deliverer = Deliverer(db, handlers, rehearsal=rehearsal)
    gate = Gate(deliverer)
    consumer = Consumer(name, settings.consumer_name, streams, deliverer, gate, settings.claim_idle_s)
    retention = LedgerRetention(db, settings.retention_s, streams, name)
    loops = [consumer, Retrier(deliverer, gate), retention]
    health = Health(name, [*bus_checks(name, db, streams, gate), retention_check(retention)], loops)
    app = create_app(
        service=name,
        settings=settings,
        health=health,
        keys=SettingsKeys(settings),
        routers=[*routers(db), ops.router(name, db, health)],
        description=description,
    )
    return Service(app, loops, on_drain=health.drain)
