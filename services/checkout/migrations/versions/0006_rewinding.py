"""Subscriptions that can be rewound, since when each stands still, and who did what over the ops API."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "subscriptions",
        sa.Column(
            "moved_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="of settled",
        ),
    )
    for name, comment in (
        ("epoch", "grows with each rewind and each new life"),
        ("origin", "the service is owed what is behind it"),
        ("rewound", "where the epoch began"),
    ):
        op.add_column(
            "subscriptions", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False, comment=comment)
        )
    op.add_column(
        "subscriptions",
        sa.Column(
            "replay",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="the epoch's events are handled anew",
        ),
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


def downgrade() -> None:
    op.drop_table("ops_audit")
    for name in ("replay", "rewound", "origin", "epoch", "moved_at"):
        op.drop_column("subscriptions", name)
