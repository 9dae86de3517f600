"""The wiring of analytics: everything long-lived is made here, and closed in reverse order."""

from __future__ import annotations

from contextlib import AsyncExitStack

from fastapi import APIRouter

from services.analytics import routes
from services.analytics.handlers import HANDLERS
from services.analytics.settings import AnalyticsSettings
from shared.runtime.clock import SystemClock
from shared.runtime.db import Database
from shared.runtime.process import Service
from shared.web.consuming import consuming_service

NAME = "analytics"
DESCRIPTION = "Counts orders: totals, sales over time, products, and a dashboard."


async def build(settings: AnalyticsSettings, stack: AsyncExitStack) -> Service:
    """Put analytics together."""
    return consuming_service(NAME, settings, stack, HANDLERS, routers, DESCRIPTION)


def routers(db: Database) -> list[APIRouter]:
    """What analytics answers itself."""
    return [routes.router(db, SystemClock())]
