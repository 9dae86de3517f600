"""Giving money back, as clients ask for it."""

import json
import secrets
from typing import Any

import httpx
from sqlalchemy import text

from tests.integration.checkout.conftest import API_KEY, Shop


async def bought(shop: Shop, sku: str = "SKU-0010", *, quantity: int = 1) -> str:
    """The id of a completed order; SKU-0010 costs 1,000."""
    answer = await shop.order(lines=[{"sku": sku, "quantity": quantity}])
    assert answer.status_code == 201, answer.text
    order_id: str = answer.json()["id"]
    return order_id


async def refund(
    shop: Shop, order_id: str, key: str | None = None, *, api_key: str = API_KEY, **request: Any
) -> httpx.Response:
    """Ask for a refund."""
    return await _ask(shop.http, f"/v1/orders/{order_id}/refunds", key, api_key, request)


async def cancel(
    shop: Shop, order_id: str, key: str | None = None, *, api_key: str = API_KEY, **request: Any
) -> httpx.Response:
    """Ask for a cancellation, without a body when there is nothing to say."""
    return await _ask(shop.http, f"/v1/orders/{order_id}/cancel", key, api_key, request or None)


async def events_of(shop: Shop, order_id: str) -> list[tuple[str, int, dict[str, Any]]]:
    """Type, version and data of each event of the order."""
    query = text("SELECT event FROM event_log WHERE subject = :id ORDER BY position")
    async with shop.db.reading() as connection:
        found = [json.loads(event) for event in await connection.scalars(query, {"id": order_id})]
    return [(event["type"], event["orderversion"], event["data"]) for event in found]


async def given_back(shop: Shop, order_id: str) -> int:
    """What the provider's own ledger says went back."""
    refunded: int = (await shop.payments.row(order_id))["refunded"]  # type: ignore[assignment]
    return refunded


async def _ask(
    http: httpx.AsyncClient, path: str, key: str | None, api_key: str, request: dict[str, Any] | None
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {api_key}", "Idempotency-Key": key or secrets.token_hex(8)}
    return await http.post(path, json=request, headers=headers)
