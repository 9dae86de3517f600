"""The log in slices, so that what is past is dropped as a whole, and idempotency keys by age."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# What there is becomes the first slice, up to the next boundary above its head. Nothing is copied; Postgres reads
# it through once, to see that it fits.
INTO_SLICES = """
DO $$
DECLARE
    bound bigint;
    name text;
BEGIN
    LOCK TABLE event_log IN ACCESS EXCLUSIVE MODE;
    bound := ((SELECT coalesce(max(position), 0) FROM log_head) / 1000000 + 1) * 1000000;
    name := 'event_log_to_' || bound;
    ALTER INDEX event_log_pkey RENAME TO event_log_first_pkey;
    ALTER INDEX event_log_subject RENAME TO event_log_first_subject;
    EXECUTE format('ALTER TABLE event_log RENAME TO %I', name);
    EXECUTE format('CREATE TABLE event_log (LIKE %I INCLUDING DEFAULTS INCLUDING COMMENTS)
                    PARTITION BY RANGE (position)', name);
    ALTER TABLE event_log ADD CONSTRAINT event_log_pkey PRIMARY KEY (partition, position);
    CREATE INDEX event_log_subject ON event_log (subject);
    EXECUTE format('ALTER TABLE event_log ATTACH PARTITION %I FOR VALUES FROM (MINVALUE) TO (%L)', name, bound);
END $$
"""


def upgrade() -> None:
    for name, comment in (
        ("opened", "its first event has the position behind it"),
        ("dropped", "up to here the log holds nothing more"),
    ):
        op.add_column("log_head", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False, comment=comment))
    op.execute(INTO_SLICES)
    op.create_index("idempotency_keys_age", "idempotency_keys", ["created_at"], postgresql_using="brin")
    op.execute(
        """
        INSERT INTO reconciliation (name, done_until, due_at)
        SELECT 'idempotency_keys', coalesce(min(created_at), now()), now() FROM idempotency_keys
        """
    )


def downgrade() -> None:
    op.execute("DELETE FROM reconciliation WHERE name = 'idempotency_keys'")
    op.drop_index("idempotency_keys_age", table_name="idempotency_keys")
    op.execute("CREATE TABLE whole (LIKE event_log INCLUDING ALL)")
    op.execute("INSERT INTO whole SELECT * FROM event_log")
    op.execute("DROP TABLE event_log")
    op.execute("ALTER TABLE whole RENAME TO event_log")
    op.execute("ALTER INDEX whole_pkey RENAME TO event_log_pkey")
    op.execute("ALTER INDEX whole_subject_idx RENAME TO event_log_subject")
    for name in ("dropped", "opened"):
        op.drop_column("log_head", name)
