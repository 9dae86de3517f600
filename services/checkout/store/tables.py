"""The tables of checkout."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from services.checkout.domain import RefundKind, RefundStatus, Status
from shared.bus.ledger import ops_audit

metadata = MetaData()

ops_audit.to_metadata(metadata)

_CREATED_AT = "created_at"


def _instant(name: str, *, nullable: bool = True) -> Column[object]:
    default = func.now() if name == _CREATED_AT else None
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=default)


tenants = Table("tenants", metadata, Column("id", Text, primary_key=True), _instant(_CREATED_AT, nullable=False))

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("sha256", LargeBinary, nullable=False, unique=True, comment="the key itself is kept by its owner only"),
    Column("scopes", ARRAY(Text), nullable=False),
    _instant(_CREATED_AT, nullable=False),
    _instant("revoked_at"),
    Column("rate", Double, comment="requests per second"),
    Column("burst", Integer, comment="requests at once"),
    Column("created_by", Text),
    Column("revoked_by", Text),
    CheckConstraint("(rate IS NULL) = (burst IS NULL)", name="api_keys_quota_whole"),
    CheckConstraint("rate > 0 AND burst > 0", name="api_keys_quota_positive"),
)

products = Table(
    "products",
    metadata,
    Column("sku", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("unit_price", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("available", BigInteger, nullable=False, server_default=text("0")),
    Column("reserved", BigInteger, nullable=False, server_default=text("0")),
    Column("sold", BigInteger, nullable=False, server_default=text("0")),
    Column("received", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("available >= 0 AND reserved >= 0 AND sold >= 0", name="products_stock_not_negative"),
    CheckConstraint("available + reserved + sold = received", name="products_stock_conserved"),
    CheckConstraint("unit_price >= 0", name="products_price_not_negative"),
)

orders = Table(
    "orders",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("refunded_total", BigInteger, nullable=False, server_default=text("0")),
    Column("customer", JSONB, nullable=False),
    Column("shipping_address", JSONB),
    Column("metadata", JSONB, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column(
        "lease_token",
        Integer,
        nullable=False,
        comment="grows with every takeover; each later write repeats it",
    ),
    _instant("lease_until"),
    Column("recoveries", Integer, nullable=False, server_default=text("0")),
    _instant("reserved_until"),
    _instant(_CREATED_AT, nullable=False),
    _instant("completed_at"),
    CheckConstraint(f"status IN ({', '.join(repr(str(status)) for status in Status)})", name="orders_status_known"),
    CheckConstraint("0 <= refunded_total AND refunded_total <= total", name="orders_refunded_up_to_total"),
    Index("orders_of_tenant", "tenant_id", "id"),
    Index(
        "orders_open",
        "lease_until",
        postgresql_where=text("status IN ('pending', 'payment_unknown', 'requires_action')"),
    ),
)

# No foreign keys from here to orders: lines, payments and audit rows are only ever written together with their order,
# and checking that again, row by row, was a quarter of what the database does for an order.
order_lines = Table(
    "order_lines",
    metadata,
    Column("order_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("sku", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("unit_price", BigInteger, nullable=False),
    CheckConstraint("quantity > 0", name="order_lines_quantity_positive"),
)

payments = Table(
    "payments",
    metadata,
    Column("order_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("provider_key", Text, nullable=False, unique=True),
    Column("method", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("provider_reference", Text),
    Column("decline_code", Text),
    Column("client_secret", Text),
    Column("last_error", Text),
    _instant(_CREATED_AT, nullable=False),
    _instant("updated_at"),
)

order_transitions = Table(
    "order_transitions",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("order_id", Text, nullable=False),
    Column("from_status", Text),
    Column("to_status", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("cause", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("order_transitions_order", "order_id", "id"),
)

refunds = Table(
    "refunds",
    metadata,
    Column("id", Text, primary_key=True),
    Column("order_id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("provider_key", Text, nullable=False, unique=True),
    Column("payment_reference", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("reason", Text),
    Column("idempotency_key", Text, comment="of the request; null when nobody asked"),
    Column("provider_reference", Text),
    Column("refusal", Text, comment="the provider's code, or not_executed"),
    Column(
        "lease_token",
        Integer,
        nullable=False,
        comment="grows with every takeover; each later write repeats it",
    ),
    _instant("lease_until"),
    Column("recoveries", Integer, nullable=False, server_default=text("0")),
    _instant(_CREATED_AT, nullable=False),
    _instant("settled_at"),
    UniqueConstraint("order_id", "number"),
    CheckConstraint("amount > 0", name="refunds_amount_positive"),
    CheckConstraint(f"kind IN ({', '.join(repr(str(kind)) for kind in RefundKind)})", name="refunds_kind_known"),
    CheckConstraint(
        f"status IN ({', '.join(repr(str(status)) for status in RefundStatus)})", name="refunds_status_known"
    ),
    Index("refunds_open", "lease_until", postgresql_where=text("status IN ('created', 'unknown')")),
    Index(
        "refunds_late_success_once",
        "order_id",
        "payment_reference",
        unique=True,
        postgresql_where=text("kind = 'late_success'"),
    ),
)

provider_events = Table(
    "provider_events",
    metadata,
    Column("id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("payment_reference", Text, nullable=False),
    Column("received_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column(
        "look_at",
        DateTime(timezone=True),
        comment="when to ask the provider about an order that has failed; null: nothing to ask",
    ),
    Index("provider_events_open", "look_at", postgresql_where=text("look_at IS NOT NULL")),
    Index("provider_events_received", "received_at"),
)

reconciliation = Table(
    "reconciliation",
    metadata,
    Column("name", Text, primary_key=True),
    Column(
        "done_until",
        DateTime(timezone=True),
        nullable=False,
        comment="everything that happened before was compared",
    ),
    Column("due_at", DateTime(timezone=True), nullable=False, comment="and whoever comes then may go on"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_sha256", LargeBinary, nullable=False),
    Column("order_id", Text),
    Column("status", Integer, comment="of the stored answer; null while the first request runs"),
    Column("answer", Text),
    _instant(_CREATED_AT, nullable=False),
    # For whoever forgets old ones, an hour of them at a time; a B-tree would be one more thing to write per order.
    Index("idempotency_keys_age", "created_at", postgresql_using="brin"),
)
