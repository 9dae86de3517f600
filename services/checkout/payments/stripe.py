"""The adapter for Stripe and everything that speaks its API.

https://docs.stripe.com/api/idempotent_requests, https://docs.stripe.com/error-low-level
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote, urlencode

import structlog
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    TCPConnector,
)
from pydantic import (
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from yarl import URL

from services.checkout.payments.port import (
    Captured,
    Charge,
    Declined,
    NotExecuted,
    Outcome,
    RequiresAction,
    Semantics,
    Unknown,
)

log = structlog.get_logger()

API_VERSION = "2026-09-30.clover"  # pinned: the provider must not change its answers under us
# Written out: encoding the same pairs for every charge was a sixth of its cost.
_CONFIRM = (
    "confirm=true&automatic_payment_methods%5Benabled%5D=true&automatic_payment_methods%5Ballow_redirects%5D=never"
)
OK = 200
DECLINED = 402
LOCKED = 409
TOO_MANY = 429
FAILURES = (ClientError, OSError, ValueError)  # asyncio's TimeoutError is an OSError


# What a provider says is untrusted input, and some of it is stored: short, and nothing that Postgres cannot keep.
Word = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]


def _or_none(value: object, validate: ValidatorFunctionWrapHandler) -> str | None:
    """What only explains a certain answer is dropped when it cannot be read; the answer stays certain."""
    try:
        text: str | None = validate(value)
    except ValidationError:
        return None
    return text


Hint = Annotated[Word | None, WrapValidator(_or_none)]


class _Intent(BaseModel):
    """What is believed of a payment intent."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: Word
    status: Word
    amount: int
    amount_received: int = 0
    currency: Word
    metadata: dict[str, str]
    client_secret: Word | None = None
    last_payment_error: _Cause | None = None


class _Cause(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    code: Hint = None
    decline_code: Hint = None


class _Reference(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    id: Hint = None


class _Error(_Cause):
    type: Word
    message: str = ""
    payment_intent: _Reference | None = None


class _Failure(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    error: _Error


class _Search(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    data: list[object]


class StripeProvider:
    """Charges over the payment-intents API, one call per charge."""

    semantics = Semantics(key_window_h=24.0, replays_declines=True, finds_by_order=True)

    def __init__(
        self, base_url: str, secret_key: str, *, timeout_s: float, connect_timeout_s: float, connections: int
    ) -> None:
        """Nothing is sent before the first call. Call from inside the running event loop."""
        self._charges = URL(f"{base_url}/v1/payment_intents", encoded=True)
        connector = TCPConnector(limit=connections, keepalive_timeout=15, ttl_dns_cache=30)
        # `total` also ends an answer that drips: the other time-outs count from byte to byte.
        timeout = ClientTimeout(total=connect_timeout_s + timeout_s, connect=connect_timeout_s, sock_read=timeout_s)
        headers = {
            "Authorization": f"Bearer {secret_key}",
            "Stripe-Version": API_VERSION,
            "User-Agent": "orderstream-checkout",
        }
        # Not `trust_env`: looking for a proxy in the environment costs more than the whole call.
        self._session = ClientSession(
            connector=connector, timeout=timeout, headers=headers, cookie_jar=DummyCookieJar()
        )

    async def charge(self, charge: Charge) -> Outcome:
        """Create and confirm a payment intent in one call."""
        form = (
            f"{_CONFIRM}&amount={charge.amount}&currency={charge.currency.lower()}"
            f"&payment_method={quote(charge.method)}&metadata%5Border_id%5D={quote(charge.order_id)}"
            f"&metadata%5Btenant%5D={quote(charge.tenant)}"
        )
        try:
            status, headers, body = await self._call("POST", self._charges, form=form, key=charge.key)
        except FAILURES as error:
            return NotExecuted(_reason(error)) if _never_sent(error) else Unknown(_reason(error))
        return _outcome(charge, status, headers, body)

    async def look_up(self, charge: Charge) -> Outcome:
        """Search for the order's payment intent."""
        query = urlencode({"query": f"metadata['order_id']:'{charge.order_id}'"})
        try:
            status, _, body = await self._call("GET", URL(f"{self._charges}/search?{query}", encoded=True))
        except FAILURES as error:
            return Unknown(_reason(error))
        found = _found(body) if status == OK else None
        if found is None:
            return Unknown(f"look-up answered {status}")
        return _of_intent(charge, found[0]) if found else NotExecuted("the provider knows no payment of this order")

    async def ping(self) -> None:
        """Any answer will do: what counts is that somebody is there."""
        await self._call("GET", self._charges.with_query(limit=1))

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def _call(
        self, method: str, url: URL, *, form: str | None = None, key: str | None = None
    ) -> tuple[int, Mapping[str, str], object]:
        """Status, headers and JSON body (None when it is none). Raises one of `FAILURES`."""
        headers = {"Idempotency-Key": key} if key else {}
        content = None
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            content = form.encode()
        async with self._session.request(method, url, data=content, headers=headers, allow_redirects=False) as answer:
            return answer.status, answer.headers, _json(await answer.read())


def _never_sent(error: Exception) -> bool:
    """Whether not a byte of the request has left: the one failure of the network that is certain."""
    return isinstance(error, ClientConnectorError | ConnectionTimeoutError)


def _outcome(charge: Charge, status: int, headers: Mapping[str, str], body: object) -> Outcome:
    if status == OK:
        return _of_intent(charge, body)
    if status == TOO_MANY:
        return NotExecuted("the provider answered 429", _retry_after_s(headers))
    if status == LOCKED or status >= 500:  # noqa: PLR2004 - the class of server errors
        # 409: this call did nothing, but another one with the same key is at work, and that one may.
        return Unknown(f"the provider answered {status}")
    error = _error_of(body)
    if error is None:
        return Unknown(f"the provider answered {status} without a reason")
    if status == DECLINED:
        reference = error.payment_intent.id if error.payment_intent else None
        return Declined(error.decline_code or error.code or "declined", reference)
    return _of_refusal(status, error)


def _of_refusal(status: int, error: _Error) -> Outcome:
    if error.type == "idempotency_error":
        # The key was used with other parameters: never ours to guess what became of that.
        log.error("payment provider says that a key was reused", message=error.message)
        return Unknown("idempotency_error")
    if status in {401, 403}:
        log.error("payment provider refuses our key", status=status, message=error.message)
        return NotExecuted(f"the provider answered {status}")
    # 400, 404 …: the provider read the request and refused it before doing anything; the same request never works.
    return Declined(error.code or error.type)


def _of_intent(charge: Charge, body: object) -> Outcome:
    try:
        intent = _Intent.model_validate(body)
    except ValidationError as error:
        return Unknown(f"unreadable answer: {error.error_count()} errors")
    wrong = _mismatch(charge, intent)
    if wrong:
        log.error("payment answer does not fit the order", order_id=charge.order_id, mismatch=wrong)
        return Unknown(wrong)
    if intent.status == "succeeded":
        return Captured(intent.id)
    if intent.status == "requires_action":
        return RequiresAction(intent.id, intent.client_secret or "")
    if intent.status in {"requires_payment_method", "canceled"}:
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


def _error_of(body: object) -> _Error | None:
    try:
        return _Failure.model_validate(body).error
    except ValidationError:
        return None


def _found(body: object) -> list[object] | None:
    try:
        return _Search.model_validate(body).data
    except ValidationError:
        return None


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if value.isdecimal() and len(value) < 6 else None  # noqa: PLR2004 - a day has five digits


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
