"""Load: a closed loop over keep-alive connections, and an open loop with arrival times, both cheap on the CPU."""

import asyncio
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import uvloop

OrderBody = Callable[[int], dict[str, object]]


@dataclass(slots=True)
class Attempt:
    """One order as the client saw it."""

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
        """How many answers had which status; 0 is no answer at all."""
        return Counter(attempt.status for attempt in self.attempts)

    def order_ids(self) -> set[str]:
        """The ids of the orders that were answered with 201 or 202."""
        return {json.loads(a.body)["id"] for a in self.attempts if a.status in {201, 202}}

    def percentile_ms(self, share: float) -> float:
        """The latency below which `share` of the answers came."""
        ordered = sorted(attempt.seconds for attempt in self.attempts if attempt.status)
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1) if ordered else 0.0


class Connection:
    """One keep-alive connection that posts orders, one at a time."""

    def __init__(self, url: str, api_key: str, path: str = "/v1/orders") -> None:
        """Connect on first use, and again after an error."""
        self._address = urlsplit(url)
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._address.netloc}\r\n"
            f"Authorization: Bearer {api_key}\r\nContent-Type: application/json\r\n"
        )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, key: str, body: bytes, timeout_s: float = 30.0) -> tuple[int, bytes]:
        """Status and body; status 0 when no answer came."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._post(key, body)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self.close()
            return 0, b""

    async def _post(self, key: str, body: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address.hostname, self._address.port)
        reader, writer = self._streams
        writer.write(f"{self._head}Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        answer = await reader.readexactly(length)
        if b"connection: close" in head:
            self.close()
        return int(head[9:12]), answer

    def close(self) -> None:
        """Drop the connection."""
        if self._streams:
            self._streams[1].close()
        self._streams = None


def order_body(sku: str = "SKU-0001", quantity: int = 1) -> OrderBody:
    """Bodies that differ in the customer only."""

    def make(number: int) -> dict[str, object]:
        return {
            "customer": {"email": f"customer{number}@example.com"},
            "currency": "EUR",
            "lines": [{"sku": sku, "quantity": quantity}],
            "payment_method": "pm_card_visa",
        }

    return make


async def closed_loop(url: str, api_key: str, body: OrderBody, *, connections: int, seconds: float) -> History:
    """Every connection posts its next order as soon as it has an answer, for `seconds`."""
    history = History()
    stop_at = time.monotonic() + seconds

    async def work(number: int) -> None:
        connection = Connection(url, api_key)
        count = 0
        while time.monotonic() < stop_at:
            count += 1
            await _attempt(connection, history, json.dumps(body(number * 1_000_000 + count)).encode())
        connection.close()

    began = time.monotonic()
    await asyncio.gather(*(work(number) for number in range(connections)))
    history.seconds = time.monotonic() - began
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
        raw = json.dumps(body(number)).encode()
        await (_until_final(connection, history, raw) if retry else _attempt(connection, history, raw))
        idle.append(connection)

    began = time.monotonic()
    due = began
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(order(number))
    history.seconds = time.monotonic() - began
    for connection in idle:
        connection.close()
    return history


async def _attempt(connection: Connection, history: History, body: bytes, key: str | None = None) -> int:
    key = key or secrets.token_hex(12)
    began = time.monotonic()
    status, answer = await connection.post(key, body)
    history.attempts.append(Attempt(key, status, time.monotonic() - began, answer))
    return status


async def _until_final(connection: Connection, history: History, body: bytes, give_up_s: float = 90.0) -> None:
    """What a careful client does: anything but a final answer means asking again with the same key."""
    key = secrets.token_hex(12)
    give_up_at = time.monotonic() + give_up_s
    while time.monotonic() < give_up_at:
        status = await _attempt(connection, history, body, key)
        if status in {201, 402, 422}:
            return
        await asyncio.sleep(0.2)


def run(main: Awaitable[None]) -> None:
    """Run a load generator as a program."""
    uvloop.run(_await(main))


async def _await(main: Awaitable[None]) -> None:
    await main
