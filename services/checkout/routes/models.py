"""What clients may send: strict types, no unknown fields, nothing that looks like a card number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from services.checkout.domain import CHARGEABLE, MAX_TOTAL
from shared.bus.rewind import Target
from shared.contracts.currencies import DECIMALS
from shared.web.problems import Problem

# No control characters, no line separators, and nothing that lets a text show itself in another order than it has.
PLAIN = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"


def _addressable(email: str) -> str:
    """Refuse a domain that no mail server can be told: a label above 63 characters, or one outside of IDNA."""
    try:
        email.rpartition("@")[2].encode("idna")
    except UnicodeError as error:
        raise ValueError("the domain cannot be an address's") from error
    return email


def _chargeable(code: str) -> str:
    if code not in CHARGEABLE:
        known = code in DECIMALS
        raise ValueError(f"{code} cannot be charged" if known else "write the ISO 4217 code of a currency, such as EUR")
    return code


Text = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=PLAIN)]
Sku = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Currency = Annotated[
    str,
    AfterValidator(_chargeable),
    WithJsonSchema({"type": "string", "enum": sorted(CHARGEABLE), "title": "ISO 4217 code"}),
]
# One @, no white space or control characters, no display name. The mail server has the last word on the rest.
Email = Annotated[
    str,
    StringConstraints(
        max_length=254,
        pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[\p{L}\p{N}](?:[\p{L}\p{N}\p{M}.-]*[\p{L}\p{N}\p{M}])?$",
    ),
    AfterValidator(_addressable),
]

_LONGEST_NAME, _LONGEST_VALUE = 40, 500
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=_LONGEST_NAME, pattern=PLAIN)],
        Annotated[str, StringConstraints(max_length=_LONGEST_VALUE, pattern=r"^[^\x00]*$")],
    ],
    # pydantic's own says what values of plain names are, but not that there may be no others.
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"minLength": 1, "maxLength": _LONGEST_NAME, "pattern": PLAIN},
            "additionalProperties": {"type": "string", "maxLength": _LONGEST_VALUE, "pattern": r"^[^\x00]*$"},
            "maxProperties": 50,
            "default": {},
        }
    ),
]

# A number of 13 digits or more, in groups or not; \d stands for the digits of every script.
_LONG_NUMBER = re.compile(r"(?<![\dA-Za-z_-])\d(?:[ \u00a0-]?\d){12,}(?![\dA-Za-z_-])")
_CARD_DIGITS = range(13, 20)
_CARD_GROUPS = 6
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)")
# Bare, or between quotes as a structured field has it. One that only begins with a quote is a mistake.
IDEMPOTENCY_KEY = (
    r"[\x21\x23-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?"
    r'|"[\x21\x23-\x7e](?:[\x20\x21\x23-\x7e]{0,253}[\x21\x23-\x7e])?"'
)
_KEY = re.compile(IDEMPOTENCY_KEY)


def _rfc3339(text: object) -> object:
    if not isinstance(text, str) or not _DATE_AND_TIME.match(text):  # pydantic would take seconds since 1970 as well
        raise ValueError("write it as 2026-01-31T12:00:00Z")
    return text


def _in_utc(instant: datetime) -> datetime:
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("outside of the years 1 to 9999") from error


_DATE_AND_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:")
Instant = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_in_utc)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class CustomerIn(_Strict):
    """Who orders."""

    email: Email
    name: Text | None = None


class AddressIn(_Strict):
    """Where the goods go."""

    line1: Text
    line2: Text | None = None
    city: Text
    postal_code: Annotated[str, StringConstraints(min_length=1, max_length=20, pattern=PLAIN)]
    region: Text | None = None
    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]


class LineIn(_Strict):
    """A product and how many of it."""

    sku: Sku
    quantity: int = Field(ge=1, le=10_000)


class OrderIn(_Strict):
    """`POST /v1/orders`."""

    customer: CustomerIn
    currency: Currency
    lines: list[LineIn] = Field(min_length=1, max_length=100)
    payment_method: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{2,254}$")]
    shipping_address: AddressIn | None = None
    expected_total: int | None = Field(None, ge=0, le=MAX_TOTAL)
    metadata: Metadata = Field(default_factory=dict, max_length=50)


class CancelIn(_Strict):
    """`POST /v1/orders/{id}/cancel`."""

    reason: Text | None = None


class RefundIn(_Strict):
    """`POST /v1/orders/{id}/refunds`; without an amount all that is left."""

    amount: int | None = Field(None, ge=1, le=MAX_TOTAL, description="in minor units")
    reason: Text | None = None


class ProductIn(_Strict):
    """`PUT /v1/products/{sku}`."""

    name: Text
    unit_price: int = Field(ge=0, le=10**9)
    currency: Currency


class StockIn(_Strict):
    """`POST /v1/products/{sku}/stock`."""

    delta: int = Field(ge=-(10**9), le=10**9)
    reason: Text


class SubscriptionIn(_Strict):
    """`POST /ops/subscriptions`."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
    from_: str = Field("beginning", alias="from", pattern="^(beginning|now)$")


