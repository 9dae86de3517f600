"""What all commands take and print in the same way."""

import json
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Service = Annotated[str, typer.Argument(metavar="SERVICE", help="email, analytics, warehouse, or one of your own")]


def print_json(body: object) -> None:
    """JSON for scripts, and for people who read JSON."""
    typer.echo(json.dumps(body, indent=2))


def say(body: object, line: str, *, as_json: bool) -> None:
    """The line, or the whole answer as JSON."""
    if as_json:
        print_json(body)
    else:
        typer.echo(line)


def when(time: str | None) -> str:
    """A time of the API to the minute."""
    return f"{time:.16}".replace("T", " ") if time else ""


def printable(text: str) -> str:
    """Text of whoever wrote it: nothing in it may steer the terminal."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
