"""The streams: the only file that knows XADD and XREADGROUP.

A stream `events:<service>:<partition>` holds the window of the log that the service has not settled yet. Its entries
have
explicit ids `<position>-0`, so publishing is idempotent on every Redis version: a repeat is equal or smaller and
refused.
Redis may lose any of it at any time; whoever notices asks the relay's log, never Redis, what should be there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, cast

from redis.exceptions import ResponseError

from shared.bus.clients import connect

FIELD = "event"
BLOCK_MS = 1000
_TOO_MANY_DIGITS = 19  # no position is that large; what is comes from somebody else
_POSITION = re.compile(rb"([1-9][0-9]{0,17})-0")

# One atomic step on one key: check that (settled, cursor] is there, append what is new, trim what is settled.
# ARGV: settled, cursor, head, the events as one string, which is passed on four times as fast as many, and how long
# each of them is. Answers the state. A full server refuses the first write of a script or none: then nothing is
# appended, and trimming makes room.
_PUBLISH = """
local settled, cursor, head = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local last = 0
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' then
  if kind ~= 'stream' then return 'replaced' end
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = tonumber(string.match(info[i + 1], '^%d+')) end
  end
end
if last < cursor then return 'behind' end
if last > head then return 'ahead' end
local next_id = string.format('%.0f-0', settled + 1)
if settled < cursor and #redis.call('XRANGE', KEYS[1], next_id, next_id) == 0 then return 'missing' end
local state, position, begin = 'published', cursor, 1
for length in string.gmatch(ARGV[5], '%d+') do
  local event = string.sub(ARGV[4], begin, begin + length - 1)
  position, begin = position + 1, begin + length
  local id = string.format('%.0f-0', position)
  if position > last then
    local added = redis.pcall('XADD', KEYS[1], id, 'event', event)
    if type(added) == 'table' and added.err then
      if not string.find(added.err, 'OOM command', 1, true) then return added end
      state = 'full'
      break
    end
  else
    -- Published before, and our commit was lost; or somebody else wrote where our event belongs.
    local held = redis.call('XRANGE', KEYS[1], id, id)[1]
    if not held then return 'missing' end
    if held[2][2] ~= event then return 'ahead' end
  end
end
redis.call('XTRIM', KEYS[1], 'MINID', next_id)
return state
"""

# An empty stream that goes on behind `settled`, with its group, in one step: no reader ever sees it without the group.
_REBUILD = """
redis.call('DEL', KEYS[1])
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2] .. '-0', 'MKSTREAM')
if ARGV[2] ~= '0' then redis.call('XSETID', KEYS[1], ARGV[2] .. '-0') end
return 1
"""


# What has to work on a full server too, or it stays full: a reader must find its group, and say what it has settled so
# that the relay can trim. A script whose first write needs no memory may go on:
# https://redis.io/docs/latest/develop/programmability/eval-intro/#executing-under-low-memory-conditions
_CREATE_GROUP = """
redis.call('XACK', KEYS[1], ARGV[1], '0-0')
return redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2] .. '-0', 'MKSTREAM')
"""

# A board that somebody replaced by something else is made anew.
_REPORT = """
if redis.call('TYPE', KEYS[1]).ok == 'hash' then redis.call('HDEL', KEYS[1], '') else redis.call('DEL', KEYS[1]) end
return redis.call('HSET', KEYS[1], unpack(ARGV))
"""

# In one step: a consumer that wakes up between look and deletion would lose for ever what it was given just then.
_FORGET = """
-- XINFO alone has other words for a missing stream; it means what NOGROUP means everywhere else.
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.error_reply('NOGROUP no such key') end
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if consumers.err then return consumers end
for _, fields in ipairs(consumers) do
  local consumer = {}
  for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
  end
