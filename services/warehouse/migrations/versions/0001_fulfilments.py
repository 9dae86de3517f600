"""The ledger, fulfilments, and what happened to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_ledger()
    create_fulfilments()


def create_ledger() -> None:
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
            "position", sa.BigInteger(), nullable=True, comment="null when the entry was not written by the relay"
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


def create_fulfilments() -> None:
    op.create_table(
        "fulfilments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("order_version", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=True),
        sa.Column("lines", postgresql.JSONB(), nullable=False, comment="[{sku, name, quantity}]"),
        sa.Column(
            "shipping_address",
            postgresql.JSONB(
                none_as_null=True,
            ),
            nullable=True,
        ),
        sa.Column("ordered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("carrier", sa.Text(), nullable=True),
        sa.Column("tracking", sa.Text(), nullable=True),
        sa.CheckConstraint("(status = 'shipped') = (tracking IS NOT NULL)", name="fulfilments_shipped_with_tracking"),
        sa.CheckConstraint(
            "status IN ('received', 'picking', 'packed', 'shipped', 'cancelled')", name="fulfilments_status_known"
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("order_id", name="fulfilments_once_per_order"),
    )
    op.create_index("fulfilments_by_status", "fulfilments", ["status", "id"], unique=False)
    op.create_table(
        "history",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("fulfilment_id", sa.Text(), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), nullable=False, comment="when it happened, not when it was heard of"
        ),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("order_version", sa.Integer(), nullable=True, comment="of the event that wrote the row"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fulfilment_id", "order_version", name="history_once_per_version"),
    )
