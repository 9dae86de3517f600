"""The breaker finds out soon, asks again carefully, and is not fooled by what was sent before."""

from itertools import count

from services.checkout.payments.breaker import (
    FAILURES,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    PROBES,
    SILENCE_S,
    SILENT_CALLS,
    Breaker,
    State,
)


class Caller:
    """Somebody with a breaker and a watch of their own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.breaker = Breaker(lambda: self.now)

    def begin(self, lane: str = "orders", *, at: float | None = None) -> int | None:
        self.now = self.now if at is None else at
        return self.breaker.enter(lane, self.now)

    def call(self, *, down: bool | None, at: float | None = None) -> bool:
        """One call from beginning to end; whether it was made."""
        ticket = self.begin(at=at)
        if ticket is None:
            return False
        self.breaker.leave(ticket, "orders", down=down)
        return True

    @property
    def state(self) -> State:
        return self.breaker.state


def in_front_of_an_open_one() -> Caller:
    caller = Caller()
    for _ in range(FAILURES):
        caller.call(down=True)
    return caller


def test_failures_in_a_row_open_it_and_then_nobody_calls() -> None:
    caller = in_front_of_an_open_one()

    assert caller.state is State.OPEN
    assert not caller.call(down=False)
    assert 0 < caller.breaker.retry_after_s() <= FIRST_PAUSE_S


def test_one_answer_in_between_keeps_it_closed() -> None:
    caller = Caller()

    for _ in range(3):
        for _ in range(FAILURES - 1):
            caller.call(down=True)
        caller.call(down=False)

    assert caller.state is State.CLOSED


def test_a_call_that_says_nothing_changes_nothing() -> None:
    caller = Caller()
    for _ in range(FAILURES - 1):
        caller.call(down=True)

    caller.call(down=None)
    caller.call(down=True)

    assert caller.state is State.OPEN


def test_silence_opens_it_before_the_first_call_has_timed_out() -> None:
    caller = Caller()
    for n in range(SILENT_CALLS):
        assert caller.begin(at=n / 100) is not None

    assert caller.begin(at=SILENCE_S) is not None
    assert caller.begin(at=SILENCE_S + 0.2) is None


def test_few_slow_calls_are_no_silence() -> None:
    caller = Caller()
    for _ in range(SILENT_CALLS - 1):
        caller.begin()

    assert caller.begin(at=2 * SILENCE_S) is not None


def test_many_slow_calls_of_which_some_are_answered_are_no_silence() -> None:
    caller = Caller()

    for n in range(10 * SILENT_CALLS):
        caller.begin(at=n * SILENCE_S / 10)
        caller.call(down=False)

    assert caller.state is State.CLOSED


def test_after_the_pause_each_lane_tries_one_call_at_a_time() -> None:
    caller = in_front_of_an_open_one()

    tickets = [caller.begin(lane, at=FIRST_PAUSE_S) for lane in ("orders", "orders", "recovery", "recovery")]

    assert caller.state is State.HALF_OPEN
    assert [ticket is not None for ticket in tickets] == [True, False, True, False]


def test_enough_answers_close_it() -> None:
    caller = in_front_of_an_open_one()

    states = []
    for _ in range(PROBES):
        caller.call(down=False, at=FIRST_PAUSE_S)
        states.append(caller.state)

    assert states == [State.HALF_OPEN] * (PROBES - 1) + [State.CLOSED]


def test_a_failed_try_opens_it_again_for_longer_but_never_for_very_long() -> None:
    caller = in_front_of_an_open_one()
    pauses = []

    for _ in range(8):
        pauses.append(caller.breaker.retry_after_s())
        assert caller.call(down=True, at=caller.now + pauses[-1])

    assert pauses[3] > FIRST_PAUSE_S
    assert max(pauses) <= LONGEST_PAUSE_S


def test_a_try_that_says_nothing_gives_its_place_back() -> None:
    caller = in_front_of_an_open_one()

    caller.call(down=None, at=FIRST_PAUSE_S)

    assert caller.begin() is not None


def test_what_was_sent_before_it_opened_neither_closes_it_nor_opens_it_again() -> None:
    caller = Caller()
    early = [caller.begin() for _ in range(3)]
    for _ in range(FAILURES):
        caller.call(down=True)
    probe = caller.begin(at=FIRST_PAUSE_S)

    for ticket, down in zip(early, (True, False, None), strict=True):
        assert ticket is not None
        caller.breaker.leave(ticket, "orders", down=down)

    assert caller.state is State.HALF_OPEN
    assert probe is not None
    assert caller.begin() is None, "the one under way still has the place"


def test_a_provider_that_is_down_is_asked_a_few_times_in_ten_minutes_and_soon_when_it_is_back() -> None:
    caller = Caller()

    made = sum(caller.call(down=True, at=n / 1000) for n in range(600_000))
    back = next(
        n / 1000 for n in count() if caller.call(down=False, at=600 + n / 1000) and caller.state is State.CLOSED
    )

    assert made <= FAILURES + 600 / (LONGEST_PAUSE_S / 2) + 5
    assert back <= LONGEST_PAUSE_S + 0.01
