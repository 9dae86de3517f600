"""Everything that may stand in a stream and should not: each is put aside with a reason, and delays nobody."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import text

from shared.bus import inspection
from shared.bus.arrivals import IMPOSTOR, STRANGER, TWO_ORDERS, Arrival
from shared.bus.boards import epoch_of, settled_board
from shared.bus.inspection import Selection
from shared.bus.ledger import State
from shared.contracts.envelope import Envelope, encode
from shared.contracts.orders import ORDER_CANCELLED
from shared.runtime import metrics
from tests.integration.bus.conftest import SERVICE, STREAM, World, event, until

DELAY_AIM_S = 1.0  # what a bad event may cost the next good one
AGAIN = 2  # a machine that does other things besides stands still now and then; a bad event delays others each time


def valid(**changes: Any) -> dict[str, Any]:
    """A new event as JSON, with attributes changed; None leaves one out."""
    wire = json.loads(encode(event())) | changes
    return {name: value for name, value in wire.items() if value is not None}


def with_data(**changes: Any) -> dict[str, Any]:
    wire = valid()
    return wire | {"data": wire["data"] | changes}


@dataclass(frozen=True)
class Bad:
    """Bytes as `event`, or whole fields; and the beginning of the reason with which they are parked."""

    content: Any
    reason: str
    ours: bool = True  # whether it stands where the relay would have written it


FIRST = event()
FORGED = FIRST.model_copy(update={"data": FIRST.data | {"total": 1}})
DAY = {"type": "order.gifted", "dataschema": "urn:orderstream:schema:order.gifted/1"}

BAD: dict[str, Bad] = {
    "no bytes at all": Bad(b"", "event: Invalid JSON"),
    "no JSON": Bad(b"\x80\x04pickle", "event: Invalid JSON"),
    "half of an event": Bad(encode(event()).encode()[:100], "event: Invalid JSON"),
    "UTF-16": Bad(encode(event()).encode("utf-16"), "event: Invalid JSON"),
    "a NUL": Bad(b"\x00", "event: Invalid JSON"),
    "a list": Bad(b"[1, 2]", "event: Input should be an object"),
    "null": Bad(b"null", "event: Input should be an object"),
    "five megabytes": Bad(b'{"id": "' + b"x" * 5_000_000 + b'"}', "id: "),
    "deep nesting": Bad(b'{"a":' * 100_000, "event: "),
    "deep nesting of data": Bad(
        encode(event()).replace('"EUR"', "[" * 50_000 + "]" * 50_000).encode(), "event: Invalid JSON"
    ),
    "no id": Bad(valid(id=None), "id: Field required"),
    "no type": Bad(valid(type=None), "type: Field required"),
    "no version": Bad(valid(orderversion=None), "orderversion: Field required"),
    "no schema": Bad(valid(dataschema=None), "dataschema: Field required"),
    "no payload": Bad(valid(data=None), "data: Field required"),
    "an id that is no UUID": Bad(valid(id="42"), "id: "),
    "an unknown type": Bad(valid(**DAY), "unknown type order.gifted"),
    "a newer schema": Bad(valid(dataschema="urn:orderstream:schema:order.completed/2"), "unknown major version"),
    "an older schema": Bad(valid(dataschema="urn:orderstream:schema:order.completed/0"), "unknown major version"),
    "a negative amount": Bad(with_data(total=-1), "data does not fit"),
    "an amount that no bank knows": Bad(with_data(total=10**16), "data does not fit"),
    "no lines": Bad(with_data(lines=[]), "data does not fit"),
    "text for an amount": Bad(with_data(total="much"), "data does not fit"),
    "a subject that is not its order": Bad(with_data(order_id="ord_another"), TWO_ORDERS),
    "the id of another event": Bad(json.loads(encode(FORGED)), IMPOSTOR),
    "written by hand, well made": Bad(valid(), STRANGER, ours=False),
    "written by hand, badly made": Bad(b"hello", "event: Invalid JSON", ours=False),
}

ODD: dict[str, Envelope] = {
    "of 1970": event().model_copy(update={"time": datetime(1970, 1, 1, tzinfo=UTC)}),
    "of the future": event().model_copy(update={"time": datetime(2999, 1, 1, tzinfo=UTC)}),
    "with a gap before it": event(version=7),
    "cancelled before it was paid": event(kind=ORDER_CANCELLED, version=2),
}


async def test_each_is_parked_with_a_reason_and_the_next_good_event_is_not_delayed(world: World) -> None:
    failures_before = failures()
    consumer = world.start_service()
    await world.append(FIRST)
    relay = world.relay()
    world.start(relay)
    await until(lambda: done(world, 1))
    alone = await next_good(world)

    slowest = {}
    for name, bad in BAD.items():
        await write(world, bad)
        slowest[name] = await next_good(world) - alone

    assert not consumer.stopping
    async with world.db.reading() as connection:
        rows = await connection.execute(
            text("SELECT last_error FROM deliveries WHERE state = 'parked' ORDER BY received_at")
        )
        reasons = [row[0] for row in rows]
    assert len(reasons) == len(BAD)
    assert [
        name for (name, bad), reason in zip(BAD.items(), reasons, strict=True) if not reason.startswith(bad.reason)
    ] == []
    assert failures() == failures_before  # no loop failed, so none is in a circle
    assert world.handling.seen.count(FIRST.subject) == 1
    for _ in range(AGAIN):
        for name in [name for name, s in slowest.items() if s > DELAY_AIM_S]:
            await write(world, BAD[name])
            slowest[name] = await next_good(world) - alone
    assert {name: s for name, s in slowest.items() if s > DELAY_AIM_S} == {}


async def next_good(world: World) -> float:
    """Seconds until one more good event has its effect."""
    before = (await world.states())["done"]
    began = monotonic()
    await world.append(event())
    await until(lambda: done(world, before + 1))
    return monotonic() - began


async def write(world: World, bad: Bad) -> None:
    """Into the stream where the relay would write next, or beside that."""
    raw = bad.content if isinstance(bad.content, bytes) else json.dumps(bad.content).encode()
    if not bad.ours:
        last = (await last_id(world)).decode().split("-")[0]
        await world.redis.xadd(STREAM, {"event": raw}, id=f"{last}-1")
        return
    await write_next(world, {b"event": raw})


async def write_next(world: World, fields: dict[bytes, bytes]) -> None:
    """As if the log itself had it, from a writer with a fault."""
    async with world.db.transaction() as connection:
        head = await connection.execute(text("UPDATE log_head SET position = position + 1 RETURNING position"))
        position = head.scalar_one()
        await connection.execute(text("UPDATE subscriptions SET cursor = :position"), {"position": position})
        # While the relay is kept out: to it, a stream that ends before the cursor has lost something.
        await world.redis.xadd(STREAM, fields, id=f"{position}-0")  # type: ignore[arg-type]


async def last_id(world: World) -> bytes:
    info = await world.redis.xinfo_stream(STREAM)
    found: bytes = info["last-generated-id"]
    return found


def failures() -> float:
    return sum(sample.value for metric in metrics.LOOP_FAILURES.collect() for sample in metric.samples)


async def done(world: World, count: int) -> bool:
    return (await world.states()).get("done") == count


async def test_what_is_only_odd_is_handled_like_any_other(world: World) -> None:
    world.start(world.relay())
    world.start_service()
    await world.append(*ODD.values())
    await until(lambda: done(world, len(ODD)))

    plain = encode(event()).encode()
    await write_next(world, {b"\xff\x00": b"\x00", b"event": plain, b"more": b"fields"})

    await until(lambda: done(world, len(ODD) + 1))
    assert await world.effects() == (len(ODD) + 1, len(ODD) + 1)


async def test_an_entry_without_an_event_is_replaced_by_what_the_log_has_there(world: World) -> None:
    relay = world.relay()
    await world.append(event())
    await relay.run_once()
    await world.redis.delete(STREAM)
    await world.redis.xadd(STREAM, {"nothing": "to read"}, id="1-0")

    world.start(relay)
    world.start_service()
    await until(lambda: done(world, 1))

    assert await world.states() == {"done": 1}


async def test_an_impostor_is_found_in_the_same_batch_and_when_it_comes_again(world: World) -> None:
    alarms = impostors()
    batch = [Arrival(0, 1, encode(FIRST)), Arrival(0, 2, encode(FORGED)), Arrival(0, 1, encode(FIRST))]

    await world.deliverer.deliver(batch)
    await world.deliverer.hand_over(batch)
    await world.retrier().run_once()

    assert await world.states() == {"done": 1, "parked": 1}
    assert await world.effects() == (1, 1)
    assert impostors() > alarms


async def test_nobody_lets_an_impostor_or_rubbish_through_by_retrying_it(world: World) -> None:
    rubbish = b'{"id": "\x00", ' + b"x" * 1_500_000
    await world.deliverer.deliver(
        [Arrival(0, 1, encode(FIRST)), Arrival(0, 2, encode(FORGED)), Arrival(0, 3, rubbish), Arrival(0, 4, b"\x00")]
    )
    ids = [one.id for one in await look(world) if one.state == State.PARKED]

    async with world.db.transaction() as connection:
        change = await inspection.retry(connection, Selection(ids), dry_run=False)
    await world.deliverer.deliver([Arrival(0, 5, encode(event()))])
    await world.retrier().run_once()

    assert change.changed == 3
    assert await world.states() == {"done": 2, "parked": 3}
    assert {one.last_error.split(":")[0] for one in await look(world) if one.last_error} == {
        "event",
        IMPOSTOR.split(":")[0],
    }


async def test_what_was_written_by_hand_runs_when_somebody_lets_it_through_and_not_before(world: World) -> None:
    await world.deliverer.deliver([Arrival(0, None, encode(event()))])
    await world.retrier().run_once()
    before = await world.states()

    async with world.db.transaction() as connection:
        await inspection.retry(connection, Selection(state=State.PARKED), dry_run=False)
    await world.retrier().run_once()

    assert before == {"parked": 1}
    assert await world.states() == {"done": 1}


@pytest.mark.parametrize("settled", ["99", "-1", "x", "", "1.5", "9" * 30])
async def test_a_settled_value_that_cannot_be_true_is_refused(world: World, settled: str) -> None:
    await world.append(event(), event())
    relay = world.relay()
    await relay.run_once()
    await world.redis.hset(settled_board(SERVICE), mapping={"0": settled, epoch_of("0"): await epoch(world)})

    await relay.run_once()
    await relay.run_once()

    assert await world.settled() == 0
    assert await world.redis.xlen(STREAM) == 2


async def epoch(world: World) -> int:
    return await world.scalar("SELECT epoch FROM subscriptions")


async def look(world: World) -> list[inspection.Seen]:
    async with world.db.reading() as connection:
        return await inspection.find(connection, Selection(), limit=100)


def impostors() -> float:
    return sum(sample.value for metric in metrics.IMPOSTORS.collect() for sample in metric.samples[:1])
