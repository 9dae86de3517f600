"""The API's own description: OpenAPI, AsyncAPI, and a page to read them that works without the internet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastapi_offline
from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from starlette.responses import FileResponse, HTMLResponse, JSONResponse

import shared.contracts
from shared.web import problems
from shared.web.problems import not_found

if TYPE_CHECKING:
    from fastapi import FastAPI

ASYNCAPI = Path(shared.contracts.__file__).with_name("asyncapi.json")
SWAGGER = Path(fastapi_offline.__file__).parent / "static"
_SWAGGER_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_A_DAY = {"Cache-Control": "public, max-age=86400"}
_METHODS = {"get", "put", "post", "delete", "patch"}

# The script is a file of its own because the content security policy allows no inline ones.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/static/docs.js"></script>
</body>
</html>
"""

_PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457 problem details",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "in": {"type": "string"},
                    "pointer": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


def router(app: FastAPI) -> APIRouter:
    """`/docs`, `/openapi.json` and `/asyncapi.json`."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs")
    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE.format(title=app.title))

    @routes.get("/docs/assets/{name}")
    async def asset(name: str) -> FileResponse:
        if name not in _SWAGGER_FILES:
            raise not_found("file")
        return FileResponse(SWAGGER / name, media_type=_SWAGGER_FILES[name], headers=_A_DAY)

    @routes.get("/openapi.json")
    async def openapi() -> JSONResponse:
        return JSONResponse(openapi_of(app))

    @routes.get("/asyncapi.json")
    async def asyncapi() -> FileResponse:
        if not ASYNCAPI.exists():
            raise not_found("document")
        return FileResponse(ASYNCAPI, media_type="application/json")

    return routes


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, in which every operation may answer with a problem."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            components.pop(unused, None)
        components["Problem"] = _PROBLEM
        for path, operations in schema.get("paths", {}).items():
            for method in operations.keys() & _METHODS:
                _complete(path, operations[method])
        app.openapi_schema = schema
    return app.openapi_schema


def problem_document(
    description: str, *, headers: dict[str, Any] | None = None, **members: dict[str, Any]
) -> dict[str, Any]:
    """A response that is a problem, for a route's `responses`; `members` are the schemas of those beside the usual."""
    schema: dict[str, Any] = {"$ref": "#/components/schemas/Problem"}
    if members:
        schema = {"allOf": [schema, {"type": "object", "properties": members}]}
    return {
        "description": description,
        "headers": dict(headers or {}),
        "content": {problems.MEDIA_TYPE: {"schema": schema}},
    }


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Add what holds for every operation of its kind: the ways in which it may be refused."""
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    for status, description in _refusals(path, operation).items():
        responses.setdefault(status, problem_document(description))
    for parameter in operation.get("parameters", []):
        _forbid_null(parameter["schema"])


def _refusals(path: str, operation: dict[str, Any]) -> dict[str, str]:
    found = {"default": "Any other problem"}
    found["400"] = "The request cannot be read: `malformed_json`, `malformed_query`, `untrusted_host` and the like"
    if "security" in operation:
        found |= {"401": "`unauthenticated`", "403": "`forbidden`: the key does not open this"}
        found["503"] = "`service_unavailable`: try again"
    if "{" in path:
        found["404"] = "`not_found`"
    if "requestBody" in operation:
        found |= {"408": "`request_timeout`", "413": "`body_too_large`", "415": "`unsupported_media_type`"}
    if "requestBody" in operation or "parameters" in operation:
        found["422"] = "`validation_failed`: `errors` has what is wrong and where"
    return found


def _forbid_null(schema: dict[str, Any]) -> None:
    """What is optional in Python may be left out of a URL, but there is no null in one."""
    kinds = [one for one in schema.get("anyOf", []) if one != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema.update(kinds[0])
