"""What becomes of a delivery: done, ignored, retrying, waiting, dead, parked; and who pays for a culprit."""

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.bus import inspection
from shared.bus.arrivals import Arrival, Event
from shared.bus.consumer import CONTROL_S
from shared.bus.delivery import Deliverer
from shared.bus.inspection import Selection
from shared.bus.ledger import FEW, State
from shared.bus.retry import Backoff
from shared.contracts.envelope import Envelope, encode
from shared.contracts.orders import ORDER_CANCELLED, ORDER_COMPLETED, ORDER_REFUNDED
from shared.runtime.errors import DeadEvent, Outage
from tests.integration.bus.conftest import STREAM, World, event, until


def arrivals(*events: Envelope | bytes, first: int = 1) -> list[Arrival]:
    return [Arrival(0, first + n, one if isinstance(one, bytes) else encode(one)) for n, one in enumerate(events)]


async def test_one_failing_event_never_holds_up_the_others(world: World) -> None:
    events = [event() for _ in range(40)]
    world.handling.failing[events[17].subject] = RuntimeError("this one does not work")

    await world.deliverer.deliver(arrivals(*events))

    assert await world.states() == {"done": 39, "retrying": 1}
    assert await world.effects() == (39, 39)


async def test_a_failing_event_is_tried_again_until_it_is_dead(world: World) -> None:
    broken = event()
    world.handling.failing[broken.subject] = RuntimeError("never works")
    world.start(world.retrier())

    await world.deliverer.deliver(arrivals(broken))
    await until(lambda: state_is(world, "dead"))

    assert world.handling.seen.count(broken.subject) == 4  # the first attempt and three retries
    assert await world.effects() == (0, 0)
    assert await world.scalar("SELECT attempts FROM deliveries") == 4


async def test_a_failing_event_that_works_later_is_done_once(world: World) -> None:
    broken = event()
    world.handling.failing[broken.subject] = RuntimeError("not yet")
    world.start(world.retrier())

    await world.deliverer.deliver(arrivals(broken))
    world.handling.failing.clear()
    await until(lambda: state_is(world, "done"))

    assert await world.effects() == (1, 1)


async def test_a_connection_that_breaks_by_itself_costs_an_event_no_attempt(world: World) -> None:
    breaks = iter((True, False))

    async def handle(connection: AsyncConnection, events: Sequence[Event]) -> None:
        if next(breaks):
            await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        await world.handling(connection, events)

    await Deliverer(world.db, {"order.completed": handle}, Backoff()).deliver(arrivals(event()))

    assert await world.states() == {"done": 1}
    assert await world.effects() == (1, 1)


async def test_an_event_that_breaks_its_connection_each_time_is_to_blame_alone(world: World) -> None:
    killer, *others = events = [event() for _ in range(4)]

    async def handle(connection: AsyncConnection, events: Sequence[Event]) -> None:
        if killer.subject in {one.subject for one in events}:
            await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        await world.handling(connection, events)

    await Deliverer(world.db, {"order.completed": handle}, Backoff()).deliver(arrivals(*events))

    assert await world.states() == {"done": len(others), "retrying": 1}
    blamed = f"SELECT count(*) FROM deliveries WHERE state = 'retrying' AND subject = '{killer.subject}'"
    assert await world.scalar(blamed) == 1


async def test_an_event_that_can_never_work_is_dead_at_once(world: World) -> None:
    hopeless = event()
    world.handling.failing[hopeless.subject] = DeadEvent("no such customer")

    await world.deliverer.deliver(arrivals(hopeless, event()))

    assert await world.states() == {"dead": 1, "done": 1}
    assert world.handling.seen.count(hopeless.subject) == 2  # in the batch, and alone


async def test_later_events_of_an_order_wait_behind_the_one_that_is_retrying(world: World) -> None:
    first = event()
    later = [event(first.subject, kind=ORDER_CANCELLED, version=n) for n in (2, 3)]
    world.handling.failing[first.subject] = RuntimeError("not yet")

    await world.deliverer.deliver(arrivals(first))
    await world.deliverer.deliver(arrivals(*later, event(), first=2))
    assert await world.states() == {"retrying": 1, "waiting": 2, "done": 1}
    world.handling.failing.clear()
    world.start(world.retrier())
    await until(lambda: all_done(world, 4))

    async with world.db.reading() as connection:
        versions = await connection.execute(
            text("SELECT version FROM effects WHERE subject = :subject"), {"subject": first.subject}
        )
    assert [row.version for row in versions] == [1, 2, 3]


