"""`orderctl keys`: clients get their keys and lose them."""

import json

import pytest
from typer.testing import CliRunner

from deploy.orderctl import __main__
from tests.integration.checkout.changed_requests import refused
from tests.integration.checkout.conftest import Shop
from tests.support import orderctl as support
from tests.support.orderctl import Said
from tests.support.servers import free_port


async def orderctl(database_url: str | None, *arguments: str) -> Said:
    return await support.orderctl(*arguments, CHECKOUT_DATABASE_URL=database_url)


async def test_a_key_is_made_used_listed_and_revoked(shop: Shop, checkout_database: str) -> None:
    scopes = ("--scope", "orders:write", "--scope", "orders:read")

    made = (await orderctl(checkout_database, "keys", "create", "--tenant", "acme", *scopes, "--json")).json
    answer = await shop.order(api_key=made["key"])
    before = (await orderctl(checkout_database, "keys", "list", "--tenant", "acme", "--json")).json
    revoked = (await orderctl(checkout_database, "keys", "revoke", made["id"], "--json")).json
    after = (await orderctl(checkout_database, "keys", "list", "--json")).json

    assert answer.status_code == 201
    assert (made["tenant"], made["scopes"], made["rate"]) == ("acme", ["orders:read", "orders:write"], None)
    assert "@" in made["created_by"]
    key = made.pop("key")
    assert before == {"items": [made]}
    assert revoked["revoked_at"]
    assert revoked in after["items"]
    assert key not in json.dumps([before, revoked, after])
    assert {one["tenant"] for one in after["items"]} >= {"acme", "demo"}


async def test_people_see_a_table_and_the_key_on_a_line_of_its_own(shop: Shop, checkout_database: str) -> None:
    arguments = ("--tenant", "people", "--scope", "orders:read", "--rate", "0.5", "--burst", "1")

    made = await orderctl(checkout_database, "keys", "create", *arguments)
    listed = await orderctl(checkout_database, "keys", "list", "--tenant", "people")

    assert (made.code, made.err) == (0, "")
    [key] = [line for line in made.out.splitlines() if line.startswith("osk_")]
    assert "only time that it is shown" in made.out
    assert "0.5/s, 1" in listed.out
    key_id = await shop.row("SELECT id FROM api_keys WHERE tenant_id = 'people'")
    assert key_id in listed.out, "whole, also on a narrow terminal"
    assert key not in listed.out
    assert (await shop.get("/v1/orders", api_key=key)).status_code == 200
    refused(await shop.get("/v1/orders", api_key=key), 429, "rate_limited")


async def test_what_is_refused_is_one_line_and_exit_code_1(checkout_database: str) -> None:
    third = await orderctl(checkout_database, "keys", "create", "--tenant", "demo", "--scope", "orders:read")
    nothing = await orderctl(checkout_database, "keys", "revoke", "key_none")

    assert (third.code, nothing.code) == (1, 1)
    assert third.err == "orderctl: demo has 2 active keys (key_demo, key_ops): revoke one of them first\n"
    assert nothing.err == "orderctl: there is no active key key_none\n"
    assert third.out == nothing.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "create", "--tenant", "x"),
        ("keys", "create", "--scope", "orders:read"),
        ("keys", "create", "--tenant", "x", "--scope", "orders:delete"),
        ("keys", "create", "--tenant", "x", "--scope", "orders:read", "--rate", "0"),
        ("keys", "create", "--tenant", "x", "--scope", "orders:read", "--burst", "5"),
        ("keys", "revoke"),
        ("keys", "burn"),
    ],
)
def test_a_command_that_is_mistyped_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    """In this process, because it never gets as far as the database: there is no setting that names one."""
    said = CliRunner(env={"CHECKOUT_DATABASE_URL": None}).invoke(__main__.orderctl, arguments)

    assert said.exit_code == 2
    assert said.stdout == ""
    assert "\nError: " in said.stderr


async def test_without_its_database_it_says_so_in_one_line() -> None:
    unset = await orderctl(None, "keys", "list")
    wrong = await orderctl("mysql://root:hunter2@localhost/x", "keys", "list")
    away = await orderctl(f"postgresql://checkout:hunter2@127.0.0.1:{free_port()}/checkout", "keys", "list")

    assert (unset.code, unset.err) == (78, "configuration: CHECKOUT_DATABASE_URL is not set\n")
    assert (wrong.code, away.code) == (78, 69)
    assert away.err.startswith("orderctl: the database cannot be used: ")
    for said in (unset, wrong, away):
        assert said.err.count("\n") == 1
        assert "hunter2" not in said.err
