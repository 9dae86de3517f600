"""Checkout's database is put back from a backup: the services know events that the log has forgotten."""

from sqlalchemy import text

from tests.integration.bus.conftest import World, event, until
from tests.integration.bus.flowing import at_rest

BACKUP, FORGOTTEN, NEW = 20, 10, 40


async def test_new_events_reach_a_service_that_has_had_others_at_their_positions(world: World) -> None:
    await everything_is_done(world, BACKUP)
    await everything_is_done(world, FORGOTTEN)

    epoch = await world.scalar("SELECT epoch FROM subscriptions")
    await put_back(world)
    world.start(world.relay(batch=5))
    await until(lambda: has_moved_on(world, epoch))
    await world.append(*(event() for _ in range(NEW)))
    world.start_service()
    await until(lambda: has_effects(world, BACKUP + FORGOTTEN + NEW))
    await until(lambda: is_settled(world))

    assert await world.effects() == (BACKUP + FORGOTTEN + NEW,) * 2


async def test_a_report_beyond_the_log_makes_nobody_forget_what_the_log_has(world: World) -> None:
    await everything_is_done(world, BACKUP)

    epoch = await world.scalar("SELECT epoch FROM subscriptions")
    await world.redis.hset("settled:email", mapping={"0": 10**12, "epoch:0": epoch})
    world.start(world.relay())
    await until(lambda: has_moved_on(world, epoch))
    world.start_service()
    await world.append(*(event() for _ in range(NEW)))
    await until(lambda: at_rest(world))

    assert await world.effects() == (BACKUP + NEW,) * 2


async def everything_is_done(world: World, events: int) -> None:
    """So many more events go all the way; then both sides stop."""
    world.start(world.relay())
    world.start_service()
    await world.append(*(event() for _ in range(events)))
    await until(lambda: at_rest(world))
    await world.stop()


async def put_back(world: World) -> None:
    """What checkout's database was like when there were only the first events."""
    async with world.db.transaction() as connection:
        await connection.execute(text("DELETE FROM event_log WHERE position > :backup"), {"backup": BACKUP})
        await connection.execute(text("UPDATE log_head SET position = :backup"), {"backup": BACKUP})
        await connection.execute(
            text("UPDATE subscriptions SET cursor = :backup, settled = :backup"), {"backup": BACKUP}
        )


async def is_settled(world: World) -> bool:
    return await world.settled() == BACKUP + NEW


async def has_effects(world: World, events: int) -> bool:
    return (await world.effects())[1] == events


async def has_moved_on(world: World, epoch: int) -> bool:
    return await world.scalar("SELECT epoch FROM subscriptions") > epoch
