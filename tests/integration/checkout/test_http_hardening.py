"""Checkout behind its real HTTP server: broken, hostile and very slow clients cost nobody else anything."""

import asyncio
import json
import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from time import perf_counter

import httpx
import pytest
import pytest_asyncio

from shared.runtime.connection import Connection
from shared.runtime.process import listen
from shared.runtime.supervision import http_server
from shared.web.middleware import Edge
from tests.integration.checkout.conftest import API_KEY, Shop, body, until
from tests.integration.checkout.process import checkout_process
from tests.integration.sandboxes.programs import Payments, free_port

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

    async def answer(self) -> Answer:
        """The next response."""
        async with asyncio.timeout(10):
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


@pytest_asyncio.fixture(scope="module")
async def url(checkout_database: str, redis_url: str, payments_server: Payments) -> AsyncIterator[str]:
    """The process itself, as `python -m services.checkout` starts it."""
    hosts = "127.0.0.1, checkout, *.shop.example"
    async with checkout_process(checkout_database, redis_url, payments_server, CHECKOUT_TRUSTED_HOSTS=hosts) as program:
        yield program.url


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[Client]:
    async with clients(url, 1) as [one]:
        yield one


class Hasty(Connection):
    """The same server with less patience."""

    head_deadline_s = 0.5


@pytest_asyncio.fixture
async def hasty(shop: Shop) -> AsyncIterator[str]:
    """The same application in this process: half a second for the head, one for the body."""
    server = http_server(Edge(shop.service.http, body_deadline_s=1.0), Hasty)
    port = free_port()
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen("127.0.0.1", port, "TEST_PORT"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        await serving


async def test_a_body_above_the_limit_is_refused_however_it_is_announced(client: Client, url: str) -> None:
    announced = await client.ask(POST + b"Content-Length: 50000000\r\nExpect: 100-continue\r\n\r\n")
    async with clients(url, 1) as [other]:
        await other.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(70):
            await other.send(b"400\r\n" + b" " * 1024 + b"\r\n")
        endless = await other.answer()

        assert announced.problem == endless.problem == (413, "body_too_large")
        assert await client.is_closed()
        assert await other.is_closed()


@pytest.mark.parametrize("size", [65_537, 1_000_000])
async def test_a_client_that_is_still_sending_a_body_that_is_too_large_can_read_why(url: str, size: int) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}

    async with httpx.AsyncClient(base_url=url) as http:
        answers = [await http.post("/v1/orders", content=b" " * size, headers=headers) for _ in range(5)]

    assert [answer.json()["code"] for answer in answers] == ["body_too_large"] * 5


async def test_a_content_length_that_is_too_short_makes_no_order_of_what_follows(
    shop: Shop, client: Client, url: str
) -> None:
    before = await shop.written()

    short = await client.ask(POST + b"Idempotency-Key: short\r\nContent-Length: 10\r\n\r\n" + ORDER)
    closed = await client.is_closed()
    async with clients(url, 1) as [other]:
        await other.send(POST + b"Idempotency-Key: long\r\nContent-Length: 5000\r\n\r\n" + ORDER)
        other.leave()

    assert short.problem == (400, "malformed_json")
    assert closed
    assert await shop.written() == before


@pytest.mark.parametrize(
    "head",
    [
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: +5\r\n\r\n",
        POST + b"Content-Length: 0x10\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"X-Odd: a\x00b\r\n\r\n",
        POST + b" folded\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"BREW /v1/orders HTTP/1.1\r\nHost: checkout\r\n\r\n",
        b"GET /v1/orders HTTP/9.9\r\nHost: checkout\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: checkout\r\n\r\n",
        b"GET v1 HTTP/1.1\r\nHost: checkout\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: checkout\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: checkout\r\n\r\n",
    ],
)
async def test_what_is_no_plain_http_is_refused_at_once_and_the_connection_ends(client: Client, head: bytes) -> None:
    answer = await client.ask(head)

    assert answer.problem in {(400, "malformed_http"), (404, "not_found"), (405, "method_not_allowed")}
    assert "server" not in answer.headers
    if answer.status == 400:
        assert await client.is_closed()


async def test_nonsense_behind_a_request_does_not_become_its_answer(client: Client) -> None:
    """Otherwise the client takes its order for refused, and it is placed all the same."""
    length = str(len(ORDER)).encode()

    answer = await client.ask(
        POST + b"Idempotency-Key: tail\r\nContent-Length: " + length + b"\r\n\r\n" + ORDER + b"\x00"
    )

    assert answer.status == 201
    assert answer.headers["connection"] == "close"
    assert await client.is_closed()


