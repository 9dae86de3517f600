"""Orders become fulfilments, whatever the order in which their events arrive."""

import asyncio
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.warehouse.__main__ import MIGRATIONS
from shared.bus.boards import announcement, relay_board
from shared.bus.progress import Epoch
from shared.bus.streams import RedisStreams, stream_name
from shared.contracts.envelope import Envelope, encode
from shared.runtime.migrations import check
from tests.integration.warehouse.conftest import World
from tests.support.orders import Order


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[Envelope], list[list[Envelope]]]:
    """A few orders, some cancelled, and the batches in which they arrive: shuffled, some again and again."""
    story: list[Envelope] = []
    for cancelled in draw(st.lists(st.booleans(), min_size=1, max_size=3)):
        order = Order()
        story += [order.completed(), *([order.cancelled("changed my mind")] if cancelled else [])]
    shuffled = draw(st.permutations([*story, *draw(st.lists(st.sampled_from(story), max_size=4))]))
    cuts = draw(st.lists(st.integers(0, len(shuffled)), max_size=3).map(sorted))
    batches = [shuffled[start:end] for start, end in pairwise([0, *cuts, len(shuffled)])]
    return story, [batch for batch in batches if batch]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(delivery=deliveries())
async def test_any_order_of_arrival_and_any_duplication_lead_to_the_same_tables(
    served: World, delivery: tuple[list[Envelope], list[list[Envelope]]]
) -> None:
    story, batches = delivery
    await served.clear()
    await served.handle(story)
    in_order = await served.tables()

    await served.clear()
    for batch in batches:
        await served.handle(batch)

    assert await served.tables() == in_order


async def test_a_completed_order_is_put_on_the_list_with_what_to_fetch_and_where_to_send_it(
    world: World,
) -> None:
    order = Order(("SKU-0001", 2, 100), ("SKU-0002", 1, 50))

    await world.deliver(order.completed())

    found = (await world.client.get("/v1/fulfilments", params={"order_id": order.id})).json()["items"]
    assert len(found) == 1
    assert (found[0]["status"], found[0]["recipient"]) == ("received", "Ann")
    assert [(line["sku"], line["quantity"]) for line in found[0]["lines"]] == [
        ("SKU-0001", 2),
        ("SKU-0002", 1),
    ]
    assert found[0]["shipping_address"]["city"] == "Berlin"
    assert [(entry["actor"], entry["entry"]) for entry in found[0]["history"]] == [("checkout", "received")]


async def test_refunds_and_failed_payments_are_none_of_its_business(world: World) -> None:
    order = Order()

    await world.deliver(Order().payment_failed(), order.completed(), order.refunded(10))

    assert await world.rows("SELECT status, count(*) FROM fulfilments GROUP BY status") == [("received", 1)]
    assert await world.rows("SELECT state, count(*) FROM deliveries GROUP BY state ORDER BY 2") == [
        ("done", 1),
        ("ignored", 2),
    ]


async def test_an_order_cancelled_while_it_is_being_picked_is_not_shipped(world: World) -> None:
    order = Order()
    wanted = await world.received(order)
    await world.step(wanted, "pick", "pack")

    await world.deliver(order.cancelled("changed my mind"))

    answer = await world.step(wanted, "ship")
    assert (answer.status_code, answer.json()["state"]) == (409, "cancelled")
    history = (await world.client.get(f"/v1/fulfilments/{wanted}")).json()["history"]
    assert ("cancelled", "changed my mind") in [(entry["entry"], entry["detail"]) for entry in history]


async def test_an_order_cancelled_after_it_was_shipped_stays_shipped_and_says_so(world: World) -> None:
    order = Order()
    wanted = await world.received(order)
    await world.step(wanted, "pick", "pack", "ship")

    await world.deliver(order.cancelled())

    found = (await world.client.get(f"/v1/fulfilments/{wanted}")).json()
    assert (found["status"], found["tracking"]) == ("shipped", "JD01")
    assert "cancelled_too_late" in [entry["entry"] for entry in found["history"]]


async def test_an_order_heard_of_as_cancelled_first_is_never_picked(world: World) -> None:
    order = Order()
    completed, cancelled = order.completed(), order.cancelled()

    await world.deliver(cancelled)
    await world.deliver(completed)

    found = (await world.client.get("/v1/fulfilments", params={"order_id": order.id})).json()["items"][0]
    assert found["status"] == "cancelled"
    assert [entry["entry"] for entry in found["history"]] == ["received", "cancelled"]
    assert (await world.step(found["id"], "pick")).status_code == 409


async def test_an_event_in_the_stream_becomes_a_fulfilment(world: World, redis_url: str) -> None:
    event = Order().completed()
    streams = RedisStreams(redis_url, "tests")
    stream = stream_name("warehouse", 0)
    await streams.rebuild(stream, "warehouse", 0)
    await streams.report(relay_board("warehouse"), {"partitions": 1, **announcement(0, Epoch(1, 0, 0, replay=False))})
    running = [asyncio.create_task(loop.run()) for loop in world.service.loops]

    await streams.publish(stream, 0, 0, 1, [encode(event)])
    async with asyncio.timeout(10):
        while not await world.rows("SELECT 1 FROM fulfilments"):
            await asyncio.sleep(0.02)

    for loop in world.service.loops:
        loop.stop()
    await asyncio.gather(*running)
    await streams.close()


async def test_the_migrations_make_the_tables_that_the_code_declares(migrated: str) -> None:
    await check(migrated, MIGRATIONS)
