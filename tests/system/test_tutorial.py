"""The tutorial works to the letter: its files are written and its commands run, in order, in a copy of the project."""

import asyncio
import contextlib
import os
import re
import secrets
import signal
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.support.platform import ROOT, Platform, fetch, free_base, until
from tests.support.working_copy import working_copy

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

PAGE = ROOT / "docs" / "tutorials" / "a-new-service.md"
CUSTOMER = "tutorial@example.com"
END = "the block is done"


@dataclass(frozen=True)
class Step:
    """A file to write, or commands to run when it names none."""

    file: str
    text: str


def steps() -> dict[str, list[Step]]:
    """What each section of the page tells its reader to do."""
    found: dict[str, list[Step]] = defaultdict(list)
    section, named = "", ""
    for part in re.split(r"(^```.*?^```$)", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL):
        if block := re.fullmatch(r"```(python|sh)\n(.*)```", part, re.DOTALL):
            found[section].append(Step(named if block[1] == "python" else "", block[2]))
        else:
            section = (re.findall(r"^## (.*)$", part, re.MULTILINE) or [section])[-1]
            named = (re.findall(r"`(services/\S+\.py)`", part) or [""])[-1]
    return found


class Reader:
    """Somebody with one shell who does what the page says."""

    def __init__(self, folder: Path, shell: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self._shell = shell

    async def follow(self, section: str) -> str:
        """Do all of a section; what the commands printed."""
        said = [await self._do(step) for step in steps()[section]]
        assert said, f"the page has nothing to do under {section}"
        return "".join(said)

    async def _do(self, step: Step) -> str:
        if step.file:
            path = self.folder / step.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
            return ""
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.write(f"{step.text}\necho\necho {END}\n".encode())
        said = ""
        while not said.endswith(f"\n{END}\n"):
            line = await self._shell.stdout.readline()
            assert line, f"a command failed:\n{step.text}\n{said}"
            said += line.decode()
        return said.removesuffix(f"\n{END}\n")


@asynccontextmanager
async def reader(folder: Path, platform: Platform) -> AsyncIterator[Reader]:
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-eu", "-o", "pipefail"),
        cwd=folder,
        env=platform.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield Reader(folder, shell)
    finally:
        platform.do("reset")
        with contextlib.suppress(ProcessLookupError):  # a shell whose command failed has ended
            os.killpg(shell.pid, signal.SIGKILL)
        await shell.wait()


async def test_a_new_service_gets_all_of_history_once_and_goes_on_and_goes_away(tmp_path: Path) -> None:
    folder = working_copy(tmp_path)
    platform = Platform(folder / ".run", free_base())
    async with reader(folder, platform) as somebody:
        await somebody.follow("Before it exists")
        before = await orders(platform, 20)
        await somebody.follow("The code")
        await somebody.follow("Its database")
        said = await somebody.follow("Run it")
        after = await orders(platform, 15)
        await until(lambda: holds(platform, before | after))
        points = await loyalty(platform, f"/v1/points/{CUSTOMER}")
        deliveries = await fetch(database(platform), "SELECT count(*), count(DISTINCT subject) FROM deliveries")
        await until(lambda: settled(platform, 37))
        rewound = await somebody.follow("A mistake in the handler")
        await until(lambda: replayed(platform))
        env = platform.env
        leaving = await somebody.follow("Remove it")
        late = await orders(platform, 1)

        assert "loyalty is subscribed." in said
        assert '{"orders":1,"points":7}' in said
        assert points == {"orders": 35, "points": 35 * 7}
        assert deliveries == [(37, 37)], "35 of this test and the two of the page"
        assert "37 events would come again." in rewound
        assert "37 events come again." in rewound
        assert "loyalty is removed." in leaving
        await until(lambda: nothing_is_left(env))
        rows = {row[0] for row in await fetch(database(platform), "SELECT order_id FROM points")}
        assert rows >= before | after
        assert not rows & late
        assert len(rows) == 37


def test_the_new_service_is_less_than_sixty_lines() -> None:
    written = [step.text for section in steps().values() for step in section if step.file]

    lines = [line for text in written for line in text.splitlines() if line.strip()]

    assert len(written) == 3
    assert len(lines) < 60


async def orders(platform: Platform, count: int) -> set[str]:
    """Orders of seven units of money each; their ids."""
    body = {
        "customer": {"email": CUSTOMER},
        "currency": "EUR",
        "lines": [{"sku": "SKU-0007", "quantity": 1}],
        "payment_method": "pm_card_visa",
    }
    async with httpx.AsyncClient(base_url=platform.env["CHECKOUT_URL"], timeout=30) as client:
        answers = [
            await client.post(
                "/v1/orders",
                json=body,
                headers={"Authorization": f"Bearer {platform.env['API_KEY']}", "Idempotency-Key": secrets.token_hex(8)},
            )
            for _ in range(count)
        ]
    assert {answer.status_code for answer in answers} <= {201}
    return {answer.json()["id"] for answer in answers}


async def loyalty(platform: Platform, path: str) -> Any:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{platform.port_base + 4}") as client:
        answer = await client.get(path, headers={"Authorization": f"Bearer {platform.env['OPS_KEY']}"})
    return answer.json()


async def holds(platform: Platform, wanted: set[str]) -> bool:
    rows = await fetch(database(platform), "SELECT order_id FROM points")
    return len(rows) == len(wanted) + 2 and {row[0] for row in rows} >= wanted


async def settled(platform: Platform, events: int) -> bool:
    """Checkout knows what the ledger has: that is told a moment later, and it is what a rewind counts."""
    found = await fetch(checkout(platform), "SELECT settled FROM subscriptions WHERE service = 'loyalty'")
    return found == [(events,)]


async def replayed(platform: Platform) -> bool:
    """The ledger was emptied and is complete again."""
    [(rewound, settled)] = await fetch(
        checkout(platform), "SELECT moved_at > created_at, settled FROM subscriptions WHERE service = 'loyalty'"
    )
    first = await fetch(
        database(platform), "SELECT min(received_at) > (SELECT now() - interval '1 minute') FROM deliveries"
    )
    return bool(rewound and settled == 37 and first == [(True,)])


async def nothing_is_left(env: dict[str, str]) -> bool:
    redis = Redis.from_url(env["REDIS_URL"])
    try:
        return not await redis.exists("events:loyalty:0", "relay:loyalty", "settled:loyalty")
    finally:
        await redis.aclose()


def database(platform: Platform) -> str:
    return platform.env["POSTGRES_URL"].rpartition("/")[0] + "/loyalty"


def checkout(platform: Platform) -> str:
    return platform.env["POSTGRES_URL"].rpartition("/")[0] + "/checkout"
