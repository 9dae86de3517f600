"""What becomes of the answer to a request that has just moved money, when a fault takes or spoils it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from deploy.local.payments.connection import reset_of
from deploy.local.payments.errors import encode, error_body
from deploy.local.payments.faults import FaultPlan
from deploy.local.payments.ledger import Answer

LOST_500 = Answer(500, error_body({"type": "api_error", "message": "An unknown error occurred"}))
DRIP_SECONDS = 1.0
DRIP_HEADERS = [(b"content-type", b"application/json")]


def _spoilt(change: Callable[[dict[str, Any]], None]) -> Callable[[Answer], Answer]:
    def spoil(answer: Answer) -> Answer:
        body = json.loads(answer.body)
        change(body)
        return answer._replace(body=encode(body).encode())

    return spoil


def _more(body: dict[str, Any]) -> None:
    body["amount"] = body.get("amount", 0) + 1
    body["amount_received"] = body["amount"]


def _foreign(body: dict[str, Any]) -> None:
    body["currency"] = "chf" if body.get("currency") != "chf" else "usd"


def _anothers(body: dict[str, Any]) -> None:
    body["metadata"] = {**body.get("metadata", {}), "order_id": "ord_of_somebody_else", "refund_id": "another"}


SPOILERS: dict[str, Callable[[Answer], Answer]] = {
    "truncated": lambda answer: answer._replace(body=answer.body[: len(answer.body) // 2]),
    "wrong_amount": _spoilt(_more),
    "wrong_currency": _spoilt(_foreign),
    "other_order": _spoilt(_anothers),
}


class Losses:
    """Each loss hits one answer: who asks again with the same key learns what happened."""

    def __init__(self, faults: FaultPlan) -> None:
        self._faults = faults

    async def lose(self, answer: Answer, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """The answer to give; None when there is nothing more to say."""
        loss = self._faults.loss()
        match loss:
            case None:
                return answer
            case "hang":
                return await self._hang(answer, scope, receive)
            case "reset":
                reset_of(scope)()
                return None
            case "500":
                # Stripe would store this 500 for the key. Then nobody could learn the outcome with that key:
                # the stored answer is the true one and this 500 is given once.
                return LOST_500
            case "drip":
                await self._drip(answer, scope, receive, send)
                return None
            case _:
                return SPOILERS[loss](answer)

    async def _hang(self, answer: Answer, scope: Scope, receive: Receive) -> Answer | None:
        try:
            return answer if await self._outlasted(receive) else None
        except asyncio.CancelledError:
            # The sandbox is stopping, and uvicorn would answer 500 now: a hanging answer stays unsaid.
            reset_of(scope)()
            return None

    async def _drip(self, answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
        """One byte a second, until the client goes or the fault ends; the rest is never said."""
        dripping = asyncio.ensure_future(_one_by_one(answer, send))
        try:
            await self._outlasted(receive)
        except asyncio.CancelledError:  # the sandbox is stopping: as above
            pass
        finally:
            dripping.cancel()
            reset_of(scope)()

    async def _outlasted(self, receive: Receive) -> bool:
        """Wait until the client goes (False) or the fault ends (True: the late answer is sent)."""
        gone = asyncio.ensure_future(_disconnected(receive))
        ended = asyncio.ensure_future(self._faults.ended())
        try:
            await asyncio.wait({gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            return not gone.done()
        finally:
            gone.cancel()
            ended.cancel()


async def _one_by_one(answer: Answer, send: Send) -> None:
    length = (b"content-length", b"%d" % len(answer.body))
    await send({"type": "http.response.start", "status": answer.status, "headers": [*DRIP_HEADERS, length]})
    for position in range(len(answer.body)):
        piece = answer.body[position : position + 1]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(DRIP_SECONDS)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
