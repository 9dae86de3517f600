"""A key that asks too often is told so before anything is done, whichever way its request takes."""

from collections.abc import AsyncIterator
from time import perf_counter

import pytest_asyncio

from shared.web.limits import Limits
from tests.integration.checkout.changed_requests import VALID, post, refused
from tests.integration.checkout.conftest import API_KEY, OPS_KEY, Shop, running, settings_for
from tests.integration.sandboxes.programs import Payments

BURST = 3


class Stopwatch:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest_asyncio.fixture(scope="module")
async def limited_shop(checkout_database: str, redis_url: str, payments_server: Payments) -> AsyncIterator[Shop]:
    """A checkout whose keys may make three requests at once, and one in two seconds after that."""
    settings = settings_for(
        checkout_database, redis_url, payments_server.program.url, key_rate=0.5, key_burst=BURST, docs_enabled=True
    )
    async with running(settings, payments_server) as made:
        yield made


@pytest_asyncio.fixture
async def clock(limited_shop: Shop) -> Stopwatch:
    """With it every key has its whole burst again."""
    stopwatch = Stopwatch()
    limited_shop.service.http.state.limits = Limits(stopwatch)  # type: ignore[attr-defined]
    return stopwatch


async def test_an_order_too_many_is_refused_before_stock_and_key_are_touched(
    limited_shop: Shop, clock: Stopwatch
) -> None:
    for _ in range(BURST):
        assert (await limited_shop.order()).status_code == 201
    before = await limited_shop.written()
    stock = await limited_shop.stock("SKU-0001")

    answer = await limited_shop.order("one-too-many")

    refused(answer, 429, "rate_limited")
    assert answer.headers["Retry-After"] == "2"
    assert await limited_shop.written() == before
    assert await limited_shop.stock("SKU-0001") == stock
    clock.now += 2
    again = await limited_shop.order("one-too-many")
    assert again.status_code == 201
    assert "Idempotency-Replayed" not in again.headers


async def test_every_answer_to_a_key_says_what_is_left(limited_shop: Shop, clock: Stopwatch) -> None:
    clock.now += 1

    answers = [
        await limited_shop.order(),
        await limited_shop.get("/v1/orders/none"),
        await post(limited_shop, VALID, Idempotency_Key=None),
        await limited_shop.get("/v1/products"),
    ]

    assert [answer.status_code for answer in answers] == [201, 404, 400, 429]
    assert [answer.headers["RateLimit"] for answer in answers] == [
        '"key";r=2;t=2',
        '"key";r=1;t=4',
        '"key";r=0;t=6',
        '"key";r=0;t=6',
    ]
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"key";q=3;w=6'}


async def test_one_key_does_not_use_up_what_another_may(limited_shop: Shop, clock: Stopwatch) -> None:
    await limited_shop.client("neighbour", "neighbour-key")
    for _ in range(BURST):
        await limited_shop.get("/v1/orders")

    exhausted = await limited_shop.get("/v1/orders")
    other = await limited_shop.get("/v1/orders", api_key="neighbour-key")

    refused(exhausted, 429, "rate_limited")
    assert other.status_code == 200
    assert clock.now == 0


async def test_health_metrics_documents_and_people_on_call_are_never_limited(
    limited_shop: Shop, clock: Stopwatch
) -> None:
    for _ in range(BURST + 1):
        await limited_shop.get("/v1/orders", api_key=OPS_KEY)

    for path in ("/health/live", "/health/ready", "/health", "/metrics", "/openapi.json", "/ops", "/ops/subscriptions"):
        for _ in range(BURST + 1):
            answer = await limited_shop.get(path, api_key=OPS_KEY)
            assert answer.status_code == 200
            assert "RateLimit" not in answer.headers
    refused(await limited_shop.get("/v1/orders", api_key=OPS_KEY), 429, "rate_limited")
    assert clock.now == 0


async def test_who_is_not_known_learns_nothing_about_limits(limited_shop: Shop, clock: Stopwatch) -> None:
    answers = [await limited_shop.get("/v1/orders", api_key=f"{API_KEY}x") for _ in range(BURST + 1)]

    for answer in answers:
        refused(answer, 401, "unauthenticated")
        assert "RateLimit" not in answer.headers
    assert clock.now == 0


async def test_counting_a_request_takes_microseconds(shop: Shop) -> None:
    """An order costs half a millisecond: what every request pays may not be seen in it."""
    quota, limits = (await shop.service.http.state.keys.find(API_KEY)).quota, Limits()  # type: ignore[attr-defined]
    took = []

    for _ in range(5):
        started = perf_counter()
        for _ in range(2000):
            limits.take("key_demo", quota)
        took.append((perf_counter() - started) / 2000)

    assert min(took) < 20e-6  # one to two on an idle machine
