"""JSON as a contract needs it: what two readers could understand differently is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi.routing import APIRoute, request_response
from starlette.requests import Request
from typing_extensions import override

from shared.web.problems import Problem

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Receive, Scope

    Handler = Callable[[Request], Coroutine[Any, Any, Response]]

# Postgres' text holds no NUL, and UTF-8 no lone surrogate: both can only come from an escape.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)


def parse(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON document; raises a 400 `malformed_json` problem that says what is wrong with it."""
    try:
        # json.loads on bytes would guess UTF-16 and UTF-32 as well.
        value = _decode(body.decode("utf-8"))
        if b"\\u" in body:
            _refuse_unstorable(value)
    except RecursionError as error:
        raise _malformed("nested too deeply") from error
    except UnicodeDecodeError as error:
        raise _malformed("not UTF-8") from error
    except (json.JSONDecodeError, _Refused) as error:
        raise _malformed(str(error)) from error
    except ValueError as error:  # Python's own limit of 4300 digits, told in words that help nobody here
        raise _malformed("a number has too many digits") from error
    return value


class _Refused(ValueError):
    """JSON by its grammar, but not one that can be trusted."""


class StrictRequest(Request):
    """A request whose JSON is read strictly."""

    @classmethod
    def holding(cls, scope: Scope, receive: Receive, body: bytes) -> StrictRequest:
        """A request whose body has been received."""
        request = cls(scope, receive)
        request._body = body  # where Starlette keeps a body that was read before
        return request

    @override
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse(await self.body())
        return self._json


def make_strict(route: APIRoute) -> None:
    """Let `route` read its body strictly, and only when it says that it is JSON."""
    if route.body_field is not None:
        route.app = request_response(_strictly(route.get_route_handler()))


def _strictly(handler: Handler) -> Handler:
    async def handle(request: Request) -> Response:
        strict = StrictRequest(request.scope, request.receive)
        await read_json(strict)
        return await handler(strict)

    return handle


async def read_json(request: StrictRequest) -> Any:  # noqa: ANN401 - any JSON value
    """The body's value, None without a body; raises a problem unless the request says that it is JSON, and it is."""
    if not await request.body():
        return None
    if not _JSON_TYPE.fullmatch(request.headers.get("content-type", "")):
        raise Problem(415, "unsupported_media_type", detail="The body must be application/json.")
    return await request.json()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("an object has the same key twice")
    return members


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused("a number is too large")
    return value


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_number).decode


def _refuse_unstorable(value: object) -> None:
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            raise _Refused("a text has a NUL or half a surrogate pair")
    elif isinstance(value, dict):
        for name, member in value.items():
            _refuse_unstorable(name)
            _refuse_unstorable(member)
    elif isinstance(value, list):
        for item in value:
            _refuse_unstorable(item)


def _malformed(why: str) -> Problem:
    return Problem(400, "malformed_json", "The body is not valid JSON", f"The body is not valid JSON: {why}.")
