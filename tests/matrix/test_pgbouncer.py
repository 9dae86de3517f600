"""Through a PgBouncer in transaction mode: it may start anew, pause and kill, and nothing is lost or done twice."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.integration.checkout.crashes.stages import Client, Stage, Theatre
from tests.matrix.conftest import RESUMED, Record, busy, catches_up
from tests.support.pgbouncer import PgBouncer
from tests.support.servers import NewDatabase, free_port

Fault = Callable[[PgBouncer, str], Coroutine[None, None, None]]

PAUSED_S = 8.0  # longer than a command may take


@pytest_asyncio.fixture(scope="module")
async def between(postgres_url: str, server_folder: Path) -> AsyncIterator[PgBouncer]:
    """One of its own, which may be killed."""
    pooler = PgBouncer(server_folder / "pgbouncer-to-kill", postgres_url, free_port())
    await pooler.start()
    yield pooler
    await pooler.stop()


async def restart(between: PgBouncer, _name: str) -> None:
    await between.stop()
    await asyncio.sleep(0.5)
    await between.start()


async def pause_and_resume(between: PgBouncer, name: str) -> None:
    await between.say(f"PAUSE {name}")
    await asyncio.sleep(PAUSED_S)
    await between.say(f"RESUME {name}")


async def kill_and_resume(between: PgBouncer, name: str) -> None:
    await between.say(f"KILL {name}")
    await asyncio.sleep(1)
    await between.say(f"RESUME {name}")


async def reconnect(between: PgBouncer, name: str) -> None:
    """Every session of Postgres is given up as soon as its transaction ends."""
    for _ in range(5):
        await between.say(f"RECONNECT {name}")
        await asyncio.sleep(0.2)


FAULTS = (restart, pause_and_resume, kill_and_resume, reconnect)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_what_the_pooler_does_while_events_flow_costs_nothing(
    between: PgBouncer, new_database: NewDatabase, redis_url: str, record_property: Record, fault: Fault
) -> None:
    url = through(between, await new_database())
    async with busy(url, redis_url) as (world, flow):
        await fault(between, name_of(url))

        record_property(RESUMED, await catches_up(world))
        await flow.more(300)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_what_the_pooler_does_while_orders_are_placed_costs_honest_answers_and_nothing_else(
    between: PgBouncer, theatre: Theatre, fault: Fault
) -> None:
    async def story(stage: Stage) -> list[str]:
        replica = stage.replica(CHECKOUT_DATABASE_URL=through(between, stage.database_url))
        await replica.start()
        assert await stage.post(replica, Client()) == [201]

        statuses: list[int] = []
        happening = asyncio.create_task(fault(between, name_of(stage.database_url)))
        while not happening.done():
            statuses += await stage.post(replica, *(Client() for _ in range(5)))
        await happening
        await stage.come_to_rest()

        assert set(statuses) <= {201, 202, 503}
        assert "prepared statement" not in replica.log.read_text()
        return await stage.complaints(replica)

    assert await theatre.tell(story) == []


def through(between: PgBouncer, url: str) -> str:
    return urlsplit(between.url)._replace(path=urlsplit(url).path).geturl()


def name_of(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")
