from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    delete,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from services.email.domain import Kind, Letter, Outcome, Status
from shared.runtime.driver import Direct

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

tables = MetaData()

messages = Table(
    "messages",
    tables,
    Column("id", Text, primary_key=True),
    Column("order_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reference", Text, nullable=False, comment="the refund's id; empty for the other kinds"),
    Column("order_version", Integer, nullable=False),
    Column("recipient", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("content", Text, nullable=False, comment="the order as it was, from which the mail is made"),
    Column("status", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("unknowns", Integer, nullable=False, server_default=text("0"), comment="times it may have arrived"),
    Column("interruptions", Integer, nullable=False, server_default=text("0")),
    Column("token", BigInteger, nullable=False, server_default=text("0"), comment="fences off former takers"),
    Column("lease_owner", Text),
    Column("lease_until", DateTime(timezone=True)),
    Column("next_attempt_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("sent_at", DateTime(timezone=True)),
    Column("last_error", Text),
    CheckConstraint(f"status IN ({', '.join(repr(str(one)) for one in Status)})", name="messages_status_known"),
    UniqueConstraint("order_id", "kind", "reference", name="messages_once"),
    Index("messages_due", "next_attempt_at", "id", postgresql_where=text("status = 'queued'")),
    Index("messages_leased", "lease_until", postgresql_where=text("status = 'sending'")),
    Index("messages_not_sent", "status", "id", postgresql_where=text("status IN ('failed', 'suppressed')")),
)

suppressions = Table(
    "suppressions",
    tables,
    Column("email", Text, primary_key=True, comment="lower case"),
    Column("reason", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

_QUEUE = Direct(
    """
    INSERT INTO messages
        (id, order_id, kind, reference, order_version, recipient, subject, message_id, content, status)
    SELECT e.*, 'queued'
    FROM unnest(
        :ids, :orders, :kinds, :references, :versions, :recipients, :subjects, :message_ids, :contents
    ) AS e
    ON CONFLICT (order_id, kind, reference) DO NOTHING
    """,
    ids=Text, orders=Text, kinds=Text, references=Text, versions=Integer, recipients=Text, subjects=Text,
    message_ids=Text, contents=Text,
)  # fmt: skip

# Mails of one order go out in the order of its events: nobody shall read that an order is cancelled before
# reading that it was placed. Attempts count before the work, so a mail that kills the process is given up.
_TAKE = Direct(
    """
    WITH due AS (
        SELECT id FROM messages q
        WHERE status = 'queued' AND next_attempt_at <= now() AND NOT EXISTS (
            SELECT 1 FROM messages e
            WHERE e.order_id = q.order_id AND e.order_version < q.order_version
                  AND e.status IN ('queued', 'sending')
        )
        ORDER BY next_attempt_at, id LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE messages m
    SET status = 'sending', token = token + 1, attempts = attempts + 1, lease_owner = :owner,
        lease_until = now() + :lease_s * interval '1 second'
    FROM due WHERE m.id = due.id
    RETURNING m.id, m.token, m.kind, m.order_id, m.message_id, m.recipient, m.subject, m.content, m.attempts,
              m.unknowns, m.interruptions,
              EXISTS (SELECT 1 FROM suppressions s WHERE s.email = lower(m.recipient)) AS suppressed
    """
)

# A taker that slept through its lease finds another token and changes nothing.
_RECORD = Direct(
    """
    UPDATE messages m
    SET status = o.status, attempts = o.attempts, unknowns = o.unknowns, interruptions = o.interruptions,
        last_error = CASE WHEN o.status = 'sent' THEN NULL ELSE coalesce(o.error, m.last_error) END,
        next_attempt_at = CASE WHEN o.delay_s > 0 THEN now() + o.delay_s * interval '1 second'
                               ELSE m.next_attempt_at END,
        sent_at = CASE WHEN o.status = 'sent' THEN now() END, lease_owner = NULL, lease_until = NULL
    FROM unnest(:ids, :tokens, :statuses, :attempts, :unknowns, :interruptions, :delays, :errors)
         AS o (id, token, status, attempts, unknowns, interruptions, delay_s, error)
    WHERE m.id = o.id AND m.token = o.token AND m.status = 'sending'
    RETURNING m.id
    """,
    ids=Text, tokens=BigInteger, statuses=Text, attempts=Integer, unknowns=Integer, interruptions=Integer,
    delays=Double, errors=Text,
)  # fmt: skip

_EXPIRE = Direct(
    """
    UPDATE messages SET status = 'queued', next_attempt_at = now(), lease_owner = NULL, lease_until = NULL
    WHERE status = 'sending' AND (lease_until < now() OR lease_owner = :owner AND id <> ALL (:held))
    RETURNING id
    """,
    held=Text,
)

_QUEUE_STATE = text(
    """
    SELECT count(*) FILTER (WHERE status = 'queued') AS queued,
           count(*) FILTER (WHERE status = 'sending') AS sending,
           extract(epoch FROM now() - min(created_at)) AS oldest_s
    FROM messages WHERE status = 'queued' OR status = 'sending'
    """
)


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A mail to be queued."""

    id: str
    order_id: str
    kind: Kind
    reference: str
    order_version: int
    recipient: str
    subject: str
    message_id: str
    content: str


@dataclass(frozen=True, slots=True)
class Message:
    """A row of the send log."""

    id: str
    order_id: str
    kind: Kind
    to: str
    subject: str
    status: Status
    attempts: int
    message_id: str
    created_at: datetime
    next_attempt_at: datetime | None
    sent_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Suppression:
    """An address that gets no mail."""

    email: str
    reason: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class QueueState:
    """How much is waiting, and for how long."""

    queued: int
    sending: int
    oldest_s: float


async def queue(connection: AsyncConnection, new: Sequence[NewMessage]) -> None:
    """Queue the mails that are not there yet, in one statement."""
    await _QUEUE.fetch(
        connection,
        {
            "ids": [one.id for one in new],
            "orders": [one.order_id for one in new],
            "kinds": [str(one.kind) for one in new],
            "references": [one.reference for one in new],
            "versions": [one.order_version for one in new],
            "recipients": [one.recipient for one in new],
            "subjects": [one.subject for one in new],
            "message_ids": [one.message_id for one in new],
            "contents": [one.content for one in new],
        },
    )


async def take(connection: AsyncConnection, owner: str, limit: int, lease_s: float) -> list[Letter]:
    """Lease due mails, oldest first."""
    rows = await _TAKE.fetch(connection, {"owner": owner, "limit": limit, "lease_s": lease_s})
    letters = [
        Letter(
            row.id, row.token, Kind(row.kind), row.order_id, row.message_id, row.recipient, row.subject,
            row.content, row.attempts, row.unknowns, row.interruptions, row.suppressed,
        )
        for row in rows
    ]  # fmt: skip
    return sorted(letters, key=lambda letter: letter.id)


async def record(connection: AsyncConnection, outcomes: Sequence[Outcome]) -> set[str]:
    """Note what became of leased mails; returns the ids of those whose lease was still the taker's."""
    written = await _RECORD.fetch(
        connection,
        {
            "ids": [one.id for one in outcomes],
            "tokens": [one.token for one in outcomes],
            "statuses": [str(one.status) for one in outcomes],
            "attempts": [one.attempts for one in outcomes],
            "unknowns": [one.unknowns for one in outcomes],
            "interruptions": [one.interruptions for one in outcomes],
            "delays": [one.delay_s for one in outcomes],
            "errors": [one.error for one in outcomes],
        },
    )
    return {row.id for row in written}


async def is_recorded(connection: AsyncConnection, outcome: Outcome) -> bool:
    """Whether this outcome was committed: the row has the token and is no longer being sent."""
    found = select(messages.c.id).where(
        messages.c.id == outcome.id, messages.c.token == outcome.token, messages.c.status != Status.SENDING
    )
    return (await connection.execute(found)).first() is not None


async def expire(connection: AsyncConnection, owner: str | None = None, held: Collection[str] = ()) -> int:
    """Queue again what lost its sender: leases that ran out, and those of `owner` who does not know of them.

    `held` are the mails that it knows of. Returns how many were queued.
    """
    return len(await _EXPIRE.fetch(connection, {"owner": owner, "held": [*held]}))


async def queue_state(connection: AsyncConnection) -> QueueState:
    """How much is waiting."""
    row = (await connection.execute(_QUEUE_STATE)).one()
    return QueueState(row.queued, row.sending, float(row.oldest_s or 0.0))


async def find(
    connection: AsyncConnection,
    *,
    order_id: str | None,
    status: Status | None,
    limit: int,
    starting_after: str | None,
) -> list[Message]:
    """The send log, newest first."""
    wanted = messages.select()
    if order_id is not None:
        wanted = wanted.where(messages.c.order_id == order_id)
    if status is not None:
        # Written into the statement, so that the partial indexes can be used.
        wanted = wanted.where(messages.c.status == literal(str(status), literal_execute=True))
    if starting_after is not None:
        wanted = wanted.where(messages.c.id < starting_after)
    rows = await connection.execute(wanted.order_by(messages.c.id.desc()).limit(limit))
    return [_message(row) for row in rows]


async def get(connection: AsyncConnection, message: str) -> Message | None:
    """One mail of the send log."""
    row = (await connection.execute(messages.select().where(messages.c.id == message))).one_or_none()
    return _message(row) if row else None


async def suppress(connection: AsyncConnection, email: str, reason: str) -> tuple[Suppression, bool]:
    """Put an address on the list, and stop what is queued for it; says whether it is new there."""
    new = insert(suppressions).values(email=email, reason=reason).on_conflict_do_nothing().returning(text("1"))
    created = (await connection.execute(new)).first() is not None
    queued = messages.c.status == literal(str(Status.QUEUED), literal_execute=True)
    stopped = update(messages).where(queued, func.lower(messages.c.recipient) == email)
    await connection.execute(stopped.values(status=Status.SUPPRESSED))
    row = (await connection.execute(suppressions.select().where(suppressions.c.email == email))).one()
    return Suppression(row.email, row.reason, row.created_at), created


async def allow(connection: AsyncConnection, email: str) -> None:
    """Take an address off the list."""
    await connection.execute(delete(suppressions).where(suppressions.c.email == email))


async def suppressed(connection: AsyncConnection, *, limit: int, starting_after: str | None) -> list[Suppression]:
    """The suppression list by address."""
    wanted = suppressions.select().order_by(suppressions.c.email).limit(limit)
    if starting_after is not None:
        wanted = wanted.where(suppressions.c.email > starting_after)
    return [Suppression(row.email, row.reason, row.created_at) for row in await connection.execute(wanted)]


def _message(row: Any) -> Message:  # noqa: ANN401 - a database row
    waiting = row.status == Status.QUEUED
    return Message(
        row.id, row.order_id, Kind(row.kind), row.recipient, row.subject, Status(row.status), row.attempts,
        row.message_id, row.created_at, row.next_attempt_at if waiting else None, row.sent_at, row.last_error,
    )  # fmt: skip
