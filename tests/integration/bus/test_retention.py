"""What is past goes by itself, when nobody needs it any more, and what is handled once stays handled once."""

import asyncio
from datetime import UTC, datetime, timedelta
from time import monotonic
from uuid import uuid4

import pytest
from sqlalchemy import text

from shared.bus.arrivals import Arrival
from shared.bus.ledger import ledger_tables
from shared.bus.retention import LedgerRetention, LogRetention
from shared.bus.rewind import EventsDroppedError, Span, Target, rewind
from shared.contracts.envelope import Envelope, encode
from tests.integration.bus.conftest import SERVICE, World, event, until

SLICE = 20
WIDTH_MS = 300
NEVER_S = 10.0**9


async def test_what_everybody_has_settled_goes_after_its_time_and_the_rest_flows_on(world: World) -> None:
    retention = await sliced(world)
    await world.append(*(event() for _ in range(25)))
    world.start(world.relay())
    world.start_service()
    await until(lambda: settled(world, 25))

    await until(lambda: dropped(world, retention, 19))
    await world.append(*(event() for _ in range(25)))
    await until(lambda: settled(world, 50))

    assert await positions(world) == list(range(20, 51))
    assert await world.effects() == (50, 50)
    assert retention.held is None


async def test_nothing_goes_before_its_time(world: World) -> None:
    retention = await sliced(world, keep_s=3600)
    await world.append(*(event() for _ in range(25)))
    await run(world, "UPDATE subscriptions SET cursor = 25, settled = 25")

    early = await retention.run_once()
    await run(world, "UPDATE event_log SET created_at = now() - interval '2 hours' WHERE position < 20")
    await until(lambda: dropped(world, retention, 19))

    assert (early, await retention.run_once()) == (0, 0)
    assert await positions(world) == list(range(20, 26))


async def test_a_subscription_that_never_settles_holds_everything_and_is_named(world: World) -> None:
    retention = await sliced(world)
    async with world.db.transaction() as connection:
        await world.log.subscribe(connection, "loyalty")
    await world.append(*(event() for _ in range(25)))
    await run(world, "UPDATE subscriptions SET cursor = 25, settled = 25 WHERE service = 'email'")

    assert await retention.run_once() == 0
    held = retention.held
    async with world.db.transaction() as connection:
        await world.log.unsubscribe(connection, "loyalty")
    await until(lambda: dropped(world, retention, 19))

    assert held is not None
    assert list(held.by) == ["loyalty"]
    assert held.size > 0
    assert "held by loyalty" in str(held)
    assert retention.held is None


async def test_nobody_can_rewind_to_what_is_gone(world: World) -> None:
    retention = await sliced(world)
    await world.append(*(event() for _ in range(25)))
    await run(world, "UPDATE subscriptions SET cursor = 25, settled = 25")
    await until(lambda: dropped(world, retention, 19))

    for target in (Target(position=0), Target(position=18), Target(time=datetime.now(UTC) - timedelta(days=1))):
        with pytest.raises(
            EventsDroppedError, match=r"begins behind position 19, .*: rewind to position 19, or later\."
        ):
            await world.db.run(lambda c, t=target: rewind(c, SERVICE, t, replay=False, dry_run=False))  # type: ignore[misc]
    spans = await world.db.run(lambda c: rewind(c, SERVICE, Target(position=19), replay=False, dry_run=False))

    assert spans == [Span(0, 19, 25)]


