"""The opening of a batch: move orders, claim keys and lock products, in one round trip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from services.checkout.domain import Product, Shelf
from services.checkout.store import idempotency, orders, stock
from services.checkout.store.idempotency import Claim
from services.checkout.store.orders import Change
from shared.runtime.statements import together

# In this order, everywhere: orders, then keys, then products. Two batches can wait for each other, never in a circle.
_OPEN = together(
    (orders.MOVE, idempotency.CLAIM, stock.LOCK),
    """
    SELECT 'moved' AS kind, id AS a, NULL AS b, NULL AS currency, 0 AS unit_price, 0 AS available FROM moved
    UNION ALL SELECT 'claimed', tenant_id, key, NULL, 0, 0 FROM claimed
    UNION ALL SELECT 'held', sku, name, currency, unit_price, available FROM held
    """,
)


@dataclass(frozen=True, slots=True)
class Opening:
    """What the batch has got: orders that moved, keys that were free, products that are locked."""

    moved: frozenset[str]
    claimed: frozenset[tuple[str, str]]
    shelf: Shelf


async def begin(
    connection: AsyncConnection, changes: Sequence[Change], claims: Sequence[Claim], skus: Iterable[str]
) -> Opening:
    """Run the opening statement."""
    writes = (orders.move(changes), idempotency.claim(claims), stock.lock(skus))
    values = {name: value for write in writes for name, value in write.values.items()}
    rows = (await connection.execute(_OPEN, values)).all()
    return Opening(
        moved=frozenset(row.a for row in rows if row.kind == "moved"),
        claimed=frozenset((row.a, row.b) for row in rows if row.kind == "claimed"),
        shelf=Shelf(
            {
                row.a: Product(row.a, row.b, row.unit_price, row.currency, row.available)
                for row in rows
                if row.kind == "held"
            }
        ),
    )
