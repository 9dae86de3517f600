"""Streams in memory: what a server does with the commands of `RedisStreams`, in virtual time, and all that it can lose.

It never waits: a read that finds nothing returns at once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

from redis.exceptions import ResponseError
from typing_extensions import override

from shared.bus.streams import State, StreamEntry, Streams

Id = tuple[int, int]
Board = dict[str, str]
Passing = Callable[[str], Awaitable[None]]
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

GIVEN_BACK_S = 3600.0
KEPT_STATES = 12
_NUMBER = re.compile(r"[0-9]{1,18}")
_WRONGTYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


@dataclass
class Open:
    """An entry that was given to a consumer and is not acknowledged."""

    consumer: str
    since: float


@dataclass
class Group:
    """What a group has had, who it consists of, and what they have not acknowledged."""

    delivered: Id
    open: dict[Id, Open] = field(default_factory=dict)
    consumers: dict[str, float] = field(default_factory=dict)  # when each was last seen

    def held_by(self, consumer: str) -> list[Id]:
        """What is open at a consumer, in order."""
        return sorted(entry_id for entry_id, one in self.open.items() if one.consumer == consumer)


@dataclass
class Stream:
    """Entries in the order of their ids; the event is None when the entry has another field."""

    entries: dict[Id, bytes | None] = field(default_factory=dict)
    last: Id = (0, 0)
    groups: dict[str, Group] = field(default_factory=dict)

    def add(self, entry_id: Id, event: bytes | None) -> None:
        """XADD with an explicit id, which is refused unless it is above the last one."""
        if entry_id <= self.last:
            raise ResponseError("The ID specified in XADD is equal or smaller than the target stream top item")
        self.entries[entry_id] = event
        self.last = entry_id

    def trim(self, first: Id) -> None:
        """XTRIM MINID."""
        self.entries = {entry_id: event for entry_id, event in self.entries.items() if entry_id >= first}


class MemoryServer:
    """The keys of one server. Time is whatever `clock` says, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Empty."""
        self.clock = clock
        self.keys: dict[str, Stream | Board | str] = {}
        self.full = False  # maxmemory is reached, and nothing may be evicted
        self._past: list[dict[str, Stream | Board | str]] = []

    def remember(self) -> None:
        """The state of this moment: a replica may have got no further, a disk may hold no more."""
        self._past = [*self._past[1 - KEPT_STATES :], copy.deepcopy(self.keys)]

    def fall_back(self, moments: int) -> None:
        """Become what it was so many remembered moments ago: failover to a lagging replica, or a tail that was cut."""
        self.keys = copy.deepcopy(self._past[-moments]) if len(self._past) >= moments else {}

    def twin(self) -> MemoryServer:
        """Another server with the same keys and the same past."""
        twin = MemoryServer(self.clock)
        twin.keys, twin._past, twin.full = copy.deepcopy(self.keys), self._past, self.full
        return twin

    def stream(self, name: str) -> Stream | None:
        """The stream of that name."""
        found = self.keys.get(name)
        if found is None or isinstance(found, Stream):
            return found
        raise ResponseError(_WRONGTYPE)

    def group(self, name: str, group: str) -> tuple[Stream, Group]:
        """A stream and its group; raises as a server does when there is none."""
        stream = self.stream(name)
        if stream is None or group not in stream.groups:
            raise ResponseError(f"NOGROUP No such key '{name}' or consumer group '{group}'")
        return stream, stream.groups[group]

    def board_of(self, name: str) -> Board:
        """The board of that name, empty when there is none."""
        found = self.keys.get(name)
        return found if isinstance(found, dict) else {}

    def publish(self, stream: str, settled: int, cursor: int, head: int, events: Sequence[str]) -> State:
        found = self.keys.get(stream)
        if not isinstance(found, Stream | None):
            return State.REPLACED
        last = found.last[0] if found else 0
        if last < cursor:
            return State.BEHIND
        if last > head:
            return State.AHEAD
        if settled < cursor and not (found and (settled + 1, 0) in found.entries):
            return State.MISSING
        entries = {position: event.encode() for position, event in enumerate(events, start=cursor + 1)}
        for position, event in entries.items():
            if found and position <= last:
                held = found.entries.get((position, 0), ...)
                if held is not None and held == event:
                    continue
                return State.MISSING if held is ... else State.AHEAD
        new = {position: event for position, event in entries.items() if position > last}
        refused = self.full and bool(new)
        self._append(stream, settled, {} if refused else new)
        return State.FULL if refused else State.PUBLISHED

    def _append(self, stream: str, settled: int, new: Mapping[int, bytes]) -> None:
        found = self.stream(stream) or Stream()
        for position, event in new.items():
            found.add((position, 0), event)
        found.trim((settled + 1, 0))
        if found.last > (0, 0):
            self.keys[stream] = found

    def rebuild(self, stream: str, group: str, settled: int) -> None:
        behind = (settled, 0)
        self.keys[stream] = Stream(last=behind, groups={group: Group(behind)})

    def read_new(self, stream: str, group: str, consumer: str, count: int) -> list[StreamEntry]:
        found, its = self.group(stream, group)
        its.consumers[consumer] = self.clock()
        new = [entry_id for entry_id in found.entries if entry_id > its.delivered][:count]
        its.open |= {entry_id: Open(consumer, self.clock()) for entry_id in new}
        its.delivered = max([its.delivered, *new])
        return _read(found, new)

    def read_own(self, stream: str, group: str, consumer: str, after: str, count: int) -> list[StreamEntry]:
        found, its = self.group(stream, group)
        its.consumers[consumer] = self.clock()
        own = [entry_id for entry_id in its.held_by(consumer) if entry_id > _id(after)][:count]
        for entry_id in own:
            if entry_id in found.entries:
                its.open[entry_id].since = self.clock()
        return _read(found, own)

    def read_range(self, stream: str, first: int, count: int) -> list[StreamEntry]:
        found = self.stream(stream) or Stream()
        return _read(found, [entry_id for entry_id in found.entries if entry_id >= (first, 0)][:count])

    def claim_idle(self, stream: str, group: str, consumer: str, idle_ms: int, count: int) -> list[StreamEntry]:
        found, its = self.group(stream, group)
        its.consumers[consumer] = self.clock()
        return _read(found, self._claim(found, its, consumer, idle_ms / 1000)[:count])

    def ack(self, stream: str, group: str, ids: Sequence[str]) -> None:
        found = self.stream(stream)
        if found and group in found.groups:
            for entry_id in ids:
                found.groups[group].open.pop(_id(entry_id), None)

    def delete(self, stream: str, entry_id: str) -> None:
        if found := self.stream(stream):
            found.entries.pop(_id(entry_id), None)

    def give_back(self, stream: str, group: str, consumer: str) -> None:
        found, its = self.group(stream, group)
        held = its.held_by(consumer)
        for entry_id in held:
            if entry_id in found.entries:
                its.open[entry_id].since = self.clock() - GIVEN_BACK_S
            else:
                del its.open[entry_id]
        if not held:
            its.consumers.pop(consumer, None)

    def forget_idle(self, stream: str, group: str, idle_ms: int) -> None:
        _, its = self.group(stream, group)
        for consumer, seen_at in list(its.consumers.items()):
            if self.clock() - seen_at > idle_ms / 1000 and not its.held_by(consumer):
                del its.consumers[consumer]

    def create_group(self, stream: str, group: str, settled: int) -> None:
        found = self.stream(stream) or Stream()
        found.groups.setdefault(group, Group((settled, 0)))
        self.keys[stream] = found

    def report(self, board: str, values: dict[str, int]) -> None:
        self.keys[board] = self.board_of(board) | {name: str(value) for name, value in values.items()}

    def board(self, board: str) -> dict[str, int]:
        found = self.board_of(board)
        return {name: int(value) for name, value in found.items() if _NUMBER.fullmatch(value)}

    def remove(self, name: str) -> None:
        self.keys.pop(name, None)

    def ping(self) -> None:
        return

    def _claim(self, stream: Stream, group: Group, consumer: str, idle_s: float) -> list[Id]:
        """XAUTOCLAIM over all that is open: what is not in the stream any more is forgotten."""
        idle = [entry_id for entry_id in sorted(group.open) if self.clock() - group.open[entry_id].since >= idle_s]
        for entry_id in idle:
            if entry_id in stream.entries:
                group.open[entry_id] = Open(consumer, self.clock())
            else:
                del group.open[entry_id]
        return [entry_id for entry_id in idle if entry_id in stream.entries]


class MemoryHand:
    """Somebody's hand in a server: whatever a person or another program may do to a stream."""

    def __init__(self, server: MemoryServer) -> None:
        """Of any number of hands."""
        self.server = server

    async def flush(self) -> None:
        """FLUSHALL."""
        self.server.keys.clear()

    async def drop(self, name: str) -> None:
        """DEL."""
        self.server.keys.pop(name, None)

    async def trim(self, name: str) -> None:
        """XTRIM MAXLEN 0: the last id stays."""
        if found := self._stream(name):
            found.entries.clear()

    async def delete(self, name: str, *positions: int) -> None:
        """XDEL."""
        if found := self._stream(name):
            for position in positions:
                found.entries.pop((position, 0), None)

    async def destroy_group(self, name: str, group: str) -> None:
        """XGROUP DESTROY."""
        if found := self._stream(name):
            found.groups.pop(group, None)

    async def delete_consumer(self, name: str, group: str, consumer: str) -> None:
        """XGROUP DELCONSUMER, which forgets what is open."""
        if (found := self._stream(name)) and (its := found.groups.get(group)):
            its.consumers.pop(consumer, None)
            its.open = {entry_id: one for entry_id, one in its.open.items() if one.consumer != consumer}

    async def replace(self, name: str) -> None:
        """SET: the key is no stream any more."""
        self.server.keys[name] = "not a stream"

    async def write(self, name: str, entry_id: str, event: bytes | None) -> None:
        """XADD by hand; without an event the entry has some other field."""
        found = self._stream(name) or Stream()
        found.add(_id(entry_id), event)
        self.server.keys[name] = found

    async def scribble(self, board: str, field: str, value: str) -> None:
        """HSET by hand."""
        self.server.keys[board] = self.server.board_of(board) | {field: value}

    async def fill(self, *, full: bool) -> None:
        """Reach maxmemory, or get away from it."""
        self.server.full = full

    def _stream(self, name: str) -> Stream | None:
        found = self.server.keys.get(name)
        return found if isinstance(found, Stream) else None


