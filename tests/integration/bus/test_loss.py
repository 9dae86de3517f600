"""Redis is disposable: whatever it loses comes again by itself, and nothing is applied twice."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.bus.boards import relay_board, settled_board
from shared.runtime import metrics
from tests.integration.bus.conftest import SERVICE, STREAM, World, event, until
from tests.integration.bus.flowing import comes_to_rest, rebuilds

BATCH = 50
MOST_REBUILDS = 60  # a relay that published again at once would come to a hundred a second

Loss = Callable[[World], Awaitable[object]]


async def flush(world: World) -> None:
    await world.redis.flushall()


async def trim(world: World) -> None:
    await world.redis.xtrim(STREAM, maxlen=0, approximate=False)


async def delete_some(world: World) -> None:
    entries: Any = await world.redis.xrange(STREAM)
    ids = [entry[0] for entry in entries]
    if ids:
        await world.redis.xdel(STREAM, *ids[::2])


async def destroy_group(world: World) -> None:
    await world.redis.xgroup_destroy(STREAM, SERVICE)


async def delete_consumer(world: World) -> None:
    await world.redis.xgroup_delconsumer(STREAM, SERVICE, "one")


async def replace_by_string(world: World) -> None:
    await world.redis.set(STREAM, "not a stream")


async def replace_boards(world: World) -> None:
    for board in (settled_board(SERVICE), relay_board(SERVICE)):
        await world.redis.set(board, "not a board")


async def write_rubbish(world: World) -> None:
    await world.redis.xadd(STREAM, {"what": "ever"})


async def kill_connections(world: World) -> None:
    await world.redis.client_kill_filter(_type="normal", skipme=True)


LOSSES = [
    flush,
    trim,
    delete_some,
    destroy_group,
    delete_consumer,
    replace_by_string,
    replace_boards,
    write_rubbish,
    kill_connections,
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
async def test_a_loss_while_events_flow_costs_nothing(world: World, loss: Loss) -> None:
    world.start(world.relay(batch=20))
    world.start_service()
    await until(lambda: reading(world))

    for burst in range(12):
        await world.append(*(event() for _ in range(25)))
        if burst in {3, 6, 9}:
            await loss(world)
    await until(lambda: settled_up_to(world, 300))

    assert await world.effects() == (300, 300)


@pytest.mark.parametrize("loss", [flush, trim, destroy_group, replace_by_string], ids=lambda loss: loss.__name__)
async def test_a_loss_while_the_service_is_down_costs_nothing(world: World, loss: Loss) -> None:
    relay = world.relay()
    await world.append(*(event() for _ in range(50)))
    await relay.run_once()
    await world.streams.create_group(STREAM, SERVICE, 0)
    before = rebuilds()

    await loss(world)
    world.start(relay)
    world.start_service()
    await until(lambda: settled_up_to(world, 50))

    assert await world.effects() == (50, 50)
    assert rebuilds() - before == (loss is not destroy_group)  # consumers make the group themselves


async def test_a_redis_that_has_room_for_one_batch_only_brings_everything_batch_by_batch(world: World) -> None:
    """It evicts the stream for the entries that would make it longer, again and again."""

    async def evict() -> None:
        while narrow:
            if await world.redis.xlen(STREAM) > BATCH:
                await world.redis.delete(STREAM)
            await asyncio.sleep(0)

    await world.append(*(event() for _ in range(6 * BATCH)))
    narrow, before = True, rebuilds()
    evicting = asyncio.create_task(evict())
    world.start(world.relay(batch=BATCH))
    world.start_service()

    await comes_to_rest(world)
    narrow = False
    await evicting
    assert rebuilds() - before < MOST_REBUILDS


async def test_what_was_settled_from_before_a_loss_counts_at_the_next(world: World) -> None:
    """The first loss sets the cursor back below what the service has read; it cannot catch up with the service."""
    relay = world.relay(batch=BATCH)
    await world.append(*(event() for _ in range(2 * BATCH)))
    await relay.run_once()
    await relay.run_once()
    await world.redis.delete(STREAM)
    await relay.run_once()
    set_back = await published(world, BATCH)

    epoch = await world.scalar("SELECT epoch FROM subscriptions")
    await world.redis.hset(settled_board(SERVICE), mapping={"0": str(2 * BATCH), "epoch:0": epoch})
    await world.redis.delete(STREAM)
    await relay.run_once()

    assert set_back
    assert await world.settled() == 2 * BATCH
    assert await published(world, 2 * BATCH)


async def test_entries_that_a_deleted_consumer_held_are_taken_up(world: World) -> None:
    """XGROUP DELCONSUMER forgets what was open: the entries are in the stream but would never be read again."""
    relay = world.relay()
    await world.append(*(event() for _ in range(30)))
    await relay.run_once()
    await world.streams.create_group(STREAM, SERVICE, 0)
    await world.streams.read_new(STREAM, SERVICE, "gone", 30)

    await world.redis.xgroup_delconsumer(STREAM, SERVICE, "gone")
    world.start(relay)
    world.start_service()
    await until(lambda: settled_up_to(world, 30))

    assert await world.effects() == (30, 30)


async def test_a_lost_commit_of_the_relay_publishes_nothing_twice(world: World) -> None:
    await world.append(*(event() for _ in range(10)))
    await world.relay().run_once()
    async with world.db.transaction() as connection:
        await connection.exec_driver_sql("UPDATE subscriptions SET cursor = 0")

    await world.relay().run_once()

    assert await world.redis.xlen(STREAM) == 10
    assert await world.scalar("SELECT cursor FROM subscriptions") == 10


async def test_two_relays_of_one_subscription_publish_every_event_once(world: World) -> None:
    world.start(world.relay(batch=7), world.relay(batch=11))

    await asyncio.gather(*(world.append(*(event() for _ in range(9))) for _ in range(20)))
    await until(lambda: published(world, 180))

    entries: Any = await world.redis.xrange(STREAM)
    ids = [entry[0] for entry in entries]
    assert ids == [f"{position}-0".encode() for position in range(1, 181)]


async def test_the_window_bounds_the_stream_while_the_service_is_down(world: World) -> None:
    relay = world.relay(window=40, batch=15)
    await world.append(*(event() for _ in range(100)))

    for _ in range(10):
        await relay.run_once()
    length_while_down = await world.redis.xlen(STREAM)
    world.start(relay)
    world.start_service()
    await until(lambda: settled_up_to(world, 100))

    assert length_while_down == 40
    assert await world.effects() == (100, 100)


@pytest.mark.parametrize("nonsense", [10**12, -5, "abc", "9" * 30, ""])
async def test_a_settled_report_that_cannot_be_true_is_refused(world: World, nonsense: int | str) -> None:
    relay, before = world.relay(), refused()
    await world.append(*(event() for _ in range(5)))
    await relay.run_once()

    epoch = await world.scalar("SELECT epoch FROM subscriptions")
    await world.redis.hset("settled:email", mapping={"0": str(nonsense), "epoch:0": epoch})
    await relay.run_once()

    assert await world.settled() == 0
    assert await world.redis.xlen(STREAM) == 5
    assert refused() - before == (nonsense == 10**12)  # the others are no positions, as if nothing were reported


def refused() -> float:
    """How many reports the relays of this process have refused."""
    return float(metrics.REFUSED_SETTLED.labels(SERVICE)._value.get())


async def reading(world: World) -> bool:
    return bool(await world.redis.exists(STREAM) and await world.redis.xinfo_groups(STREAM))


async def settled_up_to(world: World, position: int) -> bool:
    """Settled means durable in the ledger; the effect may still be due."""
    return await world.settled() == position and await world.states() == {"done": position}


async def published(world: World, position: int) -> bool:
    return await world.scalar("SELECT cursor FROM subscriptions") == position
