"""More than checkout can do: the surplus is turned away at once, untouched, and everything else goes on."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio

from tests.integration.checkout.conftest import API_KEY, Shop, body, until
from tests.integration.checkout.process import checkout_process
from tests.integration.checkout.raw_http import ORDER, POST, PROBE, clients
from tests.integration.sandboxes.programs import Payments, Program
from tests.support.flood import REFUSED, flood
from tests.support.load import order_body
from tests.support.pgbouncer import direct
from tests.support.platform import working

LIMIT = 8
WAIT_MOST_S = 0.2

Release = Callable[[], Awaitable[None]]


@pytest_asyncio.fixture(scope="module")
async def checkout(checkout_database: str, redis_url: str, payments_server: Payments) -> AsyncIterator[Program]:
    """The process itself, with room for eight orders."""
    bounds = {
        "CHECKOUT_ORDERS_IN_FLIGHT_LEAST": str(LIMIT),
        "CHECKOUT_ORDERS_IN_FLIGHT_MOST": str(LIMIT),
        "CHECKOUT_ORDER_WAIT_MOST_S": str(WAIT_MOST_S),
    }
    async with checkout_process(checkout_database, redis_url, payments_server, **bounds) as program:
        yield program


@pytest_asyncio.fixture
async def http(checkout: Program) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with httpx.AsyncClient(base_url=checkout.url, headers=headers, timeout=30) as client:
        yield client


@pytest_asyncio.fixture
async def full(checkout_database: str, http: httpx.AsyncClient) -> AsyncIterator[Release]:
    """As many orders in flight as there may be, all of them in a database that stands still."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(standing_still(checkout_database))
        orders = [asyncio.create_task(place(http)) for _ in range(LIMIT)]
        await until(lambda: in_flight(http, LIMIT))
        yield stack.aclose
    assert [(await order).status_code for order in orders] == [201] * LIMIT
    await until(lambda: in_flight(http, 0))


@pytest.mark.usefixtures("full")
async def test_a_thousand_orders_in_a_second_that_find_no_room_leave_no_trace(shop: Shop, checkout: Program) -> None:
    assert checkout.process is not None
    process = working(checkout.process.pid)
    before, cpu_before = await shop.written(), sum(process.cpu_times()[:2])

    seen = await flood(checkout.url, API_KEY, order_body(), rate=1000, seconds=1)

    spent_s = sum(process.cpu_times()[:2]) - cpu_before
    assert seen.statuses == {503: len(seen.answers)}
    assert len(seen.answers) > 800
    assert seen.percentile_ms(0.5, REFUSED) < 100  # on a machine that the tests have to themselves: 2
    assert await shop.written() == before
    assert spent_s / len(seen.answers) < 0.0005  # an order takes a multiple of that; on a free core it is a tenth


async def test_one_who_is_turned_away_learns_when_to_come_back_and_may_use_the_key_again(
    http: httpx.AsyncClient, full: Release
) -> None:
    key = secrets.token_hex(8)

    refused = await place(http, key, **{"X-Request-Id": "my-request"})
    problem = refused.json()
    await full()
    await until(lambda: in_flight(http, 0))
    accepted = await place(http, key)

    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert 1 <= int(refused.headers["retry-after"]) <= 3
    assert (problem["code"], problem["status"], problem["request_id"]) == ("overloaded", 503, "my-request")
    assert refused.headers["x-request-id"] == "my-request"
    assert accepted.status_code == 201
    assert "idempotency-replayed" not in accepted.headers


@pytest.mark.usefixtures("full")
async def test_reads_health_and_other_writes_go_on_and_health_says_what_happens(http: httpx.AsyncClient) -> None:
    assert (await place(http)).status_code == 503

    received = {"delta": 1, "reason": "test"}
    key = {"Idempotency-Key": secrets.token_hex(8)}
    stock = await http.post("/v1/products/SKU-0009/stock", json=received, headers=key)
    health = (await http.get("/health")).json()
    metrics = (await http.get("/metrics")).text

    assert stock.status_code == 200
    assert (await http.get("/v1/orders")).status_code == 200
    assert (await http.get("/health/ready")).status_code == 200
    assert health["status"] == health["checks"]["orders:turnedAway"][0]["status"] == "warn"
    assert health["checks"]["orders:limit"][0]["observedValue"] == LIMIT
    assert f"orderstream_admission_in_flight {LIMIT}.0" in metrics
    assert 'orderstream_admission_turned_away_total{reason="limit"}' in metrics


@pytest.mark.usefixtures("full")
async def test_a_connection_outlives_a_refusal(checkout: Program) -> None:
    async with clients(checkout.url, 1) as [client]:
        answers = [await client.ask(order()) for _ in range(3)]
        alive = await client.ask(PROBE)
        in_one_go = await client.ask(order() + order() + PROBE)
        rest = [await client.answer(), await client.answer()]

    assert [answer.problem for answer in answers] == [(503, "overloaded")] * 3
    assert alive.status == 200
    assert [answer.status for answer in (in_one_go, *rest)] == [503, 503, 200]


