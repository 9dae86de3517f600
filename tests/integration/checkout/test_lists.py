"""Lists, page by page: everything once, in order, whatever is added meanwhile."""

from typing import Any

import pytest

from services.checkout.commands import keys
from services.checkout.commands.keys import CreateKey, Scope
from tests.integration.checkout.conftest import Shop


async def walked(shop: Shop, path: str, api_key: str, **query: str | int) -> list[dict[str, Any]]:
    """All pages, one after the other."""
    items: list[dict[str, Any]] = []
    more = True
    while more:
        page = (await shop.get(path, api_key=api_key, **query)).json()
        items += page["items"]
        more = page["has_more"]
        assert page["items"] or not more
        if more:
            query["starting_after"] = page["items"][-1].get("id") or page["items"][-1]["sku"]
    return items


async def client(shop: Shop, tenant: str) -> str:
    """The key of a client without orders."""
    command = CreateKey(tenant, (Scope.ORDERS_READ, Scope.ORDERS_WRITE), None, "test")
    _, key = await keys.create(shop.db, command)
    return key


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 100])
async def test_pages_of_any_size_have_every_order_once_and_the_newest_first(shop: Shop, limit: int) -> None:
    key = await client(shop, f"pages-{limit}")
    placed = [(await shop.order(api_key=key)).json() for _ in range(5)]

    assert await walked(shop, "/v1/orders", key, limit=limit) == placed[::-1]


async def test_an_order_that_is_placed_meanwhile_shifts_no_page(shop: Shop) -> None:
    key = await client(shop, "meanwhile")
    placed = [(await shop.order(api_key=key)).json()["id"] for _ in range(4)]
    first = (await shop.get("/v1/orders", api_key=key, limit=2)).json()
    await shop.order(api_key=key)

    rest = await walked(shop, "/v1/orders", key, limit=2, starting_after=first["items"][-1]["id"])

    assert [one["id"] for one in first["items"]] == placed[:1:-1]
    assert [one["id"] for one in rest] == placed[1::-1]


async def test_filters_narrow_a_list_together(shop: Shop) -> None:
    key = await client(shop, "filters")
    paid = (await shop.order("paid", api_key=key)).json()
    declined = (await shop.order("declined", api_key=key, payment_method="pm_card_visa_chargeDeclined")).json()
    latest = (await shop.order("latest", api_key=key)).json()

    async def found(**query: str) -> list[str]:
        return [one["id"] for one in await walked(shop, "/v1/orders", key, **query)]

    assert await found(status="completed") == [latest["id"], paid["id"]]
    assert await found(status="failed") == [declined["order_id"]]
    assert await found(idempotency_key="declined") == [declined["order_id"]]
    assert await found(idempotency_key="declined", status="completed") == []
    assert await found(created_gte=latest["created_at"]) == [latest["id"]]
    assert await found(created_gte=latest["created_at"], status="failed") == []
    assert await found(created_gte="2999-01-01T00:00:00Z") == []


async def test_products_come_by_sku_a_hundred_at_a_time_at_the_most(shop: Shop) -> None:
    first = (await shop.get("/v1/products", limit=100)).json()

    everything = [one["sku"] for one in await walked(shop, "/v1/products", await client(shop, "skus"), limit=100)]

    assert (len(first["items"]), first["has_more"]) == (100, True)
    assert everything == sorted(everything)
    assert len(set(everything)) == len(everything) == await shop.row("SELECT count(*) FROM products")
