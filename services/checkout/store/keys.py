"""API keys: only their SHA-256 is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.checkout.store.tables import api_keys


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key that is not revoked."""

    id: str
    tenant: str
    scopes: frozenset[str]


async def find(connection: AsyncConnection, sha256: bytes) -> KeyRow | None:
    """The active key with this fingerprint."""
    active = api_keys.select().where(api_keys.c.sha256 == sha256, api_keys.c.revoked_at.is_(None))
    row = (await connection.execute(active)).one_or_none()
    return KeyRow(row.id, row.tenant_id, frozenset(row.scopes)) if row else None


async def add(connection: AsyncConnection, key_id: str, tenant: str, sha256: bytes, scopes: Sequence[str]) -> None:
    """Add a key, and its tenant if it is new; a key that is there already stays as it is."""
    await connection.execute(text("INSERT INTO tenants (id) VALUES (:id) ON CONFLICT DO NOTHING"), {"id": tenant})
    await connection.execute(
        text(
            """
            INSERT INTO api_keys (id, tenant_id, sha256, scopes) VALUES (:id, :tenant, :sha256, :scopes)
            ON CONFLICT DO NOTHING
            """
        ),
        {"id": key_id, "tenant": tenant, "sha256": sha256, "scopes": list(scopes)},
    )
