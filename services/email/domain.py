from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import assert_never

from babel.numbers import format_currency

from shared.contracts.currencies import DECIMALS
from shared.contracts.orders import (
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    ORDER_PAYMENT_FAILED,
    ORDER_REFUNDED,
    OrderRefunded,
    OrderState,
)

LOCALE = "en_US"
MAX_ATTEMPTS = 13  # with the delays below: about seven hours, which outlives greylisting and a full mailbox's night
FIRST_DELAY_S = 60.0
LONGEST_DELAY_S = 3600.0
UNKNOWN_DELAY_S = 5.0
INTERRUPTED_DELAY_S = 2.0
OUTAGE_DELAY_S = 1.0
MAX_INTERRUPTIONS = 20
MAX_ERROR = 500


class Kind(StrEnum):
    """The mails that there are, named like their templates."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    REFUNDED = "refunded"
    PAYMENT_FAILED = "payment_failed"


KINDS: dict[str, Kind] = {
    ORDER_COMPLETED: Kind.COMPLETED,
    ORDER_CANCELLED: Kind.CANCELLED,
    ORDER_REFUNDED: Kind.REFUNDED,
    ORDER_PAYMENT_FAILED: Kind.PAYMENT_FAILED,
}

SUBJECTS: dict[Kind, str] = {
    Kind.COMPLETED: "Your order {order_id}: thank you",
    Kind.CANCELLED: "Your order {order_id} is cancelled",
    Kind.REFUNDED: "A refund of {amount} for your order {order_id}",
    Kind.PAYMENT_FAILED: "The payment for your order {order_id} failed",
}


class Status(StrEnum):
    """What became of a mail."""

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    SUPPRESSED = "suppressed"


class Verdict(StrEnum):
    """What one attempt to send came to: a closed set."""

    SENT = "sent"
    LATER = "later"  # 4yz: this mail, not now
    REFUSED = "refused"  # 5yz, or an address that cannot exist: this mail, never
    OUTAGE = "outage"  # 421 or no connection: nothing goes out now, no attempt is spent
    INTERRUPTED = "interrupted"  # the connection broke before the final dot: certainly not sent
    UNKNOWN = "unknown"  # the connection broke after the final dot: perhaps sent
    MISCONFIGURED = "misconfigured"  # our credentials are refused: nothing goes out until somebody looks
    SUPPRESSED = "suppressed"  # the address is on the suppression list


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail taken out of the queue. `token` is the fence: only its taker may record what became of it."""

    id: str
    token: int
    kind: Kind
    order_id: str
    message_id: str
    recipient: str
    subject: str
    content: str
    attempts: int
    unknowns: int
    interruptions: int
    suppressed: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to be recorded about a letter."""

    id: str
    token: int
    status: Status
    attempts: int
    unknowns: int
    interruptions: int
    delay_s: float = 0.0
    error: str | None = None


def verdict_of_reply(code: int) -> Verdict:
    """What a mail server's refusal means (RFC 5321, 4.2; RFC 4954, 6)."""
    if code == 421:  # noqa: PLR2004 - service not available, closing the channel
        return Verdict.OUTAGE
    if code in {530, 534, 535, 538}:  # authentication required, too weak, refused, needs encryption
        return Verdict.MISCONFIGURED
    if 400 <= code < 500:  # noqa: PLR2004
        return Verdict.LATER
    return Verdict.REFUSED if 500 <= code < 600 else Verdict.INTERRUPTED  # noqa: PLR2004


def decide(letter: Letter, verdict: Verdict, detail: str) -> Outcome:
    """What becomes of a letter after one attempt, which is counted in `letter.attempts` already."""
    error = detail[:MAX_ERROR] or None
    match verdict:
        case Verdict.SENT:
            outcome = _outcome(letter, Status.SENT)
        case Verdict.SUPPRESSED:
            outcome = _outcome(letter, Status.SUPPRESSED, attempts=letter.attempts - 1)
        case Verdict.REFUSED:
            outcome = _outcome(letter, Status.FAILED, error=error)
        case Verdict.LATER:
            outcome = _later(letter, error)
        case Verdict.OUTAGE | Verdict.MISCONFIGURED:
            # The short delay lets another mail be the next probe.
            delay = OUTAGE_DELAY_S if error else 0.0
            outcome = _outcome(letter, Status.QUEUED, attempts=letter.attempts - 1, delay_s=delay, error=error)
        case Verdict.INTERRUPTED:
            outcome = _interrupted(letter, error)
        case Verdict.UNKNOWN:
            outcome = _unknown(letter, error)
        case _:
            assert_never(verdict)
    return outcome


