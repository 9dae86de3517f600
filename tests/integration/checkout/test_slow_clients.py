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
from shared.web.middleware import Edge
from tests.integration.checkout.conftest import API_KEY, Shop
from tests.integration.checkout.raw_http import GET, ORDER, POST, PROBE, Answer, Client, clients
from tests.integration.sandboxes.programs import free_port


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
