"""`orderctl partitions`: the log's partitions are counted and raised here."""

import json
from typing import Annotated

import typer

from deploy.orderctl.operations import call

Number = Annotated[int | None, typer.Argument(metavar="[NUMBER]", help="raise them to so many; there is no way back")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def partitions(number: Number = None, *, as_json: AsJson = False) -> None:
    """Show how many partitions the log has, or raise their number while everything runs."""
    path = "/ops/partitions"
    said = call("GET", path) if number is None else call("PUT", path, {"partitions": number})
    typer.echo(json.dumps(said, indent=2) if as_json else f"The log has {said['partitions']} partition(s).")
