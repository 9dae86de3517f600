"""The staff's steps, by API and by the board."""

import asyncio
from datetime import timedelta

import pytest
from httpx import BasicAuth, Response

from tests.integration.warehouse.conftest import World
from tests.support.orders import NOON, Order
from tests.support.pages import complaints

STAFF = BasicAuth("anybody", "api-key")


async def test_an_order_is_picked_packed_and_shipped_and_every_step_is_on_record(world: World) -> None:
    wanted = await world.received()

    shipped = (await world.step(wanted, "pick", "pack", "ship")).json()

    assert (shipped["status"], shipped["carrier"], shipped["tracking"]) == ("shipped", "DHL", "JD01")
    assert {entry["entry"] for entry in shipped["history"]} == {"received", "picking", "packed", "shipped"}
    actors = {entry["actor"] for entry in shipped["history"]} - {"checkout"}
    assert len(actors) == 1
    assert actors.pop().startswith("api-")


@pytest.mark.parametrize("steps", [("pick",), ("pick", "pack"), ("pick", "pack", "ship")])
async def test_a_step_that_is_repeated_gives_the_same_answer_and_happens_once(
    world: World, steps: tuple[str, ...]
) -> None:
    wanted = await world.received()
    first = await world.step(wanted, *steps)

    again = await world.step(wanted, steps[-1])

    assert (again.status_code, again.json()) == (200, first.json())


async def test_of_many_hands_that_take_the_same_step_at_once_one_does_it(world: World) -> None:
    wanted = await world.received()

    answers = await asyncio.gather(*(world.step(wanted, "pick") for _ in range(8)))

    assert {answer.status_code for answer in answers} == {200}
    assert await world.rows("SELECT count(*) FROM history WHERE entry = 'picking'") == [(1,)]


@pytest.mark.parametrize(
    ("before", "step", "state"),
    [
        ((), "pack", "received"),
        ((), "ship", "received"),
        (("pick",), "ship", "picking"),
        (("pick", "pack"), "pick", "packed"),
        (("pick", "pack", "ship"), "pack", "shipped"),
    ],
)
async def test_a_step_out_of_turn_is_refused_with_the_state(
    world: World, before: tuple[str, ...], step: str, state: str
) -> None:
    wanted = await world.received()
    if before:
        await world.step(wanted, *before)

    answer = await world.step(wanted, step)

    assert (answer.status_code, answer.json()["code"], answer.json()["state"]) == (409, "wrong_state", state)
    assert state in answer.json()["detail"]


async def test_a_shipped_parcel_does_not_change_its_carrier(world: World) -> None:
    wanted = await world.received()
    await world.step(wanted, "pick", "pack", "ship")

    answer = await ship(world, wanted, {"carrier": "UPS", "tracking": "1Z"})

    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_state")
    assert "DHL as JD01" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"carrier": "DHL"},
        {"carrier": "DHL", "tracking": ""},
        {"carrier": "   ", "tracking": "1"},
        {"carrier": "DHL", "tracking": 1},
        {"carrier": "DHL", "tracking": "1", "weight": 3},
        {"carrier": "D" * 51, "tracking": "1"},
        {"carrier": "D\u0007HL", "tracking": "1"},
    ],
)
async def test_a_parcel_without_carrier_and_tracking_number_is_not_shipped(
    world: World, body: dict[str, object]
) -> None:
    wanted = await world.received()
    await world.step(wanted, "pick", "pack")

    answer = await ship(world, wanted, body)

    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


async def ship(world: World, wanted: str, body: dict[str, object]) -> Response:
    return await world.client.post(f"/v1/fulfilments/{wanted}/ship", json=body)


@pytest.mark.parametrize("wanted", ["ful_00000000000000000000000000", "nonsense", "%00", "ful_" + "u" * 26])
async def test_what_is_not_there_is_not_found(served: World, wanted: str) -> None:
    assert (await served.client.get(f"/v1/fulfilments/{wanted}")).status_code == 404
    assert (await served.client.post(f"/v1/fulfilments/{wanted}/pick")).status_code == 404


