"""The payment sandbox's settings, read once from the environment and checked before anything starts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MAX_PORT = 65_535


class SettingsError(Exception):
    """A setting is missing or wrong; the text names it and says what to do."""


@dataclass(frozen=True)
class Settings:
    host: str
    port: int
    ledger: Path
    secret_key: str
    webhook_url: str | None
    webhook_secret: str | None


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    webhook_url = environment.get("PAYMENTS_WEBHOOK_URL") or None
    webhook_secret = environment.get("PAYMENTS_WEBHOOK_SECRET") or None
    if webhook_url is not None:
        _check_webhook(webhook_url, webhook_secret)
    return Settings(
        host=environment.get("PAYMENTS_HOST") or "127.0.0.1",
        port=_port(environment, "PAYMENTS_PORT"),
        ledger=Path(_required(environment, "PAYMENTS_LEDGER")),
        secret_key=_required(environment, "PAYMENTS_SECRET_KEY"),
        webhook_url=webhook_url,
        webhook_secret=webhook_secret,
    )


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise SettingsError(f"{name} is not set: set it in the environment")
    return value


def _port(environment: Mapping[str, str], name: str) -> int:
    text = _required(environment, name)
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MAX_PORT):
        raise SettingsError(f"{name} is not a port: set it to a number from 1 to {MAX_PORT}")
    return int(text)


def _check_webhook(url: str, secret: str | None) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError("PAYMENTS_WEBHOOK_URL is not an http(s) address: correct it or leave it out")
    if secret is None:
        raise SettingsError("PAYMENTS_WEBHOOK_SECRET is not set: webhooks are signed with it, set it too")
