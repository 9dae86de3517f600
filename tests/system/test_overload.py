"""More orders than the platform can take, and processes that stand still meanwhile: it does what it can, and recovers.

The bounds are wide, because other programs share the machine; `make bench ARGS=--overload` measures against the aims.
"""

import pytest
import pytest_asyncio

from tests.support.overload import Crowd
from tests.support.platform import Platform, fetch

pytestmark = [pytest.mark.system, pytest.mark.alone, pytest.mark.timeout(600)]


@pytest_asyncio.fixture(scope="module")
async def crowd(shop: Platform) -> Crowd:
    """Its capacity is measured before anything else happens."""
    crowd = Crowd(shop)
    await crowd.measure(4)
    return crowd


@pytest.mark.parametrize("factor", [pytest.param(2, marks=pytest.mark.slow), 5])
async def test_overload_costs_the_surplus_and_nobody_else(shop: Platform, crowd: Crowd, factor: int) -> None:
    before = await completed(shop)

    seen = await crowd.overload(factor, seconds=8, afterwards_s=6)

    assert seen.statuses.keys() <= {201, 503}
    assert seen.statuses[503] > 0
    assert seen.goodput > 0.5
    assert seen.afterwards > 0.8
    assert await completed(shop) - before == seen.statuses[201]


@pytest.mark.parametrize("name", ["postgres", "redis", "payments"])
async def test_when_a_process_stands_still_for_a_while_goodput_comes_back(crowd: Crowd, name: str) -> None:
    seen = await crowd.freeze(name, before_s=4, frozen_s=3, after_s=6)

    assert seen.statuses.keys() <= {201, 202, 503}
    assert seen.recovered > 0.5


async def completed(shop: Platform) -> int:
    [(count,)] = await fetch(f"{shop.env['POSTGRES_URL'].rsplit('/', 1)[0]}/checkout", ORDERS)
    return int(count)


ORDERS = "SELECT count(*) FROM orders WHERE status = 'completed'"
