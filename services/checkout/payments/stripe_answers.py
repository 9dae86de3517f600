"""What is believed of Stripe's answers: nothing, until it has been checked against what was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, NamedTuple, TypeVar

import structlog
from pydantic import (
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from services.checkout.payments.port import (
    Cancelled,
    Captured,
    Charge,
    Declined,
    NotExecuted,
    Outcome,
    PaymentSeen,
    Refund,
    Refunded,
    RefundOutcome,
    RefundRefused,
    RequiresAction,
    Unknown,
)
from shared.runtime import metrics

log = structlog.get_logger()

OK = 200
DECLINED = 402
LOCKED = 409
TOO_MANY = 429
# Refused because of what the client asked for. Any other 4xx is a mistake of ours, and no customer's card is at fault.
ORDERS_OWN = frozenset({"payment_method", "amount", "currency"})
INVALID_METHOD = "invalid_payment_method"

# What a provider says is untrusted input, and some of it is stored: short, and nothing that Postgres cannot keep.
Word = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]
IntentId = Annotated[str, StringConstraints(max_length=255, pattern=r"^pi_\w+$")]
RefundId = Annotated[str, StringConstraints(max_length=255, pattern=r"^(re|pyr)_\w+$")]


def _or_none(value: object, validate: ValidatorFunctionWrapHandler) -> str | None:
    """What only explains a certain answer is dropped when it cannot be read; the answer stays certain."""
    try:
        text: str | None = validate(value)
    except ValidationError:
        return None
    return text


Hint = Annotated[Word | None, WrapValidator(_or_none)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Cause(_Part):
    code: Hint = None
    decline_code: Hint = None


class _Charge(_Part):
    amount_refunded: int


class _Intent(_Part):
    """What is believed of a payment intent."""

    id: IntentId
    status: Word
    amount: int
    amount_received: int = 0
    currency: Word
    metadata: dict[str, str]
    client_secret: Word | None = None
    last_payment_error: _Cause | None = None


class _ListedIntent(_Intent):
    created: int
    latest_charge: _Charge | str | None = None


class _Refund(_Part):
    id: RefundId
    status: Word
    amount: int
    currency: Word
    payment_intent: IntentId
    metadata: dict[str, str]
    failure_reason: Hint = None


class _Reference(_Part):
    id: Hint = None


class _Error(_Cause):
    type: Word
    message: str = ""
    param: Hint = None
    payment_intent: _Reference | None = None


class _Failure(_Part):
    error: _Error


class _List(_Part):
    data: list[object]
    has_more: bool = False


class _Page(_Part):
    data: list[_ListedIntent]
    has_more: bool


class Answer(NamedTuple):
    """Status, headers and JSON body (None when it is none)."""

    status: int
    headers: Mapping[str, str]
    body: object

    @property
    def replayed(self) -> bool:
        """Whether this is what was answered when the key was first used."""
        return self.headers.get("Idempotent-Replayed") == "true"


Part = TypeVar("Part", bound=_Part)


def _read(part: type[Part], body: object) -> Part | None:
    try:
        return part.model_validate(body)
    except ValidationError:
        return None


def outcome_of(charge: Charge, answer: Answer) -> Outcome:
    """What an answer to a charge means."""
    if answer.status == OK:
        return _of_intent(charge, answer.body)
    error = _error_of(answer)
    if not isinstance(error, _Error):
        return error
    if answer.status == DECLINED:
        reference = error.payment_intent.id if error.payment_intent else None
        return Declined(error.decline_code or error.code or "declined", reference)
    # 400, 404 …: the provider read the request and refused it before doing anything; the same request never works.
    if error.param == "payment_method":
        return Declined(INVALID_METHOD)
    if error.param in ORDERS_OWN:
        return Declined(error.code or error.type)
    log.error("payment provider refuses our request", status=answer.status, code=error.code, message=error.message)
    return NotExecuted(f"the provider answered {answer.status}")


def outcome_of_refund(refund: Refund, answer: Answer) -> RefundOutcome:
    """What an answer to a refund means."""
    if answer.status == OK:
        return _of_refund(refund, answer.body)
    error = _error_of(answer)
    return RefundRefused(error.code or error.type) if isinstance(error, _Error) else error


def found_payment(charge: Charge, answer: Answer) -> Outcome:
    """What a search for the order's payments says: money that moved counts before anything else."""
    listed = _read(_List, answer.body) if answer.status == OK else None
    if listed is None or listed.has_more:
        return Unknown(f"the look-up answered {answer.status}", down=answer.status >= 500)  # noqa: PLR2004
    outcomes = [_of_intent(charge, one) for one in listed.data]
    for kind in (Captured, Unknown, RequiresAction):
        for outcome in outcomes:
            if isinstance(outcome, kind):
                return outcome
    return outcomes[0] if outcomes else NotExecuted("the provider knows no payment of this order")


