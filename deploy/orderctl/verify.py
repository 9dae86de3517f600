"""`orderctl verify`: looks whether everything holds that must hold, and changes nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated

import asyncpg
import typer
from rich.console import Console
from rich.table import Table

from deploy.orderctl.comparison import census, effects, money
from deploy.orderctl.database import OrderctlSettings
from deploy.orderctl.failures import Unavailable
from deploy.orderctl.rules import broken, rules_of
from deploy.orderctl.terminal import AsJson, print_json
from services.checkout.payments.port import PaymentsUnreadableError
from services.checkout.payments.stripe import StripeProvider
from shared.runtime.settings import load

commands = typer.Typer(rich_markup_mode=None)

VIOLATED = 1
CHECKOUT = "checkout"
PROVIDER = "provider"
PLACES = (
    "in the log", "in the stream", "done", "ignored", "retrying", "waiting", "parked", "dead", "discarded", "lost",
    "unknown",
)  # fmt: skip

_MOVED = """
    SELECT (SELECT max(id) FROM order_transitions), (SELECT max(id) FROM refunds), (SELECT sum(position) FROM log_head)
"""

AtRest = Annotated[bool, typer.Option("--at-rest", help="also what needs rest: nobody orders, everything is done")]
Databases = Mapping[str, asyncpg.Connection]


@dataclass(frozen=True, slots=True)
class Check:
    """A thing that was looked at: `left_out` says why it was not, `at_rest` that work under way may explain it.

    `shows_work` says that a violation of it is work under way.
    """

    where: str
    what: str
    violations: Sequence[str] = ()
    left_out: str = ""
    at_rest: bool = False
    shows_work: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """All of them, and where each service's events are."""

    checks: list[Check]
    places: dict[str, dict[str, int]]

    @property
    def violations(self) -> list[str]:
        """One line each."""
        return [f"{one.where}: {one.what}: {line}" for one in self.checks for line in one.violations]


