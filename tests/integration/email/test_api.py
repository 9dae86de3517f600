"""The HTTP side of email."""

import asyncio

import pytest
from httpx import ASGITransport, AsyncClient

from shared.bus.boards import announcement, relay_board
from shared.bus.progress import Epoch
from shared.bus.streams import RedisStreams
from shared.contracts.envelope import encode
from tests.integration.email.conftest import World, until
from tests.support.orders import Order
from tests.support.pages import complaints


async def test_the_send_log_is_listed_page_by_page_and_by_order(world: World) -> None:
    orders = [Order() for _ in range(3)]
    await world.deliver(*(order.completed() for order in orders))
    await world.send()

    first = await world.get("/v1/messages", limit="2")
    second = await world.get("/v1/messages", limit="2", starting_after=first["items"][-1]["id"])
    one = await world.get("/v1/messages", order_id=orders[0].id, status="sent")

    assert (len(first["items"]), first["has_more"], len(second["items"]), second["has_more"]) == (
        2,
        True,
        1,
        False,
    )
    [mail] = one["items"]
    assert mail["to"] == "ann@example.com"
    assert mail["kind"] == "completed"
    assert mail["message_id"] == f"<completed.{orders[0].id}@orderstream.example>"
    assert await world.get(f"/v1/messages/{mail['id']}") == mail


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        *[(f"limit={limit}", "/limit") for limit in ("0", "-1", "101", "1e9", "x", "")],
        ("starting_after=x", "/starting_after"),
        ("starting_after=", "/starting_after"),
        ("starting_after=ord_00000000000000000000000000", "/starting_after"),
        ("status=lost", "/status"),
        (f"order_id={'x' * 101}", "/order_id"),
    ],
)
async def test_a_list_is_asked_for_in_the_words_of_the_contract(world: World, query: str, pointer: str) -> None:
    answer = await world.client.get(f"/v1/messages?{query}")

    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "validation_failed")
    assert [one["pointer"] for one in problem["errors"]] == [pointer]


async def test_a_message_that_does_not_exist_is_a_problem(world: World) -> None:
    answer = await world.client.get("/v1/messages/msg_nope")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_found"


async def test_nobody_reads_the_send_log_without_a_key(world: World) -> None:
    transport = ASGITransport(world.service.http)
    async with AsyncClient(transport=transport, base_url="http://email") as stranger:
        answers = [
            await stranger.get("/v1/messages"),
            await stranger.get("/v1/messages", headers={"Authorization": "Bearer wrong"}),
            await stranger.get("/ops", headers={"Authorization": "Bearer api-key"}),
            await stranger.get("/v1/messages", headers={"Authorization": "Bearer api-key"}),
        ]

    assert [answer.status_code for answer in answers] == [401, 401, 403, 200]


async def test_every_template_can_be_looked_at(world: World) -> None:
    for name in ("completed", "cancelled", "refunded", "payment_failed"):
        html = await world.client.get(f"/v1/templates/{name}/preview", params={"currency": "JPY"})
        text = await world.client.get(f"/v1/templates/{name}/preview", params={"format": "text"})

        assert "¥14,800" in html.text
        assert "sandbox" in html.headers["content-security-policy"]
        assert text.headers["content-type"].startswith("text/plain")
        assert "€148.00" in text.text
    assert (await world.client.get("/v1/templates/nope/preview")).status_code == 404


async def test_a_suppressed_address_gets_no_mail_until_it_is_allowed_again(world: World) -> None:
    waiting, later, last = Order(), Order(), Order()
    await world.deliver(waiting.completed())

    created = await world.client.put("/v1/suppressions/Ann@Example.com", json={"reason": "bounced"})
    again = await world.client.put("/v1/suppressions/ann@example.com")
    await world.deliver(later.completed())
    await world.send()

    assert (created.status_code, again.status_code) == (201, 200)
    assert again.json()["reason"] == "bounced"
    assert {row[1:] for row in await world.messages()} == {("suppressed", 0)}
    assert (await world.get("/v1/suppressions"))["items"][0]["email"] == "ann@example.com"
    assert (await world.client.delete("/v1/suppressions/ann@example.com")).status_code == 204
    await world.deliver(last.completed())
    await world.send()
    assert len(world.mailbox.mails()) == 1


