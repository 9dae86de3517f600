"""Two sides of one port: streams, and somebody's hand in the server behind them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.bus.clients import StreamClient
from shared.bus.streams import State, StreamEntry, Streams

GROUP = "email"
IDLE_MS = 40


class Hand(Protocol):
    """What other people do to a server."""

    async def flush(self) -> None: ...
    async def drop(self, name: str) -> None: ...
    async def trim(self, name: str) -> None: ...
    async def delete(self, name: str, *positions: int) -> None: ...
    async def destroy_group(self, name: str, group: str) -> None: ...
    async def delete_consumer(self, name: str, group: str, consumer: str) -> None: ...
    async def replace(self, name: str) -> None: ...
    async def write(self, name: str, entry_id: str, event: bytes | None) -> None: ...
    async def scribble(self, board: str, field: str, value: str) -> None: ...
    async def fill(self, *, full: bool) -> None: ...


class RedisHand:
    """The same with commands."""

    def __init__(self, redis: StreamClient) -> None:
        self._redis: Any = redis

    async def flush(self) -> None:
        await self._redis.flushall()

    async def drop(self, name: str) -> None:
        await self._redis.delete(name)

    async def trim(self, name: str) -> None:
        await self._redis.xtrim(name, maxlen=0, approximate=False)

    async def delete(self, name: str, *positions: int) -> None:
        await self._redis.xdel(name, *(f"{position}-0" for position in positions))

    async def destroy_group(self, name: str, group: str) -> None:
        await self._redis.xgroup_destroy(name, group)

    async def delete_consumer(self, name: str, group: str, consumer: str) -> None:
        await self._redis.xgroup_delconsumer(name, group, consumer)

    async def replace(self, name: str) -> None:
        await self._redis.set(name, "not a stream")

    async def write(self, name: str, entry_id: str, event: bytes | None) -> None:
        await self._redis.xadd(name, {"what": "ever"} if event is None else {"event": event}, id=entry_id)

    async def scribble(self, board: str, field: str, value: str) -> None:
        await self._redis.hset(board, field, value)

    async def fill(self, *, full: bool) -> None:
        await self._redis.config_set("maxmemory", 1 if full else 0)


@dataclass
class Side:
    """One implementation with what a test needs around it. Every test has a stream of its own."""

    streams: Streams
    hand: Hand
    pass_ms: Callable[[int], Any]
    name: str

    async def published(self, first: int, last: int, settled: int = 0, head: int | None = None) -> State:
        """Publish these positions as a relay does whose cursor is right in front of them."""
        return await self.streams.publish(self.name, settled, first - 1, head or last, events(first, last))

    async def rebuilt(self, last: int, settled: int = 0) -> None:
        """A stream with its group and entries in (settled, last]."""
        await self.streams.rebuild(self.name, GROUP, settled)
        assert await self.published(settled + 1, last, settled) is State.PUBLISHED

    async def guarded(self, settled: int, cursor: int, head: int) -> State:
        """What the guard says to somebody who has nothing to publish."""
        return await self.streams.publish(self.name, settled, cursor, head, ())

    async def new(self, consumer: str = "one", count: int = 100) -> list[int | None]:
        return positions(await self.streams.read_new(self.name, GROUP, consumer, count))

    async def own(self, consumer: str = "one", after: str = "0") -> list[int | None]:
        return positions(await self.streams.read_own(self.name, GROUP, consumer, after, 100))

    async def claimed(self, consumer: str, idle_ms: int = IDLE_MS) -> list[int | None]:
        return positions(await self.streams.claim_idle(self.name, GROUP, consumer, idle_ms, 100))

    async def there(self) -> list[int | None]:
        return positions(await self.streams.read_range(self.name, 1, 100))


def events(first: int, last: int) -> list[str]:
    """What the log has at these positions."""
    return [f"event {position}" for position in range(first, last + 1)]


def positions(found: Sequence[StreamEntry]) -> list[int | None]:
    return [entry.position for entry in found]
