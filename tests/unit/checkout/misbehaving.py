"""A payment provider that misbehaves in every way that a test asks for, one HTTP answer at a time."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from services.checkout.payments.stripe import StripeProvider

TIMEOUT_S = 0.3

Answering = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A provider that answers every request as it is told, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answer: Answering = silence
        self.then: list[Answering] = []  # after the first answer: one by one, the last for ever
        self.requests: list[tuple[bytes, bytes]] = []
        self.released = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
                self.requests.append((head, body))
                await self.answer(writer)
                self.answer = self.then.pop(0) if self.then else self.answer
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def silence(_: asyncio.StreamWriter) -> None:
    await asyncio.sleep(TIMEOUT_S * 3)


@asynccontextmanager
async def provider_that(answer: Answering) -> AsyncIterator[tuple[StripeProvider, Server]]:
    server = Server()
    server.answer = answer
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    stripe = client(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    try:
        yield stripe, server
    finally:
        await stripe.close()
        listening.close()


def client(url: str) -> StripeProvider:
    return StripeProvider(url, "sk_test_1", timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, connections=2)


def http(status: int, body: object, *headers: str) -> Answering:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(raw)}", *headers]
    return raw_bytes("\r\n".join(head).encode() + b"\r\n\r\n" + raw)


def raw_bytes(raw: bytes, *, then_close: bool = False) -> Answering:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        if then_close:
            writer.close()

    return answer


def error(status: int, *headers: str, **error: object) -> Answering:
    return http(status, {"error": error}, *headers)


async def reset(writer: asyncio.StreamWriter) -> None:
    transport = writer.transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    transport.abort()


async def drip(writer: asyncio.StreamWriter) -> None:
    """An answer that is always just about to come: each byte well within any time-out between bytes."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(TIMEOUT_S / 6)
