"""The API of analytics, its export and its page."""

import asyncio
import csv
import io
from datetime import timedelta

import pytest
from httpx import BasicAuth

from shared.bus.boards import announcement, relay_board
from shared.bus.progress import Epoch
from shared.bus.streams import RedisStreams, stream_name
from shared.contracts.envelope import encode, rfc3339
from tests.integration.analytics.conftest import World
from tests.support.orders import NOON, Order
from tests.support.pages import complaints


async def test_the_summary_tells_orders_money_and_failures_per_currency(world: World) -> None:
    kept, refunded, cancelled = Order(("A", 1, 1000)), Order(("A", 2, 1000)), Order(("B", 1, 501))
    await world.deliver(kept.completed(), refunded.completed(), refunded.refunded(300))
    await world.deliver(cancelled.completed(), cancelled.cancelled(), Order().payment_failed())
    await world.deliver(Order(("A", 1, 70), currency="JPY").completed())

    summary = (await world.get("/v1/summary"))["items"]

    assert summary == [
        {
            "currency": "EUR",
            "orders": 3,
            "gross": 3501,
            "refunded": 801,
            "net": 2700,
            "cancelled": 1,
            "payment_failed": 1,
            "average_order": 1167,
        },
        {
            "currency": "JPY",
            "orders": 1,
            "gross": 70,
            "refunded": 0,
            "net": 70,
            "cancelled": 0,
            "payment_failed": 0,
            "average_order": 70,
        },
    ]


async def test_a_period_is_exact_to_the_instant_and_half_open(world: World) -> None:
    # Completed at 12:00:31, 12:00:51, 12:01:11 … 12:03:11.
    orders = [Order(("A", 1, 1), at=NOON + timedelta(seconds=20 * n)) for n in range(9)]
    await world.deliver(*(order.completed() for order in orders))

    for first in range(9):
        for last in range(first, 9):
            period = {"from": instant(orders[first]), "to": instant(orders[last])}
            summary = (await world.get("/v1/summary", **period))["items"]
            products = (await world.get("/v1/top-products", **period))["items"]
            assert sum(one["orders"] for one in summary) == last - first, period
            assert sum(one["quantity"] for one in products) == last - first, period


def instant(order: Order) -> str:
    assert order.completed_at
    return rfc3339(order.completed_at)


async def test_sales_come_in_buckets_of_the_wanted_length(world: World) -> None:
    for minutes in (0, 0, 1, 59, 60, 60 * 24):
        await world.deliver(Order(at=NOON.replace(second=0) + timedelta(minutes=minutes)).completed())
    period = {"from": "2026-03-14T00:00:00Z", "to": "2026-03-16T00:00:00Z"}

    starts = {
        bucket: [
            (one["start"][8:16], one["orders"])
            for one in (await world.get("/v1/sales", bucket=bucket, **period))["items"]
        ]
        for bucket in ("minute", "hour", "day")
    }

    assert starts["day"] == [("14T00:00", 5), ("15T00:00", 1)]
    assert starts["hour"] == [("14T12:00", 4), ("14T13:00", 1), ("15T12:00", 1)]
    assert [start for start, _ in starts["minute"]] == [
        "14T12:00",
        "14T12:01",
        "14T12:59",
        "14T13:00",
        "15T12:00",
    ]


async def test_sales_are_those_of_the_last_day_unless_asked_otherwise(world: World) -> None:
    await world.deliver(Order(at=NOON).completed())

    period = {"from": "2026-03-14T12:00:00+01:00", "to": "2026-03-14T14:00:00+01:00"}

    assert (await world.get("/v1/sales"))["items"] == []
    assert len((await world.get("/v1/sales", **period))["items"]) == 1


