"""`orderctl deliveries`: what a service could not do, or not yet, is looked at, retried and given up here."""

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Column, Table

from deploy.orderctl.failures import Refused
from deploy.orderctl.operations import call
from deploy.orderctl.terminal import AsJson, Service, print_json, printable, say, when

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PATH = "/ops/deliveries"
EVERY = "all"
STATES = f"dead, parked, retrying, waiting, discarded, done, ignored, or {EVERY}"

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="these deliveries")]
State = Annotated[str | None, typer.Option(metavar="STATE", help="those in it: dead, parked, retrying …")]
Type = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="those of this type: order.completed …")]
Order = Annotated[str | None, typer.Option("--order", metavar="ID", help="those of this order: ord_…")]
Error = Annotated[str | None, typer.Option(metavar="TEXT", help="those that failed with this error, word for word")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only count")]


@commands.command(name="list")
def list_(
    service: Service,
    state: Annotated[str, typer.Option(metavar="STATE", help=STATES)] = "dead",
    type_: Type = None,
    order: Order = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="how many at the most")] = 20,
    after: Annotated[str | None, typer.Option(metavar="ID", help="the last one of the page before")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show deliveries, newest first: dead ones, unless you say --state."""
    wanted = {"state": None if state == EVERY else state, "type": type_, "order_id": order}
    page = {"limit": str(limit), "starting_after": after}
    found = call("GET", PATH, service=service, query=wanted | page)
    if as_json:
        print_json(found)
        return
    if not found["items"]:
        typer.echo(f"{service} has none that fits.")
        return
    _print_table(found["items"])
    if found["has_more"]:
        typer.echo(f"There are more: --after {found['items'][-1]['id']}")


@commands.command()
def show(
    service: Service,
    id_: Annotated[str, typer.Argument(metavar="ID", help="from the list")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one delivery with its whole error, and with the event if that is not settled."""
    found = call("GET", f"{PATH}/{quote(id_, safe='')}", service=service)
    if as_json:
        print_json(found)
        return
    event = found.pop("event")
    for name, value in found.items():
        typer.echo(f"{name:<16}{'-' if value is None else printable(str(value))}")
    if event is not None:
        typer.echo(f"\n{_readable(event)}")


@commands.command()
def retry(
    service: Service,
    ids: Ids = None,
    state: State = None,
    type_: Type = None,
    order: Order = None,
    error: Error = None,
    *,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Try deliveries again now, with all their attempts: these ids, or whatever fits all of the options."""
    wanted = _wanted(ids, state=state, type=type_, order_id=order, error=error)
    changed = _change(service, "retry", {**wanted, "dry_run": dry_run})
    say(changed, f"{_count(changed)} of {service} {_are(changed)} due now.", as_json=as_json)


@commands.command()
def discard(
    service: Service,
    reason: Annotated[str, typer.Option(help="why; it stays with them")],
    ids: Ids = None,
    state: State = None,
    type_: Type = None,
    order: Order = None,
    error: Error = None,
    *,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Give deliveries up: these ids, or whatever fits all of the options. A retry takes it back."""
    wanted = _wanted(ids, state=state, type=type_, order_id=order, error=error)
    changed = _change(service, "discard", {**wanted, "reason": reason, "dry_run": dry_run})
    say(changed, f"{_count(changed)} of {service} {_are(changed)} discarded.", as_json=as_json)


def _wanted(ids: list[str] | None, **criteria: str | None) -> dict[str, object]:
    """As the API takes it."""
    given = {name: value for name, value in criteria.items() if value is not None}
    if bool(ids) == bool(given):
        raise typer.BadParameter("give either ids, or --state, --type, --order, --error")
    return {"ids": ids} if ids else {"filter": given}


def _change(service: str, action: str, wanted: dict[str, object]) -> Any:  # noqa: ANN401 - JSON
    changed = call("POST", f"{PATH}/{action}", wanted, service=service)
    if not changed["matched"]:
        raise Refused(f"{service} has nothing to {action} that fits: see deliveries list {service} --state {EVERY}")
    return changed


def _count(changed: dict[str, int]) -> str:
    """How many, and how many are left, because a call changes so many at the most."""
    matched = changed["matched"]
    if changed["dry_run"] or changed["changed"] == matched:
        return f"{matched} {'delivery' if matched == 1 else 'deliveries'}"
    return f"{changed['changed']} of {matched} deliveries (say it again for the rest)"


def _are(changed: dict[str, int]) -> str:
    if changed["dry_run"]:
        return "would be"
    return "is" if changed["changed"] == 1 else "are"


def _readable(event: str) -> str:
    """What is no JSON is shown as a string of it: it may be anything."""
    try:
        return json.dumps(json.loads(event), indent=2)
    except (ValueError, RecursionError):
        return json.dumps(event)


def _print_table(found: list[dict[str, Any]]) -> None:
    # Narrow enough for any terminal, because an id with its end cut off retries nothing.
    table = Table(Column("delivery", no_wrap=True), Column("state, received (UTC)", no_wrap=True))
    table.add_column("error", overflow="fold")
    for one in found:
        names = "\n".join((one["id"], printable(one["type"]), printable(one["order_id"])))
        tries = f"{one['attempts']} {'try' if one['attempts'] == 1 else 'tries'}"
        state = f"{one['state']}, {tries}\n{when(one['received_at'])}"
        if one["next_attempt_at"]:
            state += f"\nnext {when(one['next_attempt_at'])}"
        table.add_row(names, state, printable(one["last_error"] or ""))
    Console(markup=False).print(table)
