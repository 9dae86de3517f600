"""Products as they were last seen: good enough to decide on, because what is decided is checked when written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from services.checkout.domain import Product, Shelf
from shared.runtime.group_commit import NotAtOnce

MOST_PRODUCTS = 10_000
CAUTION = 16  # batches that go step by step after one that found something changed


class Remembered:
    """What one process knows of the catalogue. Wrong after somebody else's sale or a new price, and never for long."""

    def __init__(self) -> None:
        """Nothing is known at first."""
        self._products: dict[str, Product] = {}
        self._caution = 0

    def shelf(self, skus: Iterable[str]) -> Shelf:
        """The products by memory. Raises NotAtOnce when one is not known or memory was wrong just now."""
        if self._caution:
            self._caution -= 1
            raise NotAtOnce("remembered products were wrong a moment ago")
        try:
            return Shelf({sku: self._products[sku] for sku in skus})
        except KeyError as error:
            raise NotAtOnce(f"{error} is not remembered") from error

    @contextmanager
    def doubted(self) -> Iterator[None]:
        """Around what is written on the strength of memory: when it is refused, memory rests for a while."""
        try:
            yield
        except NotAtOnce:
            self._caution = CAUTION
            raise

    def learn(self, products: Collection[Product]) -> None:
        """Remember products as the database has them."""
        if len(self._products) > MOST_PRODUCTS:
            self._products.clear()
        self._products.update({product.sku: product for product in products})

    def moved(self, left_over: Mapping[str, int]) -> None:
        """Remember how much is left of some products."""
        for sku, available in left_over.items():
            if product := self._products.get(sku):
                self._products[sku] = replace(product, available=available)