async def test_requests_sent_ahead_are_answered_in_their_order(client: Client) -> None:
    length = str(len(ORDER)).encode()
    order = POST + b"Idempotency-Key: ahead\r\nContent-Length: " + length + b"\r\n\r\n" + ORDER

    await client.send(order + GET + b"\r\n" + order + PROBE)
    placed, product, replayed, alive = [await client.answer() for _ in range(4)]

    assert [one.status for one in (placed, product, replayed, alive)] == [201, 200, 201, 200]
    assert replayed.body == placed.body
    assert replayed.headers["idempotency-replayed"] == "true"
    assert json.loads(product.body)["sku"] == "SKU-0001"


async def test_nobody_may_send_thousands_of_requests_ahead(client: Client) -> None:
    await client.send(PROBE * 3000)

    answers = 0
    with suppress(asyncio.IncompleteReadError):
        while (await client.answer()).status == 200:
            answers += 1

    assert answers < 100


@pytest.mark.parametrize(
    "headers",
    [
        b"X-Large: " + b"x" * 32 * 1024 + b"\r\n",
        b"".join(b"X-%d: x\r\n" % n for n in range(1000)),
        b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(32)),
        b"X-Endless: " + b"x" * 300_000,
    ],
    ids=["32 KiB", "1,000 headers", "32 headers of 1 KiB", "a header without end"],
)
async def test_a_head_above_the_limits_is_refused(client: Client, headers: bytes) -> None:
    answer = await client.ask(GET + headers + b"\r\n")

    assert answer.problem == (431, "headers_too_large")
    assert await client.is_closed()


async def test_a_path_above_the_limits_is_refused(client: Client) -> None:
    assert (await client.ask(b"GET /v1/orders/" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n")).problem[0] == 431


@pytest.mark.parametrize("host", ["checkout", "CHECKOUT:8000", "127.0.0.1", "eu.shop.example"])
async def test_a_host_of_ours_is_answered(client: Client, host: str) -> None:
    answer = await client.ask(GET.replace(b"Host: checkout", f"Host: {host}".encode()) + b"\r\n")

    assert answer.status == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "shop.example.evil",
        "x/admin?",
        "checkout@evil",
        "checkout, evil",
        "checkout\r\nHost: b",
        "é",
    ],
)
async def test_any_other_host_is_refused(client: Client, host: str) -> None:
    answer = await client.ask(GET.replace(b"Host: checkout", f"Host: {host}".encode()) + b"\r\n")

    assert answer.problem == (400, "untrusted_host")
    assert host not in answer.body.decode() or not host
    assert (await client.ask(PROBE.replace(b"checkout", b"10.0.0.7"))).status == 200  # whoever probes knows no name


async def test_without_trusted_hosts_a_host_still_has_to_be_one(shop: Shop) -> None:
    for host, status in (("anything.example:80", 401), ("[::1]:80", 401), ("x/admin?", 400), ("a b", 400)):
        answer = await shop.http.get("/v1/orders", headers={"Host": host})

        assert answer.status_code == status


async def test_every_answer_has_the_security_headers_and_no_word_about_the_server(url: str, client: Client) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        found = [dict((await http.get(path)).headers) for path in ("/health/live", "/docs", "/v1/orders", "/nothing")]
    found.append((await client.ask(b"nonsense\r\n\r\n")).headers)

    for headers in found:
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["x-request-id"]
        assert not {"server", "x-powered-by"} & headers.keys()
    assert "frame-ancestors 'none'" in found[1]["content-security-policy"]


async def test_what_a_proxy_would_say_is_not_believed(client: Client) -> None:
    forged = b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: evil.example\r\nX-Original-URL: /ops\r\n"

    answer = await client.ask(GET + forged + b"\r\n")
    absolute = await client.ask(GET.replace(b"GET /", b"GET http://evil.example/") + b"\r\n")

    assert (answer.status, absolute.status) == (200, 200)
    assert b"evil" not in answer.body + absolute.body


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_a_client_that_would_rather_speak_another_protocol_is_answered_in_this_one(
    client: Client, protocol: bytes
) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: " + protocol + b"\r\n"
    length = str(len(ORDER)).encode()
    order = POST + upgrade + b"Idempotency-Key: " + protocol + b"\r\nContent-Length: " + length + b"\r\n\r\n"

    await client.send(order + ORDER[:50])
    placed = await client.ask(ORDER[50:])
    product = await client.ask(GET + upgrade + b"\r\n")
    again = await client.ask(GET + b"\r\n")

    assert [one.status for one in (placed, product, again)] == [201, 200, 200]


