"""Amounts for people: minor units with the decimals of their currency (ISO 4217)."""

NO_DECIMALS = frozenset(
    {
        "bif",
        "clp",
        "djf",
        "gnf",
        "isk",
        "jpy",
        "kmf",
        "krw",
        "pyg",
        "rwf",
        "ugx",
        "vnd",
        "vuv",
        "xaf",
        "xof",
        "xpf",
    }
)
THREE_DECIMALS = frozenset({"bhd", "jod", "kwd", "lyd", "omr", "tnd"})


def display(amount: int, currency: str) -> str:
    digits = 0 if currency in NO_DECIMALS else 3 if currency in THREE_DECIMALS else 2
    whole, fraction = divmod(amount, 10**digits)
    decimals = f".{fraction:0{digits}d}" if digits else ""
    return f"{whole:,}{decimals} {currency.upper()}"
