"""What every service answers, whatever its routes are."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from time import monotonic
from typing import Annotated

import pytest
import pytest_asyncio
from fastapi import APIRouter, Depends, FastAPI
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from shared.runtime.settings import ServiceSettings
from shared.runtime.supervision import Loop
from shared.web import context
from shared.web.app import create_app
from shared.web.auth import Principal, SettingsKeys, require
from shared.web.health import Check, Health, Reading, Status
from shared.web.problems import Problem

JSON = {"Content-Type": "application/json"}
KEY = {"Authorization": "Bearer api-key"}


class Order(BaseModel):
    """A strict request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    sku: str
    quantity: int


class World:
    """A service made for these tests."""

    def __init__(self) -> None:
        self.fail: Exception | None = None
        self.database = Reading(1.0, "ms")
        self.health = Health("test", [Check("postgres", self._look, critical=True)])
        self.app = self._make()
        transport = ASGITransport(self.app, raise_app_exceptions=False)
        self.client = AsyncClient(transport=transport, base_url="http://test")

    async def _look(self) -> Mapping[str, Reading]:
        return {"responseTime": self.database}

    def _make(self) -> FastAPI:
        settings = ServiceSettings.model_validate(
            {
                "port": 1,
                "database_url": "postgresql://nobody@localhost/none",
                "redis_url": "redis://localhost",
                "ops_keys": "ops-key",
                "api_keys": "api-key,other-key",
            }
        )
        routes = APIRouter(prefix="/v1")

        @routes.post("/orders", status_code=201)
        async def place(order: Order, caller: Annotated[Principal, Depends(require("orders:write"))]) -> dict[str, str]:
            return {"sku": order.sku, "by": caller.tenant, "trace": context.traceparent.get() or ""}

        @routes.get("/orders")
        async def listed(limit: int = 1) -> dict[str, int]:
            return {"limit": limit}

        @routes.get("/orders/{order_id}")
        async def read(order_id: str) -> dict[str, str]:
            if self.fail:
                raise self.fail
            return {"id": order_id}

        @routes.post("/ops")
        async def operate(_: Annotated[Principal, Depends(require("ops"))]) -> dict[str, str]:
            return {}

        return create_app(
            service="test", settings=settings, health=self.health, keys=SettingsKeys(settings), routers=[routes]
        )


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A fresh service."""
    made = World()
    async with made.client:
        yield made


async def test_a_good_request_is_answered_with_the_id_that_it_came_with(world: World) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    answer = await world.client.post(
        "/v1/orders",
        json={"sku": "A", "quantity": 1},
        headers=KEY | {"X-Request-Id": "abc-1", "traceparent": trace},
    )

    assert answer.status_code == 201
    assert answer.json() == {"sku": "A", "by": "api", "trace": trace}
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("sent", ["", "a b", "ä", "x" * 129, "a\tb"])
async def test_an_unusable_request_id_is_replaced(world: World, sent: str) -> None:
    answer = await world.client.get("/v1/orders", headers=[(b"X-Request-Id", sent.encode("latin-1"))])

    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"sku": "A", "sku": "B", "quantity": 1}',
        b'{"sku": "A", "quantity": NaN}',
        b'{"sku": "A", "quantity": Infinity}',
        b'{"sku": "A", "quantity": 1e999}',
        b'{"sku": "A\\u0000", "quantity": 1}',
        b'{"sku": "\\ud800", "quantity": 1}',
        b'{"\\ud800": 1}',
        b'{"sku": "\xff", "quantity": 1}',
        b'{"sku": "\xc0\xaf", "quantity": 1}',
        b"\xef\xbb\xbf{}",
        '{"sku": "A", "quantity": 1}'.encode("utf-16"),
        b"[" * 30_000,
        b'{"a":' * 10_000,
        b'{"sku": "A", "quantity": ' + b"1" * 5000 + b"}",
    ],
)
async def test_what_is_not_strict_json_is_malformed(world: World, body: bytes) -> None:
    answer = await world.client.post("/v1/orders", content=body, headers=KEY | JSON)

    assert answer.status_code == 400
    assert answer.json()["code"] == "malformed_json"
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_number_of_the_exponents_kind_beyond_a_double_is_no_infinity(world: World) -> None:
    answer = await world.client.post("/v1/orders", content=b'{"sku": "A", "quantity": 1.5}', headers=KEY | JSON)

    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"sku": "A", "quantity": "1"}, "/quantity"),
        ({"sku": "A", "quantity": True}, "/quantity"),
        ({"sku": "A"}, "/quantity"),
        ({"sku": "A", "quantity": 1, "a/b~c": 1}, "/a~1b~0c"),
        ({"sku": "A", "quantity": 1, "4111111111111111": 1}, "/[redacted]"),
        ([], ""),
    ],
)
async def test_what_is_wrong_with_a_request_is_pointed_at(world: World, body: object, pointer: str) -> None:
    answer = await world.client.post("/v1/orders", json=body, headers=KEY)

    assert answer.status_code == 422
    problem = answer.json()
    assert problem["type"] == "urn:orderstream:problem:validation_failed"
    assert problem["errors"][0]["pointer"] == pointer
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({}, 415, "unsupported_media_type"),
        (JSON | {"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        (JSON | {"Content-Length": "70000"}, 413, "body_too_large"),
        (JSON | {"Content-Length": "-1"}, 413, "body_too_large"),
    ],
)
async def test_bodies_of_another_kind_are_refused(
    world: World, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await world.client.post("/v1/orders", content=b'{"sku": "A", "quantity": 1}', headers=KEY | headers)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_chunked_body_is_cut_off_at_the_limit(world: World) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000

    answer = await world.client.post("/v1/orders", content=endless(), headers=KEY | JSON)

    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


async def test_an_empty_body_is_not_a_crash(world: World) -> None:
    answer = await world.client.post("/v1/orders", headers=KEY | JSON)

    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1/orders/", 404, "not_found"),
        ("GET", "/v1/orders/%00", 404, "not_found"),
        ("GET", "/v1/orders?limit=%00", 400, "malformed_query"),
        ("GET", "/v1/orders?limit=x", 422, "validation_failed"),
        ("PUT", "/v1/orders", 405, "method_not_allowed"),
        ("FOO", "/v1/orders", 405, "method_not_allowed"),
    ],
)
async def test_whatever_goes_wrong_is_a_problem(world: World, method: str, path: str, status: int, code: str) -> None:
    answer = await world.client.request(method, path)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_what_else_is_possible_is_said_with_a_405(world: World) -> None:
    answer = await world.client.put("/v1/orders")

    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ValueError("a secret detail"), 500, "internal_error"),
        (ConnectionRefusedError("a secret detail"), 503, "service_unavailable"),
        (TimeoutError("a secret detail"), 503, "service_unavailable"),
        (Problem(409, "taken", members={"left": 3}), 409, "taken"),
    ],
)
async def test_what_a_route_raises_is_a_problem_without_its_details(
    world: World, error: Exception, status: int, code: str
) -> None:
    world.fail = error

    answer = await world.client.get("/v1/orders/1")

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "secret" not in answer.text
    assert ("retry-after" in answer.headers) == (status == 503)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", 401),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        ("Bearer " + "x" * 5000, 401),
        ("Basic !!!", 401),
        ("Basic b3BzOndyb25n", 401),
        ("Bearer api-key", 403),
        ("Bearer ops-key", 200),
        ("Basic b3BzOm9wcy1rZXk=", 200),
    ],
)
async def test_ops_opens_for_ops_keys_only(world: World, header: str, status: int) -> None:
    answer = await world.client.post("/v1/ops", headers={"Authorization": header})

    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) == (status == 401)


async def test_a_form_on_another_site_cannot_use_a_browsers_password(world: World) -> None:
    browser = {"Authorization": "Basic b3BzOm9wcy1rZXk="}

    answers = [
        await world.client.post("/v1/ops", headers=browser | {"Sec-Fetch-Site": "cross-site"}),
        await world.client.post("/v1/ops", headers=browser | {"Origin": "https://evil.example"}),
        await world.client.post("/v1/ops", headers=browser | {"Origin": "http://test"}),
    ]

    assert [answer.status_code for answer in answers] == [403, 403, 200]


async def test_not_ready_means_still_alive(world: World) -> None:
    world.database = Reading(status=Status.FAIL)

    answers = [await world.client.get(f"/health{path}") for path in ("/live", "/ready", "")]

    assert [answer.status_code for answer in answers] == [200, 503, 503]
    assert answers[2].headers["content-type"] == "application/health+json"
    assert answers[2].json()["checks"]["postgres:responseTime"][0]["status"] == "fail"


async def test_a_draining_service_is_alive_but_not_ready(world: World) -> None:
    world.health.drain()

    assert (await world.client.get("/health/ready")).status_code == 503
    assert (await world.client.get("/health/live")).status_code == 200


async def test_a_service_whose_loop_makes_no_step_says_which_and_is_not_alive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For long: a stall of a few seconds must not get anybody restarted."""
    world.health.loops.append(Standing("consumer"))
    monkeypatch.setattr("shared.runtime.supervision.monotonic", lambda: monotonic() + 20)
    assert (await world.client.get("/health/live")).status_code == 200

    monkeypatch.setattr("shared.runtime.supervision.monotonic", lambda: monotonic() + 40)
    answers = [await world.client.get(f"/health{path}") for path in ("/live", "/ready", "")]

    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert answers[0].json()["stalled"] == ["consumer"]
    assert answers[2].json()["checks"]["loops:stalled"][0]["output"] == "consumer"


