"""provider events and reconciliation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "provider_events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("payment_reference", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "look_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when to ask the provider about an order that has failed; null: nothing to ask",
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "provider_events_open",
        "provider_events",
        ["look_at"],
        unique=False,
        postgresql_where=sa.text("look_at IS NOT NULL"),
    )
    op.create_index("provider_events_received", "provider_events", ["received_at"], unique=False)
    op.create_table(
        "reconciliation",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "done_until",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="everything that happened before was compared",
        ),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False, comment="and whoever comes then may go on"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.execute("INSERT INTO reconciliation (name, done_until, due_at) VALUES ('payments', now(), now())")


def downgrade() -> None:
    op.drop_table("reconciliation")
    op.drop_index("provider_events_received", table_name="provider_events")
    op.drop_index(
        "provider_events_open",
        table_name="provider_events",
        postgresql_where=sa.text("look_at IS NOT NULL"),
    )
    op.drop_table("provider_events")