MOST = 2**53 - 1  # the largest number that every reader of JSON keeps whole


class PartitionsIn(_Strict):
    """`PUT /ops/partitions`."""

    partitions: int = Field(ge=1, le=1024, description="at least as many as there are")


class RewindIn(_Strict):
    """`POST /ops/subscriptions/{name}/rewind`: either `position` or `time`."""

    position: int | None = Field(None, ge=0, le=MOST, description="events behind this position come again")
    time: Annotated[Instant | None, Field(strict=False)] = Field(None, description="events since this time come again")
    partition: int | None = Field(None, ge=0, lt=1024, description="only this one; by default all of them")
    replay: bool = Field(default=False, description="the service forgets that it had them, so its handlers run again")
    dry_run: bool = Field(default=False, description="only count")

    @model_validator(mode="after")
    def _one_of_both(self) -> RewindIn:
        if (self.position is None) == (self.time is None):
            raise ValueError("give either position or time")
        return self

    def target(self) -> Target:
        """What the bus understands."""
        return Target(self.position, self.time, self.partition)


def fingerprint(request: BaseModel) -> bytes:
    """SHA-256 of what the request means: white space and the order of its members do not count."""
    text = request.model_dump_json()
    refuse_card_numbers(text)
    return hashlib.sha256(text.encode()).digest()


def refuse_card_numbers(text: str) -> None:
    """Raise a 422 when anything in the JSON text looks like a card number: it must not even be stored by mistake."""
    if "\\" in text:
        text = _ESCAPE.sub(" ", text)  # the n of a line break would be taken for a letter in front of the digits
    for match in _LONG_NUMBER.finditer(text):
        if any(int(digits[0]) and _luhn(digits) for digits in _candidates(match[0])):  # no card begins with a 0
            detail = "a field holds what looks like a card number; send a payment method's token, never a card"
            raise Problem(422, "card_number_refused", "Card numbers are refused", detail)


def _candidates(number: str) -> Iterator[str]:
    """The whole number, and what neighbouring groups make: a date or a security code may stand beside a card's."""
    groups = re.split(r"\D", number)
    if sum(map(len, groups)) in _CARD_DIGITS:
        yield "".join(groups)
    for start in range(len(groups)):
        for end in range(start + 1, min(start + _CARD_GROUPS, len(groups)) + 1):
            digits = "".join(groups[start:end])
            if len(digits) in _CARD_DIGITS:
                yield digits


def parse_key(header: str | None) -> str:
    """The Idempotency-Key, bare or quoted; raises a 400 that says what is wrong with it."""
    if header is None or not header.strip():
        detail = "send an Idempotency-Key header: a new one per order, the same one when you repeat the request"
        raise Problem(400, "idempotency_key_missing", "Idempotency-Key missing", detail)
    key = header.strip()
    if not _KEY.fullmatch(key):
        detail = "an Idempotency-Key is 1 to 255 printable ASCII characters"
        raise Problem(400, "idempotency_key_invalid", "Idempotency-Key invalid", detail)
    return key.removeprefix('"').removesuffix('"') if key[0] == '"' else key


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = (int(digit) * (1 + n % 2) for n, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0  # noqa: PLR2004
