"""Idempotency keys are kept for three days, and for as long as the order for those of orders."""

from sqlalchemy import text

from services.checkout.commands.forget import Forgetting
from tests.integration.checkout.conftest import Shop


async def test_a_key_is_forgotten_after_three_days_unless_it_belongs_to_an_order(shop: Shop) -> None:
    order = (await shop.order("of-an-order")).json()
    await put(shop, "old", hours=72.1)
    await put(shop, "young", hours=71.9)
    await put(shop, "refused", hours=72.1, order="'ord_that_never_was'")
    await put(shop, "running", hours=72.1, status="NULL")
    await execute(
        shop, "UPDATE idempotency_keys SET created_at = now() - interval '72.1 hours' WHERE key = 'of-an-order'"
    )
    await execute(
        shop, "UPDATE reconciliation SET done_until = now() - interval '72.2 hours' WHERE name = 'idempotency_keys'"
    )

    forgetting = Forgetting(shop.db)
    minutes = 0
    while await forgetting.run_once():
        minutes += 1

    left = "SELECT array_agg(key ORDER BY key) FROM idempotency_keys WHERE tenant_id = 'forgetting' OR order_id = :id"
    assert (
        minutes <= 12
    )  # of which the service may have done some; what is younger than a minute waits for its next turn
    assert await shop.row(left, id=order["id"]) == ["of-an-order", "running", "young"]


async def put(shop: Shop, key: str, hours: float, order: str = "NULL", status: str = "409") -> None:
    """A key of another time."""
    await execute(
        shop,
        "INSERT INTO idempotency_keys (tenant_id, key, request_sha256, order_id, status, created_at) "
        f"VALUES ('forgetting', '{key}', '', {order}, {status}, now() - interval '{hours} hours')",
    )


async def execute(shop: Shop, sql: str) -> None:
    async with shop.db.transaction() as connection:
        await connection.execute(text(sql))