def delay_s(attempts: int) -> float:
    """After the n-th refusal: 1, 2, 4 … minutes, an hour at the most."""
    return min(FIRST_DELAY_S * 2.0 ** (attempts - 1), LONGEST_DELAY_S)


def message_id(kind: Kind, order_id: str, reference: str, domain: str) -> str:
    """One Message-ID per order and kind (and refund), the same however often the mail is made."""
    name = ".".join(part for part in (kind, order_id, reference) if part)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,150}", name):
        name = f"{kind}.{sha256(name.encode('utf-8', 'replace')).hexdigest()}"
    return f"<{name}@{domain}>"


def subject_of(kind: Kind, order: OrderState) -> str:
    """The subject line."""
    amount = money(order.amount, order.currency) if isinstance(order, OrderRefunded) else ""
    return one_line(SUBJECTS[kind].format(order_id=order.order_id, amount=amount))


@lru_cache(maxsize=4096)  # prices repeat, and babel takes 20 µs for each
def money(amount: int, currency: str) -> str:
    """An amount in minor units as people read it: `€12.50`, `¥1,250`, `KWD 1.250`."""
    # Not babel's own decimals: it leaves out those that nobody pays with any more, and 123.45 RSD would become 12,345.
    decimals = DECIMALS.get(currency, 2)
    pattern = f"¤#,##0.{'0' * decimals}".rstrip(".")
    value = Decimal(amount).scaleb(-decimals)
    shown = format_currency(value, currency, pattern, LOCALE, currency_digits=False).replace("\N{NO-BREAK SPACE}", " ")
    return _CODE_BEFORE_DIGITS.sub(" ", shown)


def one_line(text: str) -> str:
    """Text for a header: without control characters, line ends and overrides of the direction of writing."""
    return " ".join(_NOT_IN_A_LINE.sub(" ", text).split())


_CODE_BEFORE_DIGITS = re.compile(r"(?<=[A-Z])(?=\d)")
_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _later(letter: Letter, error: str | None) -> Outcome:
    if letter.attempts >= MAX_ATTEMPTS:
        return _outcome(letter, Status.FAILED, error=error)
    return _outcome(letter, Status.QUEUED, delay_s=delay_s(letter.attempts), error=error)


def _interrupted(letter: Letter, error: str | None) -> Outcome:
    seen = letter.interruptions + 1
    if seen >= MAX_INTERRUPTIONS:
        return _outcome(letter, Status.FAILED, interruptions=seen, error=f"interrupted {seen} times: {error}")
    return _outcome(
        letter,
        Status.QUEUED,
        attempts=letter.attempts - 1,
        interruptions=seen,
        delay_s=min(INTERRUPTED_DELAY_S * 2.0 ** (seen - 1), LONGEST_DELAY_S),
        error=error,
    )


def _unknown(letter: Letter, error: str | None) -> Outcome:
    """The mail may have arrived: once more with the same Message-ID, and never again."""
    if letter.unknowns:
        return _outcome(letter, Status.FAILED, unknowns=2, error=f"outcome unknown twice, not sent again: {error}")
    return _outcome(letter, Status.QUEUED, unknowns=1, delay_s=UNKNOWN_DELAY_S, error=error)


def _outcome(
    letter: Letter,
    status: Status,
    *,
    attempts: int | None = None,
    unknowns: int | None = None,
    interruptions: int | None = None,
    delay_s: float = 0.0,
    error: str | None = None,
) -> Outcome:
    return Outcome(
        letter.id,
        letter.token,
        status,
        letter.attempts if attempts is None else attempts,
        letter.unknowns if unknowns is None else unknowns,
        letter.interruptions if interruptions is None else interruptions,
        delay_s,
        error,
    )
