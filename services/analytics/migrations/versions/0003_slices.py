"""The ledger in slices, so that what is past is dropped as a whole."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# What there is becomes the first slice, which ends with this week. Nothing is copied but ids that are not of our time,
# of entries that nobody could read; Postgres reads the rest through once, to see that it fits.
INTO_SLICES = """
DO $$
DECLARE
    week bigint := 7 * 86400000;
    ends text := lpad(to_hex(((extract(epoch FROM now()) * 1000)::bigint / week + 1) * week), 12, '0');
    bound uuid := (ends || repeat('0', 20))::uuid;
    name text := 'deliveries_to_' || ends || repeat('0', 20);
    index text;
BEGIN
    LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE;
    FOREACH index IN ARRAY ARRAY['pkey', 'position', 'subject', 'due', 'unsettled'] LOOP
        EXECUTE format('ALTER INDEX deliveries_%s RENAME TO deliveries_first_%s', index, index);
    END LOOP;
    EXECUTE format('ALTER TABLE deliveries RENAME TO %I', name);
    EXECUTE format('CREATE TABLE deliveries (LIKE %I INCLUDING DEFAULTS INCLUDING COMMENTS INCLUDING CONSTRAINTS)
                    PARTITION BY RANGE (event_id)', name);
    ALTER TABLE deliveries ADD CONSTRAINT deliveries_pkey PRIMARY KEY (event_id);
    CREATE INDEX deliveries_position ON deliveries (partition, position);
    CREATE INDEX deliveries_subject ON deliveries (subject);
    CREATE INDEX deliveries_due ON deliveries (next_attempt_at) WHERE state = 'retrying';
    CREATE INDEX deliveries_unsettled ON deliveries (state, subject) WHERE state NOT IN ('done', 'ignored');
    CREATE TABLE deliveries_rest PARTITION OF deliveries DEFAULT;
    EXECUTE format('WITH stray AS (DELETE FROM %I WHERE event_id >= %L RETURNING *)
                    INSERT INTO deliveries_rest SELECT * FROM stray', name, bound);
    EXECUTE format('ALTER TABLE deliveries ATTACH PARTITION %I FOR VALUES FROM (MINVALUE) TO (%L)', name, bound);
END $$
"""


def upgrade() -> None:
    op.add_column(
        "progress",
        sa.Column(
            "forgotten",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="dealt with, and no longer known here",
        ),
    )
    op.execute(INTO_SLICES)


def downgrade() -> None:
    op.execute("CREATE TABLE whole (LIKE deliveries INCLUDING ALL)")
    op.execute("INSERT INTO whole SELECT * FROM deliveries")
    op.execute("DROP TABLE deliveries")
    op.execute("ALTER TABLE whole RENAME TO deliveries")
    for made, name in (
        ("pkey", "pkey"),
        ("partition_position_idx", "position"),
        ("subject_idx", "subject"),
        ("next_attempt_at_idx", "due"),
        ("state_subject_idx", "unsettled"),
    ):
        op.execute(f"ALTER INDEX whole_{made} RENAME TO deliveries_{name}")
    op.drop_column("progress", "forgotten")
