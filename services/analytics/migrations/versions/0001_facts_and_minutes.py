"""The ledger, the facts of orders, and the minutes that they add up to."""

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
    create_facts()


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


def create_facts() -> None:
    op.create_table(
        "order_facts",
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("sold", sa.Boolean(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("refunded_total", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "happened_at", sa.DateTime(timezone=True), nullable=False, comment="completed_at, or created_at without it"
        ),
        sa.Column("lines", postgresql.JSONB(), nullable=False, comment="[[sku, quantity, subtotal], …]"),
        sa.PrimaryKeyConstraint("order_id"),
    )
    op.create_index("order_facts_happened_at", "order_facts", ["happened_at", "order_id"], unique=False)
    op.create_table(
        "product_minutes",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("orders", sa.BigInteger(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("gross", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("minute", "currency", "sku"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_table(
        "sales_minutes",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("orders", sa.BigInteger(), nullable=False),
        sa.Column("gross", sa.BigInteger(), nullable=False),
        sa.Column("refunded", sa.BigInteger(), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), nullable=False),
        sa.Column("payment_failed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("minute", "currency"),
        postgresql_with={"fillfactor": "80"},
    )
