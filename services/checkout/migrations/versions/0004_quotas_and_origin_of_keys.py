"""quotas and origin of keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("rate", sa.Double(), nullable=True, comment="requests per second"))
    op.add_column("api_keys", sa.Column("burst", sa.Integer(), nullable=True, comment="requests at once"))
    op.add_column("api_keys", sa.Column("created_by", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("revoked_by", sa.Text(), nullable=True))
    op.create_check_constraint("api_keys_quota_whole", "api_keys", "(rate IS NULL) = (burst IS NULL)")
    op.create_check_constraint("api_keys_quota_positive", "api_keys", "rate > 0 AND burst > 0")


def downgrade() -> None:
    op.drop_constraint("api_keys_quota_positive", "api_keys")
    op.drop_constraint("api_keys_quota_whole", "api_keys")
    op.drop_column("api_keys", "revoked_by")
    op.drop_column("api_keys", "created_by")
    op.drop_column("api_keys", "burst")
    op.drop_column("api_keys", "rate")
