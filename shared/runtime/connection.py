"""A client's connection: how long the head of a request may take, how large it may be, and what answers nonsense."""

from __future__ import annotations

import asyncio
import json
import os
from http import HTTPStatus
from typing import Any, Protocol

import httptools
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.runtime import metrics
from shared.runtime.plain_request import PlainRequest

HEAD_DEADLINE_S = 10.0
HEAD_LIMIT_BYTES = 16 * 1024  # many times what browsers, proxies and tracing add up to
MOST_HEADERS = 100
MOST_PIPELINED = 64  # requests that wait for the one before them; more than any honest client sends ahead
ADMITTED = "orderstream_admitted"  # in the scope of a request that came in by the door


class Doorkeeper(Protocol):
    """Decides about whole requests before anything else is spent on them."""

    @property
    def first_line(self) -> bytes:
        """How a request that has to ask begins."""
        ...

    @property
    def is_shut(self) -> bool:
        """Whether nobody may come in just now."""
        ...

    def turns_away(self) -> bool:
        """Whether one that is here now may not come in; it is counted then."""
        ...

    def guards(self, method: bytes, target: bytes) -> bool:
        """Whether such a request has to ask."""
        ...

    def enter(self) -> bool:
        """Whether one more may come in; the application lets go of it in the end."""
        ...

    def refusal(self, request_id: bytes | None) -> bytes:
        """The whole response for one that may not; `request_id` is the one that it brought."""
        ...


