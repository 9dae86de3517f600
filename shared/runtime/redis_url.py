"""The URLs of a Redis: of one server, of whichever server some Sentinels name, or of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio.connection import parse_url

HIGHEST_PORT = 65535
SERVER_PORT = 6379
SENTINEL_PORT = 26379
_SENTINEL_LOGIN = ("sentinel_username", "sentinel_password")
# The driver lets what a URL says go before what its user says, and all that we do with Redis rests on these.
OURS = frozenset(
    {
        *("client_name", "decode_responses", "encoding", "encoding_errors", "health_check_interval", "protocol"),
        *("retry_on_error", "retry_on_timeout", "socket_connect_timeout", "socket_keepalive", "socket_timeout"),
    }
)

Node = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """What a URL says, taken apart.

    - `redis://[user:password@]host:port[/db]`, `rediss://…` with TLS, `unix://[user:password@]path`
    - `redis+sentinel://[user:password@]host:port,host:port/name`, `rediss+sentinel://…`: the hosts are Sentinels,
      the login is that of the servers; `?db=`, `?sentinel_username=` and `?sentinel_password=` where they are needed
    - `redis+cluster://[user:password@]host:port,host:port`, `rediss+cluster://…`: any nodes of the cluster

    What else the driver knows may follow as a query, such as `?ssl_ca_certs=/etc/ca.pem`, but for `OURS`.
    """

    kind: Literal["server", "sentinel", "cluster"]
    whole: str = field(repr=False)
    nodes: tuple[Node, ...] = ()
    name: str = ""

    def server(self, node: Node) -> str:
        """The URL of one of the servers, as the driver reads it."""
        login, at, _ = urlsplit(self.whole).netloc.rpartition("@")
        return self._url(node, login + at, {name: value for name, value in self._query if name not in _SENTINEL_LOGIN})

    def sentinel(self, node: Node) -> str:
        """The URL of one Sentinel, as the driver reads it: a Sentinel has a login of its own and no databases."""
        query = {name: value for name, value in self._query if name != "db"}
        login = {name.removeprefix("sentinel_"): query.pop(name) for name in _SENTINEL_LOGIN if name in query}
        return self._url(node, "", query | login)

    @property
    def _query(self) -> list[tuple[str, str]]:
        return parse_qsl(urlsplit(self.whole).query)

    def _url(self, node: Node, login: str, query: dict[str, str]) -> str:
        host, port = node
        scheme = self.whole.partition("+")[0]
        return f"{scheme}://{login}{f'[{host}]' if ':' in host else host}:{port}?{urlencode(query)}"


def parse(url: str) -> RedisUrl:
    """Take a URL apart; raises ValueError with a text that never contains the URL, which has a password in it."""
    scheme, _, rest = url.partition("://")
    if ours := OURS.intersection(name for name, _ in parse_qsl(urlsplit(f"//{rest}").query)):
        raise ValueError(f"must not set {', '.join(sorted(ours))}: how Redis is spoken to is not to be chosen")
    plain, _, kind = scheme.partition("+")
    if scheme == "unix" or (plain in {"redis", "rediss"} and not kind):
        _check(url)
        return RedisUrl("server", url)
    if plain not in {"redis", "rediss"} or kind not in {"sentinel", "cluster"}:
        raise ValueError("must start with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://")
    parts = urlsplit(url)
    hosts, name = parts.netloc.rpartition("@")[2], parts.path.strip("/")
    if kind == "sentinel":
        if not name:
            raise ValueError("must end with the name that the Sentinels know the master by: …/mymaster")
        return RedisUrl("sentinel", url, tuple(_nodes(hosts, SENTINEL_PORT)), name)
    if name.strip("0"):
        raise ValueError("must not name a database: a cluster has only one")
    return RedisUrl("cluster", url, tuple(_nodes(hosts, SERVER_PORT)))


def _nodes(hosts: str, default: int) -> Iterator[Node]:
    for host in hosts.split(","):
        one = urlsplit(f"redis://{host}")
        if not one.hostname:
            raise ValueError("names no host, or an empty one")
        _check(one.geturl())
        yield one.hostname, one.port or default


def _check(url: str) -> None:
    """Let the driver's own parser read the URL now: later it would end in a stack trace with the URL in it."""
    try:
        port = parse_url(url).get("port")
    except ValueError as error:
        raise ValueError("is no URL with a numeric port") from error
    if port is not None and not 0 < port <= HIGHEST_PORT:
        raise ValueError(f"its port must be from 1 to {HIGHEST_PORT}")
