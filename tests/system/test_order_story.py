"""An order on its way through all four processes, as its customer and the people behind the shop see it."""

import asyncio
import secrets
import signal
import time
from functools import cache
from typing import Any

import httpx
import pytest

from tests.support.invariants import violations
from tests.support.platform import Platform, until

pytestmark = [pytest.mark.system, pytest.mark.alone, pytest.mark.timeout(600)]


@cache
def client() -> httpx.AsyncClient:
    """One for all: each new one reads the machine's certificates first."""
    return httpx.AsyncClient(timeout=30)


async def post(shop: Platform, email: str, **changes: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {shop.env['API_KEY']}", "Idempotency-Key": secrets.token_hex(8)}
    order = {
        "customer": {"email": email, "name": "Ann"},
        "currency": "EUR",
        "lines": [{"sku": "SKU-0007", "quantity": 2}, {"sku": "SKU-0150", "quantity": 1}],
        "payment_method": "pm_card_visa",
        **changes,
    }
    return await client().post(f"{shop.env['CHECKOUT_URL']}/v1/orders", json=order, headers=headers)


async def items(shop: Platform, url: str, **query: str) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {shop.env['OPS_KEY']}"}
    answer = await client().get(url, params=query, headers=headers)
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def test_an_order_is_mailed_fulfilled_and_counted_within_a_second(shop: Platform) -> None:
    before = await gross(shop)

    answer = await post(shop, "story@example.com")
    answered = time.monotonic()
    order_id = answer.json()["id"]
    await until(lambda: everywhere(shop, order_id, "story@example.com", before + 16400), timeout_s=5)
    took = time.monotonic() - answered

    assert answer.status_code == 201
    assert answer.json()["total"] == 2 * 700 + 15000
    [mail] = await items(shop, f"{shop.env['INBOX_URL']}/api/messages", to="story@example.com")
    assert "€164.00" in mail["text"]
    assert "€14.00" in mail["text"]
    assert "Product 150" in mail["html"]
    [fulfilment] = await items(shop, f"{shop.env['WAREHOUSE_URL']}/v1/fulfilments", order_id=order_id)
    assert fulfilment["status"] == "received"
    assert [(line["sku"], line["quantity"]) for line in fulfilment["lines"]] == [("SKU-0007", 2), ("SKU-0150", 1)]
    assert took < 1.0, f"took {took:.2f} s"


async def test_orders_succeed_while_email_is_away_and_the_mails_come_when_it_is_back(shop: Platform) -> None:
    shop.kill("email", signal.SIGSTOP)
    answers = await asyncio.gather(*(post(shop, f"patient{n}@example.com") for n in range(20)))
    others_are_current = until(lambda: fulfilled(shop, {one.json()["id"] for one in answers}), timeout_s=10)
    await others_are_current
    mails_meanwhile = await items(shop, f"{shop.env['INBOX_URL']}/api/messages", to="patient0@example.com")

    shop.kill("email", signal.SIGKILL)
    await until(lambda: mailed(shop, [f"patient{n}@example.com" for n in range(20)]), timeout_s=30)

    assert {answer.status_code for answer in answers} == {201}
    assert mails_meanwhile == []


async def test_a_declined_order_is_mailed_but_never_fulfilled_or_counted_as_a_sale(shop: Platform) -> None:
    before = await gross(shop)

    answer = await post(shop, "declined@example.com", payment_method="pm_card_visa_chargeDeclined")
    order_id = answer.json()["order_id"]
    await until(lambda: mailed(shop, ["declined@example.com"]), timeout_s=10)
    await until(lambda: failed_payments_counted(shop), timeout_s=10)

    assert answer.status_code == 402
    assert await items(shop, f"{shop.env['WAREHOUSE_URL']}/v1/fulfilments", order_id=order_id) == []
    assert await gross(shop) == before
    [message] = await items(shop, f"{shop.env['EMAIL_URL']}/v1/messages", order_id=order_id)
    assert message["kind"] == "payment_failed"


async def test_at_rest_everything_adds_up(shop: Platform) -> None:
    await until(lambda: at_rest(shop), timeout_s=30)


async def at_rest(shop: Platform) -> bool:
    return await violations(shop.env) == []


async def everywhere(shop: Platform, order_id: str, email: str, expected_gross: int) -> bool:
    return all(await asyncio.gather(mailed(shop, [email]), fulfilled(shop, {order_id}), gross_is(shop, expected_gross)))


async def mailed(shop: Platform, addresses: list[str]) -> bool:
    url = f"{shop.env['INBOX_URL']}/api/messages"
    return all(len(found) == 1 for found in await asyncio.gather(*(items(shop, url, to=one) for one in addresses)))


async def fulfilled(shop: Platform, order_ids: set[str]) -> bool:
    url = f"{shop.env['WAREHOUSE_URL']}/v1/fulfilments"
    found = await asyncio.gather(*(items(shop, url, order_id=one) for one in order_ids))
    return all(len(one) == 1 for one in found)


async def gross_is(shop: Platform, expected: int) -> bool:
    return await gross(shop) == expected


async def gross(shop: Platform) -> int:
    found = await items(shop, f"{shop.env['ANALYTICS_URL']}/v1/summary")
    return sum(int(one["gross"]) for one in found if one["currency"] == "EUR")


async def failed_payments_counted(shop: Platform) -> bool:
    found = await items(shop, f"{shop.env['ANALYTICS_URL']}/v1/summary")
    return sum(int(one["payment_failed"]) for one in found) == 1
