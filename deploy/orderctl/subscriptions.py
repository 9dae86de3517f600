"""`orderctl subscriptions`: services that read the log are added, removed and rewound here."""

from enum import StrEnum
from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Column, Table

from deploy.orderctl.operations import call
from deploy.orderctl.terminal import AsJson, print_json, say, when

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="the service's")]
Position = Annotated[int | None, typer.Option(min=0, help="events behind this position come again; 0 is everything")]
Time = Annotated[str | None, typer.Option(metavar="TIME", help="events since this time: 2026-01-31T12:00:00Z")]
Partition = Annotated[int | None, typer.Option(min=0, help="only this one; by default all of them")]
Replay = Annotated[bool, typer.Option("--replay", help="the service forgets that it had them: its handlers run again")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only count")]


class From(StrEnum):
    """Where a new subscription begins."""

    BEGINNING = "beginning"
    NOW = "now"


@commands.command(name="list")
def list_(*, as_json: AsJson = False) -> None:
    """Show who reads the log, and how far everybody is."""
    found = call("GET", "/ops/subscriptions")
    if as_json:
        print_json(found)
        return
    table = Table(Column("service", no_wrap=True), "partition", "written", "published", "settled", "to do", "moved")
    for one in found["items"]:
        numbers = (str(one[name]) for name in ("partition", "head", "cursor", "settled", "backlog"))
        table.add_row(one["name"], *numbers, when(one["moved_at"]))
    Console().print(table)


@commands.command()
def add(
    name: Name,
    from_: Annotated[From, typer.Option("--from", help="where it begins")] = From.BEGINNING,
    *,
    as_json: AsJson = False,
) -> None:
    """Subscribe a service; one that is subscribed already stays as it is."""
    added = call("POST", "/ops/subscriptions", {"name": name, "from": from_})
    say(added, f"{name} is subscribed.", as_json=as_json)


@commands.command()
def remove(name: Name, *, as_json: AsJson = False) -> None:
    """Remove a service's subscription. It gets no further events; what it has is its own."""
    call("DELETE", _path(name))
    say({"name": name}, f"{name} is removed.", as_json=as_json)


@commands.command()
def rewind(
    name: Name,
    position: Position = None,
    time: Time = None,
    partition: Partition = None,
    *,
    replay: Replay = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let a service have events again. What its ledger has is dropped, unless you say --replay."""
    if (position is None) == (time is None):
        raise typer.BadParameter("give either --position or --time")
    target = {"position": position, "time": time, "partition": partition, "replay": replay, "dry_run": dry_run}
    done = call("POST", f"{_path(name)}/rewind", target)
    say(done, f"{done['events']} events {'would come' if dry_run else 'come'} again.", as_json=as_json)


def _path(name: str) -> str:
    return f"/ops/subscriptions/{quote(name, safe='')}"
