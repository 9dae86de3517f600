"""Errors as RFC 9457 problem details: every refusal has a stable type, a code, and the id of its request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from shared.runtime.errors import is_infrastructure
from shared.runtime.supervision import brief
from shared.web import context

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

log = structlog.get_logger()

TYPE_BASE = "urn:orderstream:problem"
MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2  # a database that restarts or a pool that is full needs about this long
_MOST_ERRORS = 50
_LONGEST_POINTER = 200
_LONG_NUMBER = re.compile(r"\d(?:[\s.-]?\d){12,}")


class Problem(Exception):
    """An answer other than success: raise it anywhere below a route."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str | None = None,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        """`code` is stable and snake_case; `members` are added to the body beside the standard ones."""
        super().__init__(f"{status} {code}: {detail or title or ''}")
        self.status = status
        self.code = code
        self.title = title or HTTPStatus(status).phrase
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = dict(members or {})

    def body(self) -> dict[str, Any]:
        """The problem document."""
        document: dict[str, Any] = {
            "type": f"{TYPE_BASE}:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail or self.title,
            "code": self.code,
            "request_id": context.request_id.get(),
        }
        return document | self.members

    def response(self) -> Response:
        """The HTTP response."""
        content = json.dumps(self.body(), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        return Response(content, self.status, self.headers, MEDIA_TYPE)


def not_found(what: str = "resource") -> Problem:
    """Missing, malformed and somebody else's look the same."""
    return Problem(404, "not_found", "Not found", f"No such {what}.")


def unexpected(error: Exception) -> Problem:
    """The answer to an exception that no route foresaw: 503 when a server is away, otherwise 500, logged."""
    if is_infrastructure(error):
        log.warning("request failed: a server is away or busy", error=brief(error))
        return Problem(
            503,
            "service_unavailable",
            detail="Something that this service depends on does not answer. Try again.",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )
    log.error("request failed unexpectedly", exc_info=error)
    return Problem(500, "internal_error", detail="This is our fault; the request id finds it in our logs.")


def install(app: FastAPI) -> None:
    """Render what routes and the framework raise as problems."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid)


def validation_failed(errors: list[dict[str, str]]) -> Problem:
    """422 with one entry `{pointer, detail}` for each thing that is wrong."""
    return Problem(
        422,
        "validation_failed",
        "The request is not valid",
        errors[0]["detail"] if len(errors) == 1 else f"{len(errors)} things are wrong with the request.",
        members={"errors": errors},
    )


async def _on_problem(_: Request, error: Exception) -> Response:
    if not isinstance(error, Problem):
        raise error
    return error.response()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allow = {"Allow": ", ".join(_methods_at(request))}
        detail = f"{request.method} is not possible here."
        return Problem(405, "method_not_allowed", detail=detail, headers=allow).response()
    if error.status_code == HTTPStatus.NOT_FOUND:
        return not_found().response()
    code = HTTPStatus(error.status_code).name.lower()
    return Problem(error.status_code, code, detail=str(error.detail), headers=error.headers).response()


async def _on_invalid(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return invalid(error).response()


def invalid(error: RequestValidationError) -> Problem:
    """What the models found wrong with a request."""
    return validation_failed([_entry(detail) for detail in error.errors()[:_MOST_ERRORS]])


def _entry(detail: Mapping[str, Any]) -> dict[str, str]:
    place, *path = [str(part) for part in detail["loc"]]
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)
    # A client's own key names end up here, and some clients send card numbers where nobody expects them.
    pointer = _LONG_NUMBER.sub("[redacted]", pointer)[:_LONGEST_POINTER]
    return {"in": place, "pointer": pointer, "detail": str(detail["msg"])}


def _methods_at(request: Request) -> list[str]:
    methods: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)
