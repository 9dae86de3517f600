"""What needs a minute to go wrong: replicas that sleep long, die all the time, or lose every connection."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from time import monotonic

import psutil
import pytest
import pytest_asyncio

from shared.bus.consumer import CLAIM_IDLE_S
from tests.support.fleet import BEHIND, Fleet, fleet
from tests.support.servers import NewDatabase

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PARTITIONS = 8
REPLICAS = [f"replica-{n}" for n in range(8)]
ASLEEP_S = 60.0
TAKEN_OVER_WITHIN_S = 20.0
BUSY_SHARE = 0.2  # of a CPU, while every connection is cut five times a second


@pytest_asyncio.fixture
async def ours(
    new_database: NewDatabase, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    async with fleet(new_database, redis_url, tmp_path_factory.mktemp("fleet")) as made:
        yield made


async def test_a_replica_that_sleeps_for_a_minute_is_taken_over_and_changes_nothing_when_it_wakes(ours: Fleet) -> None:
    one, _ = await ours.start("warehouse", "one", "two", claim_idle_s=CLAIM_IDLE_S)
    await ours.only_known("warehouse", {"one", "two"})

    await ours.put_to_sleep("warehouse", "one")
    fell_asleep = monotonic()
    await ours.come_to_rest("warehouse")
    taken_over = monotonic() - fell_asleep
    await ours.place_for(ASLEEP_S - taken_over, every_s=0.5)
    assert "one" not in await ours.names("warehouse")
    one.send(signal.SIGCONT)
    await ours.only_known("warehouse", {"one", "two"})
    await ours.place(30)
    await ours.come_to_rest("warehouse")

    assert taken_over < TAKEN_OVER_WITHIN_S
    assert await ours.violations("warehouse") == []


async def test_eight_replicas_on_eight_partitions_survive_whatever_happens_to_them_for_half_a_minute(
    ours: Fleet,
) -> None:
    dice = random.Random(7)  # noqa: S311 - the same story every time
    await ours.db.run(lambda connection: ours.log.open(connection, PARTITIONS))
    await ours.start("warehouse", *REPLICAS)

    placing = asyncio.create_task(ours.place_for(30.0))
    while not placing.done():
        await trouble(ours, dice.choice(REPLICAS), dice)
    await placing
    await ours.come_to_rest("warehouse")

    assert await ours.violations("warehouse") == []
    for partition in range(PARTITIONS):
        await ours.only_known("warehouse", {*REPLICAS}, partition)


async def test_connections_that_are_cut_five_times_a_second_cost_neither_events_nor_a_busy_loop(ours: Fleet) -> None:
    replicas = [*await ours.start("email", "email"), *await ours.start("analytics", "analytics")]
    replicas += await ours.start("warehouse", "warehouse")
    processes = [psutil.Process(one.process.pid) for one in replicas if one.process]
    before = [cpu_s(process) for process in processes]

    cutting = asyncio.create_task(cut_connections(ours, 30.0))
    await ours.place_for(30.0, every_s=1.0)
    await cutting
    shares = [(cpu_s(process) - used) / 30.0 for process, used in zip(processes, before, strict=True)]
    await ours.come_to_rest(*BEHIND)

    assert await ours.violations(*BEHIND) == []
    assert max(shares) < BUSY_SHARE


async def trouble(ours: Fleet, name: str, dice: random.Random) -> None:
    """A replica dies, stops in order, or sleeps beyond its claim, and comes back."""
    replica = ours.replicas[name]
    how = dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
    if how is signal.SIGSTOP:
        replica.send(how)
        await asyncio.sleep(dice.uniform(0.2, 4.0))
        replica.send(signal.SIGCONT)
    else:
        await replica.end(how)
        await replica.start()


async def cut_connections(ours: Fleet, seconds: float) -> None:
    end = monotonic() + seconds
    while monotonic() < end:
        await ours.redis.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.2)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
