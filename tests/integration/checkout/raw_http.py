"""A client that sends whatever bytes it likes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx

from tests.integration.checkout.conftest import body

ORDER = json.dumps(body()).encode()
GET = b"GET /v1/products/SKU-0001 HTTP/1.1\r\nHost: checkout\r\nAuthorization: Bearer demo-key\r\n"
POST = GET.replace(b"GET /v1/products/SKU-0001", b"POST /v1/orders") + b"Content-Type: application/json\r\n"
PROBE = b"GET /health/live HTTP/1.1\r\nHost: checkout\r\n\r\n"


@dataclass
class Answer:
    """One response, as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> tuple[int, str]:
        """Its status and code, having checked that it is a problem."""
        assert self.headers["content-type"] == "application/problem+json", self
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        assert problem["request_id"] == self.headers["x-request-id"]
        return self.status, problem["code"]


class Client:
    """A client that sends whatever bytes it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # the server may have closed: what matters is what it said
            self._writer.write(data)
            await self._writer.drain()

    async def answer(self, within_s: float = 10) -> Answer:
        """The next response."""
        async with asyncio.timeout(within_s):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *rest = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
            return Answer(
                int(first.split()[1]), headers, await self._reader.readexactly(int(headers["content-length"]))
            )

    async def ask(self, data: bytes) -> Answer:
        """Send and read the response."""
        await self.send(data)
        return await self.answer()

    async def is_closed(self, within_s: float = 5) -> bool:
        """Wait for the end of the connection."""
        with suppress(ConnectionError):
            async with asyncio.timeout(within_s):
                return await self._reader.read() == b""
        return True

    def leave(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def clients(url: str, count: int) -> AsyncIterator[list[Client]]:
    """Open connections, all at once."""
    address = httpx.URL(url)
    opened = await asyncio.gather(*(asyncio.open_connection(address.host, address.port) for _ in range(count)))
    made = [Client(*pair) for pair in opened]
    yield made
    for client in made:
        client.leave()
