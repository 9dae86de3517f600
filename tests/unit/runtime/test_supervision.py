"""Loops survive what happens to them, and a loop that ends takes the process along: no zombie answers 200."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from structlog.testing import capture_logs
from typing_extensions import override

from shared.runtime.process import listen
from shared.runtime.supervision import Family, Loop, Server, brief, http_server, supervise
from tests.support.servers import free_port


class Steps(Loop):
    """Does what its script says, step by step, then nothing; every step is noted."""

    idle_s = 60.0
    failure_s = 0.0

    def __init__(self, name: str = "steps", *script: int | BaseException) -> None:
        super().__init__(name)
        self.script = list(script)
        self.steps = 0
        self.idle = asyncio.Event()
        self.finished = False

    @override
    async def run_once(self) -> int:
        self.steps += 1
        if not self.script:
            self.idle.set()
            return 0
        step = self.script.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step

    @override
    async def finish(self) -> None:
        self.finished = True


class Quitter(Loop):
    """Ends without having been asked to."""

    @override
    async def run_once(self) -> int:
        return 0

    @override
    async def run(self) -> None:
        await asyncio.sleep(0)


class Parent(Family):
    """Has the children that the test names."""

    idle_s = 0.0

    def __init__(self, *keys: str) -> None:
        super().__init__("parent")
        self.keys = set(keys)
        self.looked = asyncio.Event()
        self.made: list[str] = []
        self.failing = False
        self.quitting = False

    @override
    async def wanted(self) -> dict[str, Callable[[], Sequence[Loop]]]:
        self.looked.set()
        await asyncio.sleep(0)
        if self.failing:
            raise ConnectionResetError("board unreachable")
        return {key: lambda key=key: self._make(key) for key in self.keys}  # type: ignore[misc]

    def _make(self, key: str) -> Sequence[Loop]:
        self.made.append(key)
        if self.quitting:
            return [Quitter("quitter")]
        return [Steps(f"{key}-reader"), Steps(f"{key}-reporter")]

    async def look_again(self) -> None:
        """Two looks: the first may have begun before the test changed something."""
        for _ in range(2):
            self.looked.clear()
            await asyncio.wait_for(self.looked.wait(), 5)


async def test_a_loop_steps_on_without_a_pause_while_there_is_something_to_do() -> None:
    loop = Steps("busy", 5, 3, 1)

    await _run_until_idle(loop)

    assert loop.steps == 4
    assert loop.finished


async def test_no_failure_of_a_step_ends_a_loop() -> None:
    loop = Steps("unlucky", ValueError("a bug"), 1, ConnectionResetError("network"), TimeoutError(), 2)

    with capture_logs() as logs:
        await _run_until_idle(loop)

    assert loop.steps == 6
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("step failed unexpectedly", "error"),
        ("step failed", "warning"),
        ("step failed", "warning"),
    ]
    assert "exc_info" in logs[0]
    assert "exc_info" not in logs[1]


async def test_a_wake_ends_the_pause_even_if_it_came_before_it() -> None:
    loop = Steps("sleeper")
    loop.wake()

    await asyncio.wait_for(loop.wait(60), 1)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(loop.wait(60), 0.05)


async def test_a_stopped_loop_ends_its_pause_and_finishes() -> None:
    loop = Steps()
    running = asyncio.create_task(loop.run())
    await loop.idle.wait()

    loop.stop()

    await asyncio.wait_for(running, 1)
    assert loop.finished


async def test_a_loop_that_makes_no_step_is_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Steps()
    assert not loop.stalled

    monkeypatch.setattr("shared.runtime.supervision.STALLED_AFTER_S", -1.0)

    assert loop.stalled


async def test_a_family_starts_and_stops_children_as_they_are_wanted() -> None:
    family = Parent("0")
    running = asyncio.create_task(family.run())
    await family.look_again()
    first = [*family.children["0"]]

    family.keys = {"1", "2"}
    await family.look_again()
    children = dict(family.children)
    family.stop()
    await asyncio.wait_for(running, 5)

    assert family.made[0] == "0"
    assert sorted(family.made) == ["0", "1", "2"]
    assert sorted(children) == ["1", "2"]
    stopped = [*first, *children["1"], *children["2"]]
    assert all(isinstance(child, Steps) and child.stopping and child.finished for child in stopped)


async def test_a_family_that_cannot_find_out_what_is_wanted_keeps_what_it_has() -> None:
    family = Parent("0")
    family.failure_s = 0.0
    running = asyncio.create_task(family.run())
    await family.look_again()
    before = [*family.children["0"]]

    family.failing = True
    await family.look_again()

    assert [*family.children["0"]] == before
    assert not any(child.stopping for child in before)
    family.stop()
    await asyncio.wait_for(running, 5)


async def test_a_child_that_ends_by_itself_ends_its_family_in_order() -> None:
    family = Parent("0")
    running = asyncio.create_task(family.run())
    await family.look_again()
    sibling = family.children["0"][0]

    family.quitting = True
    family.keys = {"0", "1"}

    with pytest.raises(RuntimeError, match="loop quitter ended by itself"):
        await asyncio.wait_for(running, 5)
    assert isinstance(sibling, Steps)
    assert sibling.finished


async def test_a_family_is_stalled_when_one_child_is(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Parent()
    child = Steps("child")
    family.children["0"] = [child]
    assert not family.stalled

    monkeypatch.setattr(child, "_last_beat", float("-inf"))

    assert family.stalled


async def test_a_signal_stops_the_server_then_the_loops_then_what_they_stand_on() -> None:
    loop, foundation = Steps("loop"), Steps("foundation")
    drained: list[bool] = []
    server, url, supervising = _start([loop], [foundation], lambda: drained.append(loop.stopping))
    assert await _answer(url) == "here"

    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(supervising, 10)

    assert drained == [False]
    assert server.should_exit
    assert loop.finished
    assert foundation.finished
    with pytest.raises(httpx.ConnectError):
        await _answer(url)


@pytest.mark.parametrize("where", ["loops", "foundations"])
async def test_a_loop_that_ends_by_itself_takes_the_process_down(where: str) -> None:
    loop, foundation, quitter = Steps("loop"), Steps("foundation"), Quitter("quitter")
    loops: list[Loop] = [loop, quitter] if where == "loops" else [loop]
    foundations: list[Loop] = [foundation, quitter] if where == "foundations" else [foundation]

    with capture_logs() as logs:
        _, url, supervising = _start(loops, foundations)
        with pytest.raises(RuntimeError, match="loop quitter ended by itself"):
            await asyncio.wait_for(supervising, 10)

    assert loop.finished
    assert foundation.finished
    assert [line["loop"] for line in logs if "died" in line["event"]] == ["quitter"]
    with pytest.raises(httpx.ConnectError):
        await _answer(url)


async def test_what_is_no_ordinary_exception_takes_the_process_down_too() -> None:
    loop = Steps("loop")
    _, url, supervising = _start([loop], [])
    await _answer(url)

    loop.script.append(BaseExceptionGroup("cannot go on", [SystemExit(3)]))
    loop.wake()

    with pytest.raises(BaseExceptionGroup):
        await asyncio.wait_for(supervising, 10)


async def test_a_server_that_ends_by_itself_takes_the_process_down() -> None:
    server, url, supervising = _start([Steps("loop")], [])
    await _answer(url)

    async def crash(*_: object, **__: object) -> bool:
        raise OSError("no more file descriptors")

    server.on_tick = crash  # type: ignore[method-assign]

    with pytest.raises(OSError, match="no more file descriptors"):
        await asyncio.wait_for(supervising, 10)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError("x" * 500), "ValueError: " + "x" * 200),
        (TimeoutError(), "TimeoutError"),
        (ValueError("\n  \n"), "ValueError"),
    ],
)
def test_an_error_is_told_in_one_short_line(error: Exception, line: str) -> None:
    assert brief(error) == line


async def _run_until_idle(loop: Steps) -> None:
    running = asyncio.create_task(loop.run())
    await asyncio.wait_for(loop.idle.wait(), 5)
    loop.stop()
    await asyncio.wait_for(running, 5)


def _start(
    loops: Sequence[Loop], foundations: Sequence[Loop], on_drain: Callable[[], None] = lambda: None
) -> "tuple[Server, str, asyncio.Task[None]]":
    async def here(_: object) -> PlainTextResponse:
        return PlainTextResponse("here")

    port = free_port()
    server = http_server(Starlette(routes=[Route("/", here)]))

    async def supervised() -> None:
        with listen("127.0.0.1", port, "TEST_PORT") as listener:
            try:
                await supervise(server, listener, loops, foundations, on_drain=on_drain)
            finally:
                for one in server.servers:  # a server that was cancelled leaves them to the end of the process
                    one.close()
                for number in (signal.SIGTERM, signal.SIGINT):
                    asyncio.get_running_loop().remove_signal_handler(number)

    return server, f"http://127.0.0.1:{port}", asyncio.create_task(supervised())


async def _answer(url: str) -> str:
    async with httpx.AsyncClient() as client:
        with suppress(httpx.ReadError):
            return (await client.get(url)).text
    raise httpx.ConnectError("closed")
