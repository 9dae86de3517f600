"""What people on call may do to the ledger over HTTP, and what is remembered of it."""

import hashlib
from typing import Any

import pytest

from tests.integration.email.conftest import World
from tests.support.orders import Order

OPERATOR = f"ops-{hashlib.sha256(b'ops-key').hexdigest()[:8]}"


async def dead_letters(world: World, *errors: str) -> list[str]:
    """As many dead deliveries; their ids, oldest first."""
    events = [Order().completed() for _ in errors]
    await world.deliver(*events)
    for event, error in zip(events, errors, strict=True):
        died = f"state = 'dead', last_error = '{error}', event = '{{}}'"
        await world.execute(f"UPDATE deliveries SET {died} WHERE event_id = '{event.id}'")
    return [str(event.id) for event in events]


async def post(world: World, path: str, **body: Any) -> tuple[int, Any]:
    answer = await world.client.post(path, json=body or None)
    return answer.status_code, answer.json()


@pytest.fixture
async def quiet(world: World) -> World:
    """Nobody has done anything yet."""
    await world.execute("DELETE FROM ops_audit")
    return world


async def test_a_filter_finds_what_fits_all_of_it_and_a_dry_run_only_counts(quiet: World) -> None:
    boom, also_boom, bang = await dead_letters(quiet, "boom", "boom", "bang")
    wanted = {"state": "dead", "type": "order.completed", "error": "boom"}

    dry = await post(quiet, "/ops/deliveries/retry", filter=wanted, dry_run=True)
    untouched = await quiet.get("/ops/deliveries", state="dead")
    retried = await post(quiet, "/ops/deliveries/retry", filter=wanted)

    assert dry == (200, {"matched": 2, "changed": 0, "dry_run": True})
    assert {one["id"] for one in untouched["items"]} == {boom, also_boom, bang}
    assert retried == (200, {"matched": 2, "changed": 2, "dry_run": False})
    assert [one["id"] for one in (await quiet.get("/ops/deliveries", state="dead"))["items"]] == [bang]
    due = (await quiet.get("/ops/deliveries", state="retrying"))["items"]
    assert {one["attempts"] for one in due} == {0}  # all its attempts anew


async def test_a_discard_keeps_its_reason_and_can_be_taken_back(quiet: World) -> None:
    [gone] = await dead_letters(quiet, "boom")

    dry = await post(quiet, "/ops/deliveries/discard", ids=[gone], reason="test order", dry_run=True)
    without = await post(quiet, "/ops/deliveries/discard", ids=[gone])
    discarded = await post(quiet, "/ops/deliveries/discard", ids=[gone], reason="test order")
    [shown] = (await quiet.get("/ops/deliveries", state="discarded"))["items"]
    back = await post(quiet, "/ops/deliveries/retry", ids=[gone])

    assert dry == (200, {"matched": 1, "changed": 0, "dry_run": True})
    assert (without[0], without[1]["errors"][0]["pointer"]) == (422, "/reason")
    assert discarded[1]["changed"] == 1
    assert shown["last_error"] == "discarded: test order; boom"
    assert shown["settled_at"]
    assert back[1]["changed"] == 1


async def test_what_is_done_cannot_be_retried_or_discarded(quiet: World) -> None:
    event = Order().completed()
    await quiet.deliver(event)

    assert (await post(quiet, "/ops/deliveries/retry", ids=[str(event.id)]))[1]["matched"] == 0
    assert (await post(quiet, "/ops/deliveries/discard", ids=[str(event.id)], reason="no"))[1]["matched"] == 0


async def test_it_is_written_down_which_key_did_what_when_and_to_how_many(quiet: World) -> None:
    await dead_letters(quiet, "boom", "boom", "bang")

    await post(quiet, "/ops/deliveries/retry", filter={"error": "boom"}, dry_run=True)
    await post(quiet, "/ops/deliveries/retry", filter={"error": "boom"})
    await post(quiet, "/ops/deliveries/discard", filter={"error": "bang"}, reason="test order")
    await post(quiet, "/ops/pause", reason="deploy")
    await post(quiet, "/ops/resume")

    first = await quiet.get("/ops/audit", limit="3")
    rest = await quiet.get("/ops/audit", starting_after=str(first["items"][-1]["id"]))
    done = [*first["items"], *rest["items"]]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert {one["key_id"] for one in done} == {OPERATOR}
    assert [one["action"] for one in done] == ["resume", "pause", "discard", "retry"]
    assert done[1]["detail"] == "deploy"
    assert done[2]["detail"].startswith("1 of 1: ")
    assert "test order" in done[2]["detail"]
    assert done[3]["detail"].startswith("2 of 2: ")
    assert done[0]["at"] >= done[-1]["at"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"filter": {}},
        {"filter": {"state": None}},
        {"filter": {"state": None, "type": None, "order_id": None, "error": None}},
        {"filter": {"state": "lost"}},
        {"filter": {"order_id": "ord_\x00"}},
        {"filter": {"error": "\x00"}},
        {"filter": {"state": "dead"}, "ids": ["019cadb5-0000-7000-8000-000000000000"]},
        {"ids": []},
        {"ids": ["1"]},
        {"ids": ["019cadb5-0000-7000-8000-000000000000"], "dry_run": "yes"},
        {"ids": ["019cadb5-0000-7000-8000-000000000000"], "reason": ""},
        {"ids": ["019cadb5-0000-7000-8000-000000000000"], "reason": "\x00"},
        {"everything": True},
    ],
    ids=repr,
)
async def test_an_order_that_could_mean_anything_is_refused(quiet: World, body: dict[str, Any]) -> None:
    [dead] = await dead_letters(quiet, "boom")

    retried = await quiet.client.post("/ops/deliveries/retry", json=body)
    discarded = await quiet.client.post("/ops/deliveries/discard", json={"reason": "no", **body})

    assert {discarded.status_code, retried.status_code} <= {400, 422}
    assert [one["id"] for one in (await quiet.get("/ops/deliveries", state="dead"))["items"]] == [dead]
    assert (await quiet.get("/ops/audit"))["items"] == []


@pytest.mark.parametrize("query", ["order_id=%00", "type=%00", "state=lost", "starting_after=1", "limit=0"])
async def test_a_list_that_nobody_can_make_is_refused(quiet: World, query: str) -> None:
    assert (await quiet.client.get(f"/ops/deliveries?{query}")).status_code in {400, 422}


async def test_any_key_may_ask_what_became_of_an_order_and_only_an_operators_may_change_it(quiet: World) -> None:
    order = Order()
    await quiet.deliver(order.completed(), order.refunded(10), Order().completed())
    theirs = {"Authorization": "Bearer api-key"}

    asked = await quiet.client.get("/v1/deliveries", params={"order_id": order.id}, headers=theirs)
    everything = await quiet.client.get("/v1/deliveries", headers=theirs)
    changing = [
        await quiet.client.post(f"/ops/{what}", json={"ids": [str(order.id)], "reason": "no"}, headers=theirs)
        for what in ("deliveries/retry", "deliveries/discard", "pause", "resume")
    ]
    some = ("", "/deliveries", f"/deliveries/{asked.json()['items'][0]['id']}", "/audit")
    looking = [await quiet.client.get(f"/ops{what}", headers=theirs) for what in some]

    assert {one["order_version"] for one in asked.json()["items"]} == {1, 2}
    assert {one["state"] for one in asked.json()["items"]} == {"done"}
    assert everything.status_code == 422
    assert {one.status_code for one in [*changing, *looking]} == {403}
