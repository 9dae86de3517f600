"""refunds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "refunds",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("provider_key", sa.Text(), nullable=False),
        sa.Column("payment_reference", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "idempotency_key",
            sa.Text(),
            nullable=True,
            comment="of the request; null when nobody asked",
        ),
        sa.Column("provider_reference", sa.Text(), nullable=True),
        sa.Column("refusal", sa.Text(), nullable=True, comment="the provider's code, or not_executed"),
        sa.Column(
            "lease_token",
            sa.Integer(),
            nullable=False,
            comment="grows with every takeover; each later write repeats it",
        ),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("recoveries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("amount > 0", name="refunds_amount_positive"),
        sa.CheckConstraint("kind IN ('refund', 'cancel', 'late_success')", name="refunds_kind_known"),
        sa.CheckConstraint("status IN ('created', 'unknown', 'succeeded', 'refused')", name="refunds_status_known"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("order_id", "number"),
        sa.UniqueConstraint("provider_key"),
    )
    op.create_index(
        "refunds_open",
        "refunds",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("status IN ('created', 'unknown')"),
    )
    op.create_index(
        "refunds_late_success_once",
        "refunds",
        ["order_id", "payment_reference"],
        unique=True,
        postgresql_where=sa.text("kind = 'late_success'"),
    )


def downgrade() -> None:
    op.drop_index(
        "refunds_late_success_once",
        table_name="refunds",
        postgresql_where=sa.text("kind = 'late_success'"),
    )
    op.drop_index(
        "refunds_open",
        table_name="refunds",
        postgresql_where=sa.text("status IN ('created', 'unknown')"),
    )
    op.drop_table("refunds")
