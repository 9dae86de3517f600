"""`orderctl deliveries`, `pause`, `resume` and `audit`: what people on call do to a real service, by its ops API."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from typer.testing import CliRunner

from deploy.orderctl import __main__
from shared.bus.arrivals import Arrival, Event
from shared.bus.delivery import Deliverer, Handler
from shared.contracts.envelope import Envelope, encode
from shared.contracts.orders import ORDER_COMPLETED
from shared.runtime.db import Database
from shared.runtime.errors import DeadEvent
from tests.integration.sandboxes.programs import Program
from tests.support import orderctl as support
from tests.support.orderctl import Said
from tests.support.orders import Order, arrivals
from tests.support.servers import free_port

OPS_KEY, API_KEY = "ops-key", "api-key"


@dataclass
class Email:
    """The service as a process of its own, and its database."""

    url: str
    db: Database

    async def orderctl(self, command: str, *more: str) -> str:
        """Succeed in this process, which has imported everything; `more` are words that may have spaces."""
        runner = CliRunner(env={"EMAIL_URL": self.url, "OPS_KEY": OPS_KEY, "COLUMNS": "80"})
        said = await asyncio.to_thread(runner.invoke, __main__.orderctl, (*command.split(), *more))
        assert (said.exit_code, said.stderr) == (0, ""), said
        return said.stdout

    async def refused(self, command: str, *more: str, key: str = OPS_KEY) -> Said:
        """Fail, as a process of its own."""
        return await support.orderctl(*command.split(), *more, EMAIL_URL=self.url, OPS_KEY=key)

    async def dead(self, *errors: str) -> list[Envelope]:
        """As many events that a handler called hopeless."""
        events = [Order().completed() for _ in errors]
        for event, error in zip(events, errors, strict=True):
            await Deliverer(self.db, {ORDER_COMPLETED: hopeless(error)}).deliver(arrivals([event]))
        return events

    async def states(self) -> dict[str, int]:
        async with self.db.reading() as connection:
            rows = await connection.execute(text("SELECT state, count(*) FROM deliveries GROUP BY state"))
        return {row[0]: row[1] for row in rows}


def hopeless(error: str) -> Handler:
    async def handle(_: AsyncConnection, __: Sequence[Event]) -> None:
        raise DeadEvent(error)

    return handle


@pytest_asyncio.fixture(scope="module")
async def running(migrated: str, redis_url: str) -> AsyncIterator[Email]:
    port = free_port()
    environment = {
        "EMAIL_PORT": str(port),
        "EMAIL_DATABASE_URL": migrated,
        "EMAIL_REDIS_URL": redis_url,
        "EMAIL_SMTP_URL": "smtp://127.0.0.1:1",
        "EMAIL_FROM_ADDRESS": "shop@orderstream.example",
        "EMAIL_OPS_KEYS": OPS_KEY,
        "EMAIL_API_KEYS": API_KEY,
        "EMAIL_LOG_LEVEL": "error",
    }
    program = Program("services.email", environment, f"http://127.0.0.1:{port}")
    await program.start()
    db = Database(migrated, "test", 2)
    yield Email(program.url, db)
    await db.close()
    assert await program.end(signal.SIGTERM) == 0


@pytest_asyncio.fixture
async def email(running: Email) -> Email:
    """Nothing has happened yet."""
    async with running.db.transaction() as connection:
        for table in ("deliveries", "ops_audit", "consumer_control", "messages"):
            await connection.execute(text(f"DELETE FROM {table}"))
    return running


async def test_what_is_dead_is_seen_counted_and_tried_again(email: Email) -> None:
    boom, *_ = events = await email.dead("boom [1]", "boom [1]", "bang")
    newest = max(str(event.id) for event in events)
    fits = ("--state", "dead", "--error", "DeadEvent: boom [1]")

    table = await email.orderctl("deliveries list email")
    first = json.loads(await email.orderctl("deliveries list email --limit 1 --json"))
    page = await email.orderctl("deliveries list email --limit 1")
    shown = await email.orderctl("deliveries show email", str(boom.id))
    counted = await email.orderctl("deliveries retry email --dry-run", *fits)
    before = await email.states()
    retried = await email.orderctl("deliveries retry email", *fits)
    await until_states(email, {"dead": 1, "done": 2})

    for whole in (str(boom.id), boom.subject, "boom [1]"):
        assert whole in table, "also on a narrow terminal"
    assert [one["id"] for one in first["items"]] == [newest]
    assert page.endswith(f"There are more: --after {newest}\n")
    assert "DeadEvent: boom [1]" in shown
    assert '"email": "ann@example.com"' in shown
    assert counted == "2 deliveries of email would be due now.\n"
    assert before == {"dead": 3}
    assert retried == "2 deliveries of email are due now.\n"


async def test_what_is_given_up_keeps_its_reason_and_can_be_taken_back(email: Email) -> None:
    [event] = await email.dead("boom")

    discarded = await email.orderctl("deliveries discard email", str(event.id), "--reason", "test order")
    listed = await email.orderctl("deliveries list email --state discarded --json --order", event.subject)
    dead = await email.orderctl("deliveries list email")
    back = await email.orderctl("deliveries retry email --json", str(event.id))
    audit = await email.orderctl("audit email --json")

    assert discarded == "1 delivery of email is discarded.\n"
    assert json.loads(listed)["items"][0]["last_error"] == "discarded: test order; DeadEvent: boom"
    assert dead == "email has none that fits.\n"
    assert json.loads(back) == {"matched": 1, "changed": 1, "dry_run": False}
    assert [one["action"] for one in json.loads(audit)["items"]] == ["retry", "discard"]


async def test_bytes_that_would_steer_the_terminal_are_shown_and_do_not(email: Email) -> None:
    good = json.loads(encode(Order().completed()))
    steering = [b"\x1b[2Jgone", json.dumps(good | {"type": "order.\x1b[2J", "subject": "\x1b[2J"}).encode()]
    await Deliverer(email.db, {}).deliver([Arrival(0, n, raw) for n, raw in enumerate(steering, 1)])

    listed = await email.orderctl("deliveries list email --state parked")
    parked = json.loads(await email.orderctl("deliveries list email --state parked --json"))["items"]
    shown = [await email.orderctl("deliveries show email", one["id"]) for one in parked]

    assert len(parked) == len(steering)
    assert {one["id"] in listed for one in parked} == {True}
    assert '"\\u001b[2Jgone"' in "".join(shown)
    assert "\x1b" not in listed + "".join(shown)


async def test_a_pause_holds_until_somebody_resumes(email: Email) -> None:
    [event] = await email.dead("boom")

    paused = await email.orderctl("pause email --reason", "database work")
    await until(lambda: consuming(email, {"status": "warn", "output": "database work"}))
    await email.orderctl("deliveries retry email", str(event.id))
    resumed = await email.orderctl("resume email")
    await until_states(email, {"done": 1})
    audit = await email.orderctl("audit email")

    assert paused == "email is paused: database work\n"
    assert resumed == "email consumes events.\n"
    assert "database work" in audit


async def test_what_cannot_be_done_is_one_line_that_says_what_to_do(email: Email) -> None:
    nothing, nobody, no_operator = refused = await asyncio.gather(
        email.refused("deliveries retry email --state dead"),
        email.refused("deliveries show email", str(uuid4())),
        email.refused("pause email", key=API_KEY),
    )

    for said in refused:
        assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
        assert said.err.startswith("orderctl: ")
    assert "nothing to retry that fits: see deliveries list email --state all" in nothing.err
    assert nobody.err == "orderctl: email: No such delivery.\n"
    assert "The key does not open ops." in no_operator.err


async def test_without_the_service_or_its_address_or_a_key_it_says_so_in_one_line() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    away, unset, keyless = await asyncio.gather(
        support.orderctl("resume", "my-service", MY_SERVICE_URL=nowhere, OPS_KEY=OPS_KEY),
        support.orderctl("resume", "email", OPS_KEY=OPS_KEY),
        support.orderctl("resume", "email", EMAIL_URL=nowhere),
    )

    assert away.code == 69
    assert away.err.startswith(f"orderctl: my-service at {nowhere} does not answer: ")
    assert (unset.code, unset.err) == (78, "configuration: EMAIL_URL is not set: where email answers\n")
    assert (keyless.code, keyless.err) == (78, "configuration: OPS_KEY is not set: a key that opens ops\n")


@pytest.mark.parametrize(
    "arguments",
    [
        "deliveries list",
        "deliveries show email",
        "deliveries retry email",
        "deliveries retry email 1 --state dead",
        "deliveries discard email --state dead",
        "deliveries burn email",
        "pause",
    ],
)
def test_a_command_that_is_mistyped_is_exit_code_2(arguments: str) -> None:
    """In this process, because it never gets as far as the service: there is no setting that names one."""
    said = CliRunner(env={"EMAIL_URL": None}).invoke(__main__.orderctl, arguments.split())

    assert said.exit_code == 2
    assert said.stdout == ""
    assert "\nError: " in said.stderr


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)


async def until_states(email: Email, states: dict[str, int]) -> None:
    async def so() -> bool:
        return await email.states() == states

    await until(so)


async def consuming(email: Email, wanted: dict[str, str]) -> bool:
    """What health says of it, which is half a second behind."""
    async with httpx.AsyncClient() as client:
        checks = (await client.get(f"{email.url}/health")).json()["checks"]
    return any(wanted.items() <= reading.items() for reading in checks["consumer:paused"])
