"""A payment provider that is unlike Stripe: JSON, its own words, keys kept for two hours and for successes only."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

Row = dict[str, Any]
LINGER_0 = b"\1\0\0\0\0\0\0\0"
SPOILERS: dict[str, Callable[[Row], Row]] = {
    "wrong_amount": lambda row: {**row, "amount": row["amount"] + 1},
    "wrong_currency": lambda row: {**row, "currency": "CHF"},
    "other_order": lambda row: {**row, "order": "ord_of_somebody_else", "refund": "another"},
}


@dataclass
class Cashier:
    """Everything that happened, and what is to go wrong next."""

    charges: dict[str, Row] = field(default_factory=dict)  # by id; only what moved money, waits or was voided
    refunds: dict[str, Row] = field(default_factory=dict)  # by key
    keys: dict[str, str] = field(default_factory=dict)
    fault: str | None = None
    port: int = 0
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def application(self) -> web.Application:
        @web.middleware
        async def spoil(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._spoil(request, handler)

        application = web.Application(middlewares=[spoil])
        application.router.add_post("/charges", self._charge)
        application.router.add_get("/charges", self._list)
        application.router.add_get("/charges/{id}", self._one)
        application.router.add_post("/charges/{id}/void", self._void)
        application.router.add_post("/charges/{id}/refunds", self._refund)
        application.router.add_get("/charges/{id}/refunds", self._refunds)
        return application

    def finish(self, charge_id: str) -> None:
        """The customer authenticates."""
        self.charges[charge_id]["state"] = "paid"

    async def _charge(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["key"] in self.keys:
            return web.json_response(self.charges[self.keys[asked["key"]]])
        if self.fault == "decline" or asked["card"] == "empty":
            return web.json_response({"refused": "no_funds"}, status=402)  # and forgotten: the key stays free
        row = {
            "charge": f"c{next(self._numbers)}",
            "state": "waiting" if asked["card"] == "careful" else "paid",
            "at": datetime.now(UTC).timestamp(),
            **{name: asked[name] for name in ("order", "tenant", "amount", "currency")},
        }
        self.charges[row["charge"]] = row
        self.keys[asked["key"]] = row["charge"]
        return web.json_response(row, status=201)

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        rows = [self._with_refunds(row) for row in self.charges.values() if query.get("order") in {None, row["order"]}]
        if "from" in query:
            rows = [row for row in rows if float(query["from"]) <= row["at"] < float(query["to"])]
        return web.json_response({"charges": rows})

    async def _one(self, request: web.Request) -> web.Response:
        return web.json_response(self.charges[request.match_info["id"]])

    async def _void(self, request: web.Request) -> web.Response:
        row = self.charges[request.match_info["id"]]
        row["state"] = "void" if row["state"] == "waiting" else row["state"]
        return web.json_response(row)

    async def _refund(self, request: web.Request) -> web.Response:
        asked, row = await request.json(), self.charges[request.match_info["id"]]
        if asked["key"] not in self.refunds:
            if asked["amount"] > row["amount"] - self._with_refunds(row)["refunded"]:
                return web.json_response({"refused": "too_much"}, status=422)
            made = {"id": f"r{next(self._numbers)}", "charge": row["charge"], "currency": row["currency"]}
            self.refunds[asked["key"]] = {**made, "refund": asked["refund"], "amount": asked["amount"]}
        return web.json_response(self.refunds[asked["key"]])

    async def _refunds(self, request: web.Request) -> web.Response:
        rows = [row for row in self.refunds.values() if row["charge"] == request.match_info["id"]]
        return web.json_response({"refunds": rows})

    def _with_refunds(self, row: Row) -> Row:
        given_back = sum(one["amount"] for one in self.refunds.values() if one["charge"] == row["charge"])
        return {**row, "refunded": given_back}

    async def _spoil(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.fault == "too_many":
            return web.Response(status=429, headers={"Retry-After": "1"})
        answer = await handler(request)
        assert isinstance(answer, web.Response)
        if request.method != "POST" or self.fault is None or answer.status >= 400:
            return answer
        fault, self.fault = self.fault, None  # once: who asks again is told the truth
        return await self._spoilt(fault, request, answer)

    async def _spoilt(self, fault: str, request: web.Request, answer: web.Response) -> web.StreamResponse:
        assert isinstance(answer.body, bytes)
        if fault in SPOILERS:
            return web.json_response(SPOILERS[fault](json.loads(answer.body)))
        if fault == "truncated":
            return web.Response(body=answer.body[:20], content_type="application/json")
        if fault == "500":
            return web.Response(status=500)
        if fault == "hang":
            await asyncio.sleep(3600)
        assert request.transport is not None
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        request.transport.abort()
        return answer


@asynccontextmanager
async def serving() -> AsyncIterator[Cashier]:
    """A cashier on a port of its own."""
    cashier = Cashier()
    runner = web.AppRunner(cashier.application(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    cashier.port = runner.addresses[0][1]
    try:
        yield cashier
    finally:
        await runner.cleanup()