end
return 1
"""


class State(StrEnum):
    """What the guard found when it compared the stream with the log."""

    PUBLISHED = "published"
    FULL = "full"  # the stream is as it should be, and the server takes nothing more
    MISSING = "missing"  # an entry that is not settled is gone
    BEHIND = "behind"  # the stream lost entries: its last id is below the cursor
    REPLACED = "replaced"  # the key holds something that is no stream
    AHEAD = "ahead"  # somebody else wrote into it, or the log is older than the stream


class StreamEntry(NamedTuple):
    """One entry as it was read. `position` is None when its id is not one that the relay gives."""

    id: str
    position: int | None
    event: bytes | None


class Size(NamedTuple):
    """How much there is of a stream."""

    entries: int
    consumers: int


class Streams(Protocol):
    """What the relay and the consumer need of a stream server."""

    async def publish(self, stream: str, settled: int, cursor: int, head: int, events: Sequence[str]) -> State:
        """Append what the stream does not have of the events behind `cursor`, trim what is settled, all or nothing.

        Does nothing but say so when the stream is not what it should be: every position in (settled, cursor] there,
        and its last id between `cursor` and the log's `head`. On a full server it only trims.
        """
        ...

    async def rebuild(self, stream: str, group: str, settled: int) -> None:
        """Drop the stream and make it anew, empty, with its group, ready for `settled + 1`."""
        ...

    async def read_new(self, stream: str, group: str, consumer: str, count: int) -> list[StreamEntry]:
        """Entries that no consumer of the group has had; waits up to about a second."""
        ...

    async def read_own(self, stream: str, group: str, consumer: str, after: str, count: int) -> list[StreamEntry]:
        """Entries that this consumer was given and has not acknowledged, behind the id `after`."""
        ...

    async def read_range(self, stream: str, first: int, count: int) -> list[StreamEntry]:
        """Entries from a position on, whoever they were given to."""
        ...

    async def claim_idle(self, stream: str, group: str, consumer: str, idle_ms: int, count: int) -> list[StreamEntry]:
        """Take over entries that some consumer has not acknowledged for `idle_ms`."""
        ...

    async def ack(self, stream: str, group: str, ids: Sequence[str]) -> None:
        """Acknowledge entries; unknown ids are ignored."""
        ...

    async def delete(self, stream: str, entry_id: str) -> None:
        """Delete one entry that cannot be read; the relay finds the hole and publishes what belongs there."""
        ...

    async def give_back(self, stream: str, group: str, consumer: str) -> None:
        """Let peers take this consumer's open entries at once; forget the consumer if it has none."""
        ...

    async def forget_idle(self, stream: str, group: str, idle_ms: int) -> None:
        """Delete consumers that have nothing open and have not been seen for `idle_ms`."""
        ...

    async def create_group(self, stream: str, group: str, settled: int) -> None:
        """Create a missing group that goes on behind `settled`."""
        ...

    async def report(self, board: str, values: dict[str, int]) -> None:
        """Store numbers on a board that the other side reads."""
        ...

    async def board(self, board: str) -> dict[str, int]:
        """All numbers of a board; what is no number is left out, and what is no board is an empty one."""
        ...

    async def remove(self, name: str) -> None:
        """Remove a stream with its groups, or a board; one that is not there is as good."""
        ...

    async def ping(self) -> None:
        """Raise unless the server answers."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


def stream_name(service: str, partition: int) -> str:
    """The stream of a service and partition."""
    return f"events:{service}:{partition}"


class RedisStreams:
    """Streams on Redis ≥ 6.2 or Valkey: one server, behind Sentinels, or a cluster. Every command has one key."""

    def __init__(self, url: str, client_name: str) -> None:
        """Two clients: a blocking read must neither time out early nor hold up a command."""
        self._commands = connect(url, client_name, health_check_interval=15)
        self._blocking = connect(url, f"{client_name}-reader", timeout_s=BLOCK_MS / 1000 + 5)

    async def publish(self, stream: str, settled: int, cursor: int, head: int, events: Sequence[str]) -> State:
        contents = [event.encode() for event in events]
        lengths = ",".join([str(len(content)) for content in contents])
        arguments = (settled, cursor, head, b"".join(contents), lengths)
        answer = await cast("Awaitable[bytes]", self._commands.eval(_PUBLISH, 1, stream, *arguments))
        return State(answer.decode())

    async def rebuild(self, stream: str, group: str, settled: int) -> None:
        await self._commands.eval(_REBUILD, 1, stream, group, settled)

    async def read_new(self, stream: str, group: str, consumer: str, count: int) -> list[StreamEntry]:
        answer = await self._blocking.xreadgroup(group, consumer, {stream: ">"}, count=count, block=BLOCK_MS)
        return _entries_of(answer)

    async def read_own(self, stream: str, group: str, consumer: str, after: str, count: int) -> list[StreamEntry]:
        return _entries_of(await self._commands.xreadgroup(group, consumer, {stream: after}, count=count))

    async def read_range(self, stream: str, first: int, count: int) -> list[StreamEntry]:
        entries: Any = await self._commands.xrange(stream, f"{first}-0", "+", count=count)
        return [_entry(*item) for item in entries or ()]

    async def claim_idle(self, stream: str, group: str, consumer: str, idle_ms: int, count: int) -> list[StreamEntry]:
        claimed: list[StreamEntry] = []
        cursor = b"0-0"
        while True:
            answer = await self._commands.xautoclaim(stream, group, consumer, idle_ms, cursor, count=count)
            there = [item for item in answer[1] if item and item[0] is not None]
            if len(there) < len(answer[1]):
                await self._let_go_of_trimmed(stream, group, consumer, count)
            claimed += [_entry(*item) for item in there]
            cursor = answer[0]
            if cursor == b"0-0" or len(claimed) >= count:
                return claimed

    async def _let_go_of_trimmed(self, stream: str, group: str, consumer: str, count: int) -> None:
        """Redis 7 drops what is gone when it is claimed. 6.2 answers nil, and it stays the claimer's for ever."""
        answer: Any = await self._commands.xreadgroup(group, consumer, {stream: "0"}, count=count)
        await self.ack(stream, group, [entry_id for _, items in answer or () for entry_id, there in items if not there])

    async def ack(self, stream: str, group: str, ids: Sequence[str]) -> None:
        if ids:
            await self._commands.xack(stream, group, *ids)

    async def give_back(self, stream: str, group: str, consumer: str) -> None:
        first, batch = "-", 500
        while ids := await self._open_ids(stream, group, consumer, first, batch):
            # Claiming for oneself with a large idle time changes nothing but that: a peer's next sweep takes them.
            await self._commands.xclaim(stream, group, consumer, 0, [*ids], idle=3_600_000, justid=True)
            first = f"({ids[-1]}"
        if first != "-":
            return
        # Only with nothing open: XGROUP DELCONSUMER drops open entries for ever.
        await self._commands.xgroup_delconsumer(stream, group, consumer)

    async def _open_ids(self, stream: str, group: str, consumer: str, first: str, count: int) -> list[str]:
        entries: Any = await self._commands.xpending_range(stream, group, first, "+", count, consumername=consumer)
        return [entry["message_id"].decode() for entry in entries]

    async def delete(self, stream: str, entry_id: str) -> None:
        await self._commands.xdel(stream, entry_id)

    async def forget_idle(self, stream: str, group: str, idle_ms: int) -> None:
        await self._commands.eval(_FORGET, 1, stream, group, idle_ms)

    async def census(self, stream: str, group: str) -> Size:
        """How many entries a stream has, and how many consumers its group; nothing where there is none."""
        try:
            consumers = await self._commands.xinfo_consumers(stream, group)
            return Size(await self._commands.xlen(stream), len(consumers))
        except ResponseError:
            return Size(0, 0)  # no stream, no group, or something else there: the relay makes it anew

    async def create_group(self, stream: str, group: str, settled: int) -> None:
        try:
            await self._commands.eval(_CREATE_GROUP, 1, stream, group, settled)
        except ResponseError as error:
            # Somebody else was faster, which is as good. redis-py has no class for this reply.
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def report(self, board: str, values: dict[str, int]) -> None:
        arguments = [part for field in values.items() for part in field]
        await self._commands.eval(_REPORT, 1, board, *arguments)

    async def board(self, board: str) -> dict[str, int]:
        try:
            values = await cast("Awaitable[dict[bytes, bytes]]", self._commands.hgetall(board))
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return {}  # whoever reports next puts it right
        return {
            name.decode(errors="replace"): int(value)
            for name, value in values.items()
            if value.isdigit() and len(value) < _TOO_MANY_DIGITS
        }

    async def remove(self, name: str) -> None:
        await self._commands.delete(name)

    async def ping(self) -> None:
        await self._commands.ping()

    async def facts(self) -> dict[str, Any]:
        """What the server says of itself."""
        facts: dict[str, Any] = await self._commands.info()
        return facts

    async def knows(self, command: str) -> bool:
        """Whether the server has a command."""
        answer: Any = await self._commands.execute_command("COMMAND INFO", command)
        return bool(answer) and None not in (answer if isinstance(answer, list) else [*answer.values()])

    async def close(self) -> None:
        await self._commands.aclose()
        await self._blocking.aclose()


def _entries_of(answer: Any) -> list[StreamEntry]:  # noqa: ANN401 - redis-py's shape depends on the call
    return [_entry(*item) for _, items in answer or () for item in items]


def _entry(entry_id: bytes, fields: dict[bytes, bytes] | None) -> StreamEntry:
    match = _POSITION.fullmatch(entry_id)
    # An entry trimmed while it was open comes without fields.
    event = fields.get(FIELD.encode()) if fields else None
    return StreamEntry(entry_id.decode(), int(match[1]) if match else None, event)
