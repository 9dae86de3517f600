"""Forgetting: an idempotency key that belongs to no order is kept for three days."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from services.checkout.store import idempotency
from shared.runtime.supervision import Loop

if TYPE_CHECKING:
    from shared.runtime.db import Database

KEEP_H = 72


class Forgetting(Loop):
    """Deletes old idempotency keys. Any number of replicas may run it."""

    idle_s = 20.0  # below the time after which a loop counts as stalled

    def __init__(self, db: Database) -> None:
        """In `db`, where the keys are."""
        super().__init__("forgetting")
        self._db = db

    @override
    async def run_once(self) -> int:
        """Forget the keys of one minute; returns whether there was one that is old enough."""
        return int(await self._db.run(lambda connection: idempotency.forget(connection, KEEP_H)))
