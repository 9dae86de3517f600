from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from shared.runtime.settings import Keys, ServiceSettings


class CheckoutSettings(ServiceSettings):
    """Settings of checkout, read from `CHECKOUT_*`."""

    model_config = SettingsConfigDict(env_prefix="CHECKOUT_", extra="ignore")

    payments_url: str = Field(description="base URL of the payment provider's API")
    payments_secret_key: SecretStr = Field(description="its secret key")
    payments_webhook_secret: Keys = Field(
        (),
        description="what it signs webhooks with; two, comma separated, while they are exchanged; empty: no webhooks",
    )
    payments_timeout_s: float = Field(8.0, gt=0, le=20, description="longest wait for its answer; then unknown")
    payments_connect_timeout_s: float = Field(2.0, gt=0, le=10, description="longest wait for a connection to it")
    payments_connections: int = Field(128, ge=1, le=2000, description="calls to it at the same time at the most")
    payments_recovery_connections: int = Field(
        16, ge=1, le=200, description="calls at the same time that are kept for recovery, on top of those"
    )
    payments_rate: float = Field(
        5000.0, gt=0, description="calls to it per second at the most, a tenth of them kept for recovery"
    )
    lease_s: float = Field(
        20.0, ge=2, le=300, validate_default=True, description="how long an order belongs to the process that placed it"
    )
    reconcile_every_s: float = Field(300.0, ge=1, le=86400, description="how often the books are compared")
    reservation_s: float = Field(300.0, ge=10, le=86400, description="how long stock is held for an open order")
    # The lower bound: 128 connections that each wait for their answer, and some room. Fewer would not fill the batches.
    orders_in_flight_least: int = Field(144, ge=1, le=10_000, description="orders in flight that are always admitted")
    orders_in_flight_most: int = Field(256, ge=1, le=10_000, description="orders in flight that are never exceeded")
    order_wait_target_s: float = Field(
        0.05, gt=0, le=10, description="wait for a batch above which fewer orders are admitted"
    )
    order_wait_most_s: float = Field(2.0, gt=0, le=30, description="wait for a batch behind which no order is admitted")
    partitions: int = Field(1, ge=1, le=1024, description="partitions of the event log at the least; never fewer again")
    window: int = Field(100_000, ge=100, description="unsettled entries per stream at the most")
    consumers: int = Field(64, ge=1, description="replicas of a service at the most, before health warns of leftovers")
    forgotten_after_s: float = Field(
        3600.0, gt=0, description="how long a service may settle nothing while events wait, before health warns"
    )
    source: str = Field("urn:orderstream:checkout", description="the `source` of every event")
    services: Annotated[dict[str, str], NoDecode] = Field(
        {},
        description="where the services behind checkout answer, for timelines: email=http://host:port, comma separated",
    )
    services_key: SecretStr = Field(SecretStr(""), description="a key that opens their own API")
    key_rate: float = Field(5000.0, gt=0, le=10**6, description="requests per second of a key without its own rate")
    key_burst: int = Field(10_000, ge=1, le=10**6, description="requests at once of a key without its own rate")
    seed_api_key: SecretStr | None = Field(None, description="key of the demo tenant, for seed")
    seed_ops_key: SecretStr | None = Field(None, description="key with every scope, for seed")

    @field_validator("lease_s")
    @classmethod
    def _outlasts_the_charge(cls, value: float, info: ValidationInfo) -> float:
        longest = info.data.get("payments_timeout_s", 0.0) + info.data.get("payments_connect_timeout_s", 0.0)
        if value < longest + 1:
            raise ValueError(f"must outlast the longest charge, {longest:g} s, by a second")
        return value

    @field_validator("orders_in_flight_most")
    @classmethod
    def _is_no_less(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("orders_in_flight_least", 1)
        if value < least:
            raise ValueError(f"must be at least the lower bound, {least}")
        return value

    @field_validator("services", mode="before")
    @classmethod
    def _split_services(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.strip().partition("=") for pair in value.split(",") if pair.strip()]
        return {name.strip(): url.strip().rstrip("/") for name, _, url in pairs}

    @field_validator("services")
    @classmethod
    def _are_addresses(cls, value: dict[str, str]) -> dict[str, str]:
        for name, url in value.items():
            if not name or urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
                raise ValueError("must be like email=http://host:port, comma separated")
        return value

    @field_validator("payments_webhook_secret", mode="before")
    @classmethod
    def _split_secrets(cls, value: object) -> object:
        return (
            tuple(secret.strip() for secret in value.split(",") if secret.strip()) if isinstance(value, str) else value
        )

    @field_validator("payments_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/")
