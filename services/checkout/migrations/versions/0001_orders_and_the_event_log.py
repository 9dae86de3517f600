"""orders and the event log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


# The same table as domain.TRANSITIONS: whatever the code does, no order takes a step that does not exist.
LEGAL_TRANSITIONS = """
CREATE FUNCTION orders_guard_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.status, NEW.status) IN (
        ('pending', 'completed'), ('pending', 'failed'), ('pending', 'payment_unknown'), ('pending', 'requires_action'),
        ('payment_unknown', 'completed'), ('payment_unknown', 'failed'), ('payment_unknown', 'requires_action'),
        ('requires_action', 'completed'), ('requires_action', 'failed'), ('requires_action', 'expired'),
        ('completed', 'cancelled')
    ) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'order %: % -> % is no legal transition', OLD.id, OLD.status, NEW.status
        USING ERRCODE = 'check_violation';
END
$$
"""
GUARD = """
CREATE TRIGGER orders_guard_transition BEFORE UPDATE OF status ON orders FOR EACH ROW
WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION orders_guard_transition()
"""


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=True),
        sa.Column(
            "status",
            sa.Integer(),
            nullable=True,
            comment="of the stored answer; null while the first request runs",
        ),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key"),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("refunded_total", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("customer", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("shipping_address", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column(
            "lease_token",
            sa.Integer(),
            nullable=False,
            comment="grows with every takeover; each later write repeats it",
        ),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("recoveries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("reserved_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'payment_unknown', 'requires_action', 'completed', 'failed', 'expired', "
            "'cancelled')",
            name="orders_status_known",
        ),
        sa.CheckConstraint("0 <= refunded_total AND refunded_total <= total", name="orders_refunded_up_to_total"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("orders_of_tenant", "orders", ["tenant_id", "id"], unique=False)
    op.create_index(
        "orders_open",
        "orders",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("status IN ('pending', 'payment_unknown', 'requires_action')"),
    )
    op.create_table(
        "products",
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("unit_price", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("available", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("reserved", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sold", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("received", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("available + reserved + sold = received", name="products_stock_conserved"),
        sa.CheckConstraint("available >= 0 AND reserved >= 0 AND sold >= 0", name="products_stock_not_negative"),
        sa.CheckConstraint("unit_price >= 0", name="products_price_not_negative"),
        sa.PrimaryKeyConstraint("sku"),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False, comment="the key itself is kept by its owner only"),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sha256"),
    )
    op.create_table(
        "order_lines",
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("unit_price", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("quantity > 0", name="order_lines_quantity_positive"),
        sa.PrimaryKeyConstraint("order_id", "number"),
    )
    op.create_table(
        "order_transitions",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("from_status", sa.Text(), nullable=True),
        sa.Column("to_status", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("order_transitions_order", "order_transitions", ["order_id", "id"], unique=False)
    op.create_table(
        "payments",
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("provider_key", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("provider_reference", sa.Text(), nullable=True),
        sa.Column("decline_code", sa.Text(), nullable=True),
        sa.Column("client_secret", sa.Text(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("order_id", "attempt"),
        sa.UniqueConstraint("provider_key"),
    )
    op.create_table(
        "event_log",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("partition", "position"),
    )
    op.create_index("event_log_subject", "event_log", ["subject"], unique=False)
    op.create_table(
        "log_head",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("position >= 0", name="log_head_position_not_negative"),
        sa.PrimaryKeyConstraint("partition"),
    )
    op.create_table(
        "subscriptions",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False, comment="last position published to the stream"),
        sa.Column(
            "settled",
            sa.BigInteger(),
            nullable=False,
            comment="every position up to here is in the service's own ledger",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("0 <= settled AND settled <= cursor", name="subscriptions_settled_up_to_cursor"),
        sa.PrimaryKeyConstraint("service", "partition"),
    )
    op.execute(LEGAL_TRANSITIONS)
    op.execute(GUARD)
    op.execute("INSERT INTO log_head (partition, position) VALUES (0, 0)")
    op.execute(
        """
        INSERT INTO subscriptions (service, partition, cursor, settled)
        VALUES ('email', 0, 0, 0), ('analytics', 0, 0, 0), ('warehouse', 0, 0, 0)
        """
    )


def downgrade() -> None:
    op.drop_table("subscriptions")
    op.drop_table("log_head")
    op.drop_index("event_log_subject", table_name="event_log")
    op.drop_table("event_log")
    op.drop_table("payments")
    op.drop_index("order_transitions_order", table_name="order_transitions")
    op.drop_table("order_transitions")
    op.drop_table("order_lines")
    op.drop_table("api_keys")
    op.drop_table("tenants")
    op.drop_table("products")
    op.drop_index(
        "orders_open",
        table_name="orders",
        postgresql_where=sa.text("status IN ('pending', 'payment_unknown', 'requires_action')"),
    )
    op.drop_index("orders_of_tenant", table_name="orders")
    op.drop_table("orders")
    op.drop_table("idempotency_keys")
    op.execute("DROP FUNCTION orders_guard_transition")
