"""The wiring of warehouse: everything long-lived is made here, and closed in reverse order."""

from __future__ import annotations

from contextlib import AsyncExitStack

from services.warehouse import routes
from services.warehouse.handlers import HANDLERS
from services.warehouse.settings import WarehouseSettings
from shared.bus.consumer import Consumer, Gate
from shared.bus.delivery import Deliverer
from shared.bus.retrier import Retrier
from shared.bus.streams import RedisStreams
from shared.runtime.clock import SystemClock
from shared.runtime.db import Database
from shared.runtime.process import Service
from shared.web import ops
from shared.web.app import create_app
from shared.web.auth import SettingsKeys
from shared.web.health import Health, bus_checks

NAME = "warehouse"


async def build(settings: WarehouseSettings, stack: AsyncExitStack) -> Service:
    """Put warehouse together."""
    itself = f"{NAME}-{settings.consumer_name}"
    db = Database(settings.database_url.get_secret_value(), itself, settings.database_pool_size)
    stack.push_async_callback(db.close)
    streams = RedisStreams(settings.redis_url.get_secret_value(), itself)
    stack.push_async_callback(streams.close)
    deliverer = Deliverer(db, HANDLERS)
    gate = Gate(deliverer)
    loops = [Consumer(NAME, settings.consumer_name, streams, deliverer, gate), Retrier(deliverer, gate)]
    health = Health(NAME, bus_checks(NAME, db, streams, gate), loops)
    app = create_app(
        service=NAME,
        settings=settings,
        health=health,
        keys=SettingsKeys(settings),
        routers=[routes.router(db, SystemClock()), ops.router(NAME, db, health)],
        description="Fulfils orders: pick lists, packing, shipping, and a board for the staff.",
    )
    return Service(app, loops, on_drain=health.drain)
