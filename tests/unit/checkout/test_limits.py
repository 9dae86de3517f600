"""So many calls a second, and a tenth of them twice."""

import pytest

from services.checkout.payments.limits import MOST_RETRIES_SAVED, Rate, RetryBudget


@pytest.mark.parametrize("per_s", [0.5, 1, 7.5, 1000])
def test_over_a_minute_no_more_calls_are_made_than_the_rate_allows(per_s: float) -> None:
    rate = Rate(per_s)

    made = sum(rate.wait_s(n / 2000) == 0 for n in range(120_000))

    assert 60 * per_s - 1 <= made <= 60 * per_s + max(1, per_s) + 1


def test_who_waits_as_long_as_told_is_served() -> None:
    rate = Rate(4.0)
    now = 10.0
    while (wait_s := rate.wait_s(now)) == 0:
        pass

    assert rate.wait_s(now + wait_s + 1e-9) == 0


def test_a_quiet_hour_saves_up_a_second_and_no_more() -> None:
    rate = Rate(10.0)
    rate.wait_s(0.0)

    assert sum(rate.wait_s(3600.0) == 0 for _ in range(100)) == 10


def test_second_tries_are_a_tenth_of_the_first_ones() -> None:
    budget = RetryBudget()
    spent = 0

    for _ in range(10_000):
        budget.earn()
        spent += budget.spend()

    assert 1000 <= spent <= 1001


def test_good_times_do_not_save_up_a_storm() -> None:
    budget = RetryBudget()
    for _ in range(100_000):
        budget.earn()

    assert sum(budget.spend() for _ in range(1000)) == MOST_RETRIES_SAVED