class MemoryStreams(Streams):
    """One process's connection to a server.

    `passing` is called on the way there and back, with "before publish" or "after publish" and so on: whatever it
    raises or never returns from is a command that did not arrive, or an answer that was lost.
    """

    def __init__(self, server: MemoryServer, passing: Passing) -> None:
        """Another server may be put in its place at any time."""
        self.server = server
        self._passing = passing

    async def _call(
        self,
        command: Callable[Concatenate[MemoryServer, Arguments], Answer],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Answer:
        await self._passing(f"before {command.__name__}")
        answer = command(self.server, *arguments, **named)
        await self._passing(f"after {command.__name__}")
        return answer

    @override
    async def publish(self, stream: str, settled: int, cursor: int, head: int, events: Sequence[str]) -> State:
        return await self._call(MemoryServer.publish, stream, settled, cursor, head, events)

    @override
    async def rebuild(self, stream: str, group: str, settled: int) -> None:
        await self._call(MemoryServer.rebuild, stream, group, settled)

    @override
    async def read_new(self, stream: str, group: str, consumer: str, count: int) -> list[StreamEntry]:
        return await self._call(MemoryServer.read_new, stream, group, consumer, count)

    @override
    async def read_own(self, stream: str, group: str, consumer: str, after: str, count: int) -> list[StreamEntry]:
        return await self._call(MemoryServer.read_own, stream, group, consumer, after, count)

    @override
    async def read_range(self, stream: str, first: int, count: int) -> list[StreamEntry]:
        return await self._call(MemoryServer.read_range, stream, first, count)

    @override
    async def claim_idle(self, stream: str, group: str, consumer: str, idle_ms: int, count: int) -> list[StreamEntry]:
        return await self._call(MemoryServer.claim_idle, stream, group, consumer, idle_ms, count)

    @override
    async def ack(self, stream: str, group: str, ids: Sequence[str]) -> None:
        if ids:
            await self._call(MemoryServer.ack, stream, group, ids)

    @override
    async def delete(self, stream: str, entry_id: str) -> None:
        await self._call(MemoryServer.delete, stream, entry_id)

    @override
    async def give_back(self, stream: str, group: str, consumer: str) -> None:
        await self._call(MemoryServer.give_back, stream, group, consumer)

    @override
    async def forget_idle(self, stream: str, group: str, idle_ms: int) -> None:
        await self._call(MemoryServer.forget_idle, stream, group, idle_ms)

    @override
    async def create_group(self, stream: str, group: str, settled: int) -> None:
        await self._call(MemoryServer.create_group, stream, group, settled)

    @override
    async def report(self, board: str, values: dict[str, int]) -> None:
        await self._call(MemoryServer.report, board, values)

    @override
    async def board(self, board: str) -> dict[str, int]:
        return await self._call(MemoryServer.board, board)

    @override
    async def remove(self, name: str) -> None:
        await self._call(MemoryServer.remove, name)

    @override
    async def ping(self) -> None:
        await self._call(MemoryServer.ping)

    @override
    async def close(self) -> None:
        return


def _read(stream: Stream, ids: Sequence[Id]) -> list[StreamEntry]:
    return [
        StreamEntry(f"{major}-{minor}", major if minor == 0 else None, stream.entries.get((major, minor)))
        for major, minor in ids
    ]


def _id(text: str) -> Id:
    major, _, minor = text.partition("-")
    return int(major), int(minor or 0)
