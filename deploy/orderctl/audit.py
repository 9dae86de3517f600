"""`orderctl audit`: what people changed in a service."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from deploy.orderctl.operations import call
from deploy.orderctl.terminal import AsJson, Service, print_json, printable, when

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
def audit(
    service: Service,
    limit: Annotated[int, typer.Option(min=1, max=100, help="how many at the most")] = 20,
    *,
    as_json: AsJson = False,
) -> None:
    """Show who changed what in a service, newest first: with which key, and how many deliveries."""
    found = call("GET", "/ops/audit", service=service, query={"limit": str(limit)})
    if as_json:
        print_json(found)
        return
    whole = Column("how many, and which", overflow="fold")
    table = Table("when (UTC)", "key", "what", whole)
    for one in found["items"]:
        table.add_row(when(one["at"]), one["key_id"], one["action"], printable(one["detail"]))
    Console(markup=False).print(table)
