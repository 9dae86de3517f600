"""Worlds over servers that fail over, move, or stand in between, and what nobody may hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from time import monotonic

import pytest
from asyncpg import InterfaceError, PostgresError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from structlog.testing import capture_logs
from typing_extensions import override

from shared.runtime.errors import CommitUnknown
from tests.integration.bus.conftest import World, event, world_over
from tests.integration.bus.flowing import BURST, PAUSE_S, Flow, flowing
from tests.integration.checkout.conftest import payments_server
from tests.integration.checkout.crashes.conftest import theatre

__all__ = ["nothing_unforeseen", "payments_server", "theatre"]

Record = Callable[[str, object], None]

RESUMED = "resumed_s"  # what a test reports under this name, the table shows the slowest of
RESUMED_WITHIN_S = 10.0
AWAY = (DBAPIError, PostgresError, InterfaceError, PoolTimeout, CommitUnknown, OSError)
LOADED = 3  # a machine with other things to do may take three times as long
REDIRECTIONS = ("ReadOnlyError", "MovedError", "AskError", "TryAgainError", "ClusterDownError", "MasterDownError")


@pytest.fixture(autouse=True)
def nothing_unforeseen() -> Iterator[None]:
    """No loop hears that another server is to be asked, and no error is one that nobody foresaw."""
    with capture_logs() as lines:
        yield
    errors = [line["error"] for line in lines if "error" in line]
    assert [line for line in lines if line["event"] == "step failed unexpectedly"] == []
    assert [error for error in errors if error.startswith(REDIRECTIONS) or "prepared statement" in error] == []


class Stubborn(Flow):
    """Goes on when an append fails: what was committed is what the log says."""

    @override
    async def run(self) -> None:
        while not self.ebbing:
            with suppress(*AWAY):
                await self.world.append(*(event() for _ in range(BURST)))
                self.appended += BURST
            await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def busy(database_url: str, redis_url: str) -> AsyncIterator[tuple[World, Flow]]:
    """A world in which events flow; at the end none is lost, and none has had its effect twice."""
    async with world_over(database_url, redis_url) as world:
        world.start(world.relay(batch=50))
        world.start_service()
        async with flowing(world, Stubborn(world)) as flow:
            await flow.more(100)
            await flow.resumes()
            yield world, flow


async def catches_up(world: World) -> float:
    """Wait until all that was committed before has its effect; returns the seconds."""
    began = monotonic()
    async with asyncio.timeout(RESUMED_WITHIN_S * LOADED):
        head = await answered(world, "SELECT position FROM log_head")
        done = f"SELECT count(*) FROM deliveries WHERE position <= {head} AND state = 'done'"
        while await answered(world, done) < head:
            await asyncio.sleep(0.05)
    return monotonic() - began


async def answered(world: World, sql: str) -> int:
    """One number, from a database that may not be back yet."""
    while True:
        with suppress(*AWAY):
            return await world.scalar(sql)
        await asyncio.sleep(0.05)