@pytest.mark.usefixtures("full")
async def test_a_client_that_wants_the_connection_closed_gets_it_closed(checkout: Program) -> None:
    async with clients(checkout.url, 2) as [modern, old]:
        asked = await modern.ask(order("Connection: close"))
        older = await old.ask(order().replace(b"HTTP/1.1", b"HTTP/1.0"))

        assert asked.problem == older.problem == (503, "overloaded")
        assert await modern.is_closed()
        assert await old.is_closed()


@pytest.mark.usefixtures("full")
async def test_a_request_that_comes_in_pieces_or_behind_another_is_turned_away_like_the_others(
    checkout: Program,
) -> None:
    whole = order()
    async with clients(checkout.url, 3) as [pieces, behind, asks_first]:
        await pieces.send(whole[:-20])
        await asyncio.sleep(0.05)
        in_pieces = await pieces.ask(whole[-20:])
        alive = await behind.ask(PROBE + whole)
        second = await behind.answer()
        await asks_first.send(order("Expect: 100-continue")[: -len(ORDER)])
        assert await asks_first._reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        asked = await asks_first.ask(ORDER)

    assert alive.status == 200
    assert in_pieces.problem == second.problem == asked.problem == (503, "overloaded")


@pytest.mark.usefixtures("full")
async def test_a_refusal_is_the_same_whether_or_not_the_request_had_to_be_read(checkout: Program) -> None:
    async with clients(checkout.url, 2) as [plain, odd]:
        unread = await plain.ask(order("X-Request-Id: tell-me-apart"))
        await odd.send(order("x-request-ID:tell-me-apart")[:-1])
        await asyncio.sleep(0.05)
        read = await odd.ask(ORDER[-1:])

    assert unread.problem == read.problem == (503, "overloaded")
    assert unread.headers["x-request-id"] == read.headers["x-request-id"] == "tell-me-apart"
    assert unread.headers.keys() == read.headers.keys()


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(
    "header", ["Content-Length: 3", "Transfer-Encoding: chunked", "Bad Name: x", "Folded: a\r\n b"]
)
async def test_nonsense_is_called_nonsense_even_when_there_is_no_room(checkout: Program, header: str) -> None:
    async with clients(checkout.url, 1) as [client]:
        answer = await client.ask(order(header))

    assert answer.problem == (400, "malformed_http")


async def test_a_body_that_does_not_arrive_takes_up_no_room(checkout: Program, http: httpx.AsyncClient) -> None:
    async with clients(checkout.url, 3 * LIMIT) as slow:
        for client in slow:
            await client.send(order()[:-20])

        assert [(await place(http)).status_code for _ in range(3)] == [201] * 3


async def test_a_request_that_comes_to_nothing_gives_its_room_back(checkout: Program, http: httpx.AsyncClient) -> None:
    wrong = [
        await http.post("/v1/orders", content=b"{", headers={"Content-Type": "application/json"})
        for _ in range(3 * LIMIT)
    ]
    async with clients(checkout.url, 3 * LIMIT) as hasty:
        for client in hasty[::4]:
            await client.send(order())
            client.leave()
    await until(lambda: in_flight(http, 0))

    assert {answer.status_code for answer in wrong} == {400}
    assert (await place(http)).status_code == 201


async def test_nobody_queues_up_behind_a_database_that_stands_still(
    checkout_database: str, http: httpx.AsyncClient
) -> None:
    async with standing_still(checkout_database):
        first = asyncio.create_task(place(http))
        await until(lambda: in_flight(http, 1))
        await asyncio.sleep(2 * WAIT_MOST_S)
        before = await turned_away(http, "wait")
        refused = await place(http)
        counted = await turned_away(http, "wait") - before

    assert refused.json()["code"] == "overloaded"
    assert counted == 1
    assert (await first).status_code == 201
    assert (await place(http)).status_code == 201


async def place(http: httpx.AsyncClient, key: str | None = None, **headers: str) -> httpx.Response:
    headers["Idempotency-Key"] = key or secrets.token_hex(8)
    return await http.post("/v1/orders", json=body(), headers=headers)


def order(*headers: str) -> bytes:
    """A whole request with a key of its own."""
    lines = [f"Idempotency-Key: {secrets.token_hex(8)}", f"Content-Length: {len(ORDER)}", *headers, "", ""]
    return POST + "\r\n".join(lines).encode() + ORDER


async def in_flight(http: httpx.AsyncClient, count: int) -> bool:
    checks: dict[str, Any] = (await http.get("/health")).json()["checks"]
    value: int = checks["orders:inFlight"][0]["observedValue"]
    return value == count


async def turned_away(http: httpx.AsyncClient, reason: str) -> float:
    """How many were refused for this reason so far."""
    metrics = (await http.get("/metrics")).text
    return float(metrics.split(f'admission_turned_away_total{{reason="{reason}"}} ')[1].split("\n")[0])


@asynccontextmanager
async def standing_still(url: str) -> AsyncIterator[None]:
    """No order gets any further in the database, and whoever tries waits."""
    connection = await asyncpg.connect(direct(url))
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE orders IN EXCLUSIVE MODE")  # reading is possible
            yield
    finally:
        await connection.close()
