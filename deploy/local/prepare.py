"""Brings every database up to date and puts the demo catalogue in: `python -m deploy.local.prepare`.

The same as `migrate` and `seed` of the services, in one process that imports its libraries while Postgres is
still starting, because importing takes far longer than the work. That begins with a line on standard input.
"""

import asyncio
import os
import sys
from pathlib import Path

from deploy.local.settings import SERVICES
from services.checkout.app import seed
from services.checkout.settings import CheckoutSettings
from shared.runtime.migrations import upgrade
from shared.runtime.settings import load

HISTORIES = Path(__file__).resolve().parents[2] / "services"


async def prepare() -> None:
    # One after the other: alembic keeps its context in module globals.
    for name in SERVICES:
        await upgrade(os.environ[f"{name.upper()}_MIGRATOR_DATABASE_URL"], HISTORIES / name / "migrations")
    await seed(load(CheckoutSettings))


if __name__ == "__main__":
    # At the end of the input the launcher has given up, or died.
    if sys.stdin.readline():
        asyncio.run(prepare())
