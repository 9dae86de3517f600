"""The sandbox's own interface, which no real provider has: ledger, faults, 3-D Secure outcomes, health."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from deploy.local.payments import intents
from deploy.local.payments.challenge import finish_challenge
from deploy.local.payments.errors import StripeError, encode
from deploy.local.payments.faults import FaultError, FaultPlan, read_faults
from deploy.local.payments.intents import Intent
from deploy.local.payments.ledger import Ledger

ROWS_PER_PIECE = 500  # so that a long ledger never holds up the charges for long


class Control:
    def __init__(self, ledger: Ledger, faults: FaultPlan) -> None:
        self._ledger = ledger
        self._faults = faults

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/health/ready", self.ready),
            Route("/health/live", self.ready),
            Route("/_sandbox/ledger", self.show_ledger),
            Route("/_sandbox/faults", self.show_faults, methods=["GET"]),
            Route("/_sandbox/faults", self.set_faults, methods=["POST"]),
            Route("/_sandbox/forget-keys", self.forget_keys, methods=["POST"]),
            Route("/_sandbox/3ds/{intent}", self.decide_challenge, methods=["POST"]),
        ]

    async def ready(self, _request: Request) -> Response:
        return JSONResponse({"status": "pass", "payments": len(self._ledger.intents)})

    async def show_ledger(self, _request: Request) -> Response:
        return StreamingResponse(self._ledger_pieces(), media_type="application/json")

    async def _ledger_pieces(self) -> AsyncIterator[bytes]:
        yield b'{"items":['
        count = len(self._ledger.intents)
        for start in range(0, count, ROWS_PER_PIECE):
            rows = self._ledger.intents[start : min(start + ROWS_PER_PIECE, count)]
            comma = b"," if start else b""
            yield comma + encode([ledger_row(intent) for intent in rows])[1:-1].encode()
            await asyncio.sleep(0)
        yield b"]}"

    async def show_faults(self, _request: Request) -> Response:
        return JSONResponse(self._faults.describe())

    async def set_faults(self, request: Request) -> Response:
        try:
            self._faults.set(read_faults(json.loads(await request.body())))
        except FaultError as error:
            return JSONResponse({"error": str(error), "field": error.field}, 422)
        except ValueError:
            return JSONResponse({"error": "the body is not JSON", "field": "body"}, 422)
        return JSONResponse(self._faults.describe())

    async def forget_keys(self, _request: Request) -> Response:
        return JSONResponse({"forgotten": self._ledger.forget_keys()})

    async def decide_challenge(self, request: Request) -> Response:
        try:
            outcome = json.loads(await request.body())["outcome"]
        except (ValueError, KeyError, TypeError):
            outcome = None
        if outcome not in ("complete", "fail"):
            return JSONResponse({"error": 'send {"outcome": "complete"} or {"outcome": "fail"}'}, 422)
        try:
            intent = finish_challenge(self._ledger, request.path_params["intent"], passed=outcome == "complete")
        except StripeError as error:
            return Response(error.body(), error.status, media_type="application/json")
        return JSONResponse(intents.render(intent))


def ledger_row(intent: Intent) -> dict[str, Any]:
    return {
        "payment_intent": intent.id,
        "order_id": intent.meta("order_id"),
        "tenant": intent.meta("tenant"),
        "amount": intent.amount,
        "currency": intent.currency,
        "status": intent.status,
        "captured": intent.captured,
        "refunded": intent.refunded,
        "idempotency_key": intent.idempotency_key,
        "created": intent.created,
    }