async def test_the_best_products_come_first(world: World) -> None:
    await world.deliver(Order(("CHEAP", 9, 1), ("DEAR", 1, 900)).completed())
    await world.deliver(Order(("MIDDLE", 2, 100)).completed(), Order(("YEN", 1, 5000), currency="JPY").completed())

    best = (await world.get("/v1/top-products", limit="2", currency="EUR"))["items"]

    assert best == [
        {"sku": "DEAR", "currency": "EUR", "orders": 1, "quantity": 1, "gross": 900},
        {"sku": "MIDDLE", "currency": "EUR", "orders": 1, "quantity": 2, "gross": 200},
    ]


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/v1/summary?from=yesterday", "/from"),
        ("/v1/summary?from=1700000000", "/from"),
        ("/v1/summary?to=2026-01-31", "/to"),
        ("/v1/summary?to=2026-01-31T00:00:00", "/to"),
        ("/v1/summary?from=0001-01-01T00:00:00%2B14:00", "/from"),
        ("/v1/summary?to=9999-12-31T23:59:59Z", "/to"),
        ("/v1/summary?from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z", "/from"),
        ("/v1/sales?bucket=week", "/bucket"),
        ("/v1/sales?bucket=minute&from=2020-01-01T00:00:00Z", "/bucket"),
        ("/v1/sales?to=0001-01-01T00:00:00Z", "/to"),
        ("/v1/top-products?limit=0", "/limit"),
        ("/v1/top-products?limit=101", "/limit"),
        ("/v1/top-products?currency=eur", "/currency"),
    ],
)
async def test_a_wrong_question_is_refused_with_its_place(served: World, path: str, pointer: str) -> None:
    answer = await served.client.get(path)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_the_export_has_a_row_per_order_and_nothing_that_a_spreadsheet_would_run(world: World) -> None:
    refunded = Order(("A", 3, 100), order_id="ord_1")
    failed = Order(order_id="=HYPERLINK(1)", at=NOON - timedelta(hours=1))
    await world.deliver(refunded.completed(), refunded.refunded(100), failed.payment_failed())

    answer = await world.client.get("/v1/export.csv")

    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["order_id"], row["status"]) for row in rows] == [
        ("'=HYPERLINK(1)", "failed"),
        ("ord_1", "completed"),
    ]
    assert (rows[1]["total"], rows[1]["refunded_total"], rows[1]["units"]) == ("300", "100", "3")
    assert (rows[0]["completed_at"], rows[1]["completed_at"]) == ("", "2026-03-14T12:00:31.000000Z")


async def test_the_export_goes_on_over_many_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.analytics.routes.EXPORT_PAGE", 7)
    await world.deliver(*(Order(at=NOON + timedelta(seconds=n // 10)).completed() for n in range(30)))

    answer = await world.client.get("/v1/export.csv")

    ids = [row["order_id"] for row in csv.DictReader(io.StringIO(answer.text))]
    assert len(ids) == len(set(ids)) == 30


async def test_the_dashboard_opens_with_a_key_as_password_and_brings_everything_along(served: World) -> None:
    closed = await served.client.get("/", headers={"Authorization": "", "Accept": "text/html"})
    page = await served.client.get("/", auth=BasicAuth("anybody", "ops-key"))

    assert (closed.status_code, closed.headers["www-authenticate"][:5]) == (401, "Basic")
    assert page.status_code == 200
    assert complaints(page.text) == []
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for name in ("dashboard.js", "dashboard.css"):
        assert f"/assets/{name}" in page.text
        assert (await served.client.get(f"/assets/{name}")).status_code == 200
    assert (await served.client.get("/assets/../routes.py")).status_code == 404


async def test_nobody_reads_numbers_without_a_key(served: World) -> None:
    for path in ("/v1/summary", "/v1/sales", "/v1/top-products", "/v1/export.csv"):
        answer = await served.client.get(path, headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401


async def test_an_event_in_the_stream_becomes_a_number(world: World, redis_url: str) -> None:
    event = Order(("A", 1, 4200)).completed()
    streams = RedisStreams(redis_url, "tests")
    stream = stream_name("analytics", 0)
    await streams.rebuild(stream, "analytics", 0)
    await streams.report(relay_board("analytics"), {"partitions": 1, **announcement(0, Epoch(1, 0, 0, replay=False))})
    running = [asyncio.create_task(loop.run()) for loop in world.service.loops]

    await streams.publish(stream, 0, 0, 1, [encode(event)])
    async with asyncio.timeout(10):
        while not (await world.get("/v1/summary"))["items"]:
            await asyncio.sleep(0.02)

    assert (await world.get("/v1/summary"))["items"][0]["gross"] == 4200
    for loop in world.service.loops:
        loop.stop()
    await asyncio.gather(*running)
    await streams.close()
