"""How much is let in, with a clock that the test turns."""

from contextlib import ExitStack

import pytest
from prometheus_client import REGISTRY

from shared.runtime.admission import WINDOW_S, Admission, Bounds

LEAST, MOST = 16, 64
TARGET_S, LONGEST_S = 0.05, 2.0


class Desk:
    """Work in front of an admission; time passes only here."""

    def __init__(self) -> None:
        self.now = 0.0
        self.admission = Admission(Bounds(LEAST, MOST, TARGET_S, LONGEST_S), lambda: self.now)

    @property
    def limit(self) -> int:
        return int(self.admission.limit)

    def arrive(self, count: int) -> int:
        """How many of them are let in."""
        return sum(self.admission.enter() for _ in range(count))

    def wait(self, seconds: float) -> None:
        """One of them gets into a batch after so long."""
        with self.admission.waiting():
            self.now += seconds

    def windows(self, count: int, *, wait_s: float, arriving: int) -> None:
        """Several windows in a row in which so many want in and wait for so long; all of them are done at its end."""
        for _ in range(count):
            entered = self.arrive(arriving)
            self.now += WINDOW_S
            self.wait(wait_s)
            for _ in range(entered):
                self.admission.leave()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def turned_away(reason: str) -> float:
    return REGISTRY.get_sample_value("orderstream_admission_turned_away_total", {"reason": reason}) or 0.0


def test_as_many_are_let_in_as_the_limit_says_and_each_that_leaves_makes_room_for_one(desk: Desk) -> None:
    before = turned_away("limit")

    assert desk.arrive(100) == LEAST
    desk.admission.leave()
    assert desk.arrive(100) == 1

    assert desk.admission.in_flight == LEAST
    assert turned_away("limit") - before == 84 + 99


def test_the_limit_grows_while_those_who_are_let_in_hardly_wait(desk: Desk) -> None:
    desk.windows(3, wait_s=0.01, arriving=100)
    assert LEAST < desk.limit < MOST

    desk.windows(100, wait_s=0.01, arriving=100)
    assert desk.limit == MOST


def test_the_limit_does_not_grow_when_it_keeps_nobody_out(desk: Desk) -> None:
    desk.windows(100, wait_s=0.01, arriving=LEAST)

    assert desk.limit == LEAST


def test_the_limit_shrinks_when_they_wait_but_never_below_the_lower_bound(desk: Desk) -> None:
    desk.windows(100, wait_s=0.01, arriving=100)

    desk.windows(1, wait_s=0.1, arriving=100)
    assert LEAST < desk.limit < MOST
    desk.windows(100, wait_s=0.1, arriving=100)
    assert desk.limit == LEAST


def test_the_limit_moves_once_in_a_window_by_the_mean_of_its_waits(desk: Desk) -> None:
    desk.windows(100, wait_s=0.01, arriving=100)

    desk.now += WINDOW_S - 0.2
    for wait_s in (0.01, 0.01, 0.01, 0.01, 0.5):
        desk.wait(wait_s)
    assert desk.limit == int(MOST * 0.9)


def test_nobody_queues_up_behind_somebody_who_has_been_waiting_for_too_long(desk: Desk) -> None:
    before = turned_away("wait")
    with desk.admission.waiting():
        desk.now += LONGEST_S
        assert desk.arrive(1) == 1

        desk.now += 0.01
        assert desk.arrive(1) == 0

    assert desk.arrive(1) == 1
    assert turned_away("wait") - before == 1


def test_the_age_that_counts_is_that_of_the_oldest_who_still_waits(desk: Desk) -> None:
    first, second = ExitStack(), ExitStack()
    first.enter_context(desk.admission.waiting())
    desk.now += 1.5
    second.enter_context(desk.admission.waiting())
    desk.now += 1.0
    assert desk.admission.oldest_wait_s == 2.5

    first.close()

    assert desk.admission.oldest_wait_s == 1.0
    assert desk.arrive(1) == 1


def test_who_fails_in_the_queue_does_not_wait_for_ever(desk: Desk) -> None:
    with pytest.raises(ConnectionError), desk.admission.waiting():
        raise ConnectionError

    desk.now += 10
    assert desk.admission.oldest_wait_s == 0.0


def test_it_is_known_whether_anybody_was_turned_away_lately(desk: Desk) -> None:
    assert not desk.admission.refused_within(10)

    desk.arrive(LEAST + 1)
    desk.now += 9
    assert desk.admission.refused_within(10)
    desk.now += 1
    assert not desk.admission.refused_within(10)
