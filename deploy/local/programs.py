"""The services and sandboxes as programs: their commands, and the environment that configures each."""

import os
import sys
from dataclasses import replace
from functools import partial

from deploy.local.credentials import Credentials
from deploy.local.databases import role_url
from deploy.local.process import MARKER, Program, environment, http_ready
from deploy.local.settings import PORTS, SERVICES, Settings

# All share one machine here, where customers wait for checkout, and checkout for the payments: what happens behind them
# takes what is left. Checkout goes before everything, or in an overload its refusals wait for their turn.
SHARES = {"checkout": "first", "payments": "full", "prepare": "full"}


class Programs:
    """All that runs Python; `postgres_url` and `redis_url` are those in use, ours or the user's."""

    def __init__(self, settings: Settings, credentials: Credentials, postgres_url: str, redis_url: str) -> None:
        self._settings = settings
        self._credentials = credentials
        self._postgres_url = postgres_url
        self._redis_url = redis_url

    def service(self, name: str) -> Program:
        return self._program(name, f"services.{name}", self._variables(name))

    def prepare(self) -> Program:
        """Migrations and seed of all services, which knows what each of them knows."""
        variables = {key: value for name in SERVICES for key, value in self._variables(name).items()}
        return replace(self._program("prepare", "deploy.local.prepare", variables), waits=True)

    def payments(self) -> Program:
        variables = {
            "PORT": str(self._settings.port("payments")),
            "LEDGER": str(self._settings.run_dir / "payments" / "ledger.jsonl"),
            "SECRET_KEY": self._credentials.payments_key,
            "WEBHOOK_URL": f"{self._settings.url('checkout')}/v1/webhooks/payments",
            "WEBHOOK_SECRET": self._credentials.webhook_secret,
        }
        (self._settings.run_dir / "payments").mkdir(exist_ok=True)
        return self._program("payments", "deploy.local.payments", _prefixed("payments", variables))

    def mail(self) -> Program:
        variables = {
            "INBOX_PORT": str(self._settings.port("mail")),
            "SMTP_PORT": str(self._settings.port("smtp")),
            "STORE": str(self._settings.run_dir / "mail"),
        }
        (self._settings.run_dir / "mail").mkdir(exist_ok=True)
        return self._program("mail", "deploy.local.mail", _prefixed("mail", variables))

    def _variables(self, name: str) -> dict[str, str]:
        return _prefixed(name, {**self._common(name), **self._special(name)})

    def _common(self, name: str) -> dict[str, str]:
        return {
            "HOST": "127.0.0.1",
            "PORT": str(self._settings.port(name)),
            "DATABASE_URL": self._database_url(name, name),
            "MIGRATOR_DATABASE_URL": self._database_url(name, f"{name}_migrator"),
            "REDIS_URL": self._redis_url,
            "OPS_KEYS": self._credentials.ops_key,
            "CONSUMER_NAME": f"{name}-1",
        }

    def _special(self, name: str) -> dict[str, str]:
        settings, credentials = self._settings, self._credentials
        if name == "checkout":
            # With a provider of your own, its keys come from your environment.
            key, secret = "CHECKOUT_PAYMENTS_SECRET_KEY", "CHECKOUT_PAYMENTS_WEBHOOK_SECRET"
            theirs = os.environ if settings.payments_url else {}
            return {
                "PAYMENTS_URL": settings.payments_url or settings.url("payments"),
                "PAYMENTS_SECRET_KEY": theirs.get(key, credentials.payments_key),
                "PAYMENTS_WEBHOOK_SECRET": theirs.get(secret, credentials.webhook_secret),
                "SEED_API_KEY": credentials.api_key,
                "SEED_OPS_KEY": credentials.ops_key,
                "SERVICES": ",".join(f"{other}={settings.url(other)}" for other in SERVICES if other != name),
                "SERVICES_KEY": credentials.ops_key,
            }
        if name == "email":
            smtp = settings.smtp_url or f"smtp://127.0.0.1:{settings.port('smtp')}"
            return {
                "SMTP_URL": smtp,
                "FROM_ADDRESS": os.environ.get("EMAIL_FROM_ADDRESS", "shop@example.com"),
            }
        return {}

    def _database_url(self, database: str, role: str) -> str:
        return role_url(self._postgres_url, role, self._credentials.role_passwords[role], database)

    def _program(self, name: str, module: str, variables: dict[str, str]) -> Program:
        return Program(
            name=name,
            command=(sys.executable, "-m", module),
            environment=environment(**variables, **{MARKER: str(self._settings.run_dir)}),
            log=self._settings.log(name),
            ready=partial(http_ready, self._settings.port(name) if name in PORTS else 0),
            share=SHARES.get(name, "rest"),
        )


def _prefixed(name: str, variables: dict[str, str]) -> dict[str, str]:
    return {f"{name.upper()}_{key}": value for key, value in variables.items()}