@commands.command()
def verify(*, at_rest: AtRest = False, as_json: AsJson = False) -> None:
    """Look whether everything holds; exit status 1 if something does not. Nothing is changed.

    Besides CHECKOUT_DATABASE_URL it takes EMAIL_DATABASE_URL and so on, for whichever services they are set, and
    CHECKOUT_PAYMENTS_URL with CHECKOUT_PAYMENTS_SECRET_KEY to compare with the provider's own ledger.
    """
    url = load(OrderctlSettings).database_url.get_secret_value()
    try:
        report = asyncio.run(look(url, os.environ, at_rest=at_rest))
    except PaymentsUnreadableError as error:
        raise Unavailable(f"the payment provider's ledger cannot be read: {error}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:  # a TimeoutError is an OSError
        raise Unavailable(f"a database cannot be used: {error or type(error).__name__}") from error
    if as_json:
        print_json({**asdict(report), "violations": report.violations})
    else:
        _print(report)
    if report.violations:
        raise typer.Exit(VIOLATED)


async def look(url: str, environment: Mapping[str, str], *, at_rest: bool) -> Report:
    """Look at checkout's database, and at whatever else the environment names."""
    checks: list[Check] = []
    places: dict[str, dict[str, int]] = {}
    async with AsyncExitStack() as stack:
        # Checkout's snapshot is the oldest: what it says of others must be so by the time that they are looked at.
        checkout = await stack.enter_async_context(snapshot(url))
        databases = {CHECKOUT: checkout}
        for name in await _services(checkout):
            variable = f"{name.upper().replace('-', '_')}_DATABASE_URL"
            if theirs := environment.get(variable):
                databases[name] = await stack.enter_async_context(snapshot(theirs))
            else:
                checks.append(Check(name, "everything", left_out=f"{variable} is not set"))
        checks += [one async for one in inside(databases)]
        async for one in between(places, databases):
            checks.append(one)
        checks += await _provider(checkout, environment)
        busy = "" if at_rest else await _business(url, checkout, checks)
    return Report([_without_rest(one, busy) if busy else one for one in checks], places)


def _without_rest(check: Check, busy: str) -> Check:
    """What needs rest says nothing while there is none."""
    return replace(check, violations=(), left_out=f"not at rest: {busy}") if check.at_rest else check


async def _business(url: str, before: asyncpg.Connection, checks: Sequence[Check]) -> str:
    """What is under way, or an empty text: only then do snapshots that were taken in turn show the same moment."""
    for one in checks:
        if one.shows_work and one.violations:
            return f"{one.where}: {one.violations[0]}"
    async with snapshot(url) as now:
        moved = await now.fetchrow(_MOVED) != await before.fetchrow(_MOVED)
    return "orders came in meanwhile" if moved else ""


@asynccontextmanager
async def snapshot(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that looks at a database as it is now, however long that takes, and cannot change it."""
    scheme, rest = url.split("://", 1)
    try:
        # Without prepared statements PgBouncer may stand in between.
        connection = await asyncpg.connect(f"{scheme.partition('+')[0]}://{rest}", timeout=10, statement_cache_size=0)
    except (OSError, asyncpg.PostgresError) as error:
        raise Unavailable(f"a database cannot be used: {error or type(error).__name__}") from error
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(
                "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; SELECT 1"
            )
            yield connection
    finally:
        await connection.close()


async def inside(databases: Databases) -> AsyncIterator[Check]:
    """What must hold in each database."""
    for name, connection in databases.items():
        for what, rule in rules_of(name).items():
            lines = await broken(connection, rule)
            yield Check(name, what, lines, at_rest=rule.at_rest, shows_work=rule.shows_work)


async def between(places: dict[str, dict[str, int]], databases: Databases) -> AsyncIterator[Check]:
    """What must agree between checkout's database and each service's; fills in where each service's events are."""
    checkout = databases[CHECKOUT]
    for name in databases.keys() - {CHECKOUT}:
        found = await census(name, checkout, databases[name])
        places[name] = {place: found.places[place] for place in PLACES}
        yield Check(name, "every event is in exactly one place", found.lines)
        lines = await effects(name, checkout, databases[name])
        yield Check(name, "each order has its effect once", lines, at_rest=True)


async def _services(checkout: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await checkout.fetch("SELECT DISTINCT service FROM subscriptions ORDER BY 1")]


async def _provider(checkout: asyncpg.Connection, environment: Mapping[str, str]) -> list[Check]:
    url, key = (environment.get(name, "") for name in ("CHECKOUT_PAYMENTS_URL", "CHECKOUT_PAYMENTS_SECRET_KEY"))
    if not url or not key:
        missing = "CHECKOUT_PAYMENTS_URL or CHECKOUT_PAYMENTS_SECRET_KEY is not set"
        return [Check(PROVIDER, "everything", left_out=missing)]
    provider = StripeProvider(url.rstrip("/"), key, timeout_s=20, connect_timeout_s=5, connections=4)
    first = await checkout.fetchval("SELECT coalesce(min(created_at), now()) FROM orders")
    try:
        # A minute for two clocks that differ.
        payments = provider.payments(first - timedelta(minutes=1), datetime.now(UTC) + timedelta(minutes=1))
        found = [one async for one in money(checkout, payments)]
    finally:
        await provider.close()
    return [
        Check(PROVIDER, "what was sold was paid once", [line for line, at_rest in found if not at_rest]),
        Check(
            PROVIDER, "what was paid was sold or given back", [line for line, at_rest in found if at_rest], at_rest=True
        ),
    ]


def _print(report: Report) -> None:
    console = Console()
    table = Table("where", "what must hold", "")
    for one in report.checks:
        result = f"{len(one.violations)} violations" if one.violations else ("left out" if one.left_out else "holds")
        table.add_row(one.where, one.what, result)
    console.print(table)
    console.print(_places(report))
    for reason in dict.fromkeys(f"{one.left_out}" for one in report.checks if one.left_out):
        typer.echo(f"Left out: {reason}")
    for line in report.violations:
        typer.echo(f"Violation: {line}")


def _places(report: Report) -> Table:
    used = [place for place in PLACES if any(places[place] for places in report.places.values())]
    table = Table("events of", *used)
    for name, places in sorted(report.places.items()):
        table.add_row(name, *(str(places[place]) for place in used))
    return table
