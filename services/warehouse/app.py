"""The wiring of warehouse: everything long-lived is made here, and closed in reverse order."""

from __future__ import annotations

from contextlib import AsyncExitStack

from fastapi import APIRouter

from services.warehouse import routes
from services.warehouse.handlers import HANDLERS
from services.warehouse.settings import WarehouseSettings
from shared.runtime.clock import SystemClock
from shared.runtime.db import Database
from shared.runtime.process import Service
from shared.web.consuming import consuming_service

NAME = "warehouse"
DESCRIPTION = "Fulfils orders: pick lists, packing, shipping, and a board for the staff."


async def build(settings: WarehouseSettings, stack: AsyncExitStack) -> Service:
    """Put warehouse together."""
    return consuming_service(NAME, settings, stack, HANDLERS, routers, DESCRIPTION)


def routers(db: Database) -> list[APIRouter]:
    """What warehouse answers itself."""
    return [routes.router(db, SystemClock())]
