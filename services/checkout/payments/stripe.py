"""The adapter for Stripe and everything that speaks its API.

https://docs.stripe.com/api/idempotent_requests, https://docs.stripe.com/error-low-level
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    TCPConnector,
)
from typing_extensions import override
from yarl import URL

from services.checkout.payments.port import (
    Cancelled,
    Captured,
    Charge,
    NotExecuted,
    Outcome,
    PaymentSeen,
    PaymentsUnreadableError,
    Refund,
    RefundOutcome,
    Semantics,
    Unknown,
)
from services.checkout.payments.stripe_answers import (
    Answer,
    found_payment,
    found_refund,
    outcome_of,
    outcome_of_refund,
    page_of_payments,
    parsed,
    unfinished,
)
from shared.runtime.failpoints import reach

if TYPE_CHECKING:
    from aiohttp.connector import Connection

API_VERSION = "2026-09-30.clover"  # pinned: the provider must not change its answers under us
MAX_ANSWER_BYTES = 2_097_152  # a page of a hundred payments has about 600 KB
PAGE = 100
# Written out: encoding the same pairs for every charge was a sixth of its cost.
_CONFIRM = (
    "confirm=true&automatic_payment_methods%5Benabled%5D=true&automatic_payment_methods%5Ballow_redirects%5D=never"
)
FAILURES = (ClientError, OSError, ValueError)  # asyncio's TimeoutError is an OSError


class StripeProvider:
    """Charges over the payment-intents API, one call per charge."""

    semantics = Semantics(key_window_h=24.0, replays_declines=True, finds_by_order=True)

    def __init__(
        self, base_url: str, secret_key: str, *, timeout_s: float, connect_timeout_s: float, connections: int
    ) -> None:
        """Nothing is sent before the first call. Call from inside the running event loop."""
        self._intents = URL(f"{base_url}/v1/payment_intents", encoded=True)
        self._refunds = URL(f"{base_url}/v1/refunds", encoded=True)
        connector = TCPConnector(limit=connections, keepalive_timeout=15, ttl_dns_cache=30)
        # `total` also ends an answer that drips: the other time-outs count from byte to byte.
        timeout = ClientTimeout(total=connect_timeout_s + timeout_s, connect=connect_timeout_s, sock_read=timeout_s)
        headers = {
            "Authorization": f"Bearer {secret_key}",
            "Stripe-Version": API_VERSION,
            "User-Agent": "orderstream-checkout",
            "Accept-Encoding": "identity",  # what is read is what was sent: no few bytes that unpack to gigabytes
        }
        # Not `trust_env`: looking for a proxy in the environment costs more than the whole call.
        self._session = ClientSession(
            connector=connector,
            timeout=timeout,
            headers=headers,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            response_class=_Response,
        )

    async def charge(self, charge: Charge) -> Outcome:
        """Create and confirm a payment intent in one call."""
        form = (
            f"{_CONFIRM}&amount={charge.amount}&currency={charge.currency.lower()}"
            f"&payment_method={quote(charge.method)}&metadata%5Border_id%5D={quote(charge.order_id)}"
            f"&metadata%5Btenant%5D={quote(charge.tenant)}"
        )
        answer = await self._call("POST", self._intents, form=form, key=charge.key)
        if not isinstance(answer, Answer):
            return answer
        if answer.replayed and (reference := unfinished(answer.body)):
            # The stored answer says how things stood when the key was first used.
            return await self._as_it_is(charge, reference)
        return outcome_of(charge, answer)

    async def look_up(self, charge: Charge, reference: str | None = None) -> Outcome:
        """Get the payment intent, or search for the order's. Stripe's search lags behind by up to a minute."""
        if reference is not None:
            return await self._as_it_is(charge, reference)
        query = urlencode({"query": f"metadata['order_id']:'{charge.order_id}'", "limit": PAGE})
        answer = await self._call("GET", URL(f"{self._intents}/search?{query}", encoded=True))
        return found_payment(charge, answer) if isinstance(answer, Answer) else _unlearnt(answer)

    async def cancel(self, charge: Charge, reference: str) -> Outcome:
        """Cancel the payment intent; one that cannot be cancelled any more says what has become of it."""
        answer = await self._call("POST", self._intent(reference, "/cancel"), form="")
        if not isinstance(answer, Answer):
            return _unlearnt(answer)
        outcome = outcome_of(charge, answer) if answer.status == 200 else await self._as_it_is(charge, reference)  # noqa: PLR2004
        if isinstance(outcome, Cancelled | Captured | Unknown):
            return outcome
        return Unknown(f"not cancelled: {type(outcome).__name__}")

    async def refund(self, refund: Refund) -> RefundOutcome:
        """Refund a part of the payment intent, or all of it."""
        form = urlencode(
            {
                "payment_intent": refund.payment_reference,
                "amount": refund.amount,
                "metadata[refund_id]": refund.refund_id,
                "metadata[order_id]": refund.order_id,
                "metadata[tenant]": refund.tenant,
            }
        )
        answer = await self._call("POST", self._refunds, form=form, key=refund.key)
        if not isinstance(answer, Answer):
            return answer
        outcome = outcome_of_refund(refund, answer)
        if answer.replayed and isinstance(outcome, Unknown):
            return await self.look_up_refund(refund)
        return outcome

    async def look_up_refund(self, refund: Refund) -> RefundOutcome:
        """Look through the payment's refunds."""
        query = urlencode({"payment_intent": refund.payment_reference, "limit": PAGE})
        answer = await self._call("GET", URL(f"{self._refunds}?{query}", encoded=True))
        return found_refund(refund, answer) if isinstance(answer, Answer) else _unlearnt(answer)

    async def payments(self, since: datetime, until: datetime) -> AsyncIterator[PaymentSeen]:
        """Page through the payment intents, newest first."""
        fields = {
            "created[gte]": int(since.timestamp()),
            "created[lt]": int(until.timestamp()),
            "limit": PAGE,
            "expand[]": "data.latest_charge",  # the intent itself does not know what was given back
        }
        query, more = urlencode(fields), True
        while more:
            answer = await self._call("GET", URL(f"{self._intents}?{query}", encoded=True))
            page = page_of_payments(answer) if isinstance(answer, Answer) else None
            if page is None:
                reason = f"answer {answer.status}" if isinstance(answer, Answer) else answer.reason
                raise PaymentsUnreadableError(f"the provider's payments cannot be listed: {reason}")
            seen, more = page
            for one in seen:
                yield one
            more = more and bool(seen)
            if more:
                query = urlencode({**fields, "starting_after": seen[-1].reference})

    async def ping(self) -> None:
        """Any answer will do: what counts is that somebody is there."""
        async with self._session.get(self._intents.with_query(limit=1), allow_redirects=False):
            pass

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    def _intent(self, reference: str, verb: str = "") -> URL:
        return URL(f"{self._intents}/{quote(reference, safe='')}{verb}", encoded=True)

    async def _as_it_is(self, charge: Charge, reference: str) -> Outcome:
        answer = await self._call("GET", self._intent(reference))
        if not isinstance(answer, Answer):
            return _unlearnt(answer)
        if answer.status != 200:  # noqa: PLR2004
            return Unknown(f"the look-up answered {answer.status}", down=answer.status >= 500)  # noqa: PLR2004
        return outcome_of(charge, answer)

    async def _call(
        self, method: str, url: URL, *, form: str | None = None, key: str | None = None
    ) -> Answer | NotExecuted | Unknown:
        headers = {"Idempotency-Key": key} if key else {}
        content = None
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            content = form.encode()
        try:
            async with self._session.request(
                method, url, data=content, headers=headers, allow_redirects=False
            ) as answer:
                return Answer(answer.status, answer.headers, parsed(await _content(answer)))
        except FAILURES as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            # Not a byte of the request has left: the one failure of the network that is certain.
            if isinstance(error, ClientConnectorError | ConnectionTimeoutError):
                return NotExecuted(reason, down=True)
            return Unknown(reason, down=True)


class _Response(ClientResponse):
    """A response that can be stopped before it is there."""

    @override
    async def start(self, connection: Connection) -> ClientResponse:
        if self.method == "POST":
            await reach("C3")
        return await super().start(connection)


async def _content(answer: ClientResponse) -> bytes:
    """The body, or nothing when it is longer or otherwise written than was asked for: nothing is no JSON."""
    if "Content-Encoding" in answer.headers:
        return b""
    pieces: list[bytes] = []
    size = 0
    async for piece in answer.content.iter_any():
        size += len(piece)
        if size > MAX_ANSWER_BYTES:
            return b""
        pieces.append(piece)
    return b"".join(pieces)


def _unlearnt(failed: NotExecuted | Unknown) -> Unknown:
    """A question that was not put, or not answered, says nothing about what it was about."""
    return Unknown(failed.reason, failed.down)
