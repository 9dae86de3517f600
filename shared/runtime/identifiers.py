"""Identifiers: UUIDv7 and the prefixed ids made from it."""

from __future__ import annotations

import os
import re
import time
import uuid

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's alphabet, lower case
_PAIRS = [first + second for first in _BASE32 for second in _BASE32]
_PREFIXED = re.compile(r"[a-z]{2,8}_[0-9a-hjkmnp-tv-z]{26}")


class _Randomness:
    """The kernel's random bytes, fetched in pages: a system call for each id was a fortieth of an order's cost."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)  # parent and child must not give the same ids

    def _forget(self) -> None:
        self._page, self._next = b"", 0

    def take(self, count: int) -> bytes:
        if self._next + count > len(self._page):
            self._page, self._next = os.urandom(4096), 0
        taken = self._page[self._next : self._next + count]
        self._next += count
        return taken


random_bytes = _Randomness().take


def uuid7() -> uuid.UUID:
    """A UUID that sorts by its millisecond of creation (RFC 9562, section 5.7)."""
    return uuid7_of(time.time_ns() // 1_000_000, random_bytes(10))


def uuid7_of(milliseconds: int, rest: bytes) -> uuid.UUID:
    """The UUIDv7 of an instant; `rest` are the 10 bytes that make it unique."""
    random = int.from_bytes(rest)
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (random >> 68) << 64
    value |= 0b10 << 62 | random & (1 << 62) - 1
    return uuid.UUID(int=value)


def new_id(prefix: str) -> str:
    """An opaque id such as `ord_01jd…`: the prefix and a UUIDv7 in 26 base-32 characters; sorts by time."""
    return prefixed(prefix, uuid7())


def prefixed(prefix: str, value: uuid.UUID) -> str:
    """The id that stands for `value`."""
    number = value.int
    return f"{prefix}_{''.join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` could be an id that `new_id(prefix)` made."""
    return text.startswith(f"{prefix}_") and _PREFIXED.fullmatch(text) is not None
