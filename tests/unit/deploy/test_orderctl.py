"""Whoever is called at night waits for no import: a command brings only what it needs."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from deploy.orderctl.__main__ import COMMANDS, orderctl

HEAVY = {"sqlalchemy", "asyncpg", "fastapi", "uvicorn", "redis", "pydantic_settings", "aiohttp"}
OVER_HTTP = sorted(COMMANDS.keys() - {"keys", "verify"})  # these two look into a database


def test_commands_that_ask_over_http_import_neither_database_nor_server() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from deploy.orderctl.__main__ import orderctl;"
        f"codes = [CliRunner().invoke(orderctl, [name, '--help']).exit_code for name in {OVER_HTTP}];"
        "print(max(codes), *sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    worst, *imported = said.split()
    assert worst == "0"
    assert "deploy.orderctl.deliveries" in imported
    assert HEAVY & set(imported) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_is_listed_is_there_and_says_what_it_does(name: str) -> None:
    said = CliRunner().invoke(orderctl, [name, "--help"])

    assert said.exit_code == 0
    assert said.stdout.startswith(f"Usage: orderctl {name} ")


def test_a_command_that_is_mistyped_is_named_as_it_should_be() -> None:
    said = CliRunner().invoke(orderctl, ["delivery", "list"])

    assert said.exit_code == 2
    assert "Did you mean 'deliveries'?" in said.stderr
