"""The `/v1` half of the sandbox as a bare ASGI application: authentication, keys, faults and answers.

Bare, because it shares its processor with the system under test: a framework would cost more than a charge.
"""

import asyncio
import base64
import hmac
import os
import re
import sys

from starlette.types import Receive, Scope, Send

from deploy.local.payments import form, operations
from deploy.local.payments.connection import reset_of
from deploy.local.payments.errors import InvalidRequest, StripeError, TooLarge, Unauthorized, error_body
from deploy.local.payments.events import API_VERSION
from deploy.local.payments.faults import CALM, FaultPlan
from deploy.local.payments.idempotency import Claim, fingerprint
from deploy.local.payments.ledger import Answer, Ledger
from deploy.local.payments.losses import Losses
from deploy.local.payments.operations import Call, Operation

MAX_BODY_BYTES = 65_536
VERSION = re.compile(rb"\d{4}-\d{2}-\d{2}(\.[a-z]+)?")
TOO_MANY = Answer(
    429, error_body({"type": "invalid_request_error", "code": "rate_limit", "message": "Too many requests"})
)
BAD_GATEWAY = Answer(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>")
RETRY_AFTER = (b"retry-after", b"1")

# (method, resource, what follows: "" nothing, "*" an id, else the verb behind the id)
OPERATIONS: dict[tuple[str, str, str], Operation] = {
    ("POST", "payment_intents", ""): operations.create_intent,
    ("GET", "payment_intents", ""): operations.list_intents,
    ("GET", "payment_intents", "*"): operations.get_intent,
    ("POST", "payment_intents", "confirm"): operations.confirm_intent,
    ("POST", "payment_intents", "cancel"): operations.cancel_intent,
    ("GET", "charges", "*"): operations.get_charge,
    ("POST", "refunds", ""): operations.create_refund,
    ("GET", "refunds", ""): operations.list_refunds,
    ("GET", "refunds", "*"): operations.get_refund,
    ("GET", "events", ""): operations.list_events,
    ("GET", "events", "*"): operations.get_event,
}


class Api:
    def __init__(self, ledger: Ledger, faults: FaultPlan, secret_key: str) -> None:
        self._ledger = ledger
        self._faults = faults
        self._losses = Losses(faults)
        basic = base64.b64encode(f"{secret_key}:".encode())
        self._accepted = (b"Bearer " + secret_key.encode(), b"Basic " + basic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._faults.hits(self._faults.active.refuse):
            reset_of(scope)()
            return
        try:
            self._authenticate(headers)
            version = _version(headers)
            answer = self._turned_away() or await self._answer(scope, headers, receive, send)
        except StripeError as error:
            answer, version = Answer(error.status, error.body()), API_VERSION.encode()
        if answer is not None:
            await respond(send, answer, headers, version)

    def _turned_away(self) -> Answer | None:
        """What a fault answers before anything is done."""
        faults = self._faults.active
        if faults is CALM:
            return None
        if self._faults.hits(faults.too_many):
            return TOO_MANY
        return BAD_GATEWAY if self._faults.hits(faults.bad_gateway) else None

    def _authenticate(self, headers: dict[bytes, bytes]) -> None:
        given = headers.get(b"authorization", b"")
        if not given:
            raise Unauthorized("You did not provide an API key: send it as `Authorization: Bearer <secret key>`.")
        if not any(hmac.compare_digest(given, accepted) for accepted in self._accepted):
            raise Unauthorized("Invalid API Key provided.")

    async def _answer(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> Answer | None:
        """None: a fault took the answer, the connection is gone."""
        method: str = scope["method"]
        path: str = scope["path"]
        operation, object_id = route(method, path)
        raw = await read_body(receive) if method == "POST" else scope["query_string"]
        pairs = form.read_pairs(raw)
        call = Call(self._ledger, self._faults, form.nest(pairs), object_id, None, _origin(headers))
        key = headers.get(b"idempotency-key") if method == "POST" else None
        if key is None:
            return await self._run(operation, call, scope, receive, send)
        call.claim = Claim(key.decode("latin-1"), sys.intern(path), fingerprint(pairs))
        return await self._run_once(operation, call, scope, receive, send)

    async def _run_once(
        self, operation: Operation, call: Call, scope: Scope, receive: Receive, send: Send
    ) -> Answer | None:
        assert call.claim is not None  # noqa: S101 - for the type checker
        stored = self._ledger.stored_answer(call.claim)
        if stored is not None:
            return stored
        try:
            answer = await self._execute(operation, call)
        finally:
            # Before a fault hangs on to the answer: from here on the key has its stored answer.
            self._ledger.keys.release(call.claim)
        return await self._losses.lose(answer, scope, receive, send) if call.moved_money else answer

    async def _run(self, operation: Operation, call: Call, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        answer = await self._execute(operation, call)
        return await self._losses.lose(answer, scope, receive, send) if call.moved_money else answer

    async def _execute(self, operation: Operation, call: Call) -> Answer:
        latency_ms = self._faults.active.latency_ms
        if latency_ms:
            await asyncio.sleep(latency_ms / 1000)
        return operation(call)


def route(method: str, path: str) -> tuple[Operation, str]:
    parts = path.split("/")[2:]
    if parts == ["payment_intents", "search"] and method == "GET":
        return operations.search_intents, ""
    object_id = parts[1] if len(parts) > 1 else ""
    tail = parts[2] if len(parts) == 3 else "*" if object_id else ""  # noqa: PLR2004 - resource/id/verb
    operation = OPERATIONS.get((method, parts[0], tail)) if len(parts) <= 3 else None  # noqa: PLR2004
    if operation is None:
        error = InvalidRequest(f"Unrecognized request URL ({method}: {path}).")
        error.status = 404
        raise error
    return operation, object_id


async def read_body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            break
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge(f"Request body is larger than {MAX_BODY_BYTES} bytes")
    return body


async def respond(send: Send, answer: Answer, request: dict[bytes, bytes], version: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(answer.body)),
        (b"request-id", b"req_" + os.urandom(7).hex().encode()),
        (b"stripe-version", version),
    ]
    key = request.get(b"idempotency-key")
    if key is not None:
        headers.append((b"idempotency-key", key))
    if answer.status == TOO_MANY.status:
        headers.append(RETRY_AFTER)
    if answer.replayed:
        headers.append((b"idempotent-replayed", b"true"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _version(headers: dict[bytes, bytes]) -> bytes:
    version = headers.get(b"stripe-version")
    if version is None:
        return API_VERSION.encode()
    if VERSION.fullmatch(version) is None:
        raise InvalidRequest(f"Invalid Stripe API version: {version.decode('latin-1')}")
    return version


def _origin(headers: dict[bytes, bytes]) -> str:
    """Where the 3-D Secure page is, seen from the client that asks."""
    return "http://" + headers.get(b"host", b"").decode("latin-1")