async def test_a_new_service_and_an_empty_ledger_begin_where_the_log_does(world: World) -> None:
    retention = await sliced(world)
    await world.append(*(event() for _ in range(25)))
    world.start(world.relay())
    world.start_service()
    await until(lambda: settled(world, 25))
    await world.stop()
    await until(lambda: dropped(world, retention, 19))
    async with world.db.engine.begin() as connection:
        await connection.run_sync(ledger_tables.drop_all)
        await connection.run_sync(ledger_tables.create_all)
        await connection.execute(text("DELETE FROM effects"))
    async with world.db.transaction() as connection:
        await world.log.subscribe(connection, "loyalty")

    await world.db.run(lambda c: rewind(c, SERVICE, Target(position=19), replay=False, dry_run=False))
    world.start(world.relay())
    world.start_service()
    await until(lambda: settled(world, 25))

    assert await world.effects() == (6, 6)
    assert await world.scalar("SELECT settled FROM subscriptions WHERE service = 'loyalty'") == 19
    assert await world.scalar("SELECT origin FROM subscriptions WHERE service = 'loyalty'") == 19


async def test_partitions_that_are_added_later_begin_level_with_the_others(world: World) -> None:
    await run(world, "UPDATE log_head SET position = 2500000")

    await world.db.run(lambda connection: world.log.open(connection, 2))

    assert await world.scalar("SELECT position FROM log_head WHERE partition = 1") == 2_000_000
    assert await world.scalar("SELECT settled FROM subscriptions WHERE partition = 1") == 2_000_000
    whole = await world.db.run(
        lambda c: rewind(c, SERVICE, Target(position=0, partition=1), replay=False, dry_run=True)
    )
    assert whole == [], "nothing is dropped of a partition that never had it"


async def test_events_go_to_the_rest_when_nobody_has_made_a_slice_and_slices_come_behind_them(world: World) -> None:
    await world.append(*(event() for _ in range(15)))
    retention = LogRetention(world.db, 0, SLICE)

    await retention.run_once()
    await world.append(*(event() for _ in range(40)))
    await retention.run_once()
    await world.append(*(event() for _ in range(30)))
    in_the_rest = await world.scalar("SELECT count(*) FROM ONLY event_log_rest")
    await run(world, "UPDATE subscriptions SET cursor = 85, settled = 85")
    await until(lambda: dropped(world, retention, 79))
    await retention.run_once()

    assert in_the_rest == 39, "the first slice begins at 40: events may go to the rest while it is made"
    assert await positions(world) == list(range(80, 86))
    assert await world.scalar("SELECT count(*) FROM ONLY event_log_rest") == 0


async def test_somebody_who_reads_for_long_delays_the_dropping_and_nobody_else(world: World) -> None:
    retention = await sliced(world)
    await world.append(*(event() for _ in range(25)))
    await run(world, "UPDATE subscriptions SET cursor = 25, settled = 25")
    async with world.db.transaction() as reader:
        await reader.execute(text("SELECT count(*) FROM event_log"))

        dropping = asyncio.create_task(retention.run_once())
        longest_s = 0.0
        while not dropping.done():
            started = monotonic()
            await world.append(event())
            longest_s = max(longest_s, monotonic() - started)
        meanwhile = await dropping

    assert meanwhile == 0
    assert longest_s < 1, "aim: 0.1 s, for which the lock is waited for"
    await until(lambda: dropped(world, retention, 19))


async def test_a_ledger_forgets_what_the_log_has_dropped_and_still_takes_it_for_no_news(world: World) -> None:
    retention, ledger = await sliced(world), LedgerRetention(world.db, 0, world.streams, SERVICE, WIDTH_MS)
    await ledger.run_once()
    events = [event() for _ in range(25)]
    await world.append(*events)
    world.start(world.relay())
    world.start_service()
    await until(lambda: settled(world, 25))

    await later(world)
    for _ in range(3):
        await ledger.run_once()
    while_the_log_has_them = await world.scalar("SELECT count(*) FROM deliveries")
    await until(lambda: dropped(world, retention, 19))
    await world.append(*(event() for _ in range(15)))
    await until(lambda: settled(world, 40))
    await until(lambda: dropped(world, retention, 39))
    await until(lambda: forgotten(world, ledger, 39, rows=25))
    await world.deliverer.deliver([arrival(n, one) for n, one in enumerate(events, 1)])
    await world.deliverer.hand_over([arrival(n, one) for n, one in enumerate(events, 1)])

    assert while_the_log_has_them == 25
    assert await world.effects() == (40, 40)
    assert await world.scalar("SELECT count(*) FROM deliveries WHERE position <= 25") == 0


