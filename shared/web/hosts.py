"""The Host header: what a request may call this service."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from shared.web.problems import Problem

_HOST = re.compile(rb"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PROBES = "/health/"  # whoever asks for health knows an address, no name


class Hosts:
    """Refuses requests for a host that is none, or that is not one of ours."""

    def __init__(self, trusted: Sequence[str]) -> None:
        """Names without port; `*.example.com` stands for everything below example.com; none at all: any name."""
        self._names = frozenset(name.lower() for name in trusted if not name.startswith("*."))
        self._suffixes = tuple(name[1:].lower() for name in trusted if name.startswith("*."))
        self._known = lru_cache(maxsize=256)(self._fits)  # clients use the same few names over and over

    def check(self, host: bytes | None, path: str) -> None:
        """Raise a 400 `untrusted_host` problem unless the host will do."""
        if not self._known(host) and not path.startswith(_PROBES):
            raise Problem(400, "untrusted_host", "Unknown host", "The Host header does not name this service.")

    def _fits(self, host: bytes | None) -> bool:
        anything = not self._names and not self._suffixes
        if host is None:
            return anything
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].decode().lower()
        return anything or name in self._names or name.endswith(self._suffixes)
