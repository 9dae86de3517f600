"""Who reads the log is data: services are added, removed and rewound while everything runs."""

import json
import re
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text

from tests.integration.checkout.changed_requests import post, refused
from tests.integration.checkout.conftest import OPS_KEY, Shop, running, settings_for, until
from tests.integration.sandboxes.programs import Payments


@pytest_asyncio.fixture
async def own_shop(own_database: str, redis_url: str, payments_server: Payments) -> AsyncIterator[Shop]:
    """One that loses patience after a second."""
    settings = settings_for(own_database, redis_url, payments_server.program.url, forgotten_after_s=1.0)
    async with running(settings, payments_server) as made:
        yield made


OPERATOR = {"Authorization": f"Bearer {OPS_KEY}"}


async def test_a_service_is_added_listed_and_removed_and_everything_is_written_down(shop: Shop) -> None:
    made = await shop.http.post("/ops/subscriptions", json={"name": "loyalty"}, headers=OPERATOR)
    again = await shop.http.post("/ops/subscriptions", json={"name": "loyalty", "from": "now"}, headers=OPERATOR)
    listed = (await shop.get("/ops/subscriptions", api_key=OPS_KEY)).json()
    removed = await shop.http.delete("/ops/subscriptions/loyalty", headers=OPERATOR)
    missing = await shop.http.delete("/ops/subscriptions/loyalty", headers=OPERATOR)

    assert [one.status_code for one in (made, again, removed)] == [201, 200, 204]
    refused(missing, 404, "not_found")
    [loyalty] = [one for one in listed["items"] if one["name"] == "loyalty"]
    assert loyalty["settled"] == 0
    assert loyalty["backlog"] == loyalty["head"]
    assert await audited(shop, "loyalty") == [
        ("key_ops", "subscribe", "loyalty from beginning"),
        ("key_ops", "unsubscribe", "loyalty"),
    ]


async def test_a_rewind_says_first_what_it_would_do(shop: Shop) -> None:
    for _ in range(3):
        await shop.order()
    head = await subscribed(shop, "history")

    counted = (await rewind(shop, "history", position=head - 2, dry_run=True)).json()
    before = await settled(shop, "history")
    done = (await rewind(shop, "history", position=head - 2, replay=True)).json()

    assert counted["events"] == 2
    assert before == head
    assert done == {
        "name": "history",
        "events": 2,
        "replay": True,
        "dry_run": False,
        "items": [{"partition": 0, "position": head - 2, "events": 2}],
    }
    assert await settled(shop, "history") == head - 2
    assert await audited(shop, "history") == [
        ("key_ops", "rewind", f"history: partition 0 from {head} to {head - 2}, replay")
    ]


async def test_a_rewind_takes_a_time_as_well(shop: Shop) -> None:
    await shop.order()
    head = await subscribed(shop, "punctual")

    everything = (await rewind(shop, "punctual", time="2020-01-01T00:00:00Z", dry_run=True)).json()
    nothing = await rewind(shop, "punctual", time="2099-01-01T00:00:00+02:00")

    assert everything["items"] == [{"partition": 0, "position": 0, "events": head}]
    refused(nothing, 409, "nothing_to_rewind")


async def test_what_is_not_there_cannot_be_rewound(shop: Shop) -> None:
    head = await subscribed(shop, "short")

    refused(await rewind(shop, "nobody", position=0), 404, "not_found")
    refused(await rewind(shop, "short", position=head), 409, "nothing_to_rewind")
    refused(await rewind(shop, "short", position=0, partition=7), 409, "nothing_to_rewind")
    assert await audited(shop, "short") == []


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({}, ""),
        ({"position": 0, "time": "2026-01-31T12:00:00Z"}, ""),
        ({"position": -1}, "/position"),
        ({"position": 2**63}, "/position"),
        ({"position": "1"}, "/position"),
        ({"position": True}, "/position"),
        ({"time": 1769860800}, "/time"),
        ({"time": "yesterday"}, "/time"),
        ({"time": "2026-01-31T12:00:00"}, "/time"),
        ({"position": 0, "partition": -1}, "/partition"),
        ({"position": 0, "dry_run": "yes"}, "/dry_run"),
        ({"position": 0, "everything": True}, "/everything"),
    ],
)
async def test_a_rewind_is_checked_before_anything_comes_again(
    shop: Shop, changes: dict[str, object], place: str
) -> None:
    path = "/ops/subscriptions/email/rewind"

    answer = await post(shop, json.dumps(changes), path, Authorization=f"Bearer {OPS_KEY}")

    refused(answer, 422, "validation_failed", place)
    assert await shop.row("SELECT epoch FROM subscriptions WHERE service = 'email'") == 0


