"""The database's answers get lost, its connections run out, the network swallows everything: orders stay whole."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from urllib.parse import urlsplit

import httpx
import pytest

from shared.runtime.db import CLOSE_TIMEOUT_S, COMMAND_TIMEOUT_S, CONNECT_TIMEOUT_S
from tests.integration.checkout.conftest import until
from tests.integration.checkout.crashes.stages import Client, Stage, Theatre
from tests.support.pgbouncer import direct
from tests.support.proxy import Mode, Proxy, proxy_to
from tests.support.replicas import Replica

# A request is told from all others by its key, which goes to the database as a parameter: first when the order is
# placed, then when it is settled. The first order of a process is placed step by step and ends with a COMMIT; what
# comes after is written by statements that commit by themselves.
LOST = {
    "the COMMIT of placing": (False, b"COMMIT", 1),
    "placing in one statement": (True, b"", 1),
    "settling in one statement": (True, b"", 2),
}


@pytest.mark.parametrize("lost", LOST)
async def test_a_commit_whose_answer_is_lost_is_read_back_and_not_repeated(theatre: Theatre, lost: str) -> None:
    warm, match, nth = LOST[lost]

    async def story(stage: Stage) -> list[str]:
        client = Client()
        async with through_a_proxy(stage) as (replica, proxy):
            if warm:
                assert await stage.post(replica, Client()) == [201]
            key = client.key.encode()
            gone = proxy.drop_reply(match or key, once_seen=key, nth=nth)

            [status] = await stage.post(replica, client)

            assert gone.is_set()
            assert status == 201
            await stage.come_to_rest()
            return await stage.complaints(replica)

    assert await theatre.tell(story) == []


async def test_a_database_that_takes_no_more_connections_costs_an_honest_answer_and_nothing_else(
    theatre: Theatre,
) -> None:
    async def story(stage: Stage) -> list[str]:
        url = await few_connections(stage, limit=2)
        replica = stage.replica(CHECKOUT_DATABASE_URL=url, CHECKOUT_DATABASE_POOL_SIZE="8")
        await replica.start()

        began = monotonic()
        statuses = await stage.post(replica, *(Client() for _ in range(60)))
        seconds = monotonic() - began
        await stage.come_to_rest()

        assert set(statuses) <= {201, 202, 503}
        assert 201 in statuses
        assert seconds < 10
        return await stage.complaints(replica)

    assert await theatre.tell(story) == []


async def test_a_process_that_comes_before_its_database_lives_and_waits_for_it(theatre: Theatre) -> None:
    async def story(stage: Stage) -> list[str]:
        async with through_a_proxy(stage) as (replica, proxy):
            await replica.end()
            await proxy.refuse()

            replica.launch()
            await until(lambda: is_alive(stage, replica))
            not_yet = (await stage.http.get(f"{replica.url}/health/ready")).status_code
            refused = await stage.post(replica, Client())
            await proxy.accept()
            await replica.ready()

            assert (not_yet, refused) == (503, [503])
            return await stage.complaints(replica)

    assert await theatre.tell(story) == []


async def is_alive(stage: Stage, replica: Replica) -> bool:
    assert replica.process
    assert replica.process.exitcode is None
    try:
        return (await stage.http.get(f"{replica.url}/health/live")).is_success
    except httpx.TransportError:
        return False


@pytest.mark.alone
async def test_a_network_that_swallows_everything_is_noticed_in_time_and_forgotten_when_it_is_over(
    theatre: Theatre,
) -> None:
    async def story(stage: Stage) -> list[str]:
        async with through_a_proxy(stage) as (replica, proxy):
            assert await stage.post(replica, Client()) == [201]
            proxy.mode = Mode.BLACKHOLE

            began = monotonic()
            statuses = await stage.post(replica, *(Client() for _ in range(40)))
            seconds = monotonic() - began
            proxy.mode = Mode.OK
            proxy.reset()
            await stage.come_to_rest()

            assert set(statuses) == {503}
            # The first batch finds out by a statement (6 s) and then by reading back (3 s), the others with it.
            assert seconds < COMMAND_TIMEOUT_S + CLOSE_TIMEOUT_S + CONNECT_TIMEOUT_S + 1
            return await stage.complaints(replica)

    assert await theatre.tell(story) == []


async def test_an_answer_that_comes_byte_by_byte_and_late_is_still_the_answer(theatre: Theatre) -> None:
    async def story(stage: Stage) -> list[str]:
        async with through_a_proxy(stage) as (replica, proxy):
            proxy.slice_bytes, proxy.latency_s = 1, 0.02

            statuses = await stage.post(replica, *(Client() for _ in range(5)))

            assert set(statuses) <= {201, 202}
            await stage.come_to_rest()
            return await stage.complaints(replica)

    assert await theatre.tell(story) == []


@asynccontextmanager
async def through_a_proxy(stage: Stage) -> AsyncIterator[tuple[Replica, Proxy]]:
    """A replica that reaches its database through a proxy."""
    address = urlsplit(stage.database_url)
    async with proxy_to(address.hostname or "", address.port or 0) as proxy:
        netloc = f"{address.username}:{address.password}@127.0.0.1:{proxy.port}"
        replica = stage.replica(CHECKOUT_DATABASE_URL=address._replace(netloc=netloc).geturl())
        await replica.start()
        yield replica, proxy
        replica.kill()


async def few_connections(stage: Stage, limit: int) -> str:
    """The stage's database as a role that may do what checkout may, over so many connections."""
    role = f"few_{secrets.token_hex(4)}"
    await stage.connection.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'few' CONNECTION LIMIT {limit};"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};"
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"
    )
    address = urlsplit(direct(stage.database_url))
    return address._replace(netloc=f"{role}:few@{address.hostname}:{address.port}").geturl()
