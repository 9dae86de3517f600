"""No card number is ever taken, kept or repeated, in whichever field it comes."""

from typing import Any

import pytest

from tests.integration.checkout.changed_requests import CARD, address, customer, has_card, refused, wanting
from tests.integration.checkout.conftest import Shop

CARDS: list[dict[str, Any]] = [
    customer(name=CARD),
    customer(email=f"{CARD}@example.com"),
    customer(name="Visa 4111 1111 1111 1111 12/30"),
    customer(name="4111-1111-1111-1111"),
    customer(name="4111\u00a01111\u00a01111\u00a01111"),
    customer(name="\uff14" + "\uff11" * 15),
    address(line2="378282246310005"),
    address(postal_code="4222222222222"),
    {"metadata": {CARD: "x"}},
    {"metadata": {"4111 1111 1111 1111": "x"}},
    {"metadata": {"note": f"card\n{CARD}\nthanks"}},
    {"metadata": {"note": f"card:\t{CARD}"}},
    {"metadata": {"note": f'"{CARD}"'}},
    {"metadata": {"note": "no. 17 4111 1111 1111 1111 123"}},
    {"metadata": {"note": " ".join(CARD)}},
    {"metadata": {"note": "6304 0000 0000 0000 000"}},
    wanting(CARD),
    {"lines": [{"sku": CARD, "quantity": 1}, {"sku": CARD, "quantity": 1}]},
]


@pytest.mark.parametrize("changes", CARDS)
async def test_a_card_number_is_refused_wherever_it_stands_and_never_repeated(
    shop: Shop, changes: dict[str, Any], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    before = await shop.written()

    answer = await shop.order(**changes)

    refused(answer, 422, "card_number_refused")
    told = answer.text + caplog.text + "".join(capfd.readouterr())
    assert not has_card(told)
    assert await shop.written() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"payment_method": CARD},
        {"4111 1111 1111 1111": 1},
        {"4111-1111-1111-1111": 1, CARD: 2},
        {"metadata": {"4111 1111 1111 1111 is the number of my card": "x"}},
        {"metadata": {"4111.1111.1111.1111": 1}},
        wanting(f"{CARD} "),
    ],
)
async def test_a_card_number_in_a_wrong_place_is_not_repeated_by_the_error(shop: Shop, changes: dict[str, Any]) -> None:
    answer = await shop.order(**changes)

    assert answer.status_code == 422
    assert not has_card(answer.text), answer.text


@pytest.mark.parametrize("number", ["0" * 16, "4111111111111112", "1" * 25, "550e8400-e29b-41d4-a716-446655440000"])
async def test_a_long_number_that_is_no_card_is_only_a_number(shop: Shop, number: str) -> None:
    assert (await shop.order(metadata={"reference": number})).status_code == 201
