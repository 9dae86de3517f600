"""Whatever the order of arrival, the numbers come out the same, and the roll-ups are what the facts say."""

import asyncio
from datetime import timedelta
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.analytics.__main__ import MIGRATIONS
from shared.contracts.envelope import Envelope
from shared.runtime.migrations import check
from tests.integration.analytics.conftest import World
from tests.support.orders import NOON, Order

SKUS = st.sampled_from(["SKU-0001", "SKU-0002", "SKU-0003"])
LINES = st.lists(
    st.tuples(SKUS, st.integers(1, 5), st.integers(0, 500)),
    min_size=1,
    max_size=3,
    unique_by=lambda line: line[0],
)
FATES = st.sampled_from(
    ["failed", "completed", "cancelled", "refunded", "refunded twice", "failed, then completed", "paid late"]
)


@st.composite
def stories(draw: st.DrawFn) -> list[Envelope]:
    """All events of a few orders, each order's in the order in which they happened."""
    events: list[Envelope] = []
    for _ in range(draw(st.integers(1, 3))):
        at = NOON + timedelta(seconds=draw(st.integers(0, 90)))
        order = Order(*draw(LINES), currency=draw(st.sampled_from(["EUR", "JPY"])), at=at)
        events += live(order, draw(FATES), draw(st.integers(0, 90)))
    return events


def live(order: Order, fate: str, seconds: int) -> list[Envelope]:
    if fate == "failed":
        return [order.payment_failed()]
    if fate == "paid late":
        return [order.payment_failed(), order.refunded(order.total)]
    events = [order.payment_failed()] if fate == "failed, then completed" else []
    events.append(order.completed(timedelta(seconds=seconds)))
    events += [order.refunded(1) for _ in range({"refunded": 1, "refunded twice": 2}.get(fate, 0))]
    return [*events, order.cancelled()] if fate == "cancelled" else events


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[Envelope], list[list[Envelope]]]:
    """A story, and batches in which its events arrive: shuffled, some of them again and again."""
    story = draw(stories())
    again = draw(st.lists(st.sampled_from(story), max_size=4))
    shuffled = draw(st.permutations([*story, *again]))
    cuts = draw(st.lists(st.integers(0, len(shuffled)), max_size=4).map(sorted))
    edges = [0, *cuts, len(shuffled)]
    batches = [shuffled[start:end] for start, end in pairwise(edges)]
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
    assert await served.rollups() == await served.rollups_of_facts()


async def test_replicas_that_count_the_same_minutes_at_once_miss_nothing(world: World) -> None:
    orders = [Order(("SKU-0001", 1, 100), (f"SKU-{n % 7}", 2, 50)) for n in range(60)]
    completed = [order.completed() for order in orders]
    cancelled = [order.cancelled() for order in orders]

    await asyncio.gather(
        world.deliver(*completed[:40]),
        world.deliver(*reversed(completed[20:])),
        world.deliver(*cancelled[30:]),
        world.deliver(*reversed(cancelled[:30])),
    )

    summary = (await world.get("/v1/summary"))["items"]
    assert (summary[0]["orders"], summary[0]["cancelled"], summary[0]["net"]) == (60, 60, 0)
    assert await world.rollups() == await world.rollups_of_facts()


async def test_an_order_whose_payment_failed_first_moves_to_the_minute_of_its_completion(
    world: World,
) -> None:
    order = Order(at=NOON)

    await world.deliver(order.payment_failed())
    await world.deliver(order.completed(timedelta(minutes=5)))

    minutes, _ = await world.rollups()
    assert [(row[0], row[2], row[6]) for row in minutes] == [(NOON.replace(minute=5, second=0), 1, 0)]


async def test_money_that_came_too_late_and_went_back_counts_as_nothing(world: World) -> None:
    order = Order()

    await world.deliver(order.payment_failed())
    await world.deliver(order.refunded(order.total))

    [summary] = (await world.get("/v1/summary"))["items"]
    assert (summary["orders"], summary["gross"], summary["refunded"], summary["net"]) == (0, 0, 0, 0)
    assert summary["payment_failed"] == 1


async def test_the_migrations_make_the_tables_that_the_code_declares(migrated: str) -> None:
    await check(migrated, MIGRATIONS)
