"""The rules of checkout hold for any order: stock is conserved, prices add up, no state is skipped."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.checkout.domain import (
    MAX_TOTAL,
    MIN_TOTAL,
    OPEN,
    TRANSITIONS,
    Complaint,
    Line,
    Order,
    Payment,
    Product,
    Shelf,
    Shortage,
    Status,
    Wanted,
    charge_key,
    moved,
    price,
)
from shared.runtime.identifiers import new_id

AT = datetime(2026, 3, 2, 8, 41, tzinfo=UTC)
SKUS = ["A", "B", "C"]
STOCK = st.fixed_dictionaries({sku: st.integers(0, 20) for sku in SKUS})
# The API refuses the same SKU twice in one order.
ORDERS = st.lists(st.dictionaries(st.sampled_from(SKUS), st.integers(1, 8), min_size=1), max_size=12)
FATES = st.lists(st.sampled_from(["sell", "release", "wait"]), min_size=12, max_size=12)


def _shelf(stock: dict[str, int], currency: str = "EUR") -> Shelf:
    return Shelf({sku: Product(sku, f"Product {sku}", 100, currency, units) for sku, units in stock.items()})


def _lines(wanted: dict[str, int]) -> tuple[Line, ...]:
    return tuple(Line(sku, f"Product {sku}", quantity, 100) for sku, quantity in wanted.items())


def _units(book: dict[str, int], sku: str) -> int:
    return book.get(sku, 0)


@given(STOCK, ORDERS, FATES)
def test_stock_is_conserved_and_never_oversold_whatever_becomes_of_the_orders(
    stock: dict[str, int], orders: list[dict[str, int]], fates: list[str]
) -> None:
    shelf = _shelf(stock)

    for wanted, fate in zip(orders, fates, strict=False):
        lines = _lines(wanted)
        if shelf.shortages(lines):
            continue
        shelf.reserve(lines)
        if fate == "sell":
            shelf.sell(lines)
        elif fate == "release":
            shelf.release(lines)

        for sku, units in stock.items():
            assert _units(shelf.available, sku) + _units(shelf.reserved, sku) + _units(shelf.sold, sku) == 0
            assert units + _units(shelf.available, sku) >= 0
            assert _units(shelf.reserved, sku) >= 0
            assert _units(shelf.sold, sku) >= 0


@given(STOCK, ORDERS)
def test_an_order_gets_all_or_nothing_and_arrival_decides(stock: dict[str, int], orders: list[dict[str, int]]) -> None:
    shelf = _shelf(stock)
    left = dict(stock)

    for wanted in orders:
        lines = _lines(wanted)
        short = shelf.shortages(lines)

        assert short == [Shortage(sku, units, left[sku]) for sku, units in wanted.items() if left[sku] < units]
        if not short:
            shelf.reserve(lines)
            left = {sku: units - wanted.get(sku, 0) for sku, units in left.items()}

    assert {sku: stock[sku] + _units(shelf.available, sku) for sku in SKUS} == left


@given(STOCK, ORDERS)
def test_a_released_reservation_leaves_no_trace(stock: dict[str, int], orders: list[dict[str, int]]) -> None:
    shelf = _shelf(stock)

    for wanted in orders:
        shelf.reserve(_lines(wanted))
        shelf.release(_lines(wanted))

    assert not any([*shelf.available.values(), *shelf.reserved.values(), *shelf.sold.values()])


@given(st.dictionaries(st.sampled_from(SKUS), st.integers(1, 10_000), min_size=1), st.integers(0, 10**6))
def test_a_price_is_the_catalogues_and_adds_up_to_what_can_be_charged(wanted: dict[str, int], unit_price: int) -> None:
    shelf = Shelf({sku: Product(sku, "P", unit_price, "EUR", 0) for sku in SKUS})
    total = sum(wanted.values()) * unit_price

    lines = price([Wanted(*item) for item in wanted.items()], "EUR", total, shelf)

    if not MIN_TOTAL <= total <= MAX_TOTAL:
        assert isinstance(lines, Complaint)
        assert lines.code == "total_not_chargeable"
        return
    assert not isinstance(lines, Complaint)
    assert [(line.sku, line.quantity, line.unit_price) for line in lines] == [
        (sku, quantity, unit_price) for sku, quantity in wanted.items()
    ]
    assert sum(line.subtotal for line in lines) == total


@pytest.mark.parametrize(
    ("wanted", "currency", "expected_total", "code", "pointer"),
    [
        ([Wanted("A", 1), Wanted("Z", 1)], "EUR", None, "unknown_sku", "/lines/1/sku"),
        ([Wanted("A", 1)], "USD", None, "currency_mismatch", "/currency"),
        ([Wanted("A", 1)], "EUR", 99, "total_mismatch", "/expected_total"),
        ([Wanted("A", 1)], "EUR", 0, "total_mismatch", "/expected_total"),
        ([Wanted("A", MAX_TOTAL // 100 + 1)], "EUR", None, "total_not_chargeable", "/lines"),
    ],
)
def test_what_cannot_be_priced_is_named(
    wanted: list[Wanted], currency: str, expected_total: int | None, code: str, pointer: str
) -> None:
    complaint = price(wanted, currency, expected_total, _shelf({"A": 5}))

    assert isinstance(complaint, Complaint)
    assert (complaint.code, complaint.pointer) == (code, pointer)


def test_the_largest_total_is_still_allowed() -> None:
    assert not isinstance(price([Wanted("A", MAX_TOTAL // 100)], "EUR", None, _shelf({"A": 5})), Complaint)


@pytest.mark.parametrize("before", Status)
@pytest.mark.parametrize("after", Status)
@pytest.mark.parametrize("told", [True, False])
def test_a_transition_is_made_if_and_only_if_the_table_has_it(before: Status, after: Status, *, told: bool) -> None:
    order = _order(before)
    payment = replace(order.payment, status="new")

    if after not in TRANSITIONS[before]:
        with pytest.raises(ValueError, match=f"{before} -> {after} is no legal transition"):
            moved(order, after, payment, AT, told=told)
        return
    result = moved(order, after, payment, AT, told=told)

    assert result == replace(
        order,
        status=after,
        payment=payment,
        version=order.version + told,
        completed_at=AT if after is Status.COMPLETED else None,
    )


def test_every_state_is_in_the_table_and_open_ones_can_still_end() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert all(not TRANSITIONS[status] for status in (Status.FAILED, Status.EXPIRED, Status.CANCELLED))
    assert all({Status.COMPLETED, Status.FAILED} <= TRANSITIONS[status] for status in OPEN)


@given(st.lists(st.tuples(st.sampled_from(Status), st.booleans()), max_size=20))
def test_versions_count_what_the_world_heard_and_completion_stays(steps: list[tuple[Status, bool]]) -> None:
    order, told_so_far, completed_at = _order(Status.PENDING), 0, None

    for number, (status, told) in enumerate(steps):
        if status not in TRANSITIONS[order.status]:
            continue
        at = AT.replace(second=number)
        order = moved(order, status, order.payment, at, told=told)
        told_so_far += told
        completed_at = at if status is Status.COMPLETED else completed_at

        assert order.version == told_so_far
        assert order.completed_at == completed_at


@given(st.integers(1, 10**6))
def test_a_charge_key_fits_the_provider_and_is_different_for_each_attempt(attempt: int) -> None:
    order_id = new_id("ord")

    assert len(charge_key(order_id, attempt)) <= 64
    assert charge_key(order_id, attempt) != charge_key(order_id, attempt + 1)


def _order(status: Status) -> Order:
    return Order(
        id="ord_1",
        tenant="demo",
        status=status,
        version=0,
        currency="EUR",
        total=200,
        lines=_lines({"A": 2}),
        customer={"email": "ann@example.com"},
        payment=Payment(1, "charge:ord_1:1", "pm_card_visa"),
        created_at=AT,
        idempotency_key="key",
    )
