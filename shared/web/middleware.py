"""The one layer between the HTTP server and the application: request id, body, headers, metrics, last resort.

Pure ASGI and as flat as possible, because every order passes through it.
"""

from __future__ import annotations

import asyncio
import contextlib
from time import perf_counter
from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from structlog.contextvars import bind_contextvars

from shared.runtime import metrics
from shared.runtime.connection import ADMITTED
from shared.web import context
from shared.web.hosts import Hosts
from shared.web.problems import Problem, invalid, not_found, unexpected
from shared.web.strict_json import StrictRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from shared.web.direct import DirectRoutes
    from shared.web.door import Door

BODY_LIMIT_BYTES = 64 * 1024
BODY_DEADLINE_S = 15.0
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_NOTED = frozenset(
    {
        b"content-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"traceparent",
        b"transfer-encoding",
        b"x-request-id",
    }
)
_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
CONTENT_SECURITY_POLICY = (
    b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'"
)
_CLOSE = {"Connection": "close"}  # what is left of the body will not be read
_DISCARDED_BYTES = 1024 * 1024
_DISCARDING_S = 1.0


class _Head:
    """The request headers that matter here; several of one name are joined by commas, as HTTP has it."""

    __slots__ = ("_values",)

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in _NOTED:
                known = self._values.get(name)
                self._values[name] = value if known is None else known + b"," + value

    def get(self, name: bytes) -> bytes | None:
        return self._values.get(name)

    @property
    def has_body(self) -> bool:
        return b"transfer-encoding" in self._values or self._values.get(b"content-length", b"0") != b"0"

    @property
    def encoded(self) -> bool:
        return self._values.get(b"content-encoding", b"identity").lower() != b"identity"

    @property
    def keeps_body_back(self) -> bool:
        """Whether the client sends its body only when it is asked for it."""
        return b"expect" in self._values


