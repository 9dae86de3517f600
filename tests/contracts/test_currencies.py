"""The table of currencies has what people pay with, and nothing else."""

from datetime import date

import pytest
from babel.core import get_global
from babel.numbers import get_currency_precision, get_territory_currencies

from shared.contracts.currencies import DECIMALS

DAY = date(2026, 11, 1)
# Where babel's own table tells of coins and notes rather than of the minor unit of ISO 4217.
OUT_OF_USE = {"AFN", "ALL", "IQD", "IRR", "KPW", "LAK", "LBP", "MGA", "MMK", "RSD", "SOS", "SYP", "YER"}


def test_it_has_what_is_tender_somewhere() -> None:
    tender = {code for territory in get_global("territory_currencies") for code in _tender(territory)}

    assert tender - set(DECIMALS) <= {"BGN"}, "Bulgaria pays in euros since 2026"
    assert set(DECIMALS) - tender <= {"SVC", "VED"}, "of ISO 4217 although nobody has such coins"


@pytest.mark.parametrize("code", ["XXX", "XTS", "XAU", "XDR", "CHE", "CLF", "eur", "EURO", "", "ABC", "DEM"])
def test_it_has_no_codes_without_prices(code: str) -> None:
    assert code not in DECIMALS


def test_decimals_are_those_of_the_minor_unit() -> None:
    assert {code for code in DECIMALS if DECIMALS[code] != get_currency_precision(code)} <= OUT_OF_USE
    assert (DECIMALS["RSD"], DECIMALS["IQD"], DECIMALS["MGA"]) == (2, 3, 2)


def _tender(territory: str) -> list[str]:
    found: list[str] = get_territory_currencies(territory, DAY, DAY)
    return found
