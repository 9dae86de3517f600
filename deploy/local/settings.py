"""Where the local platform keeps its state, which ports it takes and which of the servers are your own."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local.errors import PlatformError

SERVICES = ("checkout", "email", "analytics", "warehouse")
# Added to PORT_BASE. `smtp` is the mail sandbox's other port.
PORTS = {
    "checkout": 0,
    "email": 1,
    "analytics": 2,
    "warehouse": 3,
    "payments": 10,
    "mail": 25,
    "smtp": 26,
    "postgres": 32,
    "redis": 79,
}
MIN_PORT = 1024
HIGHEST_BASE: int = 65_535 - max(PORTS.values())

REDIS_SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)


@dataclass(frozen=True)
class Settings:
    """An empty address means: start a server of our own."""

    run_dir: Path
    port_base: int
    postgres_url: str = ""
    redis_url: str = ""
    payments_url: str = ""
    smtp_url: str = ""
    redis_appendonly: bool = False

    def port(self, name: str) -> int:
        return self.port_base + PORTS[name]

    def url(self, name: str) -> str:
        """The HTTP address of a service or sandbox that we run."""
        return f"http://127.0.0.1:{self.port(name)}"

    def log(self, name: str) -> Path:
        return self.run_dir / "logs" / f"{name}.log"

    @property
    def own(self) -> list[str]:
        """The names of `PORTS` that we start ourselves."""
        theirs = {
            "postgres": self.postgres_url,
            "redis": self.redis_url,
            "payments": self.payments_url,
            "mail": self.smtp_url,
            "smtp": self.smtp_url,
        }
        return [name for name in PORTS if not theirs.get(name)]


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings that the environment asks for; raise with one line when they cannot be used."""
    return Settings(
        run_dir=Path(environment.get("RUN_DIR") or ".run").absolute(),
        port_base=_port_base(environment.get("PORT_BASE") or "8000"),
        postgres_url=_address(environment, "POSTGRES_URL", "postgresql", "postgres"),
        redis_url=_address(environment, "REDIS_URL", *REDIS_SCHEMES),
        payments_url=_address(environment, "PAYMENTS_URL", "http", "https").rstrip("/"),
        smtp_url=_address(environment, "SMTP_URL", "smtp", "smtps", "smtp+starttls"),
        redis_appendonly=_truth(environment, "REDIS_APPENDONLY"),
    )


def _port_base(text: str) -> int:
    if not (text.isascii() and text.isdigit() and MIN_PORT <= int(text) <= HIGHEST_BASE):
        raise PlatformError(f"PORT_BASE is {text!r}: set it to a number from {MIN_PORT} to {HIGHEST_BASE}.")
    return int(text)


def _truth(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name) or "no"
    if value not in {"yes", "no"}:
        raise PlatformError(f"{name} is {value!r}: set it to yes or no.")
    return value == "yes"


def _address(environment: Mapping[str, str], name: str, *schemes: str) -> str:
    value = environment.get(name, "")
    if value and urlsplit(value).scheme not in schemes:
        raise PlatformError(f"{name} does not begin with {schemes[0]}://: correct it, or unset it to use ours.")
    return value
