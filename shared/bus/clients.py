"""How a URL becomes a client: of one server, of whichever server the Sentinels name, or of a cluster.

Only one thing is retried here: what a server refuses because another one is to be asked. It has done nothing then, so
nothing is done twice. Everything else is for the loops, which know what to do after a lost answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Literal, cast

from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.commands import AsyncCoreCommands
from redis.crc import key_slot
from redis.exceptions import AskError, ConnectionError, MovedError, RedisError, TryAgainError  # noqa: A004 - redis-py's
from typing_extensions import override

from shared.runtime import redis_url
from shared.runtime.errors import Action, classify
from shared.runtime.redis_url import Node, RedisUrl

COMMAND_TIMEOUT_S = 2.0
SENTINEL_TIMEOUT_S = 1.0  # one that does not answer must not cost more than asking the next one
MOST_REDIRECTS = 8  # a slot on its way is asked for here and there; more than that is a circle
TRY_AGAIN_S = 0.05
KEYLESS = frozenset({"PING", "INFO", "FLUSHALL", "CLIENT", "CONFIG"})


class Client(Redis):
    """A client that leaves a server which is no longer the one to ask.

    The caller gets a lost connection, and the next command a new one: to the new master by way of the Sentinels, or to
    whatever the name of the host stands for by then.
    """

    @override
    async def execute_command(self, *args: object, **options: object) -> Any:
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except RedisError as error:
            if classify(error) is not Action.REDISCOVER:
                raise
            # Not those that others use: they find out by themselves.
            await self.connection_pool.disconnect(inuse_connections=False)
            raise _elsewhere(error) from error


class Sentinels(Sentinel):
    """Those who know the master, asked by one connection at a time.

    redis-py moves the one that answers to the front of its list. When two connections wait for the same one behind
    another that is away, the second forgets that other one for ever.
    """

    def __init__(self, clients: Sequence[Redis]) -> None:
        """Keep the clients, one for each Sentinel."""
        super().__init__(())  # type: ignore[no-untyped-call]
        self.sentinels = [*clients]
        self._asking = asyncio.Lock()

    @override
    async def discover_master(self, service_name: str) -> tuple[str, int]:
        async with self._asking:
            found: tuple[str, int] = await super().discover_master(service_name)
            return found


class SentinelClient(Client):
    """A client of the server that the Sentinels call the master, asked anew for each connection."""

    @override
    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        pool = self.connection_pool
        await super().aclose(close_connection_pool)
        if isinstance(pool, SentinelConnectionPool):
            await pool.sentinel_manager.aclose()


class ClusterClient(AsyncCoreCommands):
    """A client of a cluster, for commands with one key each; those without a key go to every primary.

    redis-py has a client for clusters, which does more and is not used: see docs/decisions/0015.
    """

    _is_async_client: Literal[True] = True  # how redis-py tells its annotations apart
    _event_dispatcher: Any = None  # nor does anybody listen, although its annotations want somebody to

    def __init__(self, url: RedisUrl, **options: object) -> None:
        """Know the seeds only; the first command asks them who has what."""
        self._url = url
        self._options: dict[str, Any] = options
        self._nodes: dict[Node, Redis] = {}
        self._owners: dict[int, Node] = {}
        self._looking = asyncio.Lock()

    @override
    async def execute_command(self, *args: object, **options: object) -> Any:
        """Send a command to whoever has its key; lost connections are for the caller, redirections are not."""
        key = _key(*args)
        if key is None:
            return await self._everywhere(*args, **options)
        slot = key_slot(key)
        for _ in range(MOST_REDIRECTS):
            node = await self._owner(slot)
            try:
                return await _send(self._node(node), *args, **options)
            except MovedError as error:
                self._owners[slot] = error.host or node[0], error.port
            except AskError as error:
                return await self._ask((error.host or node[0], error.port), *args, **options)
            except TryAgainError:
                await asyncio.sleep(TRY_AGAIN_S)
            except RedisError as error:
                raise self._lost(error) from error
        self._owners.clear()
        raise ConnectionError("the nodes of the cluster send us from one to the other")

    async def aclose(self) -> None:
        """Close every connection."""
        for client in self._nodes.values():
            await client.aclose()

    def _lost(self, error: RedisError) -> RedisError:
        """What the caller gets to see of an error, after which the owners may have to be looked up again."""
        action = classify(error)
        if action in {Action.RECONNECT, Action.REDISCOVER}:
            self._owners.clear()
        return _elsewhere(error) if action is Action.REDISCOVER else error

    async def _everywhere(self, *args: object, **options: object) -> Any:  # noqa: ANN401 - as the server answers
        await self._owner(0)
        answers = []
        for node in sorted(set(self._owners.values())):
            try:
                answers.append(await _send(self._node(node), *args, **options))
            except RedisError as error:
                raise self._lost(error) from error
        return answers[0]

    async def _ask(self, node: Node, *args: object, **options: object) -> Any:  # noqa: ANN401 - as the server answers
        """Ask the node that a slot is moving to. ASKING counts for the next command of the same connection only."""
        client = self._connect(node, single=True)
        try:
            await _send(client, "ASKING")
            return await _send(client, *args, **options)
        except RedisError as error:
            raise self._lost(error) from error
        finally:
            await client.aclose()

    async def _owner(self, slot: int) -> Node:
        if slot not in self._owners:
            async with self._looking:
                if slot not in self._owners:
                    await self._look()
        try:
            return self._owners[slot]
        except KeyError:
            raise ConnectionError("nobody in the cluster has the slot of this key") from None

    async def _look(self) -> None:
        """Learn who has which slots from any node that answers; in random order, as some may be cut off."""
        failure: Exception | None = None
        known = list({*self._nodes, *self._url.nodes})
        for node in random.sample(known, len(known)):
            try:
                ranges = await _send(self._node(node), "CLUSTER SLOTS")
            except (RedisError, OSError) as error:
                failure = error
                continue
            for first, last, (host, port, *_), *_ in ranges:
                # A node that was told no address of its own is where it was found.
                self._owners |= dict.fromkeys(range(first, last + 1), (host.decode() if host else node[0], port))
            return
        raise ConnectionError("no node of the cluster answers") from failure

    def _node(self, node: Node) -> Redis:
        if node not in self._nodes:
            self._nodes[node] = self._connect(node)
        return self._nodes[node]

    def _connect(self, node: Node, *, single: bool = False) -> Redis:
        return Redis.from_url(self._url.server(node), single_connection_client=single, **self._options)


StreamClient = Client | ClusterClient


def connect(url: str, client_name: str, *, timeout_s: float = COMMAND_TIMEOUT_S, **options: object) -> StreamClient:
    """A client that has no connection yet. It waits `timeout_s` for an answer, and never sends a command twice."""
    everywhere: dict[str, Any] = options | {
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": COMMAND_TIMEOUT_S,
        "socket_keepalive": True,
        "client_name": client_name,
        # redis-py 8 retries ten times behind the caller's back: XADDs twice, blocking reads again and again. Our own
        # loops retry, so the client never does.
        "retry": Retry(NoBackoff(), 0),
    }
    parsed = redis_url.parse(url)
    if parsed.kind == "cluster":
        return ClusterClient(parsed, **everywhere)
    if parsed.kind == "sentinel":
        return _by_sentinels(parsed, everywhere)
    return cast("Client", Client.from_url(url, **everywhere))


def _by_sentinels(url: RedisUrl, options: dict[str, Any]) -> SentinelClient:
    brief = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
    sentinels = Sentinels([Redis.from_url(url.sentinel(node), **(options | brief)) for node in url.nodes])
    server: dict[str, Any] = {**parse_url(url.server(url.nodes[0]))}
    for replaced in ("host", "port"):  # the Sentinels know better
        server.pop(replaced)
    encrypted = server.pop("connection_class", None) is SSLConnection
    pool = SentinelConnectionPool(url.name, sentinels, ssl=encrypted, **(options | server))  # type: ignore[no-untyped-call]
    return cast("SentinelClient", SentinelClient.from_pool(pool))


def _elsewhere(error: RedisError) -> ConnectionError:
    return ConnectionError(f"another server is the one to ask now: {error}")


async def _send(client: Redis, *args: object, **options: object) -> Any:  # noqa: ANN401 - as the server answers
    return await client.execute_command(*args, **options)  # type: ignore[no-untyped-call]


def _key(command: object, *arguments: object) -> bytes | None:
    """The key of a command, as redis-py puts it together; None if it has none."""
    name = str(command)
    if name.partition(" ")[0] in KEYLESS:
        return None
    if name == "XREADGROUP":
        return _bytes(arguments[arguments.index(b"STREAMS") + 1])
    return _bytes(arguments[2 if name == "EVAL" else 0])


def _bytes(key: object) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()
