"""A rehearsal tells what kills a process, at the cost of a child, and leaves no trace."""

import asyncio
import ctypes
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic

import psutil
import pytest
import pytest_asyncio
import uvloop
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from shared.runtime import rehearsal as rehearsal_module
from shared.runtime.db import Database
from shared.runtime.rehearsal import Played, Rehearsal

LIVED = Played(1, 1)


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """A sequence tells what a table that was rolled back does not: that somebody was there."""
    db = Database(database_url, "test-rehearsal", 1)
    async with db.transaction() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS played"))
        await connection.execute(text("CREATE TABLE played (number serial, pid int)"))
    yield db
    await db.close()


@pytest.fixture
def rehearsal(database_url: str) -> Rehearsal:
    return Rehearsal(database_url, "test-rehearsal")


async def play(connection: AsyncConnection) -> None:
    await connection.execute(text("INSERT INTO played (pid) VALUES (:pid)"), {"pid": os.getpid()})


async def test_what_lives_is_undone_and_the_connections_here_still_work(db: Database, rehearsal: Rehearsal) -> None:
    before = psutil.Process().children()
    for _ in range(3):
        assert await rehearsal.play([play]) == LIVED

    async with db.reading() as connection:
        left = (await connection.execute(text("SELECT count(*) FROM played"))).scalar_one()
        played = (await connection.execute(text("SELECT last_value FROM played_number_seq"))).scalar_one()
    assert (left, played) == (0, 3)
    assert psutil.Process().children() == before


@pytest.mark.usefixtures("db")
async def test_an_error_is_no_death_and_the_next_one_follows(rehearsal: Rehearsal) -> None:
    async def fail(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT 1 / 0"))

    assert await rehearsal.play([play, fail, play]) == Played(3, 2)


DEATHS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGABRT": os.abort,
    "SIGSEGV": lambda: ctypes.string_at(0),
    "exit status 70": lambda: os._exit(70),
    "exit status 1": sys.exit,
}


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize("death", DEATHS)
async def test_a_death_is_told_by_its_name_and_by_whose_it_was(death: str, rehearsal: Rehearsal) -> None:
    async def die(connection: AsyncConnection) -> None:
        await play(connection)
        DEATHS[death]()

    assert await rehearsal.play([play, play, die, play]) == Played(3, 2, death)


async def test_what_never_stops_computing_is_stopped_and_others_go_on_meanwhile(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal_module, "COMPUTING_S", 1.0)

    async def compute(_: AsyncConnection) -> None:
        while True:
            pass

    late = asyncio.create_task(lateness())
    assert await rehearsal.play([compute]) == Played(1, 0, "1 s of computing")
    late.cancel()
    assert await late < 0.5


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


async def test_what_waits_for_ever_took_too_long(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal_module, "LONGEST_S", 1)

    assert await rehearsal.play([wait]) == Played(1, 0, "1 s without an end", too_long=True)


async def wait(_: AsyncConnection) -> None:
    await asyncio.Event().wait()


async def test_nothing_is_begun_where_the_database_is_away_and_somebody_hears_of_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with capture_logs() as logs:
        assert await Rehearsal(f"postgresql://nobody@127.0.0.1:{port}/none", "test").play([exits]) == Played()
    assert [entry["event"] for entry in logs] == ["a rehearsal was of no use"]


async def exits(_: AsyncConnection) -> None:
    os._exit(70)


async def test_nothing_is_begun_where_no_child_can_be_had(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    before = open_files()

    assert await rehearsal.play([exits]) == Played()
    assert open_files() == before


def open_files() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir()}


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_nothing_is_said_when_somebody_stops_it(
    stop: signal.Signals, rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal_module, "LONGEST_S", 2)

    async def stopped(connection: AsyncConnection) -> None:
        os.kill(os.getpid(), stop)
        await wait(connection)  # a signal that was ignored would be found out by the time that this takes

    assert await rehearsal.play([stopped]) == Played()


async def test_whoever_gives_up_waiting_leaves_no_child(rehearsal: Rehearsal) -> None:
    before = psutil.Process().children()
    waiting = asyncio.create_task(rehearsal.play([wait]))
    await asyncio.sleep(0.2)
    assert psutil.Process().children() != before
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert psutil.Process().children() == before


async def test_a_child_holds_no_port_of_its_parent(rehearsal: Rehearsal) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    waiting = asyncio.create_task(rehearsal.play([wait]))
    await asyncio.sleep(0)  # now there is a child
    listener.close()

    async with asyncio.timeout(5):
        while not is_free(address):
            await asyncio.sleep(0.02)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting})


def is_free(address: tuple[str, int]) -> bool:
    try:
        socket.create_server(address).close()
    except OSError:
        return False
    return True


def test_the_same_within_the_event_loop_that_services_run_in(rehearsal: Rehearsal, database_url: str) -> None:
    async def both() -> tuple[Played, Played, int]:
        db = Database(database_url, "test-rehearsal", 1)
        await db.ping()
        dies, lives = await rehearsal.play([exits]), await rehearsal.play([nothing])
        async with db.reading() as connection:
            answer: int = (await connection.execute(text("SELECT 1"))).scalar_one()
        await db.close()
        return dies, lives, answer

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(both()) == (Played(1, 0, "exit status 70"), LIVED, 1)


async def nothing(_: AsyncConnection) -> None:
    pass
