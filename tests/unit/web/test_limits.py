"""A key makes so many requests as it may: never more, and never fewer."""

from hypothesis import given
from hypothesis import strategies as st

from shared.web import limits
from shared.web.limits import Bucket, Limits, Quota


class Stopwatch:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_key_that_was_quiet_may_make_its_burst_at_once_and_then_has_to_wait_for_each() -> None:
    bucket = Bucket(Quota(rate=10, burst=3))

    at_once = [bucket.take(0.0) for _ in range(4)]
    later = [bucket.take(0.1), bucket.take(0.1)]

    assert at_once[:3] == [0, 0, 0]
    assert 0.09 < at_once[3] <= 0.1
    assert later[0] == 0
    assert later[1] > 0


def test_a_request_that_was_refused_costs_nothing() -> None:
    bucket = Bucket(Quota(rate=1, burst=1))
    bucket.take(0.0)

    for tenth in range(1, 10):
        assert bucket.take(tenth / 10) > 0

    assert bucket.take(1.0) == 0


def test_a_key_is_told_what_is_left_and_when_all_of_it_is_back() -> None:
    bucket = Bucket(Quota(rate=2, burst=10))

    untouched = dict(bucket.headers(0.0))
    for _ in range(4):
        bucket.take(0.0)
    used = dict(bucket.headers(0.0))

    assert untouched == {b"ratelimit": b'"key";r=10;t=0', b"ratelimit-policy": b'"key";q=10;w=5'}
    assert used == {b"ratelimit": b'"key";r=6;t=2', b"ratelimit-policy": b'"key";q=10;w=5'}


@given(
    rate=st.floats(0.1, 10_000),
    burst=st.integers(1, 500),
    start=st.floats(0, 1e7),
    pauses=st.lists(st.floats(0, 5), max_size=300),
)
def test_in_any_time_a_key_gets_its_burst_and_its_rate_and_no_more(
    rate: float, burst: int, start: float, pauses: list[float]
) -> None:
    bucket = Bucket(Quota(rate, burst))
    now = start

    for taken, pause in enumerate(pauses, start=1):
        now += pause
        wait_s = bucket.take(now)
        assert wait_s <= 1 / rate
        if wait_s:
            now += wait_s + 1e-6
            assert bucket.take(now) == 0, "who waits as long as it was told gets through"
        assert taken <= burst + rate * (now - start) + 0.1


def test_keys_do_not_share_what_they_may() -> None:
    of_all = Limits(Stopwatch())
    quota = Quota(rate=1, burst=1)

    first = [of_all.take("one", quota)[0] for _ in range(2)]
    other, _ = of_all.take("two", quota)

    assert [bool(wait_s) for wait_s in first] == [False, True]
    assert other == 0


def test_a_key_that_gets_another_quota_has_it_at_once() -> None:
    of_all = Limits(Stopwatch())
    of_all.take("one", Quota(rate=1, burst=1))

    wait_s, headers = of_all.take("one", Quota(rate=1, burst=5))

    assert wait_s == 0
    assert dict(headers)[b"ratelimit"] == b'"key";r=4;t=1'


def test_keys_that_are_not_used_any_more_are_forgotten_and_those_that_are_stay_limited() -> None:
    clock = Stopwatch()
    of_all = Limits(clock)
    for n in range(limits.MOST_REMEMBERED - 1):
        of_all.take(f"old-{n}", Quota(rate=10, burst=1))
    clock.now += 1
    of_all.take("busy", Quota(rate=0.1, burst=1))

    of_all.take("new", Quota(rate=10, burst=1))

    assert len(of_all._buckets) == 2
    assert of_all.take("busy", Quota(rate=0.1, burst=1))[0] > 0


def test_what_a_client_is_told_does_not_depend_on_how_long_the_machine_is_up() -> None:
    """Seconds since the machine started, as floats: some take a little more away than was added."""
    for up_s in range(1_000):
        now = up_s * 10 + 0.1
        bucket = Bucket(Quota(rate=0.01, burst=2))
        bucket.take(now)

        assert dict(bucket.headers(now))[b"ratelimit"] == b'"key";r=1;t=100'
