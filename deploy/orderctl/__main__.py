"""`python -m deploy.orderctl`: what the people who run checkout do from a terminal."""

import sys
from typing import NoReturn

import typer

from deploy.orderctl import keys, partitions, subscriptions
from deploy.orderctl.operations import Refused, Unavailable
from deploy.orderctl.verify import verify
from services.checkout.commands.keys import KeyRefused
from shared.runtime.errors import is_infrastructure
from shared.runtime.supervision import brief

REFUSED = 1
EX_UNAVAILABLE = 69  # sysexits.h: the database, or checkout itself, cannot be used now

orderctl = typer.Typer(
    name="orderctl",
    help="Looks after checkout. keys needs CHECKOUT_DATABASE_URL, everything else CHECKOUT_URL and OPS_KEY.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whoever mistypes an option gets a line, not a box
)
orderctl.add_typer(keys.commands, name="keys")
orderctl.command(name="partitions")(partitions.partitions)
orderctl.add_typer(subscriptions.commands, name="subscriptions")
orderctl.command()(verify)


def main() -> None:
    """Run one command; whatever goes wrong is one line, and an exit code that a script can tell apart."""
    try:
        orderctl()
    except (KeyRefused, Refused) as error:
        _end(str(error), REFUSED)
    except Unavailable as error:
        _end(str(error), EX_UNAVAILABLE)
    except Exception as error:
        if not is_infrastructure(error):
            raise
        _end(f"the database cannot be used: {brief(error)}", EX_UNAVAILABLE)


def _end(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"orderctl: {message}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
