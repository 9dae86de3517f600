"""Amounts for people: minor units with the decimals of their currency."""

from shared.contracts.currencies import DECIMALS


def display(amount: int, currency: str) -> str:
    code = currency.upper()
    digits = DECIMALS.get(code, 2)
    whole, fraction = divmod(amount, 10**digits)
    decimals = f".{fraction:0{digits}d}" if digits else ""
    return f"{whole:,}{decimals} {code}"
