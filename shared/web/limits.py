"""Limits: how many requests a key may make, counted in this process alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from time import monotonic

MOST_REMEMBERED = 10_000

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Quota:
    """`burst` requests at once, and `rate` per second in the long run."""

    rate: float
    burst: int


class Bucket:
    """A token bucket, kept as the one instant at which it is full again.

    The generic cell rate algorithm of ITU-T I.371. Own lines, because `limits` has windows only: a fixed one lets
    twice the quota through at its edge, and a moving one remembers every request.
    """

    __slots__ = ("_depth_s", "_policy", "_step_s", "full_at", "quota")

    def __init__(self, quota: Quota) -> None:
        """Full."""
        self.quota = quota
        self.full_at = float("-inf")
        self._step_s = 1 / quota.rate
        self._depth_s = (quota.burst + 0.001) * self._step_s  # that much of a token: sums of floats are not exact
        window_s = ceil(quota.burst / quota.rate)
        self._policy = (b"ratelimit-policy", f'"key";q={quota.burst};w={window_s}'.encode())

    def take(self, now: float) -> float:
        """Take a token. Returns 0, or the seconds until there is one: then none was taken."""
        full_at = max(self.full_at, now) + self._step_s
        missing_s = full_at - now - self._depth_s
        if missing_s > 0:
            return missing_s
        self.full_at = full_at
        return 0.0

    def headers(self, now: float) -> Headers:
        """What a client is told: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/."""
        used_s = self.full_at - now
        if used_s <= 0:
            return ((b"ratelimit", b'"key";r=%d;t=0' % self.quota.burst), self._policy)
        left = int((self._depth_s - used_s) / self._step_s)
        full_in_s = ceil(round(used_s, 3))  # of 100 s, added to now and taken off again, 100.00000000001 may remain
        return ((b"ratelimit", b'"key";r=%d;t=%d' % (left, full_in_s)), self._policy)


class Limits:
    """The buckets of all keys.

    In the memory of this process, because no request may depend on Redis: a key that calls N replicas gets N times its
    quota, and a restart fills every bucket.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        """Start with every bucket full. `now` counts seconds and never goes back."""
        self._now = now
        self._buckets: dict[str, Bucket] = {}

    def take(self, key_id: str, quota: Quota) -> tuple[float, Headers]:
        """Count a request of a key: the seconds to wait (0: go on), and the headers of whatever is answered."""
        now = self._now()
        bucket = self._buckets.get(key_id)
        if bucket is None or bucket.quota != quota:
            bucket = self._new(key_id, quota, now)
        wait_s = bucket.take(now)
        return wait_s, bucket.headers(now)

    def _new(self, key_id: str, quota: Quota, now: float) -> Bucket:
        if len(self._buckets) >= MOST_REMEMBERED:  # a full bucket says no more than none at all
            self._buckets = {name: one for name, one in self._buckets.items() if one.full_at > now}
        bucket = self._buckets[key_id] = Bucket(quota)
        return bucket
