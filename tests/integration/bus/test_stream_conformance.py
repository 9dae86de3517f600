"""What relay and consumers rely on, asked of every implementation of `Streams`: one in memory, and a real server.

The model of the backbone runs on the one in memory. It is trusted because it passes what the real one passes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from redis.exceptions import RedisError

from shared.bus import streams as streams_module
from shared.bus.clients import connect
from shared.bus.streams import RedisStreams, State, StreamEntry
from shared.runtime.errors import Action, classify
from tests.support.memory_streams import MemoryHand, MemoryServer, MemoryStreams
from tests.support.stream_sides import GROUP, IDLE_MS, RedisHand, Side, events

BOARD = "settled:email"
_names = count(1)


@pytest.fixture(params=["memory_side", "server_side"])
def side(request: pytest.FixtureRequest) -> Side:
    found: Side = request.getfixturevalue(request.param)
    return found


@pytest_asyncio.fixture
async def server_side(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Side]:
    monkeypatch.setattr(streams_module, "BLOCK_MS", 20)
    streams = RedisStreams(redis_url, "test")
    redis = connect(redis_url, "hand")
    await redis.flushall()
    hand = RedisHand(redis)
    yield Side(streams, hand, lambda ms: asyncio.sleep(ms / 1000), _name())
    await hand.fill(full=False)
    await streams.close()
    await redis.aclose()


@pytest.fixture
def memory_side() -> Side:
    now = 1000.0

    async def pass_ms(ms: int) -> None:
        nonlocal now
        now += ms / 1000

    async def passing(_: str) -> None:
        return

    server = MemoryServer(lambda: now)
    return Side(MemoryStreams(server, passing), MemoryHand(server), pass_ms, _name())


def _name() -> str:
    return f"events:conformance:{next(_names)}"


async def answer_to(call: Any) -> Action:
    """What the loops would do about the error that a call raises."""
    with pytest.raises(RedisError) as raised:
        await call
    return classify(raised.value)


async def test_what_is_published_is_read_once_in_order_whoever_reads(side: Side) -> None:
    await side.rebuilt(5)

    assert [await side.new("one", 2), await side.new("two", 2), await side.new("one", 9)] == [[1, 2], [3, 4], [5]]
    assert (await side.streams.read_range(side.name, 2, 1)) == [StreamEntry("2-0", 2, b"event 2")]


async def test_a_repeat_adds_nothing(side: Side) -> None:
    await side.rebuilt(5)

    again = await side.published(1, 7)

    assert again is State.PUBLISHED
    assert await side.there() == [1, 2, 3, 4, 5, 6, 7]


async def test_a_hole_in_what_was_published_before_is_found_by_a_repeat(side: Side) -> None:
    await side.rebuilt(5)
    await side.hand.delete(side.name, 4, 5)

    assert await side.published(1, 7) is State.MISSING
    assert await side.there() == [1, 2, 3]


@pytest.mark.parametrize("event", [b"by hand", None])
async def test_somebody_elses_entry_in_the_place_of_our_next_event_is_found(side: Side, event: bytes | None) -> None:
    await side.rebuilt(2)
    await side.hand.write(side.name, "3-0", event)

    assert await side.published(3, 4) is State.AHEAD
    assert await side.there() == [1, 2, 3]


async def test_publishing_trims_what_is_settled(side: Side) -> None:
    await side.rebuilt(5)

    assert await side.published(6, 7, settled=3) is State.PUBLISHED
    assert await side.there() == [4, 5, 6, 7]


async def test_everything_settled_leaves_an_empty_stream_that_goes_on(side: Side) -> None:
    await side.rebuilt(5)

    assert await side.guarded(settled=5, cursor=5, head=5) is State.PUBLISHED
    assert await side.there() == []
    assert await side.published(6, 6, settled=5) is State.PUBLISHED
    assert await side.there() == [6]


async def test_a_stream_that_nobody_made_yet_takes_the_first_events(side: Side) -> None:
    assert await side.guarded(settled=0, cursor=0, head=3) is State.PUBLISHED
    assert await side.published(1, 3) is State.PUBLISHED
    assert await side.there() == [1, 2, 3]


async def flush(side: Side) -> None:
    await side.hand.flush()


async def drop(side: Side) -> None:
    await side.hand.drop(side.name)


async def trim(side: Side) -> None:
    await side.hand.trim(side.name)


async def delete_first(side: Side) -> None:
    await side.hand.delete(side.name, 3)


async def replace(side: Side) -> None:
    await side.hand.replace(side.name)


async def write_far_ahead(side: Side) -> None:
    await side.hand.write(side.name, "999-1", None)


async def fall_behind(side: Side) -> None:
    await side.streams.rebuild(side.name, GROUP, 4)


@pytest.mark.parametrize(
    ("harm", "state"),
    [
        (flush, State.BEHIND),
        (drop, State.BEHIND),
        (trim, State.MISSING),
        (delete_first, State.MISSING),
        (replace, State.REPLACED),
        (write_far_ahead, State.AHEAD),
        (fall_behind, State.BEHIND),
    ],
)
async def test_the_guard_says_what_is_wrong_and_changes_nothing(side: Side, harm: Any, state: State) -> None:
    await side.rebuilt(5, settled=2)
    await harm(side)

    assert await side.guarded(settled=2, cursor=5, head=8) is state
    assert await side.streams.publish(side.name, 2, 5, 8, events(6, 8)) is state
    if state is not State.REPLACED:
        assert not {6, 7, 8} & set(await side.there())


@pytest.mark.parametrize("harm", [flush, trim, replace, write_far_ahead, delete_first])
async def test_a_rebuilt_stream_goes_on_behind_what_is_settled_and_its_group_has_had_nothing(
    side: Side, harm: Any
) -> None:
    await side.rebuilt(5, settled=2)
    await side.new()
    await harm(side)

    await side.rebuilt(6, settled=2)

    assert await side.own() == []
    assert await side.new() == [3, 4, 5, 6]
    assert await side.guarded(settled=2, cursor=6, head=6) is State.PUBLISHED


async def test_what_was_read_stays_open_until_it_is_acknowledged(side: Side) -> None:
    await side.rebuilt(4)
    await side.new()

    await side.streams.ack(side.name, GROUP, ["1-0", "3-0", "77-0"])

    assert await side.own() == [2, 4]
    assert await side.own(after="2-0") == [4]
    assert await side.own("two") == []


async def test_an_open_entry_that_is_gone_from_the_stream_comes_without_its_event(side: Side) -> None:
    await side.rebuilt(2)
    await side.new()
    await side.hand.delete(side.name, 1)

    found = await side.streams.read_own(side.name, GROUP, "one", "0", 100)

    assert [(entry.position, entry.event) for entry in found] == [(1, None), (2, b"event 2")]


async def test_an_entry_with_some_other_field_has_no_event_and_one_with_an_odd_id_no_position(side: Side) -> None:
    await side.rebuilt(1)
    await side.hand.write(side.name, "2-0", None)
    await side.hand.write(side.name, "2-7", b"by hand")

    found = await side.streams.read_new(side.name, GROUP, "one", 100)

    assert found[1:] == [StreamEntry("2-0", 2, None), StreamEntry("2-7", None, b"by hand")]


async def test_only_what_was_idle_for_long_enough_is_claimed_and_then_it_is_the_claimers(side: Side) -> None:
    await side.rebuilt(4)
    await side.new("gone", 2)

    at_once = await side.claimed("peer", 60_000)
    await side.pass_ms(IDLE_MS + 5)
    claimed = await side.claimed("peer")
    await side.new("alive", 2)
    again = await side.claimed("other", 60_000)

    assert (at_once, claimed, again) == ([], [1, 2], [])
    assert [await side.own("gone"), await side.own("peer"), await side.own("alive")] == [[], [1, 2], [3, 4]]


async def test_what_is_claimed_but_gone_from_the_stream_is_nobodys(side: Side) -> None:
    await side.rebuilt(3)
    await side.new("gone")
    await side.hand.delete(side.name, 2)

    assert await side.claimed("peer", 0) == [1, 3]
    assert [await side.own("gone"), await side.own("peer")] == [[], [1, 3]]


async def test_what_is_given_back_is_claimed_at_once(side: Side) -> None:
    await side.rebuilt(3)
    await side.new("leaving")

    await side.streams.give_back(side.name, GROUP, "leaving")

    assert await side.claimed("staying", 60_000) == [1, 2, 3]


async def test_consumers_are_forgotten_only_when_they_hold_nothing(side: Side) -> None:
    await side.rebuilt(2)
    await side.new("holder", 1)
    await side.new("empty", 1)
    await side.streams.ack(side.name, GROUP, ["2-0"])
    await side.pass_ms(IDLE_MS + 5)

    await side.streams.forget_idle(side.name, GROUP, IDLE_MS)
    await side.streams.give_back(side.name, GROUP, "empty")

    assert await side.own("holder") == [1]


async def test_a_deleted_consumer_takes_along_what_it_held(side: Side) -> None:
    await side.rebuilt(2)
    await side.new("one")

    await side.hand.delete_consumer(side.name, GROUP, "one")

    assert [await side.own(), await side.new("two"), await side.claimed("two", 0)] == [[], [], []]
    assert await side.there() == [1, 2]


async def test_a_group_made_anew_goes_on_behind_what_is_settled(side: Side) -> None:
    await side.rebuilt(4)
    await side.new()
    await side.hand.destroy_group(side.name, GROUP)

    await side.streams.create_group(side.name, GROUP, 2)
    await side.streams.create_group(side.name, GROUP, 0)

    assert await side.own() == []
    assert await side.new() == [3, 4]


async def test_a_group_made_before_its_stream_leaves_the_guard_a_stream_that_is_behind(side: Side) -> None:
    await side.streams.create_group(side.name, GROUP, 3)

    assert await side.guarded(settled=3, cursor=5, head=5) is State.BEHIND
    assert await side.new() == []


READERS: list[Callable[[Side], Any]] = [
    lambda side: side.streams.read_new(side.name, GROUP, "one", 1),
    lambda side: side.streams.read_own(side.name, GROUP, "one", "0", 1),
    lambda side: side.streams.claim_idle(side.name, GROUP, "one", 0, 1),
    lambda side: side.streams.give_back(side.name, GROUP, "one"),
    lambda side: side.streams.forget_idle(side.name, GROUP, 0),
]


async def destroy_group(side: Side) -> None:
    await side.hand.destroy_group(side.name, GROUP)


@pytest.mark.parametrize("call", READERS, ids=["read_new", "read_own", "claim_idle", "give_back", "forget_idle"])
@pytest.mark.parametrize("harm", [drop, destroy_group, replace])
async def test_whoever_needs_the_group_hears_that_it_is_gone(side: Side, harm: Any, call: Any) -> None:
    await side.rebuilt(2)
    await harm(side)

    assert await answer_to(call(side)) is Action.REBUILD


async def test_what_needs_no_group_takes_a_missing_stream_for_an_empty_one(side: Side) -> None:
    await side.streams.ack(side.name, GROUP, ["1-0"])
    await side.streams.delete(side.name, "1-0")
    await side.streams.remove(side.name)

    assert await side.there() == []
    assert await side.streams.board(BOARD) == {}


async def test_a_string_in_a_streams_place_is_told_from_a_stream(side: Side) -> None:
    await side.hand.replace(side.name)

    assert await answer_to(side.streams.ack(side.name, GROUP, ["1-0"])) is Action.REBUILD
    assert await answer_to(side.streams.delete(side.name, "1-0")) is Action.REBUILD
    assert await answer_to(side.streams.read_range(side.name, 1, 1)) is Action.REBUILD
    assert await answer_to(side.streams.create_group(side.name, GROUP, 0)) is Action.REBUILD


async def test_something_else_in_a_boards_place_is_an_empty_board_until_somebody_reports(side: Side) -> None:
    await side.hand.replace(BOARD)

    assert await side.streams.board(BOARD) == {}

    await side.streams.report(BOARD, {"0": 1})
    assert await side.streams.board(BOARD) == {"0": 1}


async def test_boards_keep_what_was_said_last_and_show_only_numbers(side: Side) -> None:
    await side.streams.report(BOARD, {"0": 5, "1": 7})
    await side.streams.report(BOARD, {"0": 6})
    for field, nonsense in {"2": "", "3": "-5", "4": "abc", "5": "9" * 30, "6": "1.5"}.items():
        await side.hand.scribble(BOARD, field, nonsense)

    assert await side.streams.board(BOARD) == {"0": 6, "1": 7}

    await side.streams.remove(BOARD)
    assert await side.streams.board(BOARD) == {}


async def test_a_full_server_takes_no_events_and_lets_consumers_drain_it(side: Side) -> None:
    await side.rebuilt(3)

    await side.hand.fill(full=True)

    assert await side.published(4, 5) is State.FULL
    assert await side.new() == [1, 2, 3]
    assert await side.own() == [1, 2, 3]
    assert await side.claimed("peer", 0) == [1, 2, 3]
    await side.streams.ack(side.name, GROUP, ["1-0", "2-0"])
    await side.streams.report(BOARD, {"0": 2})
    await side.streams.create_group(side.name, "other", 2)
    assert await side.streams.board(BOARD) == {"0": 2}
    assert await side.published(4, 5, settled=2) is State.FULL
    assert await side.there() == [3]
    await side.streams.rebuild(side.name, GROUP, 3)
    assert await side.there() == []

    await side.hand.fill(full=False)
    assert await side.published(4, 5, settled=3) is State.PUBLISHED
