"""`orderctl subscriptions` and `orderctl partitions`: who reads the log, by the ops API of a real checkout."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from deploy.orderctl import __main__
from deploy.orderctl.failures import Refused
from tests.integration.checkout.conftest import API_KEY, OPS_KEY
from tests.integration.checkout.process import checkout_process
from tests.integration.sandboxes.programs import Payments
from tests.support import orderctl as support
from tests.support.orderctl import Said
from tests.support.servers import free_port


@pytest_asyncio.fixture(scope="module")
async def url(checkout_database: str, redis_url: str, payments_server: Payments) -> AsyncIterator[str]:
    async with checkout_process(checkout_database, redis_url, payments_server) as program:
        yield program.url


async def orderctl(url: str | None, *arguments: str, key: str | None = OPS_KEY) -> Said:
    return await support.orderctl("subscriptions", *arguments, CHECKOUT_URL=url, OPS_KEY=key)


async def test_a_service_is_added_listed_and_removed(url: str) -> None:
    added = await orderctl(url, "add", "loyalty", "--from", "now")
    listed = (await orderctl(url, "list", "--json")).json
    table = await orderctl(url, "list")
    removed = (await orderctl(url, "remove", "loyalty", "--json")).json
    after = (await orderctl(url, "list", "--json")).json

    assert (added.code, added.out) == (0, "loyalty is subscribed.\n")
    assert {one["name"] for one in listed["items"]} == {"analytics", "email", "loyalty", "warehouse"}
    assert "loyalty" in table.out
    assert removed == {"name": "loyalty"}
    assert "loyalty" not in json.dumps(after)


async def test_what_is_refused_is_one_line_and_exit_code_1(url: str) -> None:
    unknown = await orderctl(url, "rewind", "nobody/else", "--position", "0")
    early = await orderctl(url, "rewind", "email", "--time", "2020-01-01T00:00:00Z", "--dry-run")
    mistyped = await orderctl(url, "rewind", "email", "--time", "yesterday")
    unnamed = await orderctl(url, "add", "Loyalty")
    no_operator = await orderctl(url, "list", key=API_KEY)

    for said in (unknown, early, mistyped, unnamed, no_operator):
        assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
        assert said.err.startswith("orderctl: ")
    assert "those events are still to come" in early.err
    assert "write it as 2026-01-31T12:00:00Z" in mistyped.err
    assert "The key does not open ops." in no_operator.err


def test_the_number_of_partitions_is_shown_and_raised(url: str) -> None:
    """In this process: it is the same call as every other command's."""
    runner = CliRunner(env={"CHECKOUT_URL": url, "OPS_KEY": OPS_KEY})

    before = runner.invoke(__main__.orderctl, ("partitions",))
    raised = runner.invoke(__main__.orderctl, ("partitions", "2", "--json"))
    lowered = runner.invoke(__main__.orderctl, ("partitions", "1"))

    assert before.stdout == "The log has 1 partition(s).\n"
    assert json.loads(raised.stdout) == {"partitions": 2}
    assert isinstance(lowered.exception, Refused)
    assert "can only be raised" in str(lowered.exception)


async def test_without_checkout_it_says_so_in_one_line() -> None:
    away = await orderctl(f"http://127.0.0.1:{free_port()}", "list")
    unset = await orderctl(None, "list")
    keyless = await orderctl("http://127.0.0.1:1", "list", key=None)
    wrong = await orderctl("postgresql://hunter2@localhost", "list")

    assert away.code == 69
    assert away.err.startswith("orderctl: checkout at http://127.0.0.1:")
    assert (unset.code, unset.err) == (78, "configuration: CHECKOUT_URL is not set: where checkout answers\n")
    assert (keyless.code, keyless.err) == (78, "configuration: OPS_KEY is not set: a key that opens ops\n")
    assert (wrong.code, wrong.err) == (78, "configuration: CHECKOUT_URL: must start with http:// or https://\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("add",),
        ("add", "loyalty", "--from", "yesterday"),
        ("remove",),
        ("rewind", "email"),
        ("rewind", "email", "--position", "-1"),
        ("rewind", "email", "--position", "0", "--time", "2026-01-31T12:00:00Z"),
        ("burn",),
    ],
)
def test_a_command_that_is_mistyped_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    """In this process, because it never gets as far as checkout: there is no setting that names one."""
    said = CliRunner(env={"CHECKOUT_URL": None}).invoke(__main__.orderctl, ("subscriptions", *arguments))

    assert said.exit_code == 2
    assert said.stdout == ""
    assert "\nError: " in said.stderr