async def test_clients_that_leave_half_way_place_nothing_and_those_that_leave_later_get_their_order(
    shop: Shop, url: str
) -> None:
    await shop.product("LEAVE", stock=1000)
    await shop.payments.faults(latency_ms=300)
    order = json.dumps(body(lines=[{"sku": "LEAVE", "quantity": 1}])).encode()
    head = POST + b"Idempotency-Key: leave-%d\r\nContent-Length: %d\r\n\r\n"
    cuts = [10, 60, 150, 160, -20, -1, None, None, None]

    async with clients(url, len(cuts)) as made:
        for n, (client, cut) in enumerate(zip(made, cuts, strict=True)):
            await client.send((head % (n, len(order)) + order)[:cut])
        await until(lambda: stock_is(shop, "LEAVE", (997, 3, 0)))  # three of them are being charged, then all leave

    await until(lambda: stock_is(shop, "LEAVE", (997, 0, 3)))
    assert await shop.row("SELECT count(*) FROM idempotency_keys WHERE key LIKE 'leave-%'") == 3


async def stock_is(shop: Shop, sku: str, stock: tuple[int, int, int]) -> bool:
    return await shop.stock(sku) == stock


async def test_a_connection_that_sends_nothing_is_closed(hasty: str) -> None:
    async with clients(hasty, 1) as [client]:
        assert await client.is_closed(within_s=2)


async def test_a_head_that_comes_in_drips_is_cut_off(hasty: str) -> None:
    async with clients(hasty, 2) as [first, second]:
        await second.ask(PROBE)  # the deadline holds for every request of a connection
        answers = await asyncio.gather(*(dripping(one, GET) for one in (first, second)))

        assert [answer.problem for answer in answers] == [(408, "request_timeout")] * 2
        assert await first.is_closed()
        assert await second.is_closed()


async def test_line_breaks_between_requests_do_not_keep_a_connection_open(hasty: str) -> None:
    async with clients(hasty, 1) as [client]:
        await client.ask(PROBE)
        for _ in range(10):
            await client.send(b"\r\n")
            await asyncio.sleep(0.06)

        assert await client.is_closed(within_s=1)


async def test_a_body_that_comes_in_drips_is_cut_off(shop: Shop, hasty: str) -> None:
    before = await shop.written()

    async with clients(hasty, 1) as [client]:
        await client.send(POST + b"Idempotency-Key: drip\r\nContent-Length: 200\r\n\r\n")
        answer = await dripping(client, ORDER)

        assert answer.problem == (408, "request_timeout")
        assert await client.is_closed()
    assert await shop.written() == before


async def test_a_connection_that_is_idle_between_requests_is_kept(hasty: str) -> None:
    async with clients(hasty, 1) as [client]:
        for _ in range(2):
            assert (await client.ask(PROBE)).status == 200
            await asyncio.sleep(2 * Hasty.head_deadline_s)
        assert (await client.ask(PROBE)).status == 200


async def test_hundreds_of_slow_clients_are_closed_and_do_not_slow_down_the_others(hasty: str) -> None:
    calm = await latency(hasty)

    async with clients(hasty, 300) as slow:
        heads = [asyncio.create_task(dripping(one, GET)) for one in slow[:100]]
        for one in slow[100:200]:
            await one.send(POST + b"Content-Length: 200\r\n\r\n")
        bodies = [asyncio.create_task(dripping(one, ORDER)) for one in slow[100:200]]
        crowded = await latency(hasty)
        answers = await asyncio.gather(*heads, *bodies)

        assert {answer.problem for answer in answers} == {(408, "request_timeout")}
        assert all(await asyncio.gather(*(one.is_closed() for one in slow)))
    assert crowded < max(0.05, 5 * calm)


async def dripping(client: Client, data: bytes) -> Answer:
    """Send byte by byte until there is an answer."""
    answer = asyncio.create_task(client.answer())
    for byte in data:
        await client.send(bytes([byte]))
        done, _ = await asyncio.wait({answer}, timeout=0.05)
        if done:
            break
    return await answer


async def latency(url: str) -> float:
    """The median of some ordinary requests, in seconds."""
    took = []
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {API_KEY}"}) as http:
        for _ in range(30):
            started = perf_counter()
            assert (await http.get("/v1/products/SKU-0001")).status_code == 200
            took.append(perf_counter() - started)
    return statistics.median(took)
