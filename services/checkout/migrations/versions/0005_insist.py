"""A condition that a statement may not go on without."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # In the statement that writes a whole batch: when it raises, the statement has written nothing.
    op.execute(
        """
        CREATE FUNCTION insist(holds boolean) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF holds IS NOT TRUE THEN
                RAISE EXCEPTION 'the batch found something changed; it is run again step by step'
                    USING ERRCODE = 'OS001';
            END IF;
            RETURN true;
        END $$
        """
    )


def downgrade() -> None:
    op.execute("DROP FUNCTION insist(boolean)")
