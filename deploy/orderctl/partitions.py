"""`orderctl partitions`: the log's partitions are counted and raised here."""

from typing import Annotated

import typer

from deploy.orderctl.operations import call
from deploy.orderctl.terminal import AsJson, say

commands = typer.Typer(rich_markup_mode=None)

Number = Annotated[int | None, typer.Argument(metavar="[NUMBER]", help="raise them to so many; there is no way back")]


@commands.command()
def partitions(number: Number = None, *, as_json: AsJson = False) -> None:
    """Show how many partitions the log has, or raise their number while everything runs."""
    path = "/ops/partitions"
    said = call("GET", path) if number is None else call("PUT", path, {"partitions": number})
    say(said, f"The log has {said['partitions']} partition(s).", as_json=as_json)
