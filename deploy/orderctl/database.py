"""Checkout's database, as its services reach it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic_settings import SettingsConfigDict

from deploy.orderctl.failures import Refused, Unavailable
from services.checkout.commands.keys import KeyRefused
from shared.runtime.db import Database
from shared.runtime.errors import is_infrastructure
from shared.runtime.settings import DatabaseSettings, load
from shared.runtime.supervision import brief

Result = TypeVar("Result")


class OrderctlSettings(DatabaseSettings):
    """Of checkout's settings the only one that is needed here."""

    model_config = SettingsConfigDict(env_prefix="CHECKOUT_", extra="ignore")


def with_database(work: Callable[[Database], Awaitable[Result]]) -> Result:
    """Do something with the database of the settings; no connection stays open."""
    url = load(OrderctlSettings).database_url.get_secret_value()
    try:
        return asyncio.run(_with(url, work))
    except KeyRefused as error:
        raise Refused(str(error)) from error
    except Exception as error:
        if not is_infrastructure(error):
            raise
        raise Unavailable(f"the database cannot be used: {brief(error)}") from error


async def _with(url: str, work: Callable[[Database], Awaitable[Result]]) -> Result:
    db = Database(url, "orderctl", pool_size=1)
    try:
        return await work(db)
    finally:
        await db.close()
