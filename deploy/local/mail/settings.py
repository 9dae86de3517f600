"""The mail sandbox's settings, read once from the environment and checked before anything starts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_PORT = 65_535


class SettingsError(Exception):
    """A setting is missing or wrong; the text names it and says what to do."""


@dataclass(frozen=True)
class Settings:
    host: str
    inbox_port: int
    smtp_port: int
    store: Path


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    return Settings(
        host=environment.get("MAIL_HOST") or "127.0.0.1",
        inbox_port=_port(environment, "MAIL_INBOX_PORT"),
        smtp_port=_port(environment, "MAIL_SMTP_PORT"),
        store=Path(_required(environment, "MAIL_STORE")),
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
