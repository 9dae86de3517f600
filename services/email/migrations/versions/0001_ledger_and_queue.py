"""The ledger, the queue of mails, and the suppression list."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "consumer_control",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("singleton", name="consumer_control_single_row"),
        sa.PrimaryKeyConstraint("singleton"),
    )
    op.create_table(
        "deliveries",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column(
            "position",
            sa.BigInteger(),
            nullable=True,
            comment="null when the entry was not written by the relay",
        ),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("order_version", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("event", sa.Text(), nullable=True, comment="the event itself, while it is not settled"),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('done', 'ignored', 'retrying', 'waiting', 'dead', 'parked', 'discarded')",
            name="deliveries_state_known",
        ),
        sa.PrimaryKeyConstraint("event_id"),
    )
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("state = 'retrying'"),
    )
    op.create_index("deliveries_position", "deliveries", ["partition", "position"], unique=False)
    op.create_index("deliveries_subject", "deliveries", ["subject"], unique=False)
    op.create_index(
        "deliveries_unsettled",
        "deliveries",
        ["state", "subject"],
        unique=False,
        postgresql_where=sa.text("state NOT IN ('done', 'ignored')"),
    )
    op.create_table(
        "ops_audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False, comment="which key did it"),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "progress",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("settled", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("partition"),
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False, comment="the refund's id; empty for the other kinds"),
        sa.Column("order_version", sa.Integer(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False, comment="the order as it was, from which the mail is made"),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "unknowns",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="times it may have arrived",
        ),
        sa.Column("interruptions", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "token",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="fences off former takers",
        ),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "status IN ('queued', 'sending', 'sent', 'failed', 'suppressed')", name="messages_status_known"
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("order_id", "kind", "reference", name="messages_once"),
    )
    op.create_index(
        "messages_due",
        "messages",
        ["next_attempt_at", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index(
        "messages_leased",
        "messages",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("status = 'sending'"),
    )
    op.create_index(
        "messages_not_sent",
        "messages",
        ["status", "id"],
        unique=False,
        postgresql_where=sa.text("status IN ('failed', 'suppressed')"),
    )
    op.create_table(
        "suppressions",
        sa.Column("email", sa.Text(), nullable=False, comment="lower case"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("email"),
    )


def downgrade() -> None:
    op.drop_table("suppressions")
    op.drop_index(
        "messages_not_sent",
        table_name="messages",
        postgresql_where=sa.text("status IN ('failed', 'suppressed')"),
    )
    op.drop_index("messages_leased", table_name="messages", postgresql_where=sa.text("status = 'sending'"))
    op.drop_index("messages_due", table_name="messages", postgresql_where=sa.text("status = 'queued'"))
    op.drop_table("messages")
    op.drop_table("progress")
    op.drop_table("ops_audit")
    op.drop_index(
        "deliveries_unsettled",
        table_name="deliveries",
        postgresql_where=sa.text("state NOT IN ('done', 'ignored')"),
    )
    op.drop_index("deliveries_subject", table_name="deliveries")
    op.drop_index("deliveries_position", table_name="deliveries")
    op.drop_index("deliveries_due", table_name="deliveries", postgresql_where=sa.text("state = 'retrying'"))
    op.drop_table("deliveries")
    op.drop_table("consumer_control")
