"""When a delivery is tried again, and when dying must stop."""

from hypothesis import given
from hypothesis import strategies as st

from shared.bus.retry import Backoff, Brake

CHANCE = st.floats(0, 1, exclude_max=True)
BACKOFFS = st.builds(
    Backoff,
    base_s=st.floats(0.001, 1000),
    retries=st.integers(0, 50),
    jitter=st.floats(0, 1),
    cap_s=st.floats(0.001, 10_000),
)


def test_the_schedule_is_1_2_4_8_and_16_minutes_and_then_no_more() -> None:
    backoff = Backoff(jitter=0.0)

    minutes = [backoff.delay_s(attempts, 0.5) / 60 for attempts in range(1, 6)]

    assert minutes == [1, 2, 4, 8, 16]
    assert [backoff.exhausted(attempts) for attempts in range(1, 8)] == [False] * 5 + [True] * 2


@given(BACKOFFS, st.integers(1, 10_000), CHANCE)
def test_a_delay_is_within_its_jitter_and_its_cap_however_many_attempts(
    backoff: Backoff, attempts: int, chance: float
) -> None:
    exact = min(backoff.cap_s, backoff.base_s * 2.0 ** min(attempts - 1, 32))

    delay = backoff.delay_s(attempts, chance)

    assert exact * (1 - backoff.jitter) * 0.999999 <= delay <= exact * (1 + backoff.jitter) * 1.000001


@given(BACKOFFS, st.integers(1, 100))
def test_a_later_attempt_never_waits_less(backoff: Backoff, attempts: int) -> None:
    assert backoff.delay_s(attempts, 0.5) <= backoff.delay_s(attempts + 1, 0.5)


@given(st.floats(0, 0.49), st.floats(0.51, 0.999))
def test_chance_spreads_the_herd_to_both_sides(low: float, high: float) -> None:
    backoff = Backoff()

    assert backoff.delay_s(1, low) < 60 < backoff.delay_s(1, high)


@given(BACKOFFS, st.integers(1, 100))
def test_once_exhausted_it_stays_so(backoff: Backoff, attempts: int) -> None:
    assert backoff.exhausted(attempts) is (attempts > backoff.retries)


@given(st.lists(st.booleans(), max_size=300))
def test_the_brake_trips_exactly_when_most_of_the_last_hundred_died(outcomes: list[bool]) -> None:
    brake = Brake()

    for died in outcomes:
        brake.note(died=died)

    last = outcomes[-100:]
    assert brake.tripped is (sum(last) >= 20 and sum(last) > len(last) / 2)


def test_a_few_deaths_do_not_trip_a_brake_that_has_seen_little() -> None:
    brake = Brake()

    brake.note(died=True, times=19)

    assert not brake.tripped


def test_a_poisoned_hour_among_healthy_ones_does_not_trip_it() -> None:
    brake = Brake()
    brake.note(died=False, times=10_000)

    brake.note(died=True, times=50)

    assert not brake.tripped


def test_a_released_brake_has_forgotten_everything() -> None:
    brake = Brake()
    brake.note(died=True, times=100)

    brake.release()
    brake.note(died=True, times=19)

    assert not brake.tripped
