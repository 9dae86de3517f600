"""What checkout writes is what the contract says."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.checkout.commands.events import event_of
from services.checkout.domain import Line, Order, Payment, Status
from shared.contracts.documents import ENVELOPE_FILE, FOLDER, schema_file
from shared.contracts.envelope import encode
from shared.contracts.orders import (
    MAJOR,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    ORDER_ENVELOPE,
    ORDER_PAYMENT_FAILED,
    ORDER_REFUNDED,
)
from shared.runtime.identifiers import new_id

SOURCE = "urn:orderstream:checkout"
AT = datetime(2026, 3, 2, 8, 41, 7, 318204, tzinfo=UTC)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STATUS = {
    ORDER_COMPLETED: Status.COMPLETED,
    ORDER_PAYMENT_FAILED: Status.FAILED,
    ORDER_CANCELLED: Status.CANCELLED,
    ORDER_REFUNDED: Status.COMPLETED,
}
# What an event has beside the order's state.
MORE: dict[str, dict[str, Any]] = {
    ORDER_CANCELLED: {"reason": "too late"},
    ORDER_REFUNDED: {"refund_id": "rfd_1", "amount": 1, "reason": None},
}

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
LINES = st.builds(Line, TEXT, TEXT, st.integers(1, 10_000), st.integers(0, 10**8))
ADDRESSES = st.fixed_dictionaries(
    {"line1": TEXT, "city": TEXT, "postal_code": TEXT, "country": st.just("DE")},
    optional={"line2": st.none() | TEXT, "region": st.none() | TEXT},
)


@st.composite
def orders(draw: st.DrawFn, kind: str) -> Order:
    """Any order that checkout may write an event of type `kind` about."""
    lines = tuple(draw(st.lists(LINES, min_size=1, max_size=4)))
    completed = kind != ORDER_PAYMENT_FAILED
    return Order(
        id=new_id("ord"),
        tenant=draw(TEXT),
        status=STATUS[kind],
        version=draw(st.integers(1, 50)),
        currency=draw(st.sampled_from(["EUR", "JPY", "KWD"])),
        total=sum(line.subtotal for line in lines),
        lines=lines,
        customer={"email": "ann@example.com"} | draw(st.sampled_from([{}, {"name": "Ann"}, {"name": None}])),
        payment=Payment(1, "charge:1", "pm_card_visa", decline_code=draw(st.none() | TEXT)),
        created_at=AT - timedelta(seconds=draw(st.integers(0, 100_000))),
        idempotency_key="key",
        shipping_address=draw(st.none() | ADDRESSES),
        metadata={"internal": "not for everybody"},
        completed_at=AT if completed else None,
    )


@pytest.mark.parametrize("kind", sorted(STATUS))
@given(data=st.data())
def test_every_event_fits_the_schema_and_comes_back_as_the_order_it_tells_of(kind: str, data: st.DataObject) -> None:
    order = data.draw(orders(kind))

    raw = encode(event_of(kind, order, AT, SOURCE, TRACE, **MORE.get(kind, {})))

    written = json.loads(raw)
    _validator(ENVELOPE_FILE).validate(written)
    _validator(schema_file(kind)).validate(written["data"])
    event = ORDER_ENVELOPE.validate_json(raw)
    assert (event.type, event.major, event.subject, event.orderversion) == (
        kind,
        MAJOR,
        order.id,
        order.version,
    )
    assert (event.time, event.source, event.traceparent) == (AT, SOURCE, TRACE)
    assert (event.data.order_id, event.data.tenant, event.data.status) == (
        order.id,
        order.tenant,
        order.status,
    )
    assert (event.data.total, event.data.currency) == (order.total, order.currency)
    assert [(line.sku, line.quantity, line.unit_price) for line in event.data.lines] == [
        (line.sku, line.quantity, line.unit_price) for line in order.lines
    ]
    assert (event.data.created_at, event.data.completed_at) == (order.created_at, order.completed_at)
    assert event.data.model_dump().items() >= MORE.get(kind, {}).items()


def test_a_declined_order_says_why() -> None:
    raw = encode(event_of(ORDER_PAYMENT_FAILED, _order(decline_code="insufficient_funds"), AT, SOURCE, None))

    assert json.loads(raw)["data"]["decline_code"] == "insufficient_funds"


def test_an_event_tells_nothing_that_is_only_checkouts_business() -> None:
    raw = encode(event_of(ORDER_COMPLETED, _order(), AT, SOURCE, None))

    assert not [secret for secret in ("pm_card_visa", "charge:1", "idem-key", "inside", "traceparent") if secret in raw]


def test_each_event_has_an_id_of_its_own_that_sorts_by_time() -> None:
    events = [event_of(ORDER_COMPLETED, _order(), AT, SOURCE, None) for _ in range(3)]

    assert len({event.id for event in events}) == 3
    assert all(isinstance(event.id, UUID) and event.id.version == 7 for event in events)


def _order(decline_code: str | None = None) -> Order:
    return Order(
        id=new_id("ord"),
        tenant="demo",
        status=Status.FAILED if decline_code else Status.COMPLETED,
        version=1,
        currency="EUR",
        total=100,
        lines=(Line("SKU-0001", "Product 1", 1, 100),),
        customer={"email": "ann@example.com"},
        payment=Payment(1, "charge:1", "pm_card_visa", decline_code=decline_code),
        created_at=AT,
        idempotency_key="idem-key",
        metadata={"note": "inside"},
    )


def _validator(path: str) -> jsonschema_rs.Validator:
    schema: dict[str, Any] = json.loads((FOLDER / path).read_text())
    return jsonschema_rs.validator_for(schema, validate_formats=True)
