"""Services come, go, lose rows and run their history again, and a subscription follows them."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from shared.bus.ledger import ledger_tables
from shared.bus.relay import Lack, Relay
from shared.bus.relays import Relays
from shared.bus.rewind import Span, Target, rewind
from tests.integration.bus.conftest import SERVICE, STREAM, World, event, until

BOARDS = ("relay:email", "settled:email")


async def test_a_ledger_that_was_put_back_gets_what_it_lacks(world: World) -> None:
    await handled(world, 60)
    await world.stop()
    await forget_effects(world, "position > 20")
    await run(world, "UPDATE progress SET settled = 20")

    world.start(world.relay())
    world.start_service()
    await until(lambda: reported(world, 20))
    settled_meanwhile = await world.settled()
    await rewound(world, Target(position=20))
    await until(lambda: settled_up_to(world, 60))

    assert settled_meanwhile == 60
    assert await world.effects() == (60, 60)


async def test_a_ledger_that_was_put_back_under_a_running_service_does_not_go_unnoticed(world: World) -> None:
    await handled(world, 60)

    await forget_effects(world, "position > 20")
    await run(world, "UPDATE progress SET settled = 20")
    await until(lambda: reported(world, 20))
    await rewound(world, Target(position=20))
    await until(lambda: settled_up_to(world, 60))

    assert await world.effects() == (60, 60)


async def test_a_hole_in_the_middle_of_a_ledger_is_filled(world: World) -> None:
    await handled(world, 60)

    await forget_effects(world, "position BETWEEN 31 AND 35")
    await rewound(world, Target(position=10))
    await until(lambda: settled_up_to(world, 60))

    assert await world.effects() == (60, 60)


async def test_an_empty_ledger_under_an_old_subscription_gets_everything_once_it_is_rewound(world: World) -> None:
    """It must not believe that it has what checkout thinks that it has."""
    await handled(world, 40)
    await world.stop()
    async with world.db.engine.begin() as connection:
        await connection.run_sync(ledger_tables.drop_all)
        await connection.run_sync(ledger_tables.create_all)
        await connection.execute(text("DELETE FROM effects"))

    world.start(world.relay())
    world.start_service()
    await until(lambda: reported(world, 0))
    await rewound(world, Target(position=0))
    await until(lambda: settled_up_to(world, 40))

    assert await world.effects() == (40, 40)


async def test_a_complete_ledger_drops_what_comes_again(world: World) -> None:
    await handled(world, 40)

    spans = await rewound(world, Target(position=0))
    await world.append(event())
    await until(lambda: settled_up_to(world, 41))

    assert spans == [Span(0, 0, 40)]
    assert await world.effects() == (41, 41)


async def test_a_replay_runs_the_handlers_again_over_history_and_only_once(world: World) -> None:
    await handled(world, 40)
    world.start_service("two")
    await run(world, "UPDATE deliveries SET state = 'discarded' WHERE position = 30")

    await rewound(world, Target(position=10), replay=True)
    await until(lambda: all_again(world, 69))
    await until(lambda: world_is_settled(world, 40))

    assert await world.effects() == (69, 40)
    assert await world.states() == {"done": 39, "discarded": 1}


async def test_a_replay_that_is_asked_for_while_the_service_is_down_happens_when_it_is_back(world: World) -> None:
    await handled(world, 20)
    await world.kill()

    await rewound(world, Target(position=15), replay=True)
    world.start(world.relay())
    world.start_service()
    await until(lambda: all_again(world, 25))

    assert await world.effects() == (25, 20)


async def test_a_rewind_to_a_time_begins_no_later_than_the_first_event_since_then(world: World) -> None:
    await handled(world, 30)
    await run(world, "UPDATE event_log SET created_at = now() - (31 - position) * interval '1 hour'")

    spans = await rewound(world, Target(time=datetime.now(UTC) - timedelta(hours=7.5)), dry_run=True)

    assert spans == [Span(0, 23, 30)]
    assert await world.settled() == 30


async def test_nothing_comes_again_that_is_still_to_come(world: World) -> None:
    relay = world.relay()
    await world.append(*(event() for _ in range(20)))
    await relay.run_once()

    spans = await rewound(world, Target(position=5))

    assert spans == []
    assert await world.scalar("SELECT cursor FROM subscriptions") == 20


async def test_reports_of_an_earlier_epoch_are_not_believed(world: World) -> None:
    await handled(world, 20)
    await world.kill()
    late = {"0": 20, "epoch:0": await world.scalar("SELECT epoch FROM subscriptions")}

    await rewound(world, Target(position=0))
    await world.streams.report("settled:email", late)
    relay = world.relay()
    await relay.run_once()
    await relay.run_once()

    assert await world.settled() == 0
    assert await world.redis.xlen(STREAM) == 20


async def test_a_removed_subscription_leaves_nothing_in_redis_even_while_its_service_runs(world: World) -> None:
    world.start(Relays(world.db, world.log, world.streams))
    world.start_service()
    await world.append(*(event() for _ in range(10)))
    await until(lambda: settled_up_to(world, 10))

    async with world.db.transaction() as connection:
        await world.log.unsubscribe(connection, SERVICE)
    await until(lambda: gone(world))
    await asyncio.sleep(1.5)  # longer than everybody's pause: whoever would make it anew has had the time

    assert await gone(world)
    assert await world.effects() == (10, 10)


async def test_a_subscription_that_is_added_again_from_now_gets_what_comes_and_nothing_of_the_time_between(
    world: World,
) -> None:
    world.start(Relays(world.db, world.log, world.streams))
    world.start_service()
    await world.append(*(event() for _ in range(10)))
    await until(lambda: settled_up_to(world, 10))
    async with world.db.transaction() as connection:
        await world.log.unsubscribe(connection, SERVICE)
    await until(lambda: gone(world))
    await world.append(*(event() for _ in range(5)))

    async with world.db.transaction() as connection:
        added = [await world.log.subscribe(connection, SERVICE, from_now=True) for _ in range(2)]
    await world.append(*(event() for _ in range(7)))
    await until(lambda: world_is_settled(world, 22))

    assert added == [True, False]
    assert await world.effects() == (17, 17)


async def test_a_subscription_that_is_added_again_from_the_beginning_gets_what_it_missed(world: World) -> None:
    world.start(Relays(world.db, world.log, world.streams))
    world.start_service()
    await world.append(*(event() for _ in range(10)))
    await until(lambda: settled_up_to(world, 10))
    async with world.db.transaction() as connection:
        await world.log.unsubscribe(connection, SERVICE)
    await world.append(*(event() for _ in range(5)))

    async with world.db.transaction() as connection:
        await world.log.subscribe(connection, SERVICE)
    await until(lambda: settled_up_to(world, 15))

    assert await world.effects() == (15, 15)


async def test_a_new_service_waits_for_the_relay_instead_of_guessing_where_it_begins(world: World) -> None:
    await world.append(*(event() for _ in range(10)))
    async with world.db.transaction() as connection:
        await world.log.unsubscribe(connection, SERVICE)
        await world.log.subscribe(connection, SERVICE, from_now=True)

    consumer = world.start_service()
    await world.reporter(consumer).run_once()
    world.start(world.relay())
    await world.append(event())
    await until(lambda: world_is_settled(world, 11))

    assert await world.effects() == (1, 1)


async def test_a_relay_that_hears_less_than_it_knew_says_what_is_lacking_until_it_is_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.bus.relay.LACKING_AFTER_S", 0.2)
    relay = world.relay()
    world.start(relay)
    world.start_service()
    await world.append(*(event() for _ in range(30)))
    await until(lambda: settled_up_to(world, 30))
    whole = relay.lack

    await forget_effects(world, "position > 20")
    await run(world, "UPDATE progress SET settled = 20")
    await until(lambda: is_lacking(relay, Lack(SERVICE, 0, 20, 30)))
    await rewound(world, Target(position=20))
    await until(lambda: is_lacking(relay, None))
    await until(lambda: settled_up_to(world, 30))

    assert whole is None


async def is_lacking(relay: Relay, expected: Lack | None) -> bool:
    await asyncio.sleep(0)
    return relay.lack == expected


async def handled(world: World, events: int) -> None:
    """The service and its relay run, and have dealt with so many events."""
    world.start(world.relay())
    world.start_service()
    await world.append(*(event() for _ in range(events)))
    await until(lambda: settled_up_to(world, events))


async def forget_effects(world: World, where: str) -> None:
    forgotten = f"(SELECT event_id FROM deliveries WHERE {where})"
    await run(world, f"DELETE FROM effects WHERE event_id IN {forgotten}")
    await run(world, f"DELETE FROM deliveries WHERE {where}")


async def run(world: World, sql: str) -> None:
    async with world.db.transaction() as connection:
        await connection.execute(text(sql))


async def rewound(world: World, target: Target, *, replay: bool = False, dry_run: bool = False) -> list[Span] | None:
    return await world.db.run(lambda c: rewind(c, SERVICE, target, replay=replay, dry_run=dry_run))


async def reported(world: World, position: int) -> bool:
    return await world.redis.hget("settled:email", "0") == str(position).encode()


async def settled_up_to(world: World, position: int) -> bool:
    return await world_is_settled(world, position) and await world.states() == {"done": position}


async def world_is_settled(world: World, position: int) -> bool:
    return await world.settled() == position and await reported(world, position)


async def all_again(world: World, effects: int) -> bool:
    return (await world.effects())[0] >= effects


async def gone(world: World) -> bool:
    return not any([await world.redis.exists(key) for key in (STREAM, *BOARDS)])
