from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from shared.runtime.settings import ServiceSettings


class WarehouseSettings(ServiceSettings):
    """Settings of warehouse, read from `WAREHOUSE_*`."""

    model_config = SettingsConfigDict(env_prefix="WAREHOUSE_", extra="ignore")
