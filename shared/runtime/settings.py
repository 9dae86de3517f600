"""Settings: environment variables with the service's prefix, checked at start."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from shared.runtime.redis_url import HIGHEST_PORT
from shared.runtime.redis_url import parse as parse_redis_url

EX_CONFIG = 78  # sysexits.h: something is wrong with the configuration; a supervisor need not try again

Keys = Annotated[tuple[SecretStr, ...], NoDecode]
Names = Annotated[tuple[str, ...], NoDecode]


class DatabaseSettings(BaseSettings):
    """Where the database is."""

    database_url: SecretStr = Field(description="postgresql://user:password@host:port/database")

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if not url.startswith(("postgresql://", "postgres://", "postgresql+asyncpg://")):
            raise ValueError("must start with postgresql://")
        _check_port(lambda: make_url(url).port)
        return value


class ServiceSettings(DatabaseSettings):
    """What every service needs; each reads it with its own prefix, such as `EMAIL_DATABASE_URL`.

    A secret may also come from a file: `<PREFIX>SECRETS_DIR/<prefix><name>`, the layout of Docker and Kubernetes.
    """

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(ge=1, le=65535, description="port to listen on")
    migrator_database_url: SecretStr | None = Field(None, description="the same database as its owner, for migrate")
    database_pool_size: int = Field(8, ge=2, le=200, description="connections to Postgres at the most")
    redis_url: SecretStr = Field(
        description="redis://[user:password@]host:port[/db], redis+sentinel://host:port,…/name, redis+cluster://host:port,…"
    )
    consumer_name: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=200,
        description="unique per replica and stable over restarts, so that a restart finds its own entries",
    )
    claim_idle_s: float = Field(
        15.0, ge=2, le=3600, description="silence after which a replica loses what it left open to its peers"
    )
    retention_s: float = Field(
        90 * 86_400.0,
        ge=3600,
        description="how long events (checkout) and deliveries are kept at least; longer while somebody needs them",
    )
    ops_keys: Keys = Field((), description="keys that open /ops, comma separated")
    api_keys: Keys = Field((), description="keys that open the service's own API, comma separated")
    trusted_hosts: Names = Field((), description="Host headers to answer, comma separated, *.name too; empty: all")
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    docs_enabled: bool = Field(True, description="serve /docs, /openapi.json and /asyncapi.json")
    drain_s: float = Field(0.0, ge=0, le=60, description="seconds between answering not-ready and stopping")
    revivals: int = Field(
        3,
        ge=0,
        le=1000,
        description="how often in a minute a process that dies is replaced at once; 0: it has no keeper",
    )

    @field_validator("ops_keys", "api_keys", "trusted_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(key.strip() for key in value.split(",") if key.strip()) if isinstance(value, str) else value

    @field_validator("migrator_database_url")
    @classmethod
    def _is_postgres_or_empty(cls, value: SecretStr | None) -> SecretStr | None:
        return cls._is_postgres(value) if value else None

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr) -> SecretStr:
        parse_redis_url(value.get_secret_value())
        return value


def _check_port(read: Callable[[], int | None]) -> None:
    """Let the driver's own parser read the URL now: later it would end in a stack trace with the URL in it."""
    try:
        port = read()
    except (ValueError, SQLAlchemyError) as error:
        raise ValueError("is no URL with a numeric port") from error
    if port is not None and not 0 < port <= HIGHEST_PORT:
        raise ValueError(f"its port must be from 1 to {HIGHEST_PORT}")


AnySettings = TypeVar("AnySettings", bound=ServiceSettings)
Loaded = TypeVar("Loaded", bound=BaseSettings)


def load(kind: type[Loaded]) -> Loaded:
    """Read the settings from the environment; stop the process with one line when they cannot be used."""
    prefix = str(kind.model_config.get("env_prefix", ""))
    directory = os.environ.get(f"{prefix}SECRETS_DIR")
    if directory and not Path(directory).is_dir():
        stop(f"{prefix}SECRETS_DIR: {directory} is not a directory")
    try:
        return kind(_secrets_dir=directory)
    except ValidationError as error:
        stop("; ".join(_complaint(prefix, detail) for detail in error.errors(include_input=False, include_url=False)))


def stop(message: str) -> NoReturn:
    """End the process because of its configuration, with one line on stderr."""
    sys.stderr.write(f"configuration: {message}\n")
    raise SystemExit(EX_CONFIG)


def _complaint(prefix: str, detail: object) -> str:
    if not isinstance(detail, dict):
        raise TypeError(detail)
    name = prefix + "_".join(str(part) for part in detail["loc"]).upper()
    return (
        f"{name} is not set"
        if detail["type"] == "missing"
        else f"{name}: {detail['msg'].removeprefix('Value error, ')}"
    )
