"""Currencies with other decimals than two, from the catalogue to the provider's ledger."""

import pytest

from services.checkout.routes.documents import OrderOut
from tests.integration.checkout.changed_requests import headers, refused
from tests.integration.checkout.conftest import Shop


@pytest.mark.parametrize(("currency", "price"), [("JPY", 1250), ("KWD", 1250), ("KRW", 7), ("CHF", 5), ("BHD", 10)])
async def test_a_price_is_charged_in_the_minor_units_of_its_currency(shop: Shop, currency: str, price: int) -> None:
    sku = f"IN-{currency}"
    await shop.product(sku, stock=10, price=price, currency=currency)

    answer = await shop.order(currency=currency, lines=[{"sku": sku, "quantity": 3}], expected_total=3 * price)

    order = OrderOut.model_validate(answer.json())
    assert (answer.status_code, order.total, order.currency) == (201, 3 * price, currency)
    [capture] = await shop.captures(order.id)
    assert (capture["captured"], capture["currency"].upper()) == (3 * price, currency)
    assert (await shop.get(f"/v1/products/{sku}")).json()["currency"] == currency


async def test_a_third_decimal_that_no_card_can_pay_is_refused_before_anybody_is_asked_for_it(shop: Shop) -> None:
    await shop.product("FILS", stock=100, price=123, currency="KWD")
    before = await shop.written()

    odd = await shop.order(currency="KWD", lines=[{"sku": "FILS", "quantity": 1}])

    problem = refused(odd, 422, "total_not_chargeable", "/lines")
    assert "in steps of 10" in problem["detail"]
    assert await shop.written() == before
    assert await shop.stock("FILS") == (100, 0, 0)
    even = await shop.order(currency="KWD", lines=[{"sku": "FILS", "quantity": 10}])
    assert (even.status_code, even.json()["total"]) == (201, 1230)


@pytest.mark.parametrize("currency", ["ISK", "MGA", "UGX"])
async def test_what_the_provider_would_count_otherwise_is_not_sold(shop: Shop, currency: str) -> None:
    product = {"name": "x", "unit_price": 500, "currency": currency}

    put = await shop.http.put("/v1/products/OTHERWISE", json=product, headers=headers())
    order = await shop.order(currency=currency)

    for answer in (put, order):
        problem = refused(answer, 422, "validation_failed", "/currency")
        assert f"{currency} cannot be charged" in problem["detail"]


async def test_products_of_two_currencies_are_no_order(shop: Shop) -> None:
    await shop.product("YEN", stock=1, price=100, currency="JPY")

    mixed = await shop.order(lines=[{"sku": "SKU-0001", "quantity": 1}, {"sku": "YEN", "quantity": 1}])

    refused(mixed, 422, "currency_mismatch", "/currency")