async def test_the_log_is_read_page_by_page(shop: Shop) -> None:
    orders = [(await shop.order()).json()["id"] for _ in range(3)]
    head = await shop.row("SELECT position FROM log_head")

    first = (await shop.get("/ops/events", api_key=OPS_KEY, after=head - 3, limit=2)).json()
    last = first["items"][-1]["position"]
    second = (await shop.get("/ops/events", api_key=OPS_KEY, after=last, limit=2)).json()
    one = (await shop.get("/ops/events", api_key=OPS_KEY, order_id=orders[1])).json()
    behind = (await shop.get("/ops/events", api_key=OPS_KEY, order_id=orders[1], after=head)).json()

    assert [item["event"]["subject"] for item in first["items"] + second["items"]] == orders
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert [item["position"] for item in one["items"]] == [head - 1]
    assert behind == {"items": [], "has_more": False}


async def test_a_forgotten_service_is_a_warning_and_never_an_outage(own_shop: Shop) -> None:
    await own_shop.http.post("/ops/subscriptions", json={"name": "forgotten"}, headers=OPERATOR)
    quiet = (await own_shop.http.get("/health")).json()["checks"]["subscriptions:forgotten"]

    await own_shop.order()
    await until(lambda: warned(own_shop, "forgotten"))

    health = await own_shop.http.get("/health")
    [reading] = health.json()["checks"]["subscriptions:forgotten"]
    assert quiet[0]["status"] == "pass"
    assert (health.status_code, health.json()["status"]) == (200, "warn")
    assert (await own_shop.http.get("/health/ready")).status_code == 200
    assert re.fullmatch(
        r"forgotten has settled nothing for 0:00:\d\d while 1 events wait: start it, or remove its subscription",
        reading["output"],
    )
    assert await silent_s(own_shop, "forgotten") > 1

    await own_shop.http.delete("/ops/subscriptions/forgotten", headers=OPERATOR)
    await until(lambda: unheard_of(own_shop, "forgotten"))


async def warned(shop: Shop, name: str) -> bool:
    checks = (await shop.http.get("/health")).json()["checks"]
    return bool(checks[f"subscriptions:{name}"][0]["status"] == "warn")


async def unheard_of(shop: Shop, name: str) -> bool:
    return f'service="{name}"' not in re.sub(".*_total.*|.*_created.*", "", (await shop.http.get("/metrics")).text)


async def silent_s(shop: Shop, name: str) -> float:
    shown = (await shop.http.get("/metrics")).text
    [value] = re.findall(rf'orderstream_subscription_silent_seconds{{service="{name}"}} (.*)', shown)
    return float(value)


async def subscribed(shop: Shop, name: str) -> int:
    """A service that is added, and whose ledger has everything; returns how much that is."""
    head: int = await shop.row("SELECT position FROM log_head")
    async with shop.db.transaction() as connection:
        await shop.wiring.log.subscribe(connection, name, from_now=True)
    return head


async def settled(shop: Shop, name: str) -> int:
    found: int = await shop.row("SELECT settled FROM subscriptions WHERE service = :name", name=name)
    return found


async def rewind(shop: Shop, name: str, **target: object) -> httpx.Response:
    return await shop.http.post(f"/ops/subscriptions/{name}/rewind", json=target, headers=OPERATOR)


async def audited(shop: Shop, name: str) -> list[tuple[str, str, str]]:
    async with shop.db.reading() as connection:
        rows = await connection.execute(
            text("SELECT key_id, action, detail FROM ops_audit WHERE starts_with(detail, :name) ORDER BY id"),
            {"name": name},
        )
    return [(row.key_id, row.action, row.detail) for row in rows]
