"""How often: so many calls a second, and so many second tries."""

from __future__ import annotations

RETRY_SHARE = 0.1  # a provider that fails every call gets a tenth more calls, not twice as many
MOST_RETRIES_SAVED = 10.0


class Rate:
    """So many calls a second, with a second's worth saved up at the most."""

    def __init__(self, per_s: float) -> None:
        """Start with a full second's worth."""
        self._per_s = per_s
        self._most = max(1.0, per_s)
        self._saved = self._most
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        """Take one; 0, or the seconds until there is one to take. `now` counts seconds and never goes back."""
        self._saved = min(self._most, self._saved + (now - self._at) * self._per_s)
        self._at = now
        if self._saved < 1.0:
            return (1.0 - self._saved) / self._per_s
        self._saved -= 1.0
        return 0.0


class RetryBudget:
    """First tries earn second ones, ten to one."""

    def __init__(self) -> None:
        """Start with one, so that the first order of a quiet day has it too."""
        self._saved = 1.0

    def earn(self) -> None:
        """For a first try."""
        self._saved = min(MOST_RETRIES_SAVED, self._saved + RETRY_SHARE)

    def spend(self) -> bool:
        """Whether there is a second try to be had; if so it is taken."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
