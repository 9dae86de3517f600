"""An order that kills the warehouse's process, while others come in at a steady rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from tests.support.load import open_loop, order_body
from tests.support.platform import Platform, fetch, free_base, until
from tests.support.working_copy import working_copy

pytestmark = [pytest.mark.system, pytest.mark.alone, pytest.mark.timeout(300)]

log = structlog.get_logger()

RATE = 50  # orders a second
COUNT = 200
POISON = 100  # the number of the customer who kills
DELAY_S = 1.0
HANDLER = "async def receive(connection: AsyncConnection, events: Sequence[Event]) -> None:\n"
KILLER = f"""    if any(event.data.customer.email == "customer{POISON}@example.com" for event in events):
        import ctypes
        ctypes.string_at(0)
"""


@dataclass(frozen=True)
class Row:
    """What became of an order in the warehouse."""

    state: str
    error: str
    seconds: float | None  # from the order to its effect


async def test_it_takes_one_process_with_it_and_the_others_hardly_wait(tmp_path: Path) -> None:
    folder = poisoned(tmp_path)
    platform = Platform(tmp_path / "run", free_base())
    try:
        started = platform.do("up", PYTHONPATH=str(folder))
        assert started.returncode == 0, started.stdout + started.stderr
        url, api_key = platform.env["CHECKOUT_URL"], platform.env["API_KEY"]
        history = await open_loop(url, api_key, order_body(), rate=RATE, count=COUNT)
        await until(lambda: all_but_one_done(platform))
        rows = await ledger(platform)
        deaths = log_of(platform, "warehouse").count("died, another one takes its place")
        ends = log_of(platform, "launcher").count("warehouse ended with")
    finally:
        platform.do("reset", PYTHONPATH=str(folder))

    assert history.statuses == {201: COUNT}
    assert (deaths, ends) == (1, 0)
    [culprit] = [row for row in rows if row.error]
    assert culprit.state == "retrying"
    assert "kills the process that handles it: SIGSEGV" in culprit.error
    before, beside = slowest(rows[: POISON // 2]), slowest(rows[POISON // 2 :])
    log.info("the slowest order", before=before, beside_one_that_kills=beside)
    assert beside < before + DELAY_S


def log_of(platform: Platform, name: str) -> str:
    return (platform.run_dir / "logs" / f"{name}.log").read_text()


def poisoned(folder: Path) -> Path:
    """A copy of the project whose warehouse cannot bear one customer."""
    copy = working_copy(folder)
    handlers = copy / "services" / "warehouse" / "handlers.py"
    code = handlers.read_text()
    assert HANDLER in code
    handlers.write_text(code.replace(HANDLER, HANDLER + KILLER))
    return copy


async def all_but_one_done(platform: Platform) -> bool:
    found = await fetch(warehouse(platform), "SELECT count(*) FROM deliveries WHERE state = 'done'")
    return found == [(COUNT - 1,)]


async def ledger(platform: Platform) -> list[Row]:
    """What became of each order, in the order of the log."""
    found = await fetch(
        warehouse(platform),
        """
        SELECT d.state, coalesce(d.last_error, ''), extract(epoch FROM d.settled_at - f.ordered_at)::float
        FROM deliveries d LEFT JOIN fulfilments f ON f.order_id = d.subject ORDER BY d.position
        """,
    )
    return [Row(*row) for row in found]


def slowest(rows: Sequence[Row]) -> float:
    return max(row.seconds for row in rows if row.seconds is not None)


def warehouse(platform: Platform) -> str:
    return platform.env["POSTGRES_URL"].rpartition("/")[0] + "/warehouse"