async def test_only_addresses_can_be_suppressed(world: World) -> None:
    answer = await world.client.put("/v1/suppressions/nobody")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/email"


async def test_dead_letters_are_shown_retried_and_discarded_by_who_may(world: World) -> None:
    first, second = Order().completed(), Order().completed()
    await world.deliver(first, second)
    await world.execute("UPDATE deliveries SET state = 'dead', last_error = 'E: boom', event = '{}'")

    page = await world.client.get("/ops")
    dead = await world.get("/ops/deliveries", state="dead")
    dry = await world.client.post("/ops/deliveries/retry", json={"filter": {"state": "dead"}, "dry_run": True})
    retried = await world.client.post("/ops/deliveries/retry", json={"ids": [str(first.id)]})
    discarded = await world.client.post(
        "/ops/deliveries/discard", json={"filter": {"state": "dead"}, "reason": "test order"}
    )

    assert complaints(page.text) == []
    assert "E: boom" in page.text
    assert len(dead["items"]) == 2
    assert dry.json() == {"matched": 2, "changed": 0, "dry_run": True}
    assert retried.json()["changed"] == 1
    assert discarded.json()["changed"] == 1
    states = {one["state"] for one in (await world.get("/ops/deliveries"))["items"]}
    assert states == {"discarded", "retrying"}
    assert "test order" in (await world.client.get("/ops")).text
    assert (await world.client.post("/ops/deliveries/retry", json={"filter": {}})).status_code == 422


async def test_a_pause_is_remembered_and_a_form_can_end_it(world: World) -> None:
    paused = await world.client.post("/ops/pause", json={"reason": "upgrade"})

    page = await world.client.get("/ops")
    form = await world.client.post("/ops/actions", data={"action": "resume"})
    forged = await world.client.post(
        "/ops/actions",
        data={"action": "pause"},
        headers={"Sec-Fetch-Site": "cross-site", "Authorization": "Basic b3BzOm9wcy1rZXk="},
    )

    assert paused.json() == {"paused": True, "reason": "upgrade"}
    assert "upgrade" in page.text
    assert form.status_code == 303
    assert forged.status_code == 403
    assert "resume" in (await world.client.get("/ops")).text


async def test_health_tells_of_the_mail_server_and_the_queue(world: World) -> None:
    health = (await world.client.get("/health")).json()

    assert health["checks"]["mail:server"][0] | {"time": ""} == {
        "status": "pass",
        "observedValue": "closed",
        "time": "",
    }
    assert {"mail:queued", "mail:oldest", "ledger:dead", "consumer:backlog"} <= health["checks"].keys()
    assert (await world.client.get("/health/live")).status_code == 200
    assert (await world.client.get("/health/ready")).status_code == 200


async def test_an_event_on_the_stream_is_a_mail_within_a_second(world: World, redis_url: str) -> None:
    event = Order().completed()
    streams = RedisStreams(redis_url, "test-relay")
    loops = [*world.service.foundations, *world.service.loops]
    running = [asyncio.create_task(loop.run()) for loop in loops]

    await streams.rebuild("events:email:0", "email", 0)
    await streams.report(relay_board("email"), {"partitions": 1, **announcement(0, Epoch(1, 0, 0, replay=False))})
    await streams.publish("events:email:0", 0, 0, 1, [encode(event)])
    await until(lambda: len(world.mailbox.mails()) == 1)

    for loop in reversed(loops):
        loop.stop()
    await asyncio.gather(*running)
    await streams.close()
    assert world.mailbox.mails()[0]["To"] == "Ann <ann@example.com>"