class Edge:
    """Wraps the application; nothing that happens inside leaves a client without an answer."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_limit: int = BODY_LIMIT_BYTES,
        body_deadline_s: float = BODY_DEADLINE_S,
        trusted_hosts: Sequence[str] = (),
        direct: DirectRoutes | None = None,
        door: Door | None = None,
    ) -> None:
        """`body_limit` bytes at the most, received within `body_deadline_s`; without `trusted_hosts` any will do.

        `direct` routes are answered here, without going through the application. What has not come in by the `door`
        has to do so here.
        """
        self._direct = direct or {}
        self._door = door
        self._app = app
        self._hosts = Hosts(trusted_hosts)
        self._body_limit = body_limit
        self._body_deadline_s = body_deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        head = _Head(scope["headers"])
        answer = _Answer(scope, send, context.accept_request_id(head.get(b"x-request-id")))
        context.request_id.set(answer.request_id)
        context.traceparent.set(context.accept_traceparent(head.get(b"traceparent")))
        bind_contextvars(request_id=answer.request_id)
        try:
            await self._serve(scope, head, receive, answer)
        finally:
            if self._door is not None and ADMITTED in scope:
                self._door.leave()
            _count(scope, answer.status, perf_counter() - started)

    async def _serve(self, scope: Scope, head: _Head, receive: Receive, answer: _Answer) -> None:
        try:
            self._hosts.check(head.get(b"host"), scope["path"])
            _refuse_nul(scope)
            body = await self._body(scope, head, receive) if head.has_body else b""
            self._admit(scope)  # a body that drips must not take up room
            direct = self._direct.get((scope["method"], scope["path"]))
            if direct is not None:
                scope["route"] = direct.route
                response = await direct.handle(StrictRequest.holding(scope, receive, body))
                await response(scope, receive, answer.send)
            else:
                await self._app(scope, _replay(body, receive) if head.has_body else receive, answer.send)
        except _Gone:
            return  # nobody is left to answer
        except Exception as error:
            if answer.status:
                raise  # half an answer is out: the server closes the connection, so that the client notices
            await _problem_of(error).response()(scope, receive, answer.send)

    def _admit(self, scope: Scope) -> None:
        if self._door is None or ADMITTED in scope or not self._door.leads_to(scope["method"], scope["path"]):
            return
        self._door.admit()
        scope[ADMITTED] = True

    async def _body(self, scope: Scope, head: _Head, receive: Receive) -> bytes:
        refused = self._refusal(head)
        if refused is not None:
            if not head.keeps_body_back:
                await self._discard(receive)
            raise refused
        if ADMITTED in scope:  # it has come in by the door already, so it is complete
            return await self._receive_all(receive)
        try:
            async with asyncio.timeout(self._body_deadline_s):
                return await self._receive_all(receive)
        except TimeoutError as error:
            detail = f"The body did not arrive within {self._body_deadline_s:g} s."
            raise Problem(408, "request_timeout", detail=detail, headers=_CLOSE) from error

    def _refusal(self, head: _Head) -> Problem | None:
        if head.encoded:
            detail = "Content-Encoding is not supported."
            return Problem(415, "unsupported_media_type", detail=detail, headers=_CLOSE)
        length = head.get(b"content-length") or b"0"
        if not length.isdigit() or int(length[:20]) > self._body_limit:
            return self._too_large()
        return None

    async def _discard(self, receive: Receive) -> None:
        """Read on for a moment: closing on a client that still sends resets its connection, and our answer is lost."""
        left = _DISCARDED_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARDING_S):
                while left > 0:
                    message = await receive()
                    if not message.get("more_body", False):
                        return
                    left -= len(message["body"])

    async def _receive_all(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            body += message.get("body", b"")
            if len(body) > self._body_limit:
                await self._discard(receive)
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> Problem:
        detail = f"The body may have at most {self._body_limit} bytes."
        return Problem(413, "body_too_large", detail=detail, headers=_CLOSE)


def _problem_of(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    return invalid(error) if isinstance(error, RequestValidationError) else unexpected(error)


class _Gone(Exception):
    """The client left before its request was complete."""


class _Answer:
    """Sends the response with our headers, and remembers its status."""

    __slots__ = ("_scope", "_send", "request_id", "status")

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._scope = scope
        self._send = send
        self.request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            names = dict(headers)
            headers.append((b"x-request-id", self.request_id.encode("latin-1")))
            headers += _SECURITY
            headers += self._scope.get(context.ANSWER_HEADERS, ())
            if b"cache-control" not in names:
                headers.append((b"cache-control", b"no-store"))
            if names.get(b"content-type", b"").startswith(b"text/html") and b"content-security-policy" not in names:
                headers.append((b"content-security-policy", CONTENT_SECURITY_POLICY))
            message["headers"] = headers
        await self._send(message)


def _refuse_nul(scope: Scope) -> None:
    """Postgres' text holds no NUL: neither an id nor a filter can have one."""
    if "\x00" in scope["path"]:
        raise not_found()
    if b"%00" in scope["query_string"]:
        raise Problem(400, "malformed_query", detail="The query has a NUL character.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out the body at once, then waits for the client to leave."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


_counters: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}


def _count(scope: Scope, status: int, seconds: float) -> None:
    method = scope["method"] if scope["method"] in _METHODS else "other"
    key = (method, _template(scope), status)
    counters = _counters.get(key)
    if counters is None:
        # Looking a label set up takes a lock and several microseconds; there are few of them.
        count = metrics.HTTP_REQUESTS.labels(method, key[1], str(status)).inc
        counters = _counters[key] = count, metrics.HTTP_SECONDS.labels(key[1]).observe
    counters[0]()
    counters[1](seconds)


def _template(scope: Scope) -> str:
    route = scope.get("route")
    if route is not None:
        return str(getattr(route, "path_format", "") or getattr(route, "path", "")) or "unmatched"
    return "/static" if scope.get("app_root_path") is not None and scope.get("endpoint") else "unmatched"
