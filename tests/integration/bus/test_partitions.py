"""The log gets more partitions while everything runs: nothing is lost, doubled or taken out of its order."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from shared.bus.arrivals import Event
from shared.bus.consumer import Consumer
from shared.bus.delivery import Deliverer
from shared.bus.log import EventLog
from shared.bus.relays import Relays
from shared.bus.retrier import Retrier
from shared.contracts.envelope import Envelope
from shared.contracts.orders import ORDER_COMPLETED
from tests.integration.bus.conftest import SERVICE, Handling, World, event, until

PARTITIONS = 8


class Watching(Handling):
    """Remembers the versions of each order in the order in which it got them."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: defaultdict[str, list[int]] = defaultdict(list)

    @override
    async def __call__(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        await super().__call__(connection, events)
        for one in events:
            self.versions[one.subject].append(one.version)


async def test_the_log_gets_eight_partitions_while_events_flow(world: World) -> None:
    handling = start(world)
    before, later = [event() for _ in range(80)], [event() for _ in range(80)]
    await world.append(*before)
    await until(lambda: handled(world, 40))

    writing = asyncio.create_task(slowly(world, following(before, 2)))
    await world.db.run(lambda connection: world.log.open(connection, PARTITIONS))
    await until(lambda: knows(world, PARTITIONS))
    await writing
    await slowly(world, [*later, *following(before, 3), *following(later, 2)])
    await until(lambda: handled(world, 400))

    assert await world.effects() == (400, 400)
    assert {*map(tuple, handling.versions.values())} == {(1, 2, 3), (1, 2)}
    assert await world.scalar("SELECT count(DISTINCT (partition, subject)) FROM event_log") == 160
    assert await world.scalar("SELECT count(DISTINCT partition) FROM event_log") == PARTITIONS
    await until(lambda: everything_is_settled(world))


async def test_an_order_stays_where_it_is_for_a_replica_that_knows_fewer_partitions(world: World) -> None:
    await world.db.run(lambda connection: world.log.open(connection, PARTITIONS))
    world.log.partitions = PARTITIONS
    orders = [event() for _ in range(30)]
    await world.append(*orders)

    async with world.db.transaction() as connection:
        await EventLog(partitions=1).append(connection, following(orders, 2))

    assert await world.scalar("SELECT count(DISTINCT (partition, subject)) FROM event_log") == 30


async def test_the_number_in_the_settings_is_opened_at_the_start_and_one_that_is_too_low_closes_nothing(
    world: World,
) -> None:
    for asked, opened in ((4, 4), (2, 4), (6, 6)):
        log = EventLog()
        await Relays(world.db, log, world.streams, partitions=asked).wanted()

        assert log.partitions == opened
        assert await world.scalar("SELECT count(*) FROM log_head") == opened
        assert await world.scalar("SELECT count(*) FROM subscriptions WHERE service = 'email'") == opened


async def test_a_partition_that_the_database_has_lost_is_opened_by_its_next_event(world: World) -> None:
    """The database was put back to a time when there were fewer, and this process has not looked yet."""
    world.log.partitions = 4

    await world.append(*(event() for _ in range(40)))

    assert await world.scalar("SELECT count(*) FROM event_log") == 40
    assert await world.scalar("SELECT count(*) FROM log_head") == 4
    assert await world.scalar("SELECT count(*) FROM subscriptions WHERE service = 'email'") == 4


async def test_services_that_subscribe_while_partitions_are_opened_get_all_of_them(world: World) -> None:
    async def subscribe(name: str) -> None:
        async with world.db.transaction() as connection:
            await world.log.subscribe(connection, name)
            await asyncio.sleep(0.01)

    async def raise_to(partitions: int) -> None:
        async with world.db.transaction() as connection:
            await world.log.open(connection, partitions)
            await asyncio.sleep(0.01)

    await asyncio.gather(*(turn for n in range(2, 12) for turn in (subscribe(f"service-{n}"), raise_to(n))))

    assert await world.scalar("SELECT count(*) FROM log_head") == 11
    assert await world.scalar("SELECT count(*) FROM subscriptions") == 11 * 11  # email, and ten others


async def test_a_new_partition_loses_nothing_when_redis_forgets_everything(world: World) -> None:
    start(world)
    await world.db.run(lambda connection: world.log.open(connection, PARTITIONS))
    await until(lambda: knows(world, PARTITIONS))

    for _ in range(4):
        await slowly(world, [event() for _ in range(50)])
        await world.redis.flushall()
    await until(lambda: handled(world, 200))

    assert await world.effects() == (200, 200)
    await until(lambda: everything_is_settled(world))


def start(world: World) -> Watching:
    """Relays, and one replica with a handler that watches the order of things."""
    handling = Watching()
    deliverer = Deliverer(world.db, {ORDER_COMPLETED: handling})
    relays = Relays(world.db, world.log, world.streams)
    world.start(relays, Consumer(SERVICE, "one", world.streams, deliverer, world.gate), Retrier(deliverer, world.gate))
    return handling


def following(orders: Sequence[Envelope], version: int) -> list[Envelope]:
    return [event(order.subject, version=version) for order in orders]


async def slowly(world: World, events: Sequence[Envelope]) -> None:
    for first in range(0, len(events), 10):
        await world.append(*events[first : first + 10])
        await asyncio.sleep(0.02)


async def handled(world: World, count: int) -> bool:
    return (await world.states()).get("done", 0) >= count


async def knows(world: World, partitions: int) -> bool:
    await asyncio.sleep(0)
    return world.log.partitions == partitions


async def everything_is_settled(world: World) -> bool:
    async with world.db.reading() as connection:
        open_ = text("SELECT count(*) FROM subscriptions JOIN log_head USING (partition) WHERE settled < position")
        return not (await connection.execute(open_)).scalar_one()
