"""Which epoch of its subscription a partition's progress is counted in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "progress",
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False, comment="of the subscription"),
    )


def downgrade() -> None:
    op.drop_column("progress", "epoch")
