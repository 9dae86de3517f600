"""Checkout behind its real HTTP server: broken, hostile and very slow clients cost nobody else anything."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
import pytest_asyncio

from tests.integration.checkout.conftest import API_KEY, Shop, body, until
from tests.integration.checkout.process import checkout_process
from tests.integration.checkout.raw_http import GET, ORDER, POST, PROBE, Client, clients
from tests.integration.sandboxes.programs import Payments


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
