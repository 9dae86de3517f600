"""Replicas of a service share its work; whoever dies, stops or sleeps costs nothing, and nothing happens twice."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from functools import partial
from time import monotonic

import pytest
import pytest_asyncio

from shared.runtime.failpoints import VARIABLE
from tests.support.fleet import AT_REST_WITHIN_S, BEHIND, CLAIM_IDLE_S, Fleet, fleet
from tests.support.platform import until
from tests.support.servers import NewDatabase

# The aims are 2 s for a restart under the same name and for an orderly stop, and the idle time and 5 s for a peer. A
# machine that has other things to do may take much longer.
SOON_S = 30.0
MIDDLE_S = 1.0  # shorter than anybody may sleep in a transaction
PARTITIONS = 8

pytestmark = pytest.mark.timeout(600)


@pytest_asyncio.fixture(scope="module")
async def harbour(
    new_database: NewDatabase, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    async with fleet(new_database, redis_url, tmp_path_factory.mktemp("fleet")) as made:
        await made.start("warehouse", "one", "two", "three")
        yield made


@pytest_asyncio.fixture
async def ours(harbour: Fleet) -> Fleet:
    """With three replicas that are awake, whatever the story before did to them."""
    for name in ("one", "two", "three"):
        replica = harbour.replicas[name]
        if replica.process and replica.process.exitcode is None:
            replica.send(signal.SIGCONT)
        else:
            await replica.start()
    await harbour.only_known("warehouse", {"one", "two", "three"})
    return harbour


# The first story, because a new service has every order of the others before it.
@pytest.mark.parametrize(
    ("service", "point"), [("warehouse", "K1"), ("warehouse", "K2"), ("warehouse", "K4"), ("email", "E3")]
)
async def test_a_replica_that_is_told_to_stop_in_the_middle_comes_to_an_end_first(
    ours: Fleet, service: str, point: str
) -> None:
    name = f"{service}-stopping"
    [replica] = await ours.start(service, name, armed=f"{point}=hang:{MIDDLE_S:g}@1")
    while not replica.reached(point):
        await ours.place(1)
        await asyncio.sleep(0.05)

    stopped_at = monotonic()
    status = await replica.end(signal.SIGTERM)
    took = monotonic() - stopped_at

    assert status == 0
    assert took < SOON_S
    assert name not in await ours.names(service)
    assert await ours.value("email", "SELECT count(*) FROM messages WHERE status = 'sending'") == 0
    await replica.start()  # email has no other one
    await ours.come_to_rest(service)
    assert await ours.violations(service) == []
    await replica.end()


async def test_a_killed_replica_takes_up_its_own_entries_when_it_is_back(ours: Fleet) -> None:
    one = ours.replicas["one"]
    await ours.put_to_sleep("warehouse", "one")

    await one.end(signal.SIGKILL)
    await one.start()
    took = await seconds_until_done(ours)

    assert took < SOON_S
    assert await ours.violations("warehouse") == []


async def test_a_replica_that_dies_is_forked_anew_and_takes_up_its_own_entries(ours: Fleet) -> None:
    one = ours.replicas["one"]
    await one.end()
    await one.start(WAREHOUSE_REVIVALS="1", **{VARIABLE: "K4=exit"})  # in its first life only

    await ours.place_for(1.0)
    took = await seconds_until_done(ours)
    metrics = (await ours.http.get(f"{one.url}/metrics")).text
    stopped = await one.end()

    assert took < SOON_S
    assert "orderstream_process_deaths 1.0\n" in metrics
    assert stopped == 0
    assert await ours.violations("warehouse") == []


async def test_a_killed_replicas_entries_go_to_its_peers_and_its_name_is_forgotten(ours: Fleet) -> None:
    await ours.put_to_sleep("warehouse", "one")

    await ours.replicas["one"].end(signal.SIGKILL)
    took = await seconds_until_done(ours)

    assert took < CLAIM_IDLE_S + SOON_S
    await ours.only_known("warehouse", {"two", "three"})
    await ours.come_to_rest("warehouse")
    assert await ours.violations("warehouse") == []


async def test_a_replica_that_sleeps_beyond_its_claim_changes_nothing_when_it_wakes(ours: Fleet) -> None:
    one = ours.replicas["one"]
    await ours.put_to_sleep("warehouse", "one")

    await seconds_until_done(ours)
    await ours.only_known("warehouse", {"two", "three"})
    one.send(signal.SIGCONT)
    await ours.only_known("warehouse", {"one", "two", "three"})
    await ours.place(30)
    await ours.come_to_rest("warehouse")

    assert await ours.violations("warehouse") == []
    assert await ours.pending("warehouse", "one") == 0


async def test_a_replica_that_stops_in_order_leaves_nothing_behind(ours: Fleet) -> None:
    placing = asyncio.create_task(ours.place_for(1.0))
    await asyncio.sleep(0.3)

    stopped_at = monotonic()
    status = await ours.replicas["one"].end(signal.SIGTERM)
    took = monotonic() - stopped_at

    assert status == 0
    assert took < SOON_S
    assert "one" not in await ours.names("warehouse")
    await placing
    await ours.come_to_rest("warehouse")
    assert await ours.violations("warehouse") == []


@pytest.mark.slow
async def test_replicas_of_every_service_share_the_work_while_the_log_gets_eight_partitions(ours: Fleet) -> None:
    email, analytics = ([f"{service}-{n}" for n in range(2)] for service in ("email", "analytics"))
    await asyncio.gather(ours.start("email", *email), ours.start("analytics", *analytics))

    placing = asyncio.create_task(ours.place_for(2.0, count=4))
    await ours.db.run(lambda connection: ours.log.open(connection, PARTITIONS))
    await placing
    await until(partial(all_have_work, ours, (*email, *analytics, "one", "two", "three")), AT_REST_WITHIN_S)
    for partition in range(PARTITIONS):
        await ours.only_known("email", {*email}, partition)
    await ours.come_to_rest(*BEHIND)

    assert await ours.violations(*BEHIND) == []


async def all_have_work(ours: Fleet, names: Sequence[str]) -> bool:
    """Orders come in until everybody has had some of them."""
    await ours.place(PARTITIONS)
    return all([await ours.handled(name) for name in names])


async def seconds_until_done(ours: Fleet) -> float:
    began = monotonic()
    await ours.come_to_rest("warehouse")
    return monotonic() - began
