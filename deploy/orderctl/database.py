"""Checkout's database, as its services reach it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic_settings import SettingsConfigDict

from shared.runtime.db import Database
from shared.runtime.settings import DatabaseSettings, load

Result = TypeVar("Result")


class OrderctlSettings(DatabaseSettings):
    """Of checkout's settings the only one that is needed here."""

    model_config = SettingsConfigDict(env_prefix="CHECKOUT_", extra="ignore")


def with_database(work: Callable[[Database], Awaitable[Result]]) -> Result:
    """Do something with the database of the settings; no connection stays open."""
    return asyncio.run(_with(load(OrderctlSettings).database_url.get_secret_value(), work))


async def _with(url: str, work: Callable[[Database], Awaitable[Result]]) -> Result:
    db = Database(url, "orderctl", pool_size=1)
    try:
        return await work(db)
    finally:
        await db.close()
