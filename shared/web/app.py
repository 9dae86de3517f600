"""The app factory: what every service answers besides its own routes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from typing_extensions import override

from shared.web import docs, health, problems
from shared.web.direct import Direct, Handler
from shared.web.limits import Limits
from shared.web.middleware import Edge
from shared.web.strict_json import make_strict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fastapi.telemetry import TelemetryConfig
    from starlette.types import ASGIApp

    from shared.runtime.settings import ServiceSettings
    from shared.web.auth import KeyStore
    from shared.web.door import Door

STATIC = Path(__file__).parent / "static"


def create_app(
    *,
    service: str,
    settings: ServiceSettings,
    health: health.Health,
    keys: KeyStore,
    routers: Sequence[APIRouter],
    description: str = "",
    direct: Mapping[Callable[..., object], Handler] | None = None,
    door: Door | None = None,
) -> FastAPI:
    """The service's HTTP application. The service puts its own wiring on `app.state.wiring` afterwards.

    `direct` maps endpoints that are called all the time to what stands for them (see `shared.web.direct`).
    The `door` stands in front of one route.
    """
    shortcuts: dict[tuple[str, str], Direct] = {}
    app = _Application(
        lambda inner: Edge(inner, trusted_hosts=settings.trusted_hosts, direct=shortcuts, door=door),
        title=f"Orderstream {service}",
        description=description,
        version="1",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_telemetry(),
    )
    app.state.keys = keys
    app.state.limits = Limits()
    problems.install(app)
    for router in [*routers, _own_routes(health), *([docs.router(app)] if settings.docs_enabled else [])]:
        _adopt(app, router)
    for route in (one for one in app.router.routes if isinstance(one, APIRoute)):
        if direct and route.endpoint in direct:
            shortcuts.update(
                {(method, route.path): Direct(route, direct[route.endpoint]) for method in route.methods or ()}
            )
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


class _Application(FastAPI):
    """FastAPI with our layer around everything of its own, which a direct route then does not pass through."""

    def __init__(self, around: Callable[[ASGIApp], Edge], **options: Any) -> None:  # noqa: ANN401 - FastAPI's own
        super().__init__(**options)
        self._around = around

    @override
    def build_middleware_stack(self) -> ASGIApp:
        inner = super().build_middleware_stack()
        # Ours is the last resort: Starlette's would answer in plain text before we see the error.
        return self._around(inner.app if isinstance(inner, ServerErrorMiddleware) else inner)


def _adopt(app: FastAPI, router: APIRouter) -> None:
    """Take the router's routes over as the app's own: `include_router` would match every request twice."""
    for route in router.routes:
        if not isinstance(route, APIRoute):
            raise TypeError(f"{route}: routers may hold plain routes only")
        make_strict(route)
        app.router.routes.append(route)


def _own_routes(checked: health.Health) -> APIRouter:
    routes = health.router(checked)

    @routes.get(
        "/metrics",
        tags=["health"],
        summary="Everything that Prometheus wants to know",
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        await checked.report()  # some gauges are measured by the checks
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return routes


def _telemetry() -> TelemetryConfig:
    """OpenTelemetry only when the environment asks for it; spans per operation would cost the most."""
    asked = any(name.startswith(("OTEL_EXPORTER_", "FASTAPI_OTEL_")) for name in os.environ)
    return {"tracing": asked, "metrics": asked, "logs": asked, "operation_spans": False}
