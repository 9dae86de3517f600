"""A rehearsal tells what kills a process, at the cost of a child, and leaves no trace."""

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from time import monotonic

import psutil
import pytest
import pytest_asyncio
import uvloop
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.runtime import rehearsal as rehearsal_module
from shared.runtime.db import Database
from shared.runtime.rehearsal import Rehearsal


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    db = Database(database_url, "test-rehearsal", 1)
    async with db.transaction() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS played"))
        await connection.execute(text("CREATE TABLE played (pid int)"))
    yield db
    await db.close()


@pytest.fixture
def rehearsal(database_url: str) -> Rehearsal:
    return Rehearsal(database_url, "test-rehearsal")


async def play(connection: AsyncConnection) -> None:
    await connection.execute(text("INSERT INTO played VALUES (:pid)"), {"pid": os.getpid()})


async def test_what_lives_is_undone_and_the_connections_here_still_work(db: Database, rehearsal: Rehearsal) -> None:
    before = psutil.Process().children()
    for _ in range(3):
        assert await rehearsal.death_of(play) is None

    async with db.reading() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM played"))).scalar_one() == 0
    assert psutil.Process().children() == before


async def test_an_error_is_no_death(rehearsal: Rehearsal) -> None:
    async def fail(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT 1 / 0"))

    assert await rehearsal.death_of(fail) is None


DEATHS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGABRT": os.abort,
    "SIGSEGV": lambda: ctypes.string_at(0),
    "exit status 70": lambda: os._exit(70),
    "exit status 1": sys.exit,
}


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize("death", DEATHS)
async def test_a_death_is_told_by_its_name(death: str, rehearsal: Rehearsal) -> None:
    async def die(connection: AsyncConnection) -> None:
        await play(connection)
        DEATHS[death]()

    assert await rehearsal.death_of(die) == death


async def test_what_never_stops_computing_is_stopped_and_others_go_on_meanwhile(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal_module, "COMPUTING_S", 0.5)

    async def compute(_: AsyncConnection) -> None:
        while True:
            pass

    late = asyncio.create_task(lateness())
    assert await rehearsal.death_of(compute) == "0.5 s of computing"
    late.cancel()
    assert await late < 0.25


async def lateness() -> float:
    """How much too late a sleeper was woken at the most, until it is cancelled."""
    worst = 0.0
    try:
        while True:
            began = monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, monotonic() - began - 0.01)
    except asyncio.CancelledError:
        return worst


async def test_nothing_is_said_of_what_waits_for_ever(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal_module, "LONGEST_S", 1)

    assert await rehearsal.death_of(wait) is None


async def wait(_: AsyncConnection) -> None:
    await asyncio.Event().wait()


async def test_nothing_is_said_where_the_database_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    assert await Rehearsal(f"postgresql://nobody@127.0.0.1:{port}/none", "test").death_of(exits) is None


async def exits(_: AsyncConnection) -> None:
    os._exit(70)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_nothing_is_said_when_somebody_stops_it(stop: signal.Signals, rehearsal: Rehearsal) -> None:
    async def stopped(_: AsyncConnection) -> None:
        os.kill(os.getpid(), stop)

    assert await rehearsal.death_of(stopped) is None


async def test_whoever_gives_up_waiting_leaves_no_child(rehearsal: Rehearsal) -> None:
    before = psutil.Process().children()
    waiting = asyncio.create_task(rehearsal.death_of(wait))
    await asyncio.sleep(0.2)
    assert psutil.Process().children() != before
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert psutil.Process().children() == before


async def test_a_child_holds_no_port_of_its_parent(rehearsal: Rehearsal) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    waiting = asyncio.create_task(rehearsal.death_of(wait))
    await asyncio.sleep(0.2)
    listener.close()

    socket.create_server(address).close()
    waiting.cancel()
    await asyncio.wait({waiting})


def test_the_same_within_the_event_loop_that_services_run_in(rehearsal: Rehearsal, database_url: str) -> None:
    async def both() -> tuple[str | None, str | None, int]:
        db = Database(database_url, "test-rehearsal", 1)
        await db.ping()
        dies, lives = await rehearsal.death_of(exits), await rehearsal.death_of(nothing)
        async with db.reading() as connection:
            answer: int = (await connection.execute(text("SELECT 1"))).scalar_one()
        await db.close()
        return dies, lives, answer

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(both()) == ("exit status 70", None, 1)


async def nothing(_: AsyncConnection) -> None:
    pass
