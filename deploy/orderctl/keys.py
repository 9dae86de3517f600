"""`orderctl keys`: a client's keys are made, listed and revoked here."""

import getpass
import math
import socket
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from deploy.orderctl.database import with_database
from deploy.orderctl.terminal import AsJson, print_json
from services.checkout.commands import keys
from services.checkout.commands.keys import CreateKey, Scope
from services.checkout.store.keys import StoredKey, listed
from shared.contracts.envelope import rfc3339
from shared.runtime.db import Database
from shared.web.limits import Quota

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Tenant = Annotated[str, typer.Option(help="the client that the key belongs to; a new name makes a new client")]
Scopes = Annotated[list[Scope], typer.Option("--scope", help="what the key opens; repeat it for more")]
Rate = Annotated[float | None, typer.Option(min=0.001, max=10**6, help="requests per second, per process")]
Burst = Annotated[int | None, typer.Option(min=1, max=10**6, help="requests at once; by default those of a second")]


@commands.command()
def create(tenant: Tenant, scopes: Scopes, rate: Rate = None, burst: Burst = None, *, as_json: AsJson = False) -> None:
    """Make a key and show it, this once. A client has two active keys at the most."""
    if burst is not None and rate is None:
        raise typer.BadParameter("--burst needs --rate")
    quota = Quota(rate, burst or math.ceil(rate)) if rate is not None else None
    command = CreateKey(tenant, scopes, quota, _operator())
    made, key = with_database(lambda db: keys.create(db, command))
    if as_json:
        print_json({**_body(made), "key": key})
        return
    _print_table([made])
    typer.echo(f"\n{key}\n\nThis is the only time that it is shown: only its SHA-256 is kept.")


@commands.command(name="list")
def list_(
    tenant: Annotated[str | None, typer.Option(help="only this client's")] = None, *, as_json: AsJson = False
) -> None:
    """Show the keys, revoked ones too, without what they are."""

    async def work(db: Database) -> list[StoredKey]:
        async with db.reading() as connection:
            return await listed(connection, tenant)

    found = with_database(work)
    if as_json:
        print_json({"items": [_body(one) for one in found]})
    else:
        _print_table(found)


@commands.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="key_…")], *, as_json: AsJson = False) -> None:
    """Revoke a key. Every process refuses it within five seconds."""
    revoked = with_database(lambda db: keys.revoke(db, key_id, _operator()))
    if as_json:
        print_json(_body(revoked))
    else:
        _print_table([revoked])


def _operator() -> str:
    """Who to ask later: nobody proves it, so it is a note and no evidence."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _body(key: StoredKey) -> dict[str, object]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "rate": key.rate,
        "burst": key.burst,
        "created_at": rfc3339(key.created_at),
        "created_by": key.created_by,
        "revoked_at": rfc3339(key.revoked_at) if key.revoked_at else None,
        "revoked_by": key.revoked_by,
    }


def _print_table(found: Iterable[StoredKey]) -> None:
    whole = partial(Column, no_wrap=True)  # an id with its end cut off revokes nothing
    table = Table(whole("id"), whole("tenant"), "scopes", whole("rate"), "created", "revoked")
    for key in found:
        rate = f"{key.rate:g}/s, {key.burst}" if key.rate else "default"
        made, ended = _when(key.created_at, key.created_by), _when(key.revoked_at, key.revoked_by)
        table.add_row(key.id, key.tenant, " ".join(sorted(key.scopes)), rate, made, ended)
    Console().print(table)


def _when(at: datetime | None, by: str | None) -> str:
    return f"{at:%Y-%m-%d %H:%M} {by or ''}".rstrip() if at else ""
