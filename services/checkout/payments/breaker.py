"""A circuit breaker: who does not answer is left alone for a while, and asked again by a few before by all.

closed ── ten failures in a row, or silence ──> open ── pause over ──> half-open ── three answers ──> closed
                                                 ^                        │
                                                 └────── one failure ─────┘
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import IntEnum

from shared.runtime import metrics

# In a row: whoever fails every time is found out at once, however much or little is going on, and whoever fails one
# call in ten reaches ten in a row by chance once in 10,000,000,000 calls.
FAILURES = 10
# A silent provider is found out before the first call times out: so many calls under way, none answered for so long.
SILENT_CALLS = 10
SILENCE_S = 4.0
PROBES = 3  # answers in a row, until everybody may call again
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 5.0


class State(IntEnum):
    """As the gauge shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Counts failures to reach one provider. Every call is between an `enter` and its `leave`.

    Half-open, each lane (a kind of caller) has one call under way at the most: none takes another's chance.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """Closed. `now` counts seconds and never goes back."""
        self._now = now
        self._state = State.CLOSED
        self._epoch = 0  # of the state: what was sent in an earlier one says nothing about this one
        self._failures = 0
        self._answers = 0
        self._pause_s = FIRST_PAUSE_S
        self._open_until = 0.0
        self._probing: set[str] = set()
        self._under_way = 0
        self._heard = False
        self._heard_at = 0.0

    @property
    def state(self) -> State:
        """As it is now."""
        if self._state is State.OPEN and self._now() >= self._open_until:
            return State.HALF_OPEN
        return self._state

    def retry_after_s(self) -> float:
        """Seconds until a call is worth another try."""
        return max(0.1, self._open_until - self._now())

    def enter(self, lane: str, now: float) -> int | None:
        """Begin a call at `now`: its ticket for `leave`, or None when it must not be made."""
        if self._heard or not self._under_way:
            self._heard, self._heard_at = False, now
        elif self._state is State.CLOSED and self._silent(now):
            self._open()
        if self._state is not State.CLOSED and not self._may_probe(lane, now):
            return None
        self._under_way += 1
        return self._epoch

    def leave(self, ticket: int, lane: str, *, down: bool | None) -> None:
        """End a call: `down` when the provider could not be reached or failed, None when the call says nothing."""
        self._under_way -= 1
        self._heard = self._heard or down is False
        if ticket != self._epoch:
            return
        self._probing.discard(lane)
        if down:
            self._failed()
        elif down is False:
            self._answered()

    def _silent(self, now: float) -> bool:
        return self._under_way >= SILENT_CALLS and now - self._heard_at > SILENCE_S

    def _may_probe(self, lane: str, now: float) -> bool:
        if self._state is State.OPEN:
            if now < self._open_until:
                return False
            self._turn(State.HALF_OPEN)
        if lane in self._probing:
            return False
        self._probing.add(lane)
        return True

    def _failed(self) -> None:
        self._failures += 1
        if self._state is State.HALF_OPEN or self._failures >= FAILURES:
            self._open()

    def _answered(self) -> None:
        self._failures = 0
        if self._state is State.HALF_OPEN:
            self._answers += 1
            if self._answers >= PROBES:
                self._turn(State.CLOSED)
                self._pause_s = FIRST_PAUSE_S
                self._heard = True

    def _open(self) -> None:
        # Half of it by chance: replicas that lost the provider together do not come back to it together.
        self._open_until = self._now() + self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._turn(State.OPEN)

    def _turn(self, state: State) -> None:
        self._state = state
        self._epoch += 1
        self._failures = self._answers = 0
        self._probing.clear()
        metrics.PAYMENT_BREAKER.set(state)
