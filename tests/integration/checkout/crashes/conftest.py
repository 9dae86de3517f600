"""A theatre for stories about processes that die."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.checkout import app as checkout_app
from shared.runtime.migrations import upgrade
from tests.integration.checkout.conftest import MIGRATIONS, settings_for
from tests.integration.checkout.crashes.stages import Theatre
from tests.integration.sandboxes.programs import Payments
from tests.support.pgbouncer import direct
from tests.support.servers import NewDatabase

AT_ONCE = 6  # stages; most of their time they wait for a lease to run out


@pytest_asyncio.fixture(scope="module")
async def theatre(
    new_database: NewDatabase, redis_url: str, payments_server: Payments, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Theatre]:
    template = await new_database()
    await upgrade(direct(template), MIGRATIONS)
    await checkout_app.seed(settings_for(direct(template), redis_url, payments_server.program.url))
    made = Theatre(template, payments_server, tmp_path_factory.mktemp("theatre"), AT_ONCE)
    yield made
    await made.close()
