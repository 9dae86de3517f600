"""The sandbox's own interface, which no real provider has: ledger, faults, 3-D Secure outcomes, health."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deploy.local.payments import intents
from deploy.local.payments.errors import StripeError, encode
from deploy.local.payments.faults import FaultError, FaultPlan, read_faults
from deploy.local.payments.intents import Intent
from deploy.local.payments.ledger import Answer, Ledger
from deploy.local.payments.operations import OUTCOMES

CHUNK = 500  # ledger rows per piece, so that a long ledger never stops the charges for long


class Control:
    def __init__(self, ledger: Ledger, faults: FaultPlan) -> None:
        self.ledger = ledger
        self.faults = faults

    async def ready(self, _request: Request) -> Response:
        return JSONResponse({"status": "pass", "payments": len(self.ledger.intents)})

    async def show_ledger(self, _request: Request) -> Response:
        return StreamingResponse(self._ledger_pieces(), media_type="application/json")

    async def _ledger_pieces(self) -> AsyncIterator[bytes]:
        yield b'{"items":['
        count = len(self.ledger.intents)
        for start in range(0, count, CHUNK):
            rows = self.ledger.intents[start : min(start + CHUNK, count)]
            comma = b"," if start else b""
            yield comma + encode([ledger_row(intent) for intent in rows])[1:-1].encode()
            await asyncio.sleep(0)
        yield b"]}"

    async def show_faults(self, _request: Request) -> Response:
        return JSONResponse(self.faults.describe())

    async def set_faults(self, request: Request) -> Response:
        try:
            self.faults.set(read_faults(json.loads(await request.body())))
        except FaultError as error:
            return JSONResponse({"error": str(error), "field": error.field}, 422)
        except ValueError:
            return JSONResponse({"error": "the body is not JSON", "field": "body"}, 422)
        return JSONResponse(self.faults.describe())

    async def forget_keys(self, _request: Request) -> Response:
        return JSONResponse({"forgotten": self.ledger.forget_keys()})

    async def finish_challenge(self, request: Request) -> Response:
        try:
            outcome = json.loads(await request.body())["outcome"]
        except (ValueError, KeyError, TypeError):
            outcome = None
        if outcome not in {"complete", "fail"}:
            return JSONResponse({"error": 'send {"outcome": "complete"} or {"outcome": "fail"}'}, 422)
        try:
            finish_challenge(self.ledger, request.path_params["intent"], passed=outcome == "complete")
        except StripeError as error:
            return Response(error.body(), error.status, media_type="application/json")
        return JSONResponse(intents.render(self.ledger.intent(request.path_params["intent"])))


def finish_challenge(ledger: Ledger, intent_id: str, *, passed: bool) -> Answer:
    intent = intents.evolve(ledger.intent(intent_id))
    intents.authenticate(intent, passed=passed)
    return ledger.record_intent(intent, OUTCOMES[intent.status], None)


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


def make_control(ledger: Ledger, faults: FaultPlan) -> Starlette:
    control = Control(ledger, faults)
    return Starlette(
        routes=[
            Route("/health/ready", control.ready),
            Route("/health/live", control.ready),
            Route("/_sandbox/ledger", control.show_ledger),
            Route("/_sandbox/faults", control.show_faults, methods=["GET"]),
            Route("/_sandbox/faults", control.set_faults, methods=["POST"]),
            Route("/_sandbox/forget-keys", control.forget_keys, methods=["POST"]),
            Route("/_sandbox/3ds/{intent}", control.finish_challenge, methods=["POST"]),
        ]
    )