class Standing(Loop):
    """Made no step since it was made."""

    @override
    async def run_once(self) -> int:
        return 0


async def test_however_many_ask_a_check_runs_once_and_a_silent_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    monkeypatch.setattr("shared.web.health.CHECK_LIMIT_S", 0.05)

    async def hang() -> Mapping[str, Reading]:
        runs.append(1)
        await asyncio.sleep(0.5)
        return {}

    health = Health("test", [Check("slow", hang, critical=True)])
    reports = await asyncio.gather(*(health.report() for _ in range(10)))

    assert {report.status for report in reports} == {Status.FAIL}
    assert len(runs) == 1
    await asyncio.sleep(0.5)


async def test_metrics_count_by_route_and_never_by_path(world: World) -> None:
    for number in range(3):
        await world.client.get(f"/v1/orders/{number}")
        await world.client.get(f"/nothing/{number}")

    metrics = (await world.client.get("/metrics")).text

    assert 'route="/v1/orders/{order_id}"' in metrics
    assert 'route="unmatched"' in metrics
    assert "/nothing/" not in metrics


async def test_the_documentation_comes_from_here_and_has_problems_in_it(world: World) -> None:
    schema = (await world.client.get("/openapi.json")).json()
    page = await world.client.get("/docs")

    assert "default" in schema["paths"]["/v1/orders"]["post"]["responses"]
    assert "HTTPValidationError" not in str(schema)
    assert "http" not in page.text.replace("http-equiv", "")
    assert "script-src" in page.headers["content-security-policy"] or (
        "default-src 'self'" in page.headers["content-security-policy"]
    )
    for asset in ("/docs/assets/swagger-ui.css", "/docs/assets/swagger-ui-bundle.js", "/static/docs.js"):
        assert (await world.client.get(asset)).status_code == 200


async def test_documentation_can_be_switched_off() -> None:
    settings = ServiceSettings.model_validate(
        {
            "port": 1,
            "database_url": "postgresql://nobody@localhost/none",
            "redis_url": "redis://localhost",
            "docs_enabled": False,
        }
    )
    app = create_app(service="test", settings=settings, health=Health("test"), keys=SettingsKeys(settings), routers=[])

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        answers = [await client.get(path) for path in ("/docs", "/openapi.json", "/asyncapi.json")]

    assert [answer.status_code for answer in answers] == [404, 404, 404]
