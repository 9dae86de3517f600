"""Idempotency keys: who came first, and what they were told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Integer, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.runtime.statements import Part, Write, together


@dataclass(frozen=True, slots=True)
class Claim:
    """A request's key, and the fingerprint of its body."""

    tenant: str
    key: str
    request_sha256: bytes
    order_id: str | None = None


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What is known of a key: its first request, and the answer once that is final."""

    request_sha256: bytes
    order_id: str | None
    status: int | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The answer that a key gets for good."""

    tenant: str
    key: str
    status: int
    answer: str


# Sorted: two transactions that claim the same keys wait for each other in one order, never in a circle.
CLAIM = Part(
    "claimed",
    """
    INSERT INTO idempotency_keys (tenant_id, key, request_sha256, order_id)
    SELECT tenant, key, decode(sha256, 'hex'), order_id
    FROM unnest(:tenants, :keys, :hashes, :orders) AS e (tenant, key, sha256, order_id) ORDER BY tenant, key
    ON CONFLICT (tenant_id, key) DO NOTHING
    RETURNING tenant_id, key
    """,
    tenants=Text,
    keys=Text,
    hashes=Text,
    orders=Text,
)
_CLAIM_ONE = together((CLAIM,), "SELECT * FROM claimed")
_FIND = text(
    """
    SELECT request_sha256, order_id, status, answer FROM idempotency_keys WHERE tenant_id = :tenant AND key = :key
    """
)
_ANSWER = Part(
    "answered",
    """
    UPDATE idempotency_keys k SET status = e.status, answer = e.answer
    FROM unnest(:tenants, :keys, :statuses, :answers) AS e (tenant, key, status, answer)
    WHERE k.tenant_id = e.tenant AND k.key = e.key AND k.status IS NULL
    """,
    tenants=Text,
    keys=Text,
    statuses=Integer,
    answers=Text,
)
_FREE = Part(
    "freed",
    """
    DELETE FROM idempotency_keys k USING unnest(:tenants, :keys) AS e (tenant, key)
    WHERE k.tenant_id = e.tenant AND k.key = e.key AND k.status IS NULL
    """,
    tenants=Text,
    keys=Text,
)
# A minute of keys at a time, each of which is looked at once: the key of an order is kept for as long as the order.
_FORGET = text(
    """
    WITH turn AS (
        SELECT done_until AS since, done_until + interval '1 minute' AS until
        FROM reconciliation
        WHERE name = 'idempotency_keys' AND done_until + interval '1 minute' < now() - :keep_h * interval '1 hour'
        FOR UPDATE SKIP LOCKED -- whole minutes only: of a moment there is always another one to be done
    ), gone AS (
        DELETE FROM idempotency_keys k USING turn
        WHERE k.created_at >= turn.since AND k.created_at < turn.until AND k.status IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.id = k.order_id)
    )
    UPDATE reconciliation SET done_until = turn.until FROM turn WHERE name = 'idempotency_keys'
    """
).bindparams(bindparam("keep_h", type_=Integer))


def claim(claims: Sequence[Claim]) -> Write:
    """Claim the keys (each at most once in `claims`); returns tenant and key of those that were free."""
    return CLAIM.write(
        tenants=[one.tenant for one in claims],
        keys=[one.key for one in claims],
        hashes=[one.request_sha256.hex() for one in claims],
        orders=[one.order_id for one in claims],
    )


async def claim_one(connection: AsyncConnection, one: Claim) -> bool:
    """Claim a key by itself; returns whether it was free."""
    claimed = await connection.execute(_CLAIM_ONE, claim([one]).values)
    return claimed.one_or_none() is not None


async def find(connection: AsyncConnection, tenant: str, key: str) -> StoredAnswer | None:
    """What is known of a key."""
    row = (await connection.execute(_FIND, {"tenant": tenant, "key": key})).one_or_none()
    return StoredAnswer(bytes(row.request_sha256), row.order_id, row.status, row.answer) if row else None


def answer(answers: Sequence[FinalAnswer]) -> Write:
    """Store final answers; one that is there already stays."""
    return _ANSWER.write(
        tenants=[one.tenant for one in answers],
        keys=[one.key for one in answers],
        statuses=[one.status for one in answers],
        answers=[one.answer for one in answers],
    )


def free(keys: Sequence[tuple[str, str]]) -> Write:
    """Give keys back whose request came to nothing: the client may try again with the same one."""
    return _FREE.write(tenants=[tenant for tenant, _ in keys], keys=[key for _, key in keys])


async def forget(connection: AsyncConnection, keep_h: int) -> bool:
    """Delete a minute's worth of answered keys that are older than `keep_h` hours and belong to no order.

    Returns whether there was such a minute, because then there may be more.
    """
    return (await connection.execute(_FORGET, {"keep_h": keep_h})).rowcount > 0
