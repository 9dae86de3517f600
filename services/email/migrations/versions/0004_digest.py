"""What tells an event from another one that has its id."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "deliveries",
        sa.Column(
            "digest",
            sa.BigInteger(),
            nullable=True,
            comment="of the event as it came, to tell it from another one with its id",
        ),
    )


def downgrade() -> None:
    op.drop_column("deliveries", "digest")
