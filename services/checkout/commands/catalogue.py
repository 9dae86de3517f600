"""The catalogue: products and what is received or written off. Rare, so each change is a transaction of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic_core import to_json

from services.checkout.commands import answers
from services.checkout.commands.answers import Answer
from services.checkout.domain import Product
from services.checkout.store import idempotency, stock
from services.checkout.store.idempotency import Claim, FinalAnswer
from shared.runtime.driver import write_together

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from shared.runtime.db import Database


@dataclass(frozen=True, slots=True)
class AdjustStock:
    """Add `delta` units to a product, once per key."""

    tenant: str
    key: str
    request_sha256: bytes
    sku: str
    delta: int

    @property
    def claim(self) -> Claim:
        """The key stands for this product too, so the same body for another one is another request."""
        return Claim(self.tenant, self.key, hashlib.sha256(self.request_sha256 + self.sku.encode()).digest())


class Catalogue:
    """Changes products and stock."""

    def __init__(self, db: Database) -> None:
        """Nothing to prepare."""
        self._db = db

    async def put(self, sku: str, name: str, unit_price: int, currency: str) -> tuple[bool, Product]:
        """Create or change a product; returns whether it is new, and the product."""

        async def work(connection: AsyncConnection) -> tuple[bool, Product]:
            created = await stock.put(connection, sku, name, unit_price, currency)
            product = await stock.product(connection, sku)
            if product is None:
                raise LookupError(sku)
            return created, product

        return await self._db.run(work)

    async def adjust(self, command: AdjustStock) -> Answer:
        """Receive or write off; 404 without the product, 409 below zero."""
        return await self._db.run(lambda connection: self._adjust(connection, command))

    async def _adjust(self, connection: AsyncConnection, command: AdjustStock) -> Answer:
        claim = command.claim
        if not await idempotency.claim_one(connection, claim):
            return await self._repeat(connection, claim)
        moved = await stock.receive(connection, command.sku, command.delta)
        product = await stock.product(connection, command.sku)
        answer = _answer(command, product, moved=moved)
        if answer.final:
            final = FinalAnswer(claim.tenant, claim.key, answer.status, answer.body)
            await write_together(connection, [idempotency.answer([final])])
        else:
            await write_together(connection, [idempotency.free([(claim.tenant, claim.key)])])
        return answer

    async def _repeat(self, connection: AsyncConnection, claim: Claim) -> Answer:
        stored = await idempotency.find(connection, claim.tenant, claim.key)
        if stored is None or stored.status is None or stored.answer is None:
            return answers.key_in_use()
        if stored.request_sha256 != claim.request_sha256:
            return answers.key_reused()
        return Answer(stored.status, stored.answer, replayed=True)


def _answer(command: AdjustStock, product: Product | None, *, moved: bool) -> Answer:
    if product is None:
        return answers.problem(404, "not_found", "Not found", "No such product.", final=False)
    if not moved:
        detail = f"{command.sku}: {product.available} available, {-command.delta} to write off"
        return answers.problem(409, "below_zero", "Not enough in stock", detail, available=product.available)
    body = {"sku": product.sku, "available": product.available, "reserved": product.reserved}
    return Answer(200, to_json(body).decode())
