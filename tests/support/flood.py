"""A flood: orders that arrive at their own rate whether or not anybody keeps up, at as little CPU as Python can do it.

Callbacks instead of tasks: at five times of what checkout takes, the generator itself must not become the bottleneck.
"""

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from typing_extensions import override

from tests.support.load import OrderBody

TICK_S = 0.001
STRAGGLERS_S = 20.0  # how long answers are waited for after the last request

COMPLETED = frozenset({201})
REFUSED = frozenset({503})


@dataclass(slots=True)
class Flood:
    """Every answer as (seconds from the start to the answer, status, seconds it took); status 0 is no answer."""

    answers: list[tuple[float, int, float]] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        """How many answers had which status."""
        return Counter(status for _, status, _ in self.answers)

    def goodput(self, from_s: float, to_s: float) -> float:
        """Completed orders per second in that part of the time."""
        return sum(from_s <= at < to_s for at, status, _ in self.answers if status in COMPLETED) / (to_s - from_s)

    def completed_of_asked(self, from_s: float, to_s: float) -> float:
        """Which share of what was asked for in that part of the time was completed in the end."""
        asked = [status for at, status, seconds in self.answers if from_s <= at - seconds < to_s]
        return sum(status in COMPLETED for status in asked) / max(1, len(asked))

    def percentile_ms(self, share: float, statuses: Collection[int] = COMPLETED) -> float:
        """The latency below which `share` of the answers with one of these statuses came."""
        ordered = sorted(seconds for _, status, seconds in self.answers if status in statuses)
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1) if ordered else 0.0


async def flood(url: str, api_key: str, body: OrderBody, *, rate: float, seconds: float, seed: int = 0) -> Flood:
    """Send `rate` orders a second at random times for `seconds`, each on an idle connection or on one more."""
    source = _Source(url, api_key, body)
    rng = random.Random(seed)  # noqa: S311 - arrival times, the same for the same seed
    began = due = time.monotonic()
    source.began = began
    while due < began + seconds:
        now = time.monotonic()
        while due <= now and due < began + seconds:
            await source.send()
            due += rng.expovariate(rate)
        await asyncio.sleep(TICK_S)
    await source.finish()
    return source.seen


class _Source:
    """Its idle connections, and what came back on them."""

    def __init__(self, url: str, api_key: str, body: OrderBody) -> None:
        address = urlsplit(url)
        self.seen = Flood()
        self.began = 0.0
        self._address = address.hostname or "127.0.0.1", address.port or 80
        self._head = (
            f"POST /v1/orders HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {api_key}\r\n"
            f"Content-Type: application/json\r\nIdempotency-Key: {secrets.token_hex(8)}-"
        )
        self._body = body
        self._number = 0
        self._idle: list[_Line] = []
        self._open: set[_Line] = set()
        self._last = asyncio.Event()

    async def send(self) -> None:
        """One more order; waits only for a new connection's handshake."""
        self._number += 1
        body = self._body(self._number)
        request = f"{self._head}{self._number}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        while self._idle and not self._idle[-1].is_open:
            self._idle.pop()
        line = self._idle.pop() if self._idle else await self._connect()
        line.ask(request)

    async def _connect(self) -> "_Line":
        line = _Line(self._answered)
        await asyncio.get_running_loop().create_connection(lambda: line, *self._address)
        self._open.add(line)
        return line

    def _answered(self, line: "_Line", status: int, asked_at: float) -> None:
        now = time.monotonic()
        self.seen.answers.append((now - self.began, status, now - asked_at))
        if line.is_open:
            self._idle.append(line)
        else:
            self._open.discard(line)
        if len(self.seen.answers) == self._number:
            self._last.set()

    async def finish(self) -> None:
        """Wait for what is still under way, then hang up: whoever has no answer by then gets none."""
        try:
            async with asyncio.timeout(STRAGGLERS_S):
                while len(self.seen.answers) < self._number:
                    self._last.clear()
                    await self._last.wait()
        except TimeoutError:
            pass
        for line in self._open:
            line.hang_up()
        await asyncio.sleep(0)


class _Line(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, answered: Callable[["_Line", int, float], None]) -> None:
        self._answered = answered
        self._transport: asyncio.Transport | None = None
        self._asked_at: float | None = None
        self._buffer = b""

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> None:
        self._asked_at = time.monotonic()
        if self._transport:
            self._transport.write(request)

    def hang_up(self) -> None:
        if self._transport:
            self._transport.abort()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by class

    @override
    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        start = self._buffer.index(b"content-length: ") + 16
        if len(self._buffer) >= end + 4 + int(self._buffer[start : self._buffer.index(b"\r", start)]):
            status, self._buffer = int(self._buffer[9:12]), b""
            self._reply(status)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._reply(0)

    def _reply(self, status: int) -> None:
        asked_at, self._asked_at = self._asked_at, None
        if asked_at is not None:
            self._answered(self, status, asked_at)
