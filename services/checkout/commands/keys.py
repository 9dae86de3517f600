"""Keys: who is calling, from the fingerprints in the database."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from services.checkout.store import keys
from shared.web.auth import Principal, digest
from shared.web.limits import Quota

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.runtime.db import Database

REMEMBERED_S = 5.0  # a revoked key works for so long at the most
MOST_REMEMBERED = 10_000


class DatabaseKeys:
    """Looks keys up in the database and remembers the answer for a few seconds."""

    def __init__(self, db: Database, quota: Quota, now: Callable[[], float] = monotonic) -> None:
        """Start knowing nobody. `quota` is that of every key without its own; `now` counts seconds."""
        self._db = db
        self._quota = quota
        self._now = now
        self._known: dict[bytes, tuple[float, Principal | None]] = {}

    async def find(self, key: str) -> Principal | None:
        """Whose key it is, or None."""
        fingerprint = digest(key)
        known = self._known.get(fingerprint)
        asked_at = self._now()  # before the database is: what it says is true then, and may not be at its arrival
        if known and asked_at - known[0] < REMEMBERED_S:
            return known[1]
        async with self._db.reading() as connection:
            row = await keys.find(connection, fingerprint)
        principal = Principal(row.tenant, row.scopes, row.id, self._quota) if row else None
        if len(self._known) >= MOST_REMEMBERED:  # somebody is trying keys: forget them all rather than grow
            self._known.clear()
        self._known[fingerprint] = (asked_at, principal)
        return principal
