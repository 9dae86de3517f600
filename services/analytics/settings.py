from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from shared.runtime.settings import ServiceSettings


class AnalyticsSettings(ServiceSettings):
    """Settings of analytics, read from `ANALYTICS_*`."""

    model_config = SettingsConfigDict(env_prefix="ANALYTICS_", extra="ignore")
