"""Admission: how many pieces of work may be in flight, so that too much of it costs the surplus and not everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic

from shared.runtime import metrics

WINDOW_S = 0.25  # the limit moves at most once in it: long enough for a batch to show what the last move did
GROWTH = 1 / 16  # of the lower bound, added in a window
BACK_OFF = 0.9


class Objection(StrEnum):
    """Why somebody is turned away."""

    LIMIT = "limit"  # as much is in flight as may be
    WAIT = "wait"  # whoever came before has been waiting for too long already


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between which numbers the limit moves, which wait it aims at, and behind which wait nobody queues up."""

    least: int
    most: int
    target_wait_s: float
    longest_wait_s: float


class Admission:
    """Lets work in up to a limit that follows how long it then waits.

    The wait is for what is ours, the first batch, and not for the payment provider: many orders that wait for somebody
    else's answer are no overload, and the limit grows until they fit. As soon as they wait for us, it shrinks again
    (additive increase, multiplicative decrease). It never falls below the lower bound: a batch has to be filled.

    A queue that does not move at all has no waits to measure. Then the age of its oldest entry decides: the queue is
    worked in order of arrival, so nobody who came now could be any faster.
    """

    def __init__(self, bounds: Bounds, now: Callable[[], float] = monotonic) -> None:
        """`now` counts seconds and never goes back."""
        self.limit = float(bounds.least)
        self.in_flight = 0
        self.refused_at = float("-inf")
        self._bounds = bounds
        self._now = now
        self._waiting: dict[object, float] = {}  # since when; in order of arrival
        self._waits: list[float] = []  # of this window
        self._window_ends = now() + WINDOW_S
        self._was_full = False
        self._count = {reason: metrics.TURNED_AWAY.labels(reason).inc for reason in Objection}

    def enter(self) -> bool:
        """Whether one more may come in; who does must `leave`."""
        if self.turns_away():
            return False
        self.in_flight += 1
        return True

    def turns_away(self) -> bool:
        """Whether one that is here now may not come in; it is counted then."""
        objection = self._objection()
        if objection is None:
            return False
        self._was_full = self._was_full or objection is Objection.LIMIT
        self.refused_at = self._now()
        self._count[objection]()
        return True

    def leave(self) -> None:
        """One that came in is done."""
        self.in_flight -= 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait in the queue."""
        mark = object()
        began = self._waiting[mark] = self._now()
        try:
            yield
        finally:
            del self._waiting[mark]
            self._waited(self._now() - began)

    @property
    def is_shut(self) -> bool:
        """Whether nobody may come in just now."""
        return self._objection() is not None

    @property
    def oldest_wait_s(self) -> float:
        """For how long the one that came first has been waiting; 0 when nobody waits."""
        return self._now() - next(iter(self._waiting.values())) if self._waiting else 0.0

    def refused_within(self, seconds: float) -> bool:
        """Whether anybody was turned away lately."""
        return self._now() - self.refused_at < seconds

    def _objection(self) -> Objection | None:
        if self.in_flight >= int(self.limit):
            return Objection.LIMIT
        return Objection.WAIT if self.oldest_wait_s > self._bounds.longest_wait_s else None

    def _waited(self, seconds: float) -> None:
        self._waits.append(seconds)
        if self._now() >= self._window_ends:
            self._adjust(sum(self._waits) / len(self._waits))

    def _adjust(self, wait_s: float) -> None:
        if wait_s > self._bounds.target_wait_s:
            self.limit = max(self._bounds.least, self.limit * BACK_OFF)
        elif self._was_full:  # otherwise it was not the limit that kept anybody out
            self.limit = min(self._bounds.most, self.limit + self._bounds.least * GROWTH)
        self._waits.clear()
        self._was_full = False
        self._window_ends = self._now() + WINDOW_S
