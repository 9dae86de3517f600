"""Load: a closed loop over keep-alive connections, and an open loop with arrival times, both cheap on the CPU."""

import asyncio
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from typing_extensions import override

OrderBody = Callable[[int], bytes]
FINAL = frozenset({201, 402, 422})


@dataclass(slots=True)
class Attempt:
    """One order as the client saw it; status 0 is no answer at all."""

    key: str
    status: int
    seconds: float
    body: bytes


@dataclass(slots=True)
class History:
    """Everything that the clients saw."""

    attempts: list[Attempt] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def statuses(self) -> Counter[int]:
        """How many answers had which status."""
        return Counter(attempt.status for attempt in self.attempts)

    def percentile_ms(self, share: float) -> float:
        """The latency below which `share` of the answers came."""
        ordered = sorted(attempt.seconds for attempt in self.attempts if attempt.status)
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1) if ordered else 0.0


class Connection(asyncio.Protocol):
    """One keep-alive connection that posts orders, one at a time.

    A bare protocol: on two cores, whatever the client burns is missing where it is measured.
    """

    def __init__(self, url: str, api_key: str, path: str = "/v1/orders") -> None:
        """Connect on first use, and again after an error."""
        address = urlsplit(url)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 80
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {api_key}\r\n"
            "Content-Type: application/json\r\n"
        )
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = b""

    async def post(self, key: str, body: bytes, timeout_s: float = 30.0) -> tuple[int, bytes]:
        """Status and body; status 0 when no answer came."""
        loop = asyncio.get_running_loop()
        expired = None
        try:
            if self._transport is None or self._transport.is_closing():
                await loop.create_connection(lambda: self, self._host, self._port)
            if self._transport is None:
                return 0, b""
            self._answer = loop.create_future()
            head = f"{self._head}Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
            self._transport.write(head.encode() + body)
            expired = loop.call_later(timeout_s, self.close)
            return await self._answer
        except OSError:
            return 0, b""
        finally:
            if expired:
                expired.cancel()

    def close(self) -> None:
        """Drop the connection; a request that waits gets no answer."""
        if self._transport:
            self._transport.close()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self._buffer = b""

    @override
    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        length = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        if len(self._buffer) >= end + 4 + length:
            self._reply(int(head[9:12]), self._buffer[end + 4 : end + 4 + length])
            self._buffer = b""
            if b"connection: close" in head:
                self.close()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._reply(0, b"")

    def _reply(self, status: int, body: bytes) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_result((status, body))


def order_body(sku: str = "SKU-0001", quantity: int = 1) -> OrderBody:
    """Bodies that differ in the customer only."""
    template = json.dumps(
        {
            "customer": {"email": "customer%d@example.com"},
            "currency": "EUR",
            "lines": [{"sku": sku, "quantity": quantity}],
            "payment_method": "pm_card_visa",
        }
    )
    return lambda number: (template % number).encode()


async def closed_loop(
    url: str, api_key: str, body: OrderBody, *, connections: int, seconds: float, warm_up_s: float = 0.0
) -> History:
    """Every connection posts its next order as soon as it has an answer, for `seconds` after the warm-up."""
    began = time.monotonic()
    counted_from = began + warm_up_s
    history = History(seconds=seconds)

    async def work(worker: int) -> None:
        connection = Connection(url, api_key)
        number = worker * 1_000_000
        while (now := time.monotonic()) < counted_from + seconds:
            number += 1
            attempt = await _attempt(connection, body(number))
            if now >= counted_from:
                history.attempts.append(attempt)
        connection.close()

    await asyncio.gather(*(work(worker) for worker in range(connections)))
    history.seconds = time.monotonic() - counted_from
    return history


async def open_loop(
    url: str, api_key: str, body: OrderBody, *, rate: float, count: int, retry: bool = False, seed: int = 0
) -> History:
    """Orders arrive at random times, `rate` a second on average, whether or not the ones before are answered.

    With `retry` a client repeats its request, same key and body, until it has a final answer.
    """
    history = History()
    rng = random.Random(seed)  # noqa: S311 - arrival times, the same for the same seed
    idle: list[Connection] = []

    async def order(number: int) -> None:
        connection = idle.pop() if idle else Connection(url, api_key)
        if retry:
            await _until_final(connection, history, body(number))
        else:
            history.attempts.append(await _attempt(connection, body(number)))
        idle.append(connection)

    began = due = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(order(number))
    history.seconds = time.monotonic() - began
    for connection in idle:
        connection.close()
    return history


async def _attempt(connection: Connection, body: bytes, key: str | None = None) -> Attempt:
    key = key or secrets.token_hex(12)
    began = time.monotonic()
    status, answer = await connection.post(key, body)
    return Attempt(key, status, time.monotonic() - began, answer)


async def _until_final(connection: Connection, history: History, body: bytes, give_up_s: float = 90.0) -> None:
    """What a careful client does: anything but a final answer means asking again with the same key."""
    key = secrets.token_hex(12)
    give_up_at = time.monotonic() + give_up_s
    while time.monotonic() < give_up_at:
        attempt = await _attempt(connection, body, key)
        history.attempts.append(attempt)
        if attempt.status in FINAL:
            return
        await asyncio.sleep(0.2)
