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
        for path in schema.get("paths", {}).values():
            for method in path.keys() & _METHODS:
                _answer_with_problems(path[method]["responses"])
        app.openapi_schema = schema
    return app.openapi_schema


def _answer_with_problems(responses: dict[str, Any]) -> None:
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses["default"] = {"description": "A problem", "content": content}
