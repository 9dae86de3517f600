"""The door in front of a route that may become too much: it turns requests away at as little cost as possible."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from typing_extensions import override

from shared.runtime import metrics
from shared.runtime.connection import Doorkeeper
from shared.web import context
from shared.web.health import Reading, Status
from shared.web.problems import MEDIA_TYPE, Problem

if TYPE_CHECKING:
    from shared.runtime.admission import Admission

DETAIL = (
    "More is asked of this service than it can do. Nothing was done: repeat this with the same key, a little later."
)
RETRY_AFTER_S = (1, 2, 3)  # in turn: those turned away together should not come back together
RECENT_S = 10.0  # longer than between two looks at health
_REQUEST_ID = "-request-id-"


class Door(Doorkeeper):
    """Asks `admission` about every request with this method and path, and gives the others no thought."""

    def __init__(self, method: str, path: str, admission: Admission) -> None:
        """`path` is a route's without parameters."""
        self._method, self._path = method, path
        self._method_bytes, self._path_bytes = method.encode(), path.encode()
        self._first_line = f"{method} {path} HTTP/1.1\r\n".encode()
        self._admission = admission
        self._answers = [_answer(seconds) for seconds in RETRY_AFTER_S]
        self._turn = 0
        self._counted = metrics.HTTP_REQUESTS.labels(method, path, "503").inc

    @property
    @override
    def first_line(self) -> bytes:
        return self._first_line

    @property
    @override
    def is_shut(self) -> bool:
        return self._admission.is_shut

    @override
    def turns_away(self) -> bool:
        return self._admission.turns_away()

    @override
    def guards(self, method: bytes, target: bytes) -> bool:
        return target == self._path_bytes and method == self._method_bytes

    @override
    def enter(self) -> bool:
        return self._admission.enter()

    @override
    def refusal(self, request_id: bytes | None) -> bytes:
        self._counted()
        accepted = context.accept_request_id(request_id).encode()
        head, body = self._answers[self._next_turn()]
        body = body.replace(_REQUEST_ID.encode(), accepted)
        return head % (len(body), accepted) + body

    def leads_to(self, method: str, path: str) -> bool:
        """The same as `guards`, of a request that the server has taken in already."""
        return path == self._path and method == self._method

    def admit(self) -> None:
        """Enter, or raise the problem that says why not."""
        if not self._admission.enter():
            raise _problem(RETRY_AFTER_S[self._next_turn()])

    def leave(self) -> None:
        """What came in through this door is done."""
        self._admission.leave()

    async def probe(self) -> Mapping[str, Reading]:
        """The check for health: a warning while requests are turned away."""
        refusing = self._admission.refused_within(RECENT_S)
        limit, in_flight = int(self._admission.limit), self._admission.in_flight
        metrics.LIMIT.set(limit)
        metrics.IN_FLIGHT.set(in_flight)
        return {
            "inFlight": Reading(in_flight, "requests"),
            "limit": Reading(limit, "requests"),
            "turnedAway": Reading(refusing, status=Status.WARN if refusing else Status.PASS),
        }

    def _next_turn(self) -> int:
        self._turn = (self._turn + 1) % len(RETRY_AFTER_S)
        return self._turn


def _problem(retry_after_s: int) -> Problem:
    return Problem(503, "overloaded", "Overloaded", DETAIL, headers={"Retry-After": str(retry_after_s)})


def _answer(retry_after_s: int) -> tuple[bytes, bytes]:
    """A whole response in two parts; the head lacks the body's length and the request's id, the body that id."""
    problem = _problem(retry_after_s)
    head = (
        "HTTP/1.1 503 Service Unavailable",
        f"retry-after: {retry_after_s}",
        "content-length: %d",
        f"content-type: {MEDIA_TYPE}",
        "x-request-id: %s",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    )
    body = json.dumps({**problem.body(), "request_id": _REQUEST_ID}, separators=(",", ":"))
    return "\r\n".join([*head, "", ""]).encode(), body.encode()
