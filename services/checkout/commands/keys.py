"""Keys: who is calling, from the fingerprints in the database, and how a client gets a key and loses it."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING

from services.checkout.store import keys
from services.checkout.store.keys import NewKey, StoredKey
from shared.runtime.errors import OrderstreamError
from shared.runtime.identifiers import new_id
from shared.web.auth import Principal, digest
from shared.web.limits import Quota

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from shared.runtime.db import Database

REMEMBERED_S = 5.0  # a revoked key works for so long at the most
MOST_REMEMBERED = 10_000
MOST_ACTIVE = 2  # the old one and the new one, while a client changes over
PREFIX = "osk_"  # by which scanners and log filters know a key when they see one
KEY_BYTES = 32
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Scope(StrEnum):
    """What a key may open."""

    ORDERS_WRITE = "orders:write"
    ORDERS_READ = "orders:read"
    CATALOG_WRITE = "catalog:write"
    OPS = "ops"


class KeyRefused(OrderstreamError):
    """No key was made or revoked; the message says why."""


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
        asked_at = self._now()  # before the database is: its answer is true then, and may not be any more when it comes
        if known and asked_at - known[0] < REMEMBERED_S:
            return known[1]
        async with self._db.reading() as connection:
            row = await keys.find(connection, fingerprint)
        principal = self._principal(row) if row else None
        if len(self._known) >= MOST_REMEMBERED:  # somebody is trying keys: forget them all rather than grow
            self._known.clear()
        self._known[fingerprint] = (asked_at, principal)
        return principal

    def _principal(self, row: StoredKey) -> Principal:
        quota = Quota(row.rate, row.burst) if row.rate and row.burst else self._quota
        return Principal(row.tenant, row.scopes, row.id, quota)


@dataclass(frozen=True, slots=True)
class CreateKey:
    """A key for a tenant; without a quota it has that of the settings. `by` is who asks for it."""

    tenant: str
    scopes: Sequence[Scope]
    quota: Quota | None
    by: str


async def create(db: Database, command: CreateKey) -> tuple[StoredKey, str]:
    """Make a key. Returns what is kept, and the key itself, which nobody can read again."""
    if not _TENANT.fullmatch(command.tenant):
        raise KeyRefused("a tenant is 1 to 64 letters, digits, dots, dashes and underscores")
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    rate, burst = (command.quota.rate, command.quota.burst) if command.quota else (None, None)
    scopes = sorted(set(command.scopes))
    new = NewKey(new_id("key"), command.tenant, digest(key), scopes, rate, burst, command.by)

    async def work(connection: AsyncConnection) -> StoredKey:
        await keys.lock_tenant(connection, command.tenant)
        active = await keys.active(connection, command.tenant)
        if len(active) >= MOST_ACTIVE:
            raise KeyRefused(
                f"{command.tenant} has {MOST_ACTIVE} active keys ({', '.join(active)}): revoke one of them first"
            )
        return await keys.create(connection, new)

    return await db.run(work), key


async def revoke(db: Database, key_id: str, by: str) -> StoredKey:
    """Revoke a key: every process refuses it after `REMEMBERED_S` at the latest."""
    revoked = await db.run(lambda connection: keys.revoke(connection, key_id, by))
    if revoked is None:
        raise KeyRefused(f"there is no active key {key_id}")
    return revoked
