"""Fail-points do what they are told, where they are told, and nothing at all when nobody asked."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from shared.runtime import failpoints
from shared.runtime.errors import Action, ConfigurationError, classify
from shared.runtime.failpoints import EXIT_STATUS, VARIABLE, arm, parse, reach

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm([])


async def test_nothing_happens_unless_it_is_armed() -> None:
    arm(parse(" ; "))

    for point in failpoints.POINTS:
        await reach(point)


async def test_a_point_that_raises_looks_like_a_lost_connection() -> None:
    arm(parse("C3=raise"))

    await reach("C2")
    with pytest.raises(ConnectionResetError, match="C3") as raised:
        await reach("C3")

    assert classify(raised.value) is Action.RECONNECT


async def test_a_point_acts_at_the_named_hit_only() -> None:
    arm(parse("C1=raise@2"))

    await reach("C1")
    with pytest.raises(ConnectionResetError):
        await reach("C1")
    await reach("C1")


async def test_a_point_of_a_named_task_lets_the_others_pass() -> None:
    arm(parse("C5/orders=raise@1"))

    await asyncio.create_task(reach("C5"), name="recovery")
    with pytest.raises(ConnectionResetError):
        await asyncio.create_task(reach("C5"), name="orders")


async def test_a_point_that_hangs_lets_the_rest_of_the_process_run() -> None:
    arm(parse("C2=raise; C4=hang:0.05"))
    began = monotonic()

    hanging = asyncio.create_task(reach("C4"))
    with pytest.raises(ConnectionResetError):
        await reach("C2")
    await hanging

    assert monotonic() - began >= 0.05


def test_a_point_that_exits_leaves_no_time_to_clean_up(tmp_path: Path) -> None:
    cleaned_up = tmp_path / "cleaned-up"
    program = f"""
import asyncio
from shared.runtime.failpoints import arm, parse, reach
arm(parse("C6=exit"))
try:
    asyncio.run(reach("C6"))
finally:
    open({str(cleaned_up)!r}, "x")
"""

    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True)

    assert ended.returncode == EXIT_STATUS
    assert not cleaned_up.exists()


@pytest.mark.parametrize("spec", ["C9=exit", "C1", "C1=explode", "C1=hang", "C1=exit@0", "C1=hang:x"])
def test_what_makes_no_sense_is_refused_in_one_line(spec: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{VARIABLE}: '{spec}' is not like C3=exit"):
        parse(spec)
