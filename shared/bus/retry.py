"""When a failed delivery is tried again, and when dead-lettering must stop."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Counted retries: after the n-th failed attempt the next one waits `base_s · 2ⁿ⁻¹`, ± `jitter`, at most `cap_s`.

    With the defaults 1, 2, 4, 8 and 16 minutes; the attempt after the fifth retry is the last.
    """

    base_s: float = 60.0
    retries: int = 5
    jitter: float = 0.1
    cap_s: float = 3600.0

    def delay_s(self, attempts: int, chance: float) -> float:
        """Seconds to wait after `attempts` attempts (≥ 1); `chance` in [0, 1) spreads the herd."""
        exponential = min(self.base_s * 2.0 ** min(attempts - 1, 32), self.cap_s)
        return exponential * (1 - self.jitter + 2 * self.jitter * chance)

    def exhausted(self, attempts: int) -> bool:
        """Whether no further attempt may follow after `attempts`."""
        return attempts > self.retries


class Brake:
    """Stops dead-lettering when most deliveries die: a bad deploy must not empty the stream into the dead."""

    def __init__(self, window: int = 100, limit: float = 0.5, at_least: int = 20) -> None:
        """Trip when more than `limit` of the last `window` outcomes (and at least `at_least` of them) were deaths."""
        self._last: deque[bool] = deque(maxlen=window)
        self._limit = limit
        self._at_least = at_least

    def note(self, *, died: bool, times: int = 1) -> None:
        """Record outcomes."""
        self._last.extend([died] * min(times, self._last.maxlen or times))

    def release(self) -> None:
        """Forget the past: somebody looked and resumed."""
        self._last.clear()

    @property
    def tripped(self) -> bool:
        """Whether another death would be one too many."""
        deaths = sum(self._last)
        return deaths >= self._at_least and deaths > self._limit * len(self._last)