async def test_later_events_wait_however_many_orders_are_blocked(world: World) -> None:
    """A statement that writes a batch tells of the first blocked orders only; the rest have to be found too."""
    first = [event() for _ in range(FEW + 20)]
    await world.deliverer.hand_over(arrivals(*first))
    assert await world.states() == {"retrying": len(first)}

    later = [event(one.subject, kind=ORDER_CANCELLED, version=2) for one in first]
    await world.deliverer.deliver(arrivals(event(), *later, event(), first=len(first) + 1))

    assert await world.states() == {"retrying": len(first), "waiting": len(first), "done": 2}
    async with world.db.reading() as connection:
        kept = await connection.execute(
            text("SELECT count(event), count(settled_at) FROM deliveries WHERE state = 'waiting'")
        )
    assert kept.one() == (len(first), 0)  # with what is needed to run them, and not settled


async def test_the_same_events_again_change_nothing(world: World) -> None:
    batch = arrivals(*(event() for _ in range(20)))

    await world.deliverer.deliver(batch)
    await world.deliverer.deliver(batch + batch)
    await world.deliverer.hand_over(batch)
    await asyncio.gather(*(world.deliverer.deliver(batch) for _ in range(4)))

    assert await world.effects() == (20, 20)


async def test_two_replicas_that_get_the_same_batch_at_once_apply_it_once(world: World) -> None:
    other = Deliverer(world.db, {"order.completed": world.handling}, Backoff(base_s=0.05))
    batches = [arrivals(*(event() for _ in range(10)), first=1 + 10 * n) for n in range(10)]

    await asyncio.gather(*(one.deliver(batch) for batch in batches for one in (world.deliverer, other)))

    assert await world.effects() == (100, 100)


async def test_what_was_written_by_hand_in_the_place_of_an_event_does_not_take_its_place(world: World) -> None:
    """The relay's next entry belongs there: the log says what it is."""
    await world.redis.xadd(STREAM, {"event": "rubbish"}, id="1-0")
    await world.append(*(event() for _ in range(5)))

    world.start(world.relay())
    world.start_service()
    await until(lambda: settled_is(world, 5))

    assert await world.states() == {"done": 5}
    assert await world.effects() == (5, 5)


async def test_unknown_types_and_newer_majors_are_parked_until_a_version_that_knows_them_starts(world: World) -> None:
    newer = event().model_copy(update={"dataschema": "urn:orderstream:schema:order.completed/2"})
    unknown = event().model_copy(update={"type": "order.gifted"})
    stranger = event()
    broken = stranger.model_copy(update={"data": {**stranger.data, "total": -1}})

    await world.deliverer.deliver(arrivals(newer, unknown, broken))
    await world.retrier().run_once()

    assert await world.states() == {"parked": 3}
    async with world.db.reading() as connection:
        reasons = {row[0] for row in await connection.execute(text("SELECT last_error FROM deliveries"))}
    assert len(reasons) == 3


@pytest.mark.parametrize(
    ("kind", "becomes", "effects"), [(ORDER_COMPLETED, "done", (1, 1)), (ORDER_REFUNDED, "ignored", (0, 0))]
)
async def test_parked_events_are_resumed_when_the_code_knows_them(
    world: World, kind: str, becomes: str, effects: tuple[int, int]
) -> None:
    """As after a deploy: an older version parked the event; this one can read it, and handles or ignores the type."""
    known = event(kind=kind)
    async with world.db.transaction() as connection:
        await connection.execute(
            text(
                "INSERT INTO deliveries"
                " (event_id, partition, position, type, subject, order_version, state, attempts, event)"
                " VALUES (:id, 0, 1, :kind, :subject, 1, 'parked', 1, :event)"
            ),
            {"id": known.id, "kind": kind, "subject": known.subject, "event": encode(known)},
        )

    world.start(world.retrier())
    await until(lambda: state_is(world, becomes))

    assert await world.effects() == effects
    assert await world.scalar("SELECT count(*) FROM deliveries WHERE event IS NULL AND settled_at IS NOT NULL") == 1


