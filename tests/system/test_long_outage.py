"""One service is away for a million events: Redis stays small, and neither checkout nor the other services feel it.

The million shares two cores with everything, so what checkout feels of the outage is measured against the same stream
of events while email is there.
"""

import asyncio
import signal
from dataclasses import dataclass, field
from time import monotonic

import asyncpg
import httpx
import pytest
import structlog
from redis.asyncio import Redis

from tests.support.invariants import database
from tests.support.load import History, open_loop, order_body
from tests.support.platform import Platform, fetch, until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(2400)]

log = structlog.get_logger()

EVENTS = 1_000_000
PER_S = 3_000  # so fast come events of which email hears nothing; on two cores the other services can still follow
ORDERS_PER_S = 40
TOGETHER_S = 60
WINDOW = 100_000
AIM_PER_S = 10_000  # on a machine of its own: here everything else runs beside it, and mails are sent
STREAM = "events:email:0"
# Copies of an event, each with an id and an order of its own, where the log's append would write them.
ONE = "SELECT event_id, subject, event FROM event_log WHERE partition = 0 AND type = 'order.completed' LIMIT 1"
APPENDED = """
    WITH head AS (
        UPDATE log_head SET position = position + $1 WHERE partition = 0 RETURNING position - $1 AS base
    ), made AS (
        SELECT head.base + n AS position, gen_random_uuid() AS id,
               'ord_' || lpad(upper(to_hex(head.base + n)), 26, '0') AS subject
        FROM head, generate_series(1, $1) AS n
    )
    INSERT INTO event_log (partition, position, event_id, type, subject, event)
    SELECT 0, position, id, 'order.completed', subject,
           replace(replace($4, $2::uuid::text, id::text), $3, subject) FROM made
"""


@dataclass
class Watch:
    """What was seen once a second."""

    memory: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)


async def test_nobody_feels_that_email_is_away_for_a_million_events(shop: Platform) -> None:
    alone = await orders(shop, seconds=20)
    together, _ = await asyncio.gather(orders(shop, seconds=TOGETHER_S), grow(shop, TOGETHER_S * PER_S))
    shop.kill("email", signal.SIGSTOP)
    growing = asyncio.create_task(grow(shop, EVENTS))
    beside, watch = await asyncio.gather(orders(shop, seconds=EVENTS / PER_S), watching(shop, growing))
    shop.kill("email")
    began, before = monotonic(), await settled(shop)
    await until(lambda: caught_up(shop), timeout_s=1200)
    rate = (await settled(shop) - before) / (monotonic() - began)

    full = [size for size, entries in zip(watch.memory, watch.entries, strict=True) if entries == WINDOW]
    log.info(
        "long outage",
        p99_ms={
            "without the events": alone.percentile_ms(0.99),
            "email there": together.percentile_ms(0.99),
            "email away": beside.percentile_ms(0.99),
        },
        memory_mb=(full[0] // 2**20, max(full) // 2**20),
        others_behind_at_most=max(watch.behind),
        caught_up_per_s=round(rate),
        aim_per_s=AIM_PER_S,
    )
    assert set(beside.statuses) == {201}
    assert beside.percentile_ms(0.99) < 2 * alone.percentile_ms(0.99) + 100
    assert beside.percentile_ms(0.99) < 1.5 * together.percentile_ms(0.99)
    assert max(watch.entries) == WINDOW
    assert max(full) < full[0] * 1.2
    assert max(watch.behind) < PER_S * 10, "the other services are more than ten seconds behind"
    head, done, events = await books(shop)
    assert head >= EVENTS
    assert done == events == head
    assert rate > AIM_PER_S / 5, f"{rate:,.0f}/s is far from the aim"


async def orders(shop: Platform, seconds: float) -> History:
    env, count = shop.env, round(seconds * ORDERS_PER_S)
    return await open_loop(env["CHECKOUT_URL"], env["API_KEY"], order_body("SKU-0002"), rate=ORDERS_PER_S, count=count)


async def grow(shop: Platform, events: int) -> None:
    """Append at an even pace, a tenth of a second at a time."""
    log_of_checkout = await asyncpg.connect(database(shop.env, "checkout"))
    one = tuple(await log_of_checkout.fetchrow(ONE))
    began, step = monotonic(), PER_S // 10
    for number in range(events // step):
        await asyncio.sleep(max(0.0, began + number * 0.1 - monotonic()))
        await log_of_checkout.execute(APPENDED, step, *one)
    await log_of_checkout.close()


async def watching(shop: Platform, growing: "asyncio.Task[None]") -> Watch:
    watch, env = Watch(), shop.env
    redis = Redis.from_url(env["REDIS_URL"])
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {env['OPS_KEY']}"}) as http:
        while not growing.done():
            watch.memory.append((await redis.info("memory"))["used_memory"])
            watch.entries.append(await redis.xlen(STREAM))
            found = (await http.get(f"{env['CHECKOUT_URL']}/ops/subscriptions")).json()["items"]
            watch.behind.append(max(one["backlog"] for one in found if one["name"] != "email"))
            await asyncio.sleep(1)
    await redis.aclose()
    await growing
    return watch


async def settled(shop: Platform) -> int:
    [(position,)] = await fetch(
        database(shop.env, "checkout"), "SELECT settled FROM subscriptions WHERE service = 'email'"
    )
    return int(position)


async def caught_up(shop: Platform) -> bool:
    await asyncio.sleep(0.5)
    [(head,)] = await fetch(database(shop.env, "checkout"), "SELECT position FROM log_head")
    return await settled(shop) == int(head)


async def books(shop: Platform) -> tuple[int, int, int]:
    """The log's head, how many deliveries email settled, and of how many different events."""
    [(head,)] = await fetch(database(shop.env, "checkout"), "SELECT position FROM log_head")
    counted = "SELECT count(*), count(DISTINCT event_id) FROM deliveries WHERE state = 'done'"
    [(done, events)] = await fetch(database(shop.env, "email"), counted)
    return head, done, events
