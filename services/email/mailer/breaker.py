from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
MISCONFIGURED_PAUSE_S = 60.0  # nobody's password gets better by trying often, and servers lock accounts


class Breaker:
    """Stops sending while the mail server is away; after a pause one mail probes whether it is back.

    Pauses grow 1, 2, 4 … 30 s.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """Closed: mails flow."""
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0
        self.reason = ""
        self.misconfigured = False

    @property
    def state(self) -> str:
        """`closed`, `open`, or `half-open` when the next mail is a probe."""
        if not self._failures:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    def success(self) -> bool:
        """The server took or refused a mail: it is there. Says whether it was away before."""
        was_away = self._failures > 0
        self._failures = 0
        self.reason, self.misconfigured = "", False
        return was_away

    def failure(self, reason: str, *, misconfigured: bool = False) -> bool:
        """The server is away, or refuses us altogether. Says whether that is news."""
        if self.state == "open":
            return False  # one of several mails that were on their way: the same outage, not another one
        self._failures += 1
        pause = min(FIRST_PAUSE_S * 2.0 ** (self._failures - 1), LONGEST_PAUSE_S)
        self._open_until = self._clock() + (MISCONFIGURED_PAUSE_S if misconfigured else pause)
        news = self._failures == 1 or misconfigured != self.misconfigured
        self.reason, self.misconfigured = reason, misconfigured
        return news