async def test_a_type_that_the_service_does_not_care_for_is_ignored(world: World) -> None:
    other = event(kind=ORDER_REFUNDED).model_copy()

    await world.deliverer.deliver(arrivals(other))

    assert await world.states() == {"ignored": 1}


async def test_an_outage_spends_no_attempt_and_ends_by_itself(world: World) -> None:
    relay = world.relay()
    await world.append(*(event() for _ in range(5)))
    await relay.run_once()
    down = Outage("the dependency is down")
    async with world.db.reading() as connection:
        subjects = [row[0] for row in await connection.execute(text("SELECT subject FROM event_log"))]
    world.handling.failing.update(dict.fromkeys(subjects, down))

    world.start(relay)
    world.start_service()
    await until(lambda: tried(world, 2))
    world.handling.failing.clear()
    await until(lambda: all_done(world, 5))

    assert await world.effects() == (5, 5)
    assert await world.scalar("SELECT max(attempts) FROM deliveries") <= 2


@pytest.mark.parametrize("error", [DeadEvent("bad deploy"), RuntimeError("bad deploy")], ids=repr)
async def test_after_a_bad_deploy_the_brake_is_released_and_what_was_not_dead_yet_is_done(
    world: World, error: Exception
) -> None:
    """With either error: one that kills at once, and one that kills after the last retry."""
    events = [event() for _ in range(150)]
    world.handling.failing.update({one.subject: error for one in events})
    world.deliverer.backoff = Backoff(base_s=0.01, retries=2)
    await world.append(*events)
    world.start(world.relay())
    world.start_service()
    await until(lambda: paused(world), timeout_s=60)
    await until(lambda: still(world))  # nobody looks into it while it is still coming to a halt
    dead = (await world.states())["dead"]

    world.handling.failing.clear()  # the deploy of the repaired code
    async with world.db.transaction() as connection:
        await inspection.retry(connection, Selection(state=State.RETRYING), dry_run=False)
        await world.deliverer.ledger.set_control(connection, paused=False, reason="repaired", by="ann")
    await until(lambda: all_done(world, 150 - dead), timeout_s=60)

    assert 0 < dead <= 100
    assert await world.states() == {"dead": dead, "done": 150 - dead}


async def test_a_pause_holds_over_a_restart_and_a_resume_goes_on(world: World) -> None:
    async with world.db.transaction() as connection:
        await world.deliverer.ledger.set_control(connection, paused=True, reason="looking into it", by="ann")
    relay = world.relay()
    world.start(relay)
    world.start_service()
    await world.append(*(event() for _ in range(10)))
    await until(lambda: in_stream(world, 10))
    await asyncio.sleep(0.5)
    effects_while_paused = await world.effects()

    await world.stop()
    async with world.db.transaction() as connection:
        await world.deliverer.ledger.set_control(connection, paused=False, reason="fine", by="ann")
    world.start_service()
    await until(lambda: all_done(world, 10))

    assert effects_while_paused == (0, 0)
    assert await world.effects() == (10, 10)


async def state_is(world: World, state: str) -> bool:
    return await world.states() == {state: 1}


async def all_done(world: World, count: int) -> bool:
    return (await world.states()).get("done") == count


async def paused(world: World) -> bool:
    async with world.db.reading() as connection:
        return (await world.deliverer.ledger.control(connection)).paused


async def still(world: World) -> bool:
    """For longer than the consumer takes to see a pause, nothing has happened."""
    before = await world.states()
    await asyncio.sleep(2 * CONTROL_S)
    return await world.states() == before


async def tried(world: World, times: int) -> bool:
    await asyncio.sleep(0)
    return len(world.handling.seen) >= times


async def settled_is(world: World, position: int) -> bool:
    return await world.settled() == position


async def in_stream(world: World, count: int) -> bool:
    return await world.redis.exists(STREAM) == 1 and await world.redis.xlen(STREAM) == count
