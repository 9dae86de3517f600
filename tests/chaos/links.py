"""A proxy on every link of the local platform, and the programs that go through them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from typing_extensions import override

from deploy.local.credentials import Credentials
from deploy.local.process import Program
from deploy.local.programs import Programs
from deploy.local.settings import SERVICES, Settings
from tests.support.proxy import Proxy

# (who calls, whom) and the setting of the caller that says where.
LINKS: Mapping[str, tuple[str, str, str]] = {
    **{f"{name}-postgres": (name, "postgres", f"{name.upper()}_DATABASE_URL") for name in SERVICES},
    **{f"{name}-redis": (name, "redis", f"{name.upper()}_REDIS_URL") for name in SERVICES},
    "checkout-payments": ("checkout", "payments", "CHECKOUT_PAYMENTS_URL"),
    "email-smtp": ("email", "smtp", "EMAIL_SMTP_URL"),
}
# What takes minutes by default would take longer than the whole run: leases and reservations end within it.
HURRY = {
    "CHECKOUT_PAYMENTS_TIMEOUT_S": "3",
    "CHECKOUT_LEASE_S": "6",
    "CHECKOUT_RESERVATION_S": "15",
    "CHECKOUT_RECONCILE_EVERY_S": "5",
}


@dataclass(frozen=True)
class Links:
    """The proxies by the names of `LINKS`."""

    proxies: Mapping[str, Proxy]

    @classmethod
    async def open(cls, settings: Settings, seed: int) -> "Links":
        """Listen for every caller, whether or not the servers are there."""
        proxies = {
            name: Proxy("127.0.0.1", settings.port(server), seed + number)
            for number, (name, (_, server, _)) in enumerate(LINKS.items())
        }
        for proxy in proxies.values():
            await proxy.accept()
        return cls(proxies)

    def programs(self, settings: Settings, credentials: Credentials, postgres_url: str, redis_url: str) -> Programs:
        """The platform's programs, each calling others through its own proxies."""
        return _Linked(settings, credentials, postgres_url, redis_url, self)

    def ports(self, caller: str) -> Iterator[tuple[str, int]]:
        """The caller's settings that say where others are, and the port of the proxy in between."""
        for name, (who, _, setting) in LINKS.items():
            if who == caller:
                yield setting, self.proxies[name].port

    async def close(self) -> None:
        """Let go of everybody."""
        for proxy in self.proxies.values():
            await proxy.close()


class _Linked(Programs):
    def __init__(
        self, settings: Settings, credentials: Credentials, postgres_url: str, redis_url: str, links: Links
    ) -> None:
        super().__init__(settings, credentials, postgres_url, redis_url)
        self._links = links

    @override
    def service(self, name: str) -> Program:
        program = super().service(name)
        variables = {**program.environment, **HURRY}
        for setting, port in self._links.ports(name):
            variables[setting] = _through(variables[setting], port)
        # On a machine that is busy otherwise, what takes only the rest would get nothing for minutes.
        return replace(program, environment=variables, share="full")


def _through(url: str, port: int) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()
