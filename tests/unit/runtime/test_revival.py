"""A service that dies is there again before anybody has missed it, and whoever stops it stops all of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared.runtime.revival import Lockstep
from shared.runtime.settings import EX_CONFIG
from tests.support.servers import free_port
from tests.unit.runtime import revivable

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a service has a keeper on Linux only"),
    pytest.mark.timeout(60),
]

ROOT = Path(__file__).parents[3]
PATIENCE_S = 20.0
REVIVALS = 2


@dataclass
class Kept:
    """A service and its keeper."""

    address: tuple[str, int]
    keeper: "subprocess.Popen[str]"

    def ask(self, command: str = "", timeout_s: float = PATIENCE_S) -> tuple[int, int]:
        """The process that answers, and how many died before it; then it does what `command` says."""
        with closing(socket.create_connection(self.address, timeout_s)) as connection:
            connection.sendall(f"{command}\n".encode())
            pid, died = map(int, connection.recv(100).split())
            connection.recv(1)  # the end
        return pid, died

    def kill(self, how: signal.Signals = signal.SIGKILL) -> int:
        """Kill the process that serves; who that was."""
        pid, _ = self.ask()
        os.kill(pid, how)
        return pid

    def ended(self) -> int:
        """The keeper's exit status."""
        return self.keeper.wait(PATIENCE_S)

    def told(self) -> int:
        """How often its child was told to stop; to be asked when all has ended."""
        assert self.keeper.stdout
        return self.keeper.stdout.read().count("told")


Begin = Callable[..., Kept]


@pytest.fixture
def begin() -> Iterator[Begin]:
    with ExitStack() as stack:

        def begin(revivals: int = REVIVALS, stops_after_s: float = 0.0, **options: Any) -> Kept:
            port = free_port()
            keeper = subprocess.Popen(
                [sys.executable, revivable.__file__, str(port), str(revivals), str(stops_after_s)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
                start_new_session=True,
                **options,
            )
            stack.enter_context(keeper)
            stack.callback(keeper.kill)
            wait_until(lambda: connects(("127.0.0.1", port)))
            return Kept(("127.0.0.1", port), keeper)

        yield begin


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_whoever_comes_after_a_death_is_answered_by_the_next(begin: Begin, how: signal.Signals) -> None:
    kept = begin()

    first = kept.kill(how)
    second, died = kept.ask()

    assert (second != first, died) == (True, 1)
    assert not psutil.pid_exists(first)


def test_one_that_gives_up_by_itself_is_replaced_too(begin: Begin) -> None:
    kept = begin()

    kept.ask("exit 1")

    assert kept.ask()[1] == 1


def test_while_one_dies_in_order_nobody_is_let_in_who_would_wait_for_its_end(begin: Begin) -> None:
    kept = begin(stops_after_s=1.0)

    pid, _ = kept.ask("resign")
    refused_meanwhile = not connects(kept.address) and psutil.pid_exists(pid)
    wait_until(lambda: connects(kept.address))

    assert refused_meanwhile
    assert kept.ask()[1] == 1


def test_who_ignores_what_becomes_of_children_has_no_influence_on_it(begin: Begin) -> None:
    """That is inherited, and then the kernel buries them without a word."""
    kept = begin(preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))

    kept.kill()

    assert kept.ask()[1] == 1


def test_what_another_one_would_do_no_better_ends_it(begin: Begin) -> None:
    complaining, done = begin(), begin()

    complaining.ask(f"exit {EX_CONFIG}")
    done.ask("exit 0")

    assert (complaining.ended(), done.ended()) == (EX_CONFIG, 0)


def test_one_that_dies_again_and_again_is_left_to_whoever_supervises(begin: Begin) -> None:
    kept = begin()

    for _ in range(REVIVALS + 1):
        kept.kill(signal.SIGSEGV)

    assert kept.ended() == -signal.SIGSEGV


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_who_stops_the_keeper_stops_the_service_in_order(begin: Begin, how: signal.Signals) -> None:
    kept = begin(stops_after_s=1.0)
    pid, _ = kept.ask()

    os.killpg(kept.keeper.pid, how)  # as Ctrl-C does
    wait_until(lambda: not connects(kept.address))
    still_stopping = psutil.pid_exists(pid)

    assert kept.ended() == 0
    assert kept.told()
    assert still_stopping, "nobody was let in who would have waited for nothing"
    assert not psutil.pid_exists(pid)


def test_who_stops_it_in_the_middle_of_a_death_is_heard(begin: Begin) -> None:
    kept = begin()
    kept.ask()

    kept.kill()
    kept.keeper.send_signal(signal.SIGTERM)

    assert kept.ended() in {0, -signal.SIGTERM, -signal.SIGKILL}  # the next one may not listen yet, or not be there


def test_who_stops_the_serving_process_in_order_stops_the_keeper(begin: Begin) -> None:
    kept = begin()

    kept.kill(signal.SIGTERM)

    assert (kept.ended(), kept.told()) == (0, 1)


def test_the_service_dies_with_its_keeper_even_while_it_is_stopped(begin: Begin) -> None:
    kept = begin()
    pid = kept.kill(signal.SIGSTOP)

    kept.keeper.kill()

    wait_until(lambda: not psutil.pid_exists(pid))
    assert not connects(kept.address)


def test_while_the_keeper_is_stopped_nobody_is_answered(begin: Begin) -> None:
    kept = begin()
    before = kept.ask()

    kept.keeper.send_signal(signal.SIGSTOP)
    time.sleep(4 * Lockstep.interval_s)  # noqa: TID251 - nothing is asynchronous here
    with pytest.raises(TimeoutError):
        kept.ask(timeout_s=0.5)
    kept.keeper.send_signal(signal.SIGCONT)

    assert kept.ask() == before


def test_the_keeper_buries_what_its_dead_leave_behind(begin: Begin) -> None:
    """As the first process of a container, which it is here for its descendants."""
    kept = begin()
    kept.ask("orphan")
    kept.kill()
    kept.ask()
    keeper = psutil.Process(kept.keeper.pid)
    [orphan] = [child for child in keeper.children() if child.name() == "sleep"]

    orphan.kill()
    wait_until(lambda: not orphan.is_running())

    assert kept.ask()[1] == 1


def connects(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)  # noqa: TID251