async def test_an_event_is_one_whichever_slice_it_is_in(world: World) -> None:
    """Ids of another time, or of none, as of entries that nobody can read, are in other slices than today's."""
    ledger = LedgerRetention(world.db, NEVER_S, world.streams, SERVICE)
    strays = [event().model_copy(update={"id": uuid4()}) for _ in range(20)]
    current = [event() for _ in range(20)]
    both = [arrival(n, one) for n, one in enumerate([*strays, *current], 1)]

    await world.deliverer.deliver(both)
    await ledger.run_once()
    await world.deliverer.deliver(both)
    await world.deliverer.deliver([arrival(n, one) for n, one in enumerate(current, 41)])

    assert await world.effects() == (40, 40)


async def test_a_dead_letter_holds_its_slice_until_somebody_decides(world: World) -> None:
    retention, ledger = await sliced(world), LedgerRetention(world.db, 0, world.streams, SERVICE, WIDTH_MS)
    await ledger.run_once()
    await world.append(*(event() for _ in range(19)))
    world.start(world.relay())
    world.start_service()
    await until(lambda: settled(world, 19))
    await run(world, "UPDATE deliveries SET state = 'dead' WHERE position = 5")
    await until(lambda: dropped(world, retention, 19))

    await until(lambda: holds(ledger))
    held = ledger.held
    await run(world, "UPDATE deliveries SET state = 'discarded' WHERE position = 5")
    await until(lambda: forgotten(world, ledger, 19, rows=19))

    assert held is not None
    assert list(held.by) == ["1 deliveries that are not settled"]
    assert held.size > 0


async def sliced(world: World, keep_s: float = 0) -> LogRetention:
    """A log in slices of twenty, two of which are made ahead."""
    retention = LogRetention(world.db, keep_s, SLICE)
    await retention.run_once()
    return retention


def arrival(position: int, one: Envelope) -> Arrival:
    return Arrival(0, position, encode(one))


async def positions(world: World) -> list[int]:
    async with world.db.reading() as connection:
        return [*(await connection.execute(text("SELECT position FROM event_log ORDER BY 1"))).scalars()]


async def run(world: World, sql: str) -> None:
    async with world.db.transaction() as connection:
        await connection.execute(text(sql))


async def settled(world: World, position: int) -> bool:
    return await world.scalar("SELECT settled FROM subscriptions WHERE service = 'email'") == position


async def later(world: World) -> None:
    """Every delivery is of a slice that is over."""
    over = (
        "SELECT (SELECT max(ms_of(event_id::text)) FROM deliveries) / 300 * 300 + 300 "
        "< extract(epoch FROM now()) * 1000"
    )
    await until(lambda: truth(world, over))


async def truth(world: World, sql: str) -> bool:
    async with world.db.reading() as connection:
        return bool((await connection.execute(text(sql))).scalar_one())


async def dropped(world: World, retention: LogRetention, position: int) -> bool:
    """A step that does not get its locks within 0.1 s does nothing, so one may not be enough."""
    if await world.scalar("SELECT min(dropped) FROM log_head") < position:
        await retention.run_once()
    return await world.scalar("SELECT min(dropped) FROM log_head") == position


async def forgotten(world: World, ledger: LedgerRetention, position: int, rows: int) -> bool:
    await ledger.run_once()
    return await world.scalar("SELECT forgotten FROM progress") == position and not await truth(
        world, f"SELECT EXISTS (SELECT 1 FROM deliveries WHERE position <= {rows})"
    )


async def holds(ledger: LedgerRetention) -> bool:
    await ledger.run_once()
    return ledger.held is not None