class _Refused(Exception):
    """The request is not read any further."""

    def __init__(self, status: HTTPStatus, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with the deadline and the limits that it lacks.

    A connection on which no request is being served has to bring the whole head of one within the deadline: counted
    from the start of the connection, later from the first byte after an answer. Until that byte it is merely idle,
    which uvicorn's own keep-alive timeout ends. What a request's body may take is the application's business.
    """

    head_deadline_s = HEAD_DEADLINE_S

    def __init__(self, *args: Any, door: Doorkeeper | None = None, **kwargs: Any) -> None:  # noqa: ANN401 - handed through
        """As uvicorn makes it, with a door that some requests have to pass."""
        super().__init__(*args, **kwargs)
        self._door = door
        self._at_door = False
        self._brought = b""  # the body of a request at the door, as far as it is here
        self._turned_away = False
        self._deadline: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_bytes = 0
        self._declining = False
        self._refused: _Refused | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._door is None or not self._sends_away(self._door, data):
            self._read(data)

    def _read(self, data: bytes) -> None:
        self._head_bytes += len(data)
        self._turned_away = False
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        if not self._in_head:
            self._head_bytes = 0
        if self.transport.is_closing():
            return
        if self._at_door:
            self._let_in()  # without asking: it will be asked again when its body is complete
        if self._head_bytes > HEAD_LIMIT_BYTES:
            self._refused = _too_large()
            self.send_400_response("")
        elif not (self._serving or self._turned_away):
            self._expect_head()

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._turned_away = False

    @override
    def on_headers_complete(self) -> None:
        self._disarm()
        self._in_head = False
        self._refused = self._excess()
        if self._refused:
            raise self._refused  # to the parser, which reads no further
        self._declining = self.parser.should_upgrade()
        self._at_door = not self._declining and self._has_to_ask()
        if not (self._declining or self._at_door):
            self._begin()

    @override
    def on_body(self, body: bytes) -> None:
        if self._at_door:
            self._brought += body
        else:
            super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        if self._at_door:
            self._ask()
        elif not self._declining:
            super().on_message_complete()

    @override
    def send_400_response(self, msg: str) -> None:
        """Answer what the parser or a limit refused, and close."""
        refused, self._refused = self._refused, None
        if self._serving and not self.cycle.more_body:
            # What came after a whole request. An answer now would be taken for the answer to that one, which may well
            # succeed: it gets its own, and then the connection ends.
            self.cycle.keep_alive = False
            self._stop_reading()
        elif self._serving and (self.pipeline or self.cycle.response_started):
            self.transport.close()
        else:
            self._refuse(
                refused or _Refused(HTTPStatus.BAD_REQUEST, "malformed_http", "This is no valid HTTP request.")
            )

    @property
    def _serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _has_to_ask(self) -> bool:
        # The others are asked by the application: who comes behind another request or waits to be asked for the body.
        # So are clients that do not read their answers, because it stops sending them any.
        return (
            self._door is not None
            and self._door.guards(self.parser.get_method(), self.url)
            and not (self._serving or self.expect_100_continue or self.flow.write_paused)
        )

    def _ask(self) -> None:
        """The request is complete: let it in, or answer it here and keep the connection."""
        if self._door is None or self._door.enter():
            self.scope[ADMITTED] = True  # type: ignore[literal-required]  # our own key
            self._let_in()
            super().on_message_complete()
            return
        self._at_door, self._brought = False, b""
        self._turned_away = True
        sent = next((value for name, value in self.headers if name == b"x-request-id"), None)
        self._answer_at_door(self._door, sent)
        if self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive():
            self.transport.close()

    def _sends_away(self, door: Doorkeeper, data: bytes) -> bool:
        """Answer a request unread when nobody may come in: most of what a refusal costs is the reading.

        Only a whole and plain request, and only between two others, so that the parser need never know of it.
        """
        if self._serving or self._in_head or self.transport.is_closing() or self.flow.write_paused or not door.is_shut:
            return False
        request = PlainRequest.found_in(data, door.first_line)
        if request is None or request.head_bytes > HEAD_LIMIT_BYTES or request.headers > MOST_HEADERS:
            return False
        if not door.turns_away():
            return False
        self._disarm()
        self._answer_at_door(door, request.request_id)
        return True

    def _answer_at_door(self, door: Doorkeeper, request_id: bytes | None) -> None:
        self._unset_keepalive_if_required()
        self.transport.write(door.refusal(request_id))
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _let_in(self) -> None:
        body, self._at_door, self._brought = self._brought, False, b""
        self._begin()
        if body:
            super().on_body(body)

    def _begin(self) -> None:
        super().on_headers_complete()
        self.cycle.transport = _InOne(self.transport, self.loop)  # type: ignore[assignment]  # as much of one as it needs

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_deadline_s, self._too_slow)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_reading(self) -> None:
        if not self.flow.read_paused:
            self.transport.pause_reading()  # not by way of `flow`, which would resume it

    def _too_slow(self) -> None:
        self._deadline = None
        if self._serving or self.transport.is_closing():
            return
        if self._in_head:
            detail = f"The head of the request did not arrive within {self.head_deadline_s:g} s."
            self._refuse(_Refused(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", detail))
        else:
            self.transport.close()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the request again without its wish for another protocol.

        Java's client asks for HTTP/2 in every first request, and the parser would take the body for HTTP/2 already.
        """
        if self.parser.get_method() == b"CONNECT":
            self.send_400_response("")
            return
        first = self.parser.get_method() + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()
        headers = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([first, *headers, b"", rest]))

    def _excess(self) -> _Refused | None:
        # A head above the limit came in more bytes than the limit: nearly always there is nothing to add up.
        if len(self.headers) > MOST_HEADERS or (self._head_bytes > HEAD_LIMIT_BYTES < self._head_size()):
            return _too_large()
        if len(self.pipeline) >= MOST_PIPELINED:
            return _Refused(HTTPStatus.BAD_REQUEST, "too_many_requests_ahead", "Wait for answers in between.")
        return None

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse(self, refused: _Refused) -> None:
        # Counted, not logged: a thousand of them at once must not fill the log.
        metrics.HTTP_REQUESTS.labels("other", "unmatched", str(refused.status)).inc()
        self.transport.write(_answer(refused))
        self.transport.close()


class _InOne:
    """Sends the head of a response together with the beginning of its body, if that follows in the same turn.

    uvicorn writes one after the other and uvloop sends at once what is written: two system calls and two packets.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._begun = False
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._begun:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._begun, self._head = True, data
            self._loop.call_soon(self._send_head)

    def close(self) -> None:
        self._send_head()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _send_head(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


def _too_large() -> _Refused:
    detail = f"A request may have at most {MOST_HEADERS} headers, and {HEAD_LIMIT_BYTES} bytes before its body."
    return _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", detail)


def _answer(refused: _Refused) -> bytes:
    """A whole response: there is no request that the application could answer."""
    request_id = os.urandom(16).hex()
    problem = {
        "type": f"urn:orderstream:problem:{refused.code}",
        "title": refused.status.phrase,
        "status": refused.status,
        "detail": str(refused),
        "code": refused.code,
        "request_id": request_id,
    }
    body = json.dumps(problem, separators=(",", ":"))
    head = (
        f"HTTP/1.1 {refused.status} {refused.status.phrase}",
        "content-type: application/problem+json",
        f"content-length: {len(body)}",
        f"x-request-id: {request_id}",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
        "connection: close",
    )
    return "\r\n".join([*head, "", body]).encode()
