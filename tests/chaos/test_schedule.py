"""The same seed is the same weather, and every fault of the list can be drawn and done."""

import pytest

from tests.chaos.clients import Customer, Told, contradictions, customers
from tests.chaos.nemesis import ACTIONS
from tests.chaos.schedule import FAMILIES, schedule

KINDS = {kind for _, kinds in FAMILIES.values() for kind in kinds}
ORDERS = {"ord_1": {"status": "completed"}, "ord_2": {"status": "failed"}}
BOUGHT = (201, {"id": "ord_1", "status": "completed"})
DECLINED = (402, {"order_id": "ord_2", "code": "payment_declined"})
UNKNOWN = (202, {"id": "ord_1", "status": "payment_unknown"})
BUSY = (503, {"code": "overloaded"})
REUSED = (422, {"code": "idempotency_key_reused"})

TRUE = {
    "bought after waiting": [BUSY, UNKNOWN, BOUGHT, BOUGHT],
    "declined": [(0, {}), DECLINED],
    "declined, asked by another name": [
        (402, {**DECLINED[1], "request_id": "a"}),
        (402, {**DECLINED[1], "request_id": "b"}),
    ],
}
UNTRUE = {
    "no final answer": [BUSY, UNKNOWN],
    "2 different final answers": [BOUGHT, DECLINED],
    "2 orders": [UNKNOWN, (202, {"id": "ord_2"}), BOUGHT],
    "was told 201, and the order is None": [(201, {"id": "ord_3"})],
    "was told 201, and the order is failed": [(201, {"id": "ord_2"})],
    "was told 402, and the order is completed": [(402, {"order_id": "ord_1"})],
}


def test_the_same_seed_is_the_same_schedule_and_the_same_customers() -> None:
    assert schedule(7, 60) == schedule(7, 60)
    assert schedule(7, 60) != schedule(8, 60)
    assert schedule(7, 20) == [fault for fault in schedule(7, 60) if fault.at_s < 20]
    assert customers(7, 30) == customers(7, 60)[:30]


def test_every_kind_of_fault_comes_up_and_can_be_done() -> None:
    drawn = {fault.kind for seed in range(50) for fault in schedule(seed, 60)}

    assert drawn == KINDS == ACTIONS.keys()


@pytest.mark.parametrize("answers", TRUE.values(), ids=TRUE)
def test_customers_who_were_told_the_truth_do_not_complain(answers: list[tuple[int, dict[str, str]]]) -> None:
    assert contradictions([told(*answers)], ORDERS) == []


@pytest.mark.parametrize("complaint", UNTRUE)
def test_customers_who_were_told_what_is_not_so_do(complaint: str) -> None:
    found = contradictions([told(*UNTRUE[complaint])], ORDERS)

    assert any(complaint in line for line in found), found


def test_one_of_two_bodies_under_a_key_is_refused() -> None:
    first, second = told(BOUGHT), told(BUSY, REUSED)
    first.told_of_other, second.told_of_other = told(REUSED).told, told(BOUGHT).told
    both = told(BOUGHT)
    both.told_of_other = told((201, {"id": "ord_4"})).told

    assert contradictions([first, second], ORDERS) == []
    assert contradictions([both], ORDERS) == ["I5 key: two bodies under one key were both accepted"]


def told(*answers: tuple[int, dict[str, str]]) -> Customer:
    customer = Customer(1, "key", "patient", {})
    customer.told = [Told(0.0, 0.1, status, body) for status, body in answers]
    return customer
