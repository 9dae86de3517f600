"""The amount in a mail is the amount that was charged."""

import pytest

from services.email.domain import money


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (1250, "EUR", "€12.50"),
        (123456789, "USD", "$1,234,567.89"),
        (1250, "JPY", "¥1,250"),
        (1250, "KWD", "KWD 1.250"),
        (12345, "RSD", "RSD 123.45"),
        (12345, "IQD", "IQD 12.345"),
        (12345, "ISK", "ISK 12,345"),
        (5, "EUR", "€0.05"),
        (0, "CHF", "CHF 0.00"),
    ],
)
def test_an_amount_has_the_decimals_of_its_minor_unit(amount: int, currency: str, shown: str) -> None:
    assert money(amount, currency) == shown
