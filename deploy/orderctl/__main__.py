"""`python -m deploy.orderctl`: what the people who run Orderstream do from a terminal."""

import sys
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_group
from typing_extensions import override

from deploy.orderctl.failures import Misconfigured, Refused, Unavailable

# Command -> where it is (a module's `commands`: one of them, or all of them as a group), and what it is for.
COMMANDS = {
    "deliveries": ("deliveries", "What a service could not do: look, retry, discard."),
    "pause": ("consuming", "Stop a service from consuming events, until somebody resumes it."),
    "resume": ("consuming", "Let a service consume events again."),
    "audit": ("audit", "Show who changed what in a service, and when."),
    "subscriptions": ("subscriptions", "The services that read the log."),
    "partitions": ("partitions", "Show how many partitions the log has, or raise them."),
    "keys": ("keys", "The keys of clients."),
    "verify": ("verify", "Look whether everything holds, and change nothing."),
}


class Commands(TyperGroup):
    """Imports a command when it is chosen: those that need a database take a second for it."""

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # typer keeps its types for these to itself
        name, summary, rest = super().resolve_command(ctx, args)
        if name is None or summary is None:
            return name, summary, rest
        group = get_group(import_module(f"deploy.orderctl.{COMMANDS[name][0]}").commands)
        command = group.commands.get(name, group)
        command.help = command.help or summary.help
        return name, command, rest


orderctl = typer.Typer(
    name="orderctl",
    cls=Commands,
    help="Looks after Orderstream. keys and verify need CHECKOUT_DATABASE_URL, everything else OPS_KEY and the address "
    "of whom it asks: CHECKOUT_URL, EMAIL_URL and so on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whoever mistypes an option gets a line, not a box
)
for _name, (_, _summary) in COMMANDS.items():
    orderctl.add_typer(typer.Typer(), name=_name, help=_summary)  # for the list of commands


def main() -> None:
    """Run one command; whatever goes wrong is one line, and an exit code that a script can tell apart."""
    try:
        orderctl()
    except (Refused, Unavailable) as error:
        _end(f"orderctl: {error}", error.code)
    except Misconfigured as error:
        _end(f"configuration: {error}", error.code)


def _end(line: str, code: int) -> NoReturn:
    sys.stderr.write(f"{line}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
