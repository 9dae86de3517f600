"""The adapter for Stripe and everything that speaks its API.

https://docs.stripe.com/api/idempotent_requests, https://docs.stripe.com/error-low-level
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import httpx
import structlog
from aiohttp import ClientConnectorError, ClientSession, ClientTimeout, ConnectionTimeoutError, TCPConnector
from httpx_aiohttp import AiohttpTransport
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
OK = 200
DECLINED = 402
LOCKED = 409
TOO_MANY = 429


class _Intent(BaseModel):
    """What is believed of a payment intent: strict, because a provider's answer is untrusted input."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str = Field(min_length=1, max_length=255)
    status: str
    amount: int
    amount_received: int = 0
    currency: str
    metadata: dict[str, str]
    client_secret: str | None = None
    last_payment_error: dict[str, Any] | None = None


class _Error(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: str
    code: str | None = None
    decline_code: str | None = None
    message: str = ""
    payment_intent: dict[str, Any] | None = None


class StripeProvider:
    """Charges over the payment-intents API, one call per charge."""

    semantics = Semantics(key_window_h=24.0, replays_declines=True, finds_by_order=True)

    def __init__(
        self, base_url: str, secret_key: str, *, timeout_s: float, connect_timeout_s: float, connections: int
    ) -> None:
        """Nothing is sent before the first call. Call from inside the running event loop."""
        connector = TCPConnector(limit=connections, keepalive_timeout=30, ttl_dns_cache=30)
        # aiohttp's transport under httpx' interface: five to six times the calls per second of httpx' own.
        transport = AiohttpTransport(client=ClientSession(connector=connector, timeout=ClientTimeout(total=None)))
        # Only httpx' own time-outs end a call: cancelling one from outside can leave its pool broken for good.
        timeout = httpx.Timeout(timeout_s, connect=connect_timeout_s, pool=connect_timeout_s)
        headers = {
            "Authorization": f"Bearer {secret_key}",
            "Stripe-Version": API_VERSION,
            "User-Agent": "orderstream-checkout",
        }
        self._http = httpx.AsyncClient(base_url=base_url, headers=headers, transport=transport, timeout=timeout)

    async def charge(self, charge: Charge) -> Outcome:
        """Create and confirm a payment intent in one call."""
        form = {
            "amount": str(charge.amount),
            "currency": charge.currency.lower(),
            "payment_method": charge.method,
            "confirm": "true",
            "automatic_payment_methods[enabled]": "true",
            "automatic_payment_methods[allow_redirects]": "never",
            "metadata[order_id]": charge.order_id,
            "metadata[tenant]": charge.tenant,
        }
        headers = {"Idempotency-Key": charge.key, "Content-Type": "application/x-www-form-urlencoded"}
        try:
            answer = await self._http.post("/v1/payment_intents", content=urlencode(form), headers=headers)
        except httpx.HTTPError as error:
            return NotExecuted(_reason(error)) if _never_sent(error) else Unknown(_reason(error))
        return _outcome(charge, answer)

    async def look_up(self, charge: Charge) -> Outcome:
        """Search for the order's payment intent."""
        query = {"query": f"metadata['order_id']:'{charge.order_id}'"}
        try:
            answer = await self._http.get("/v1/payment_intents/search", params=query)
            found = answer.json()["data"] if answer.status_code == OK else None
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            return Unknown(_reason(error))
        if found is None:
            return Unknown(f"look-up answered {answer.status_code}")
        return _of_intent(charge, found[0]) if found else NotExecuted("the provider knows no payment of this order")

    async def ping(self) -> None:
        """Any answer will do: what counts is that somebody is there."""
        await self._http.get("/v1/payment_intents", params={"limit": "1"})

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()


def _never_sent(error: httpx.HTTPError) -> bool:
    """Whether not a byte of the request has left: the one failure of the network that is certain.

    httpx' own class does not tell: the aiohttp transport calls a connection that was reset after sending a
    `ConnectTimeout`, just like one that never came about. Believing it would release the stock of paid orders.
    """
    if isinstance(error, httpx.PoolTimeout):
        return True
    return isinstance(error.__cause__, ClientConnectorError | ConnectionTimeoutError)


def _outcome(charge: Charge, answer: httpx.Response) -> Outcome:
    if answer.status_code == OK:
        return _of_intent(charge, _json(answer))
    error = _error_of(answer)
    if answer.status_code == TOO_MANY:
        return NotExecuted("the provider answered 429", _retry_after_s(answer))
    if answer.status_code == LOCKED or answer.status_code >= 500:  # noqa: PLR2004 - the class of server errors
        # 409: this call did nothing, but another one with the same key is at work, and that one may.
        return Unknown(f"the provider answered {answer.status_code}")
    if error is None:
        return Unknown(f"the provider answered {answer.status_code} without a reason")
    if answer.status_code == DECLINED:
        reference = (error.payment_intent or {}).get("id")
        return Declined(error.decline_code or error.code or "declined", reference)
    return _of_refusal(answer.status_code, error)


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
        cause = intent.last_payment_error or {}
        return Declined(str(cause.get("decline_code") or cause.get("code") or intent.status), intent.id)
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


def _error_of(answer: httpx.Response) -> _Error | None:
    body = _json(answer)
    try:
        return _Error.model_validate(body["error"] if isinstance(body, dict) else None)
    except (ValidationError, KeyError):
        return None


def _json(answer: httpx.Response) -> object:
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError):
        return None


def _retry_after_s(answer: httpx.Response) -> float | None:
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
