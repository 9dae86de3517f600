"""Products and their stock."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic_core import to_json
from starlette.responses import Response

from services.checkout.commands.catalogue import AdjustStock
from services.checkout.domain import Product
from services.checkout.routes import documents
from services.checkout.routes.models import ProductIn, Sku, StockIn, fingerprint, parse_key, refuse_card_numbers
from services.checkout.routes.orders import Key, response
from services.checkout.routes.wiring import Wired
from services.checkout.store import stock
from shared.web.auth import Principal, require
from shared.web.problems import not_found

router = APIRouter(prefix="/v1/products", tags=["products"])

Reader = Annotated[Principal, Depends(require("orders:read"))]
Writer = Annotated[Principal, Depends(require("catalog:write"))]


@router.get("", summary="Products, by SKU", responses=documents.PRODUCTS)
async def page(
    wired: Wired,
    caller: Reader,  # noqa: ARG001 - being let in is all that counts
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    starting_after: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """A page of products; `starting_after` is the last SKU of the page before."""
    async with wired.db.reading() as connection:
        found = await stock.product_page(connection, starting_after, limit + 1)
    body = {"items": [product_body(one) for one in found[:limit]], "has_more": len(found) > limit}
    return Response(to_json(body), media_type="application/json")


@router.get("/{sku}", summary="One product", responses=documents.READ_PRODUCT)
async def read(wired: Wired, caller: Reader, sku: str) -> Response:  # noqa: ARG001
    """The product, its price and its stock."""
    async with wired.db.reading() as connection:
        found = await stock.product(connection, sku)
    if found is None:
        raise not_found("product")
    return Response(to_json(product_body(found)), media_type="application/json")


@router.put("/{sku}", summary="Create or change a product", responses=documents.PUT_PRODUCT)
async def put(wired: Wired, caller: Writer, sku: Sku, request: ProductIn) -> Response:  # noqa: ARG001
    """Its stock is not touched; orders placed before keep their price."""
    refuse_card_numbers(f"{sku} {request.model_dump_json()}")
    created, product = await wired.catalogue.put(sku, request.name, request.unit_price, request.currency)
    return Response(to_json(product_body(product)), 201 if created else 200, media_type="application/json")


@router.post(
    "/{sku}/stock",
    summary="Receive or write off stock",
    responses=documents.ADJUST,
    openapi_extra=documents.WITH_KEY,
)
async def adjust(wired: Wired, caller: Writer, sku: str, request: StockIn, idempotency_key: Key = None) -> Response:
    """Add `delta` units (negative: write off); never below zero."""
    key = parse_key(idempotency_key)
    command = AdjustStock(caller.tenant, key, fingerprint(request), sku, request.delta)
    return response(await wired.catalogue.adjust(command))


def product_body(product: Product) -> dict[str, object]:
    """A product as the API shows it."""
    return {
        "sku": product.sku,
        "name": product.name,
        "unit_price": product.unit_price,
        "currency": product.currency,
        "available": product.available,
        "reserved": product.reserved,
    }
