"""Clients that take their time: cut off in the end, and until then nobody else notices them."""

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from time import perf_counter

import httpx
import pytest_asyncio

from shared.runtime.connection import Connection
from shared.runtime.process import listen
from shared.runtime.supervision import http_server
from shared.web.middleware import BODY_DEADLINE_S, Edge
from tests.integration.checkout.conftest import API_KEY, Shop
from tests.integration.checkout.process import checkout_process
from tests.integration.checkout.raw_http import GET, ORDER, POST, PROBE, Answer, Client, clients
from tests.integration.sandboxes.programs import Payments, Program
from tests.support.servers import free_port


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


@pytest_asyncio.fixture
async def checkout(checkout_database: str, redis_url: str, payments_server: Payments) -> AsyncIterator[Program]:
    """The process itself, with the patience that it has everywhere."""
    async with checkout_process(checkout_database, redis_url, payments_server) as program:
        yield program


async def test_a_thousand_slow_clients_are_closed_in_time_and_nobody_else_notices_them(checkout: Program) -> None:
    calm = await latency(checkout.url)

    async with clients(checkout.url, 1000) as slow:
        began = perf_counter()
        silent = [asyncio.create_task(one.is_closed(within_s=30)) for one in slow[:400]]
        heads = [asyncio.create_task(dripping(one, GET, pause_s=1.0)) for one in slow[400:700]]
        for one in slow[700:]:
            await one.send(POST + b"Content-Length: 200\r\n\r\n")
        bodies = [asyncio.create_task(dripping(one, ORDER, pause_s=1.0)) for one in slow[700:]]
        crowded = await latency(checkout.url)
        still_open = sum(not task.done() for task in (*silent, *heads, *bodies))
        answers = await asyncio.gather(*heads, *bodies)
        assert all(await asyncio.gather(*silent, *(one.is_closed() for one in slow)))
        took = perf_counter() - began

    assert still_open == 1000, "the others were measured while all of them were there"
    assert {answer.problem for answer in answers} == {(408, "request_timeout")}
    assert took < BODY_DEADLINE_S + 2
    assert crowded < max(0.03, 2 * calm)


async def dripping(client: Client, data: bytes, pause_s: float = 0.05) -> Answer:
    """Send byte by byte until there is an answer."""
    answer = asyncio.create_task(client.answer(within_s=30))
    for byte in data:
        await client.send(bytes([byte]))
        done, _ = await asyncio.wait({answer}, timeout=pause_s)
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
