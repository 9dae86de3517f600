"""Seed: the demo catalogue and the demo keys, put in where they are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.checkout.commands.keys import Scope
from services.checkout.store import keys, stock
from services.checkout.store.keys import NewKey
from shared.runtime.errors import ConfigurationError
from shared.web.auth import digest

if TYPE_CHECKING:
    from pydantic import SecretStr
    from sqlalchemy.ext.asyncio import AsyncConnection

    from services.checkout.settings import CheckoutSettings

DEMO_TENANT = "demo"
ALL_SCOPES = tuple(Scope)
CLIENT_SCOPES = tuple(scope for scope in Scope if scope is not Scope.OPS)


async def seed(connection: AsyncConnection, settings: CheckoutSettings) -> None:
    """Products `SKU-0001` … `SKU-1000` and `LIMITED-1`, and the two keys of the settings."""
    catalogue = [(f"SKU-{n:04}", f"Product {n}", n * 100, 1_000_000) for n in range(1, 1001)]
    await stock.seed(connection, [*catalogue, ("LIMITED-1", "Limited edition", 4900, 100)])
    await _add(connection, "key_demo", settings.seed_api_key, "CHECKOUT_SEED_API_KEY", CLIENT_SCOPES)
    await _add(connection, "key_ops", settings.seed_ops_key, "CHECKOUT_SEED_OPS_KEY", ALL_SCOPES)


async def _add(
    connection: AsyncConnection, key_id: str, key: SecretStr | None, setting: str, scopes: tuple[Scope, ...]
) -> None:
    if key is None:
        raise ConfigurationError(f"{setting} is not set")
    await keys.add(connection, NewKey(key_id, DEMO_TENANT, digest(key.get_secret_value()), scopes, by="seed"))
