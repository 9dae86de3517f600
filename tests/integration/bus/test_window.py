"""A service is down while the log grows far beyond the window: Redis stays small, and the service catches up."""

import asyncio
from collections.abc import Sequence
from time import monotonic

import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.bus.arrivals import Event
from shared.bus.delivery import Deliverer
from shared.contracts.envelope import encode
from shared.contracts.orders import ORDER_COMPLETED
from tests.integration.bus.conftest import STREAM, World, event, until

log = structlog.get_logger()

AIM_PER_S = 10_000  # on a machine of its own; what is measured here shares one with other tests, and is printed
AT_ONCE = 10_000
# Copies of one event with an id and an order of their own each, written where the log's append would write them.
APPENDED = """
    WITH head AS (
        UPDATE log_head SET position = position + :count WHERE partition = 0 RETURNING position - :count AS base
    ), made AS (
        SELECT head.base + n AS position, gen_random_uuid() AS other, :event AS event, head.base + n AS number,
               (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7'
                || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid AS id
        FROM head, generate_series(1, :count) AS n
    )
    INSERT INTO event_log (partition, position, event_id, type, subject, event)
    SELECT 0, position, id, 'order.completed', 'ord_' || number,
           replace(replace(event, :id, id::text), :subject, 'ord_' || number)
    FROM made
"""
COUNTED = """
    INSERT INTO effects
    SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:subjects AS text[]), CAST(:versions AS integer[]))
"""


@pytest.mark.parametrize(
    ("events", "window"),
    [(20_000, 8_000), pytest.param(1_000_000, 100_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
async def test_redis_stays_flat_while_a_service_is_down_and_it_catches_up_with_nothing_missing(
    world: World, events: int, window: int
) -> None:
    world.deliverer = Deliverer(world.db, {ORDER_COMPLETED: count})
    relay = world.relay(window)
    world.start(relay)
    await grow(world, window + AT_ONCE)
    relay.wake()
    await until(lambda: published(world, window), 60)
    at_the_window = await world.redis.info("memory")

    while await world.scalar("SELECT position FROM log_head") < events:
        await grow(world, min(AT_ONCE, events - await world.scalar("SELECT position FROM log_head")))
        relay.wake()
    longest = await world.redis.xlen(STREAM)
    while_down = await world.redis.info("memory")
    started = monotonic()
    world.start_service()
    await until(lambda: settled(world, events), 1200)
    rate = events / (monotonic() - started)

    log.info("caught up", events=events, per_second=round(rate), aim_per_second=AIM_PER_S)
    assert longest == window
    assert while_down["used_memory"] < at_the_window["used_memory"] * 1.1
    assert await world.effects() == (events, events)
    assert rate > AIM_PER_S / 20, f"{rate:,.0f}/s is far from the aim"


async def count(connection: AsyncConnection, events: Sequence[Event]) -> None:
    """A handler as a service has it: one statement for all events of a batch."""
    values = {
        "ids": [one.id for one in events],
        "subjects": [one.subject for one in events],
        "versions": [one.version for one in events],
    }
    await connection.execute(text(COUNTED), values)


async def grow(world: World, count: int) -> None:
    """In steps: on a slow machine one statement for all of them would take too long for a statement."""
    for begin in range(0, count, AT_ONCE):
        one = event()
        values = {"event": encode(one), "id": str(one.id), "subject": one.subject}
        async with world.db.transaction() as connection:
            await connection.execute(text(APPENDED), values | {"count": min(AT_ONCE, count - begin)})


async def published(world: World, position: int) -> bool:
    return await world.scalar("SELECT cursor FROM subscriptions") == position


async def settled(world: World, position: int) -> bool:
    await asyncio.sleep(0.1)
    return await world.settled() == position
