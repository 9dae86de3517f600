"""A whole batch in one statement, which commits by itself: one round trip and one fsync, and no lock held in between.

It is written on the assumption that nothing stands in its way. The statement takes its locks in the usual order, checks
the assumption under them, and raises, so that nothing is written, when it does not hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from asyncpg import PostgresError
from sqlalchemy import BigInteger, Text, bindparam
from sqlalchemy.ext.asyncio import AsyncConnection

from services.checkout.domain import Product
from services.checkout.store import idempotency, orders, stock
from services.checkout.store.idempotency import Claim
from services.checkout.store.orders import Change
from shared.runtime.driver import Direct
from shared.runtime.group_commit import NotAtOnce
from shared.runtime.statements import Many, Part, Write, together

# What a broken assumption looks like: ours (see migration 0005), a CHECK (somebody else took the last unit), or the
# loser of a deadlock. Nothing is written, and taking the locks step by step finds out what there is to say.
_REFUSALS = frozenset({"OS001", "23514", "40001", "40P01"})


@dataclass(frozen=True, slots=True)
class Assumption:
    """What must be found: every order as it was, every key free, every product as it was remembered."""

    changes: Sequence[Change]
    claims: Sequence[Claim]
    products: Collection[Product]
    skus: Collection[str]


async def commit(
    connection: AsyncConnection, assumption: Assumption, writes: Sequence[Write], appends: Sequence[tuple[Write, Write]]
) -> Mapping[str, int]:
    """Write all of it, and return what is now available of the products whose stock has moved.

    Raises NotAtOnce when the assumption does not hold; nothing is written then.
    """
    opening = (orders.move(assumption.changes), idempotency.claim(assumption.claims), stock.lock(assumption.skus))
    every = [*opening, *writes, *(write for pair in appends for write in pair)]
    values = {name: value for write in every for name, value in write.values.items()} | _expected(assumption, appends)
    parts, appended = tuple(write.part for write in every), tuple(pair[1].part for pair in appends)
    try:
        row = await _statement(parts, appended).one(connection, values)
    except PostgresError as error:
        if error.sqlstate in _REFUSALS:
            raise NotAtOnce(str(error)) from error
        raise
    return (row and row.left_over) or {}


def _expected(assumption: Assumption, appends: Sequence[tuple[Write, Write]]) -> dict[str, object]:
    products = sorted(assumption.products, key=lambda product: product.sku)
    return {
        "moves": len(assumption.changes),
        "claims": len(assumption.claims),
        "known": len(products),
        "known_skus": [product.sku for product in products],
        "known_names": [product.name for product in products],
        "known_prices": [product.unit_price for product in products],
        "known_currencies": [product.currency for product in products],
        "appends": len(appends),
    }


@lru_cache(maxsize=256)
def _statement(parts: tuple[Part, ...], appended: tuple[Part, ...]) -> Direct:
    """The conditions are looked at one after the other, and each fetches its rows then: that is the order of the locks.

    The log's head comes last of all. What is not asked for is written after the conditions. LEFT JOIN, because it reads
    `held` to its end: an inner join stops where the known products end, and the rest would be locked by the update of
    the stock, behind the log's head and in any order.
    """
    counts = [f"(SELECT least(count(*), 1) FROM {part.name})" for part in appended]  # noqa: S608 - names of our own
    moved = any(part is stock.MOVE for part in parts)
    left_over = "(SELECT json_object_agg(sku, available) FROM moved_stock)" if moved else "NULL::json"
    statement = together(
        parts,
        f"""
        SELECT insist(
            (SELECT count(*) FROM moved) = :moves
            AND (SELECT count(*) FROM claimed) = :claims
            AND (SELECT count(e.sku)
                 FROM held
                 LEFT JOIN unnest(:known_skus, :known_names, :known_prices, :known_currencies)
                      AS e (sku, name, unit_price, currency) USING (sku, name, unit_price, currency)) = :known
            AND {" + ".join(counts) or 0} = :appends
        ) AS holds, {left_over} AS left_over
        """,  # noqa: S608 - names of our own
    )
    return Direct(
        statement.bindparams(
            *(bindparam(f"known_{name}", type_=Many(Text)) for name in ("skus", "names", "currencies")),
            bindparam("known_prices", type_=Many(BigInteger)),
        )
    )
