"""Orders under load while what they run on is wiped and killed: at rest nothing is lost, doubled or charged twice."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

import pytest
from redis.asyncio import Redis

from tests.support.invariants import facts, violations
from tests.support.load import History, open_loop, order_body
from tests.support.platform import NAMES, Platform, all_ready, until

pytestmark = [pytest.mark.system, pytest.mark.alone, pytest.mark.timeout(600)]

Fault = Callable[[], Awaitable[None]]


async def test_two_thousand_orders_survive_three_flushes_and_four_kills(shop: Platform) -> None:
    faults: list[Fault] = [
        lambda: flush(shop),
        lambda: kill(shop, "email"),
        lambda: kill(shop, "analytics"),
        lambda: flush(shop),
        lambda: kill(shop, "checkout"),
        lambda: kill(shop, "warehouse"),
        lambda: flush(shop),
    ]

    history, _ = await asyncio.gather(load(shop, rate=200, count=2000), one_after_the_other(faults, pause_s=1.2))
    await until(lambda: nothing_is_wrong(shop), timeout_s=90)

    counts = await facts(shop.env)
    completed = {json.loads(one.body)["id"] for one in history.attempts if one.status == 201}
    assert len(completed) == 2000
    assert counts == {
        "checkout": 2000,
        "captures": 2000,
        "captured": 2000 * 100,
        "warehouse": 2000,
        "warehouse deliveries": 2000,
        "email": 2000,
        "email deliveries": 2000,
        "analytics": 2000,
        "analytics deliveries": 2000,
    }


# The first test kills these just so.
KILLED_ABOVE = {"checkout", "email", "analytics", "warehouse"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in KILLED_ABOVE else ()) for name in sorted(NAMES)]
)
async def test_a_kill_of_any_process_under_load_loses_and_doubles_nothing(shop: Platform, name: str) -> None:
    async def fault() -> None:
        await asyncio.sleep(0.7)
        shop.kill(name)

    history, _ = await asyncio.gather(load(shop, rate=60, count=150), fault())
    await until(lambda: all_ready(shop), timeout_s=30)
    await until(lambda: nothing_is_wrong(shop), timeout_s=90)

    answered = {one.key for one in history.attempts if one.status == 201}
    assert len(answered) == 150


async def load(shop: Platform, *, rate: float, count: int) -> History:
    """Clients that repeat their request, with the same key, until they have a final answer."""
    return await open_loop(
        shop.env["CHECKOUT_URL"], shop.env["API_KEY"], order_body(), rate=rate, count=count, retry=True
    )


async def one_after_the_other(faults: Sequence[Fault], pause_s: float) -> None:
    for fault in faults:
        await asyncio.sleep(pause_s)
        await fault()


async def flush(shop: Platform) -> None:
    redis = Redis.from_url(shop.env["REDIS_URL"])
    await redis.flushall()
    await redis.aclose()


async def kill(shop: Platform, name: str) -> None:
    await asyncio.sleep(0)
    shop.kill(name)


async def nothing_is_wrong(shop: Platform) -> bool:
    try:
        return await violations(shop.env) == []
    except OSError:  # the database or the provider has not come back yet
        return False