async def test_fulfilments_are_listed_newest_order_first_page_by_page(world: World) -> None:
    orders = [Order(at=NOON + timedelta(minutes=n)) for n in range(7)]
    await world.deliver(*(order.completed() for order in reversed(orders)))
    seen: list[str] = []
    after: dict[str, str] = {}

    for more in (True, True, False):
        page = (await world.client.get("/v1/fulfilments", params={"limit": "3", **after})).json()
        assert page["has_more"] is more
        seen += [one["order_id"] for one in page["items"]]
        after = {"starting_after": page["items"][-1]["id"]}

    assert seen == [order.id for order in reversed(orders)]


async def test_fulfilments_are_found_by_order_and_by_state(world: World) -> None:
    picked = await world.received()
    await world.received()
    await world.step(picked, "pick")

    by_state = (await world.client.get("/v1/fulfilments", params={"status": "picking"})).json()
    nothing = (await world.client.get("/v1/fulfilments", params={"order_id": "ord_nobody"})).json()

    assert [one["id"] for one in by_state["items"]] == [picked]
    assert nothing == {"items": [], "has_more": False}


@pytest.mark.parametrize(
    "query",
    ["status=lost", "limit=0", "limit=101", "limit=x", "starting_after=ord_1", "order_id=" + "x" * 101],
)
async def test_a_wrong_question_is_refused(served: World, query: str) -> None:
    answer = await served.client.get(f"/v1/fulfilments?{query}")

    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


async def test_nobody_works_without_a_key(served: World) -> None:
    headers = {"Authorization": "Bearer wrong"}
    assert (await served.client.get("/v1/fulfilments", headers=headers)).status_code == 401
    assert (await served.client.post("/v1/fulfilments/x/pick", headers=headers)).status_code == 401
    assert (await served.client.post("/steps", headers=headers)).status_code == 401


async def test_the_board_shows_a_column_per_state_and_escapes_what_customers_wrote(world: World) -> None:
    order = Order(("<script>alert(1)</script>", 1, 100))
    await world.received(order)

    page = await world.client.get("/", auth=STAFF)

    assert page.status_code == 200
    assert complaints(page.text) == []
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for state in ("received", "picking", "packed", "shipped", "cancelled"):
        assert f'<h2 id="{state}">' in page.text
    assert order.id in page.text
    assert "<script>alert" not in page.text
    for name in ("board.js", "board.css"):
        assert (await world.client.get(f"/assets/{name}")).status_code == 200


async def test_the_boards_buttons_take_the_steps(world: World) -> None:
    wanted = await world.received()

    for fields in (
        {"step": "pick"},
        {"step": "pack"},
        {"step": "ship", "carrier": "DHL", "tracking": "JD02"},
    ):
        answer = await world.client.post("/steps", auth=STAFF, data={"id": wanted, **fields})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")

    assert (await world.client.get(f"/v1/fulfilments/{wanted}")).json()["tracking"] == "JD02"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"step": "pack"}, "wrong_state"),
        ({"step": "burn"}, "incomplete"),
        ({}, "incomplete"),
        ({"step": "ship", "carrier": "DHL"}, "incomplete"),
        ({"step": "ship", "carrier": "D\x00", "tracking": "1"}, "incomplete"),
        ({"step": "pick", "id": "\x00"}, "not_found"),
    ],
)
async def test_the_board_explains_what_could_not_be_done(world: World, fields: dict[str, str], said: str) -> None:
    wanted = await world.received()

    answer = await world.client.post("/steps", auth=STAFF, data={"id": wanted, **fields})

    assert (answer.status_code, answer.headers["location"]) == (303, f"/?said={said}")
    assert (await world.client.get(answer.headers["location"], auth=STAFF)).status_code == 200


async def test_another_site_cannot_press_the_boards_buttons(world: World) -> None:
    wanted = await world.received()
    foreign = {"Sec-Fetch-Site": "cross-site"}

    by_form = await world.client.post("/steps", auth=STAFF, data={"id": wanted, "step": "pick"}, headers=foreign)
    by_api = await world.client.post(f"/v1/fulfilments/{wanted}/pick", auth=STAFF, headers=foreign)

    assert (by_form.status_code, by_api.status_code) == (403, 403)
