"""What is known about the request in hand, wherever the code is: its id and the trace that it belongs to."""

from __future__ import annotations

import re
from contextvars import ContextVar

from shared.runtime.identifiers import random_bytes

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

ANSWER_HEADERS = "answer_headers"  # in a request's scope: headers of its answer, whatever that will be

request_id: ContextVar[str] = ContextVar("request_id", default="")
traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)


def accept_request_id(sent: bytes | None) -> str:
    """The client's id when it is harmless enough for headers and logs, otherwise a new one."""
    text = sent.decode("latin-1") if sent else ""
    return text if _REQUEST_ID.fullmatch(text) else random_bytes(16).hex()


def accept_traceparent(sent: bytes | None) -> str | None:
    """The W3C trace context that came with the request, unless it is malformed.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    text = sent.decode("latin-1") if sent else ""
    return text if _TRACEPARENT.fullmatch(text) else None
