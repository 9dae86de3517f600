"""A TCP proxy that spoils the link between two programs as a network does."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

CHUNK_BYTES = 65_536
RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER on, 0 s: closing sends RST


class Mode(StrEnum):
    """What the network does to every connection."""

    OK = "ok"
    BLACKHOLE = "blackhole"  # everything is taken and nothing arrives
    DEAF = "deaf"  # requests arrive, no answer does


@dataclass
class Loss:
    """One reply that is to get lost: the request goes through, then the connection breaks."""

    match: bytes
    once_seen: bytes  # only on a connection over which this went before, or goes now
    nth: int
    lost: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class Link:
    """One connection through the proxy."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    seen: bytes = b""
    losing: Loss | None = None
    carried: int = 0  # bytes, both ways
    half_closed: bool = False

    def reset(self) -> None:
        for writer in (self.near, self.far):
            sock = writer.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


class Proxy:
    """Between whoever connects to `port` and a server.

    A blackhole takes bytes out of the middle of a conversation: reset the connections before it is over.
    """

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        """The server's address; `seed` is that of the dice for the jitter."""
        self._host, self._server_port = host, port
        self._dice = random.Random(seed)  # noqa: S311 - the same for the same seed
        self._listening: asyncio.Server | None = None
        self._links: set[Link] = set()
        self._loss: Loss | None = None
        self.port = 0
        self.calm()

    def calm(self) -> None:
        """Carry everything again as it comes; connections that lost bytes are still there."""
        self.mode = Mode.OK
        self.latency_s = self.jitter_s = 0.0
        self.slice_bytes = CHUNK_BYTES
        self.bytes_per_s: float | None = None
        self.limit_bytes: int | None = None  # a connection breaks when it has carried so much
        self._loss = None

    async def accept(self) -> None:
        """Take connections, from now on or again."""
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse new connections; those that are there stay."""
        if self._listening:
            self._listening.close()

    def reset(self) -> None:
        """Break every connection."""
        for link in list(self._links):
            link.reset()

    def half_close(self) -> None:
        """Close one direction of every connection: the server hears that nothing more will come."""
        for link in list(self._links):
            link.half_closed = True
            with suppress(OSError):
                link.far.write_eof()

    def say(self, words: bytes) -> None:
        """Let every client hear something that its server did not say."""
        for link in list(self._links):
            link.near.write(words)

    def drop_reply(self, match: bytes, *, once_seen: bytes = b"", nth: int = 1) -> asyncio.Event:
        """Lose the reply to the nth request that contains `match`; returns what is set when it is lost."""
        self._loss = Loss(match, once_seen, nth)
        return self._loss.lost

    async def close(self) -> None:
        """Let go of everybody."""
        await self.refuse()
        self.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._server_port)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, far_writer)
        self._links.add(link)
        try:
            await asyncio.gather(self._forward(link, reader), self._answer(link, far_reader))
        finally:
            self._links.discard(link)
            writer.close()
            far_writer.close()

    async def _forward(self, link: Link, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                if self._loss and link.losing is None and self._is_lost(link, data):
                    link.losing, self._loss = self._loss, None
                await self._pass_on(link, link.far, data)
        link.far.close()

    async def _answer(self, link: Link, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                if link.losing:
                    link.losing.lost.set()
                    link.reset()
                    return
                await self._pass_on(link, link.near, data)
        link.near.close()

    async def _pass_on(self, link: Link, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self.mode is Mode.BLACKHOLE or (self.mode is Mode.DEAF and writer is link.near):
            return
        if link.half_closed and writer is link.far:
            return
        if delay_s := self._delay_s(len(data)):
            await asyncio.sleep(delay_s)
        link.carried += len(data)
        if self.limit_bytes is not None and link.carried > self.limit_bytes:
            writer.write(data[: len(data) // 2])
            link.reset()
            return
        for start in range(0, len(data), self.slice_bytes):
            writer.write(data[start : start + self.slice_bytes])
            await writer.drain()

    def _delay_s(self, count: int) -> float:
        jitter_s = self._dice.uniform(0, self.jitter_s) if self.jitter_s else 0.0
        return self.latency_s + jitter_s + (count / self.bytes_per_s if self.bytes_per_s else 0.0)

    def _is_lost(self, link: Link, data: bytes) -> bool:
        loss = self._loss
        assert loss
        link.seen += data if loss.once_seen else b""
        if loss.match not in data or loss.once_seen not in link.seen:
            return False
        loss.nth -= 1
        return loss.nth == 0


@asynccontextmanager
async def proxy_to(host: str, port: int, seed: int = 0) -> AsyncIterator[Proxy]:
    """A proxy that takes connections."""
    proxy = Proxy(host, port, seed)
    await proxy.accept()
    try:
        yield proxy
    finally:
        await proxy.close()
