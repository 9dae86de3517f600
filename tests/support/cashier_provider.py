"""The adapter for the cashier: the second of its kind, so that the port is more than Stripe by another name."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp

from services.checkout.payments.port import (
    Cancelled,
    Captured,
    Charge,
    Declined,
    NotExecuted,
    Outcome,
    PaymentSeen,
    PaymentsUnreadableError,
    Refund,
    Refunded,
    RefundOutcome,
    RefundRefused,
    RequiresAction,
    Semantics,
    Unknown,
)

Body = dict[str, Any]
Failed = NotExecuted | Unknown


class CashierProvider:
    """Keeps a key for two hours and for successes only: a declined one charges again when it is sent again."""

    semantics = Semantics(key_window_h=2.0, replays_declines=False, finds_by_order=True)

    def __init__(self, url: str, timeout_s: float) -> None:
        self._session = aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(timeout_s))

    async def charge(self, charge: Charge) -> Outcome:
        asked = {
            "key": charge.key,
            "order": charge.order_id,
            "tenant": charge.tenant,
            "amount": charge.amount,
            "currency": charge.currency,
            "card": charge.method,
        }
        status, body = await self._call("POST", "/charges", asked)
        if status == 402:
            return Declined(str(body["refused"]))
        return self._of_row(charge, body) if status in {200, 201} else _failed(status, body)

    async def look_up(self, charge: Charge, reference: str | None = None) -> Outcome:
        status, body = await self._call("GET", f"/charges?order={charge.order_id}")
        if status != 200:
            return Unknown(f"the look-up answered {status}", down=status >= 500)
        rows = [row for row in body["charges"] if reference in {None, row["charge"]}]
        return self._of_row(charge, rows[0]) if rows else NotExecuted("no charge of this order")

    async def cancel(self, charge: Charge, reference: str) -> Outcome:
        status, body = await self._call("POST", f"/charges/{reference}/void", {})
        return self._of_row(charge, body) if status == 200 else Unknown(f"voiding answered {status}")

    async def refund(self, refund: Refund) -> RefundOutcome:
        asked = {"key": refund.key, "refund": refund.refund_id, "amount": refund.amount}
        status, body = await self._call("POST", f"/charges/{refund.payment_reference}/refunds", asked)
        if status == 422:
            return RefundRefused(str(body["refused"]))
        return self._of_refund(refund, body) if status == 200 else _failed(status, body)

    async def look_up_refund(self, refund: Refund) -> RefundOutcome:
        status, body = await self._call("GET", f"/charges/{refund.payment_reference}/refunds")
        if status != 200:
            return Unknown(f"the look-up answered {status}")
        rows = [row for row in body["refunds"] if row["refund"] == refund.refund_id]
        return self._of_refund(refund, rows[0]) if rows else NotExecuted("no such refund")

    async def payments(self, since: datetime, until: datetime) -> AsyncIterator[PaymentSeen]:
        status, body = await self._call("GET", f"/charges?from={since.timestamp()}&to={until.timestamp()}")
        if status != 200:
            raise PaymentsUnreadableError(f"the list answered {status}")
        for row in reversed(body["charges"]):
            yield PaymentSeen(
                reference=row["charge"],
                order_id=row["order"],
                tenant=row["tenant"],
                amount=row["amount"],
                currency=row["currency"],
                captured=row["amount"] if row["state"] == "paid" else 0,
                refunded=row["refunded"],
                status=row["state"],
                created=datetime.fromtimestamp(row["at"], UTC),
            )

    async def ping(self) -> None:
        async with self._session.get("/charges?order=none"):
            pass

    async def close(self) -> None:
        await self._session.close()

    def _of_row(self, charge: Charge, row: Body) -> Outcome:
        ours = (charge.order_id, charge.amount, charge.currency)
        if (row.get("order"), row.get("amount"), row.get("currency")) != ours:
            return Unknown("another payment")
        match row["state"]:
            case "paid":
                return Captured(row["charge"])
            case "waiting":
                return RequiresAction(row["charge"], "secret")
            case _:
                return Cancelled()

    def _of_refund(self, refund: Refund, row: Body) -> RefundOutcome:
        ours = (refund.refund_id, refund.amount, refund.currency)
        theirs = (row.get("refund"), row.get("amount"), row.get("currency"))
        return Refunded(row["id"]) if theirs == ours else Unknown("another refund")

    async def _call(self, method: str, path: str, body: Body | None = None) -> tuple[int, Body]:
        """Status and body; 0 for a call that certainly was not made, 599 for one that got no answer."""
        try:
            async with self._session.request(method, path, json=body) as answer:
                found = await answer.json() if answer.content_type == "application/json" else {}
                return answer.status, found
        except aiohttp.ClientConnectorError:
            return 0, {}
        except (aiohttp.ClientError, OSError, ValueError):
            return 599, {}


def _failed(status: int, body: Body) -> Failed:
    if status == 0:
        return NotExecuted("no connection", down=True)
    if status == 429:
        return NotExecuted("too many calls", 1.0)
    return Unknown(f"answered {status} {body}", down=status >= 500)
