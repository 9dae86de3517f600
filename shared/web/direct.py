"""A route that is called all the time, served past the framework: the same function, its arguments found by hand.

FastAPI's way to an endpoint costs more than what checkout does in it. The route itself stays where it is, for the
document and for everybody else; only who calls its function changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from shared.web.strict_json import StrictRequest, read_json

Handler = Callable[[StrictRequest], Awaitable[Response]]
AnyModel = TypeVar("AnyModel", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Direct:
    """A handler, and the route for which it stands (metrics go by the route's template)."""

    route: APIRoute
    handle: Handler


DirectRoutes = Mapping[tuple[str, str], Direct]  # by method and path, so only paths without parameters


async def read_model(request: StrictRequest, model: type[AnyModel]) -> Callable[[], AnyModel]:
    """Read the body now, validate it when called: a caller without a key learns nothing about its body."""
    value = await read_json(request)

    def validate() -> AnyModel:
        if value is None:
            missing = {"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}
            raise RequestValidationError([missing])
        try:
            return model.model_validate(value)
        except ValidationError as error:
            found = error.errors(include_url=False)
            raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from error

    return validate
