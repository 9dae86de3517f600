"""What must hold in the model after every step, and what at rest."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.orderctl.rules import CHECKOUT
from services.checkout.commands.answers import Answer
from tests.model.provider import Payment
from tests.model.world import World
from tests.support.invariants import ALWAYS

UNPAID = {"failed", "expired"}
PAID = {"completed", "cancelled"}
FINAL = {200, 201, 402, 409, 422}

TOLD = "SELECT subject, array_agg((event::json ->> 'orderversion')::int ORDER BY position) AS versions FROM event_log"


async def always(world: World, told: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Everything that does not hold now."""
    found = [f"{what}: {row}" for what, rule in ALWAYS.items() for row in await world.rows(rule.query)]
    rows = await world.rows(f"{TOLD} GROUP BY subject")
    found += [
        f"I10 versions out of order: {row}"
        for row in rows
        if row["versions"] != list(range(1, len(row["versions"]) + 1))
    ]
    orders = {row["id"]: row for row in await world.rows("SELECT * FROM orders")}
    found += _money(orders, world.provider.book.values())
    for key, answers in told.items():
        found += _answers(key, answers, orders)
    return found


async def at_rest(world: World, told: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Everything that does not hold although all faults are over."""
    found = [f"I5 {key} is stuck: {answers[-1]}" for key, answers in told.items() if _keeps_waiting(answers[-1])]
    found += [f"{what}: {row}" for what, rule in CHECKOUT.items() for row in await world.rows(rule.query)]
    orders = {row["id"]: row for row in await world.rows("SELECT * FROM orders")}
    balance: Counter[str] = Counter()
    for payment in world.provider.book.values():
        balance[payment.charge.order_id] += payment.captured - payment.refunded
    for order_id in orders.keys() | balance.keys():
        order = orders.get(order_id)
        due = order["total"] - order["refunded_total"] if order and order["status"] in PAID else 0
        if balance[order_id] != due:
            found.append(f"I3 the provider holds {balance[order_id]}, {due} is ours: {order_id} {order}")
    return found


def _money(orders: Mapping[str, Mapping[str, Any]], payments: Any) -> list[str]:
    """I2: at most one capture per order; a paid order has one; never more given back than the books will say."""
    found = []
    captures: dict[str, list[Payment]] = {}
    for payment in payments:
        if payment.captured:
            captures.setdefault(payment.charge.order_id, []).append(payment)
    found += [f"I2 captured twice: {order_id}" for order_id, some in captures.items() if len(some) > 1]
    found += [f"I3 captured without an order: {order_id}" for order_id in captures.keys() - orders.keys()]
    for order_id, order in orders.items():
        if order["status"] in UNPAID and any(not one.late for one in captures.get(order_id, [])):
            found.append(f"I2 {order['status']} although captured: {order_id}")
        if order["status"] in PAID and order_id not in captures:
            found.append(f"I2 {order['status']} without a capture: {order_id}")
        if order["status"] in PAID and captures.get(order_id) and captures[order_id][0].captured != order["total"]:
            found.append(f"I2 captured another amount: {order_id}")
        if order["refunded_total"] > sum(one.refunded for one in captures.get(order_id, [])):
            found.append(f"I2 a refund that did not take place: {order_id}")
    return found


def _keeps_waiting(answer: Answer) -> bool:
    return answer.status in {202, 503} or json.loads(answer.body).get("code") == "idempotency_key_in_use"


def _answers(key: str, answers: Sequence[Answer], orders: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """I5, I6: final answers are equal, and what they say is so."""
    final = {(one.status, one.body) for one in answers if one.final and one.status in FINAL}
    found = [f"I5 {key} has {len(final)} final answers: {final}"] if len(final) > 1 else []
    for status, body in final:
        said = json.loads(body)
        order = orders.get(said.get("order_id") or said.get("id", ""))
        if status == 201 and "lines" in said and (order is None or order["status"] not in PAID):
            found.append(f"I6 {key} was told 201, and the order is {order}")
        if status == 402 and (order is None or order["status"] not in {"failed", "expired"}):
            found.append(f"I6 {key} was told 402, and the order is {order}")
    return found
