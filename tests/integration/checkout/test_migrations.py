"""The database is what the code believes it to be."""

from shared.runtime.migrations import check
from tests.integration.checkout.conftest import MIGRATIONS


async def test_the_migrations_make_the_tables_that_the_code_declares(checkout_database: str) -> None:
    await check(checkout_database, MIGRATIONS)