def found_refund(refund: Refund, answer: Answer) -> RefundOutcome:
    """What the list of a payment's refunds says about this one."""
    listed = _read(_List, answer.body) if answer.status == OK else None
    if listed is None:
        return Unknown(f"the look-up answered {answer.status}", down=answer.status >= 500)  # noqa: PLR2004
    for one in listed.data:
        if _refund_id(one) == refund.refund_id:
            return _of_refund(refund, one)
    if listed.has_more:  # an order has a handful of refunds; a page holds a hundred
        return Unknown("the payment has too many refunds to look through")
    return NotExecuted("the provider knows no such refund")


def unfinished(body: object) -> str | None:
    """The id of a payment whose story goes on after this answer."""
    intent = _read(_Intent, body)
    return intent.id if intent and intent.status in {"requires_action", "processing"} else None


def page_of_payments(answer: Answer) -> tuple[Sequence[PaymentSeen], bool] | None:
    """A page of the provider's ledger, and whether there is more; None when it cannot be read."""
    page = _read(_Page, answer.body) if answer.status == OK else None
    return ([_seen(intent) for intent in page.data], page.has_more) if page else None


def _seen(intent: _ListedIntent) -> PaymentSeen:
    charge = intent.latest_charge
    return PaymentSeen(
        reference=intent.id,
        order_id=intent.metadata.get("order_id"),
        tenant=intent.metadata.get("tenant"),
        amount=intent.amount,
        currency=intent.currency.upper(),
        captured=intent.amount_received,
        refunded=charge.amount_refunded if isinstance(charge, _Charge) else 0,
        status=intent.status,
        created=datetime.fromtimestamp(intent.created, UTC),
    )


def _error_of(answer: Answer) -> _Error | NotExecuted | Unknown:
    """What says that an answer other than 200 means: the error is given back when it is a refusal of this request."""
    status = answer.status
    if status == TOO_MANY:
        return NotExecuted("the provider answered 429", _retry_after_s(answer.headers))
    if status == LOCKED or status >= 500:  # noqa: PLR2004 - the class of server errors
        # 409: this call did nothing, but another one with the same key is at work, and that one may.
        return Unknown(f"the provider answered {status}", down=status != LOCKED)
    failure = _read(_Failure, answer.body)
    if failure is None:
        return Unknown(f"the provider answered {status} without a reason")
    error = failure.error
    if error.type == "idempotency_error":
        # The key was used with other parameters: never ours to guess what became of that.
        log.error("payment provider says that a key was reused", message=error.message)
        return Unknown("idempotency_error")
    if status in {401, 403}:
        log.error("payment provider refuses our key", status=status, message=error.message)
        return NotExecuted(f"the provider answered {status}")
    return error


def _of_intent(charge: Charge, body: object) -> Outcome:
    intent = _read(_Intent, body)
    wrong = _mismatch(charge, intent) if intent else "unreadable answer"
    if wrong or intent is None:
        return _not_believed(charge.order_id, wrong or "")
    if intent.status == "succeeded":
        return Captured(intent.id)
    if intent.status == "requires_action":
        return RequiresAction(intent.id, intent.client_secret or "")
    if intent.status == "canceled":
        return Cancelled()
    if intent.status == "requires_payment_method":
        cause = intent.last_payment_error or _Cause()
        return Declined(cause.decline_code or cause.code or intent.status, intent.id)
    return Unknown(f"payment intent is {intent.status}")


def _mismatch(charge: Charge, intent: _Intent) -> str | None:
    """What in the answer is not ours; an answer is believed only when there is nothing."""
    if intent.metadata.get("order_id") != charge.order_id:
        return "another order's payment"
    if intent.currency.upper() != charge.currency:
        return f"currency {intent.currency}, not {charge.currency}"
    if intent.amount != charge.amount or (intent.status == "succeeded" and intent.amount_received != charge.amount):
        return f"amount {intent.amount_received} of {intent.amount}, not {charge.amount}"
    return None


def _of_refund(refund: Refund, body: object) -> RefundOutcome:
    made = _read(_Refund, body)
    wrong = _refund_mismatch(refund, made) if made else "unreadable answer"
    if wrong or made is None:
        return _not_believed(refund.order_id, wrong or "")
    if made.status == "succeeded":
        return Refunded(made.id)
    if made.status in {"failed", "canceled"}:
        return RefundRefused(made.failure_reason or made.status)
    return Unknown(f"the refund is {made.status}")


def _refund_mismatch(refund: Refund, made: _Refund) -> str | None:
    if made.metadata.get("refund_id") != refund.refund_id or made.payment_intent != refund.payment_reference:
        return "another refund"
    if made.currency.upper() != refund.currency or made.amount != refund.amount:
        return f"refund of {made.amount} {made.currency}, not {refund.amount} {refund.currency}"
    return None


def _refund_id(body: object) -> str | None:
    metadata = body.get("metadata") if isinstance(body, dict) else None
    return metadata.get("refund_id") if isinstance(metadata, dict) else None


def _not_believed(order_id: str, why: str) -> Unknown:
    metrics.PAYMENT_ANSWERS_NOT_BELIEVED.inc()
    log.error("payment answer does not fit the order", order_id=order_id, mismatch=why)
    return Unknown(why)


def parsed(content: bytes) -> object:
    """The JSON of an answer; None when it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if value.isdecimal() and len(value) < 6 else None  # noqa: PLR2004 - a day has five digits
