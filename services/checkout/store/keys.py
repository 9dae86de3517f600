"""API keys: only their SHA-256 is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

_COLUMNS = "id, tenant_id, scopes, rate, burst, created_at, created_by, revoked_at, revoked_by"
_FIND = text(f"SELECT {_COLUMNS} FROM api_keys WHERE sha256 = :sha256 AND revoked_at IS NULL")  # noqa: S608
_OF = text(
    f"SELECT {_COLUMNS} FROM api_keys WHERE CAST(:tenant AS text) IS NULL OR tenant_id = :tenant "  # noqa: S608
    "ORDER BY tenant_id, created_at, id"
)
_INSERT = """
    INSERT INTO api_keys (id, tenant_id, sha256, scopes, rate, burst, created_by)
    VALUES (:id, :tenant, :sha256, :scopes, :rate, :burst, :by)
"""
_ADD = text(f"{_INSERT} ON CONFLICT DO NOTHING")
_CREATE = text(f"{_INSERT} RETURNING {_COLUMNS}")
_REVOKE = text(
    f"UPDATE api_keys SET revoked_at = now(), revoked_by = :by WHERE id = :id AND revoked_at IS NULL "  # noqa: S608
    f"RETURNING {_COLUMNS}"
)
_ACTIVE = text("SELECT id FROM api_keys WHERE tenant_id = :tenant AND revoked_at IS NULL ORDER BY created_at, id")
# The update changes nothing, but locks the row that is there already: keys of one tenant are made one after the other.
_LOCK_TENANT = text("INSERT INTO tenants (id) VALUES (:id) ON CONFLICT (id) DO UPDATE SET id = excluded.id")


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as it is kept. `rate` and `burst` are its own quota, or both None."""

    id: str
    tenant: str
    scopes: frozenset[str]
    rate: float | None
    burst: int | None
    created_at: datetime
    created_by: str | None
    revoked_at: datetime | None
    revoked_by: str | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that is not kept yet."""

    id: str
    tenant: str
    sha256: bytes
    scopes: Sequence[str]
    rate: float | None = None
    burst: int | None = None
    by: str | None = None


async def find(connection: AsyncConnection, sha256: bytes) -> StoredKey | None:
    """The active key with this fingerprint."""
    row = (await connection.execute(_FIND, {"sha256": sha256})).one_or_none()
    return _key(row) if row else None


async def listed(connection: AsyncConnection, tenant: str | None) -> list[StoredKey]:
    """The keys of one tenant or of all, oldest first, revoked ones too."""
    return [_key(row) for row in await connection.execute(_OF, {"tenant": tenant})]


async def add(connection: AsyncConnection, new: NewKey) -> None:
    """Add a key, and its tenant if it is new; a key that is there already stays as it is."""
    await lock_tenant(connection, new.tenant)
    await connection.execute(_ADD, _values(new))


async def create(connection: AsyncConnection, new: NewKey) -> StoredKey:
    """Add a key to a tenant that is locked."""
    return _key((await connection.execute(_CREATE, _values(new))).one())


async def lock_tenant(connection: AsyncConnection, tenant: str) -> None:
    """Hold the tenant until the transaction ends; make it if it is new."""
    await connection.execute(_LOCK_TENANT, {"id": tenant})


async def active(connection: AsyncConnection, tenant: str) -> list[str]:
    """The ids of the tenant's keys that are not revoked."""
    return list((await connection.execute(_ACTIVE, {"tenant": tenant})).scalars())


async def revoke(connection: AsyncConnection, key_id: str, by: str) -> StoredKey | None:
    """Revoke an active key; None when there is none with this id."""
    row = (await connection.execute(_REVOKE, {"id": key_id, "by": by})).one_or_none()
    return _key(row) if row else None


def _values(new: NewKey) -> dict[str, object]:
    return {
        "id": new.id,
        "tenant": new.tenant,
        "sha256": new.sha256,
        "scopes": list(new.scopes),
        "rate": new.rate,
        "burst": new.burst,
        "by": new.by,
    }


def _key(row: Row[tuple[object, ...]]) -> StoredKey:
    return StoredKey(
        row.id,
        row.tenant_id,
        frozenset(row.scopes),
        row.rate,
        row.burst,
        row.created_at,
        row.created_by,
        row.revoked_at,
        row.revoked_by,
    )
