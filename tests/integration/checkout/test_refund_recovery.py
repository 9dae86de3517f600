"""Unknown refunds and dead processes: every refund is finished without its client, and nothing is given back twice."""

from datetime import UTC, datetime

import pytest

from services.checkout.commands.refund import sent
from services.checkout.commands.refund_book import Begun, GiveBack, SettleRefund
from services.checkout.domain import RefundKind
from shared.runtime import metrics
from tests.integration.checkout.conftest import OPS_KEY, Shop, running, settings_for, until
from tests.integration.checkout.refunding import bought, events_of, given_back, refund
from tests.integration.sandboxes.programs import Payments

NOBODY = "http://127.0.0.1:1"


@pytest.mark.parametrize("fault", ["charge_then_hang", "charge_then_reset", "charge_then_500", "refuse"])
async def test_a_refund_whose_answer_is_lost_is_unknown_and_then_done_once(shop: Shop, fault: str) -> None:
    order_id = await bought(shop)
    await shop.payments.faults(**{fault: True})

    answer = await refund(shop, order_id, fault, amount=250)
    meanwhile = await refund(shop, order_id, fault, amount=250)
    await shop.payments.faults()
    await until(lambda: _status_is(shop, answer.headers["Location"], "succeeded"))

    assert (answer.status_code, meanwhile.status_code) == (202, 202)
    assert "Retry-After" in answer.headers
    assert answer.json()["status"] == "unknown"
    assert await given_back(shop, order_id) == 250
    replayed = await refund(shop, order_id, fault, amount=250)
    assert (replayed.status_code, replayed.json()["id"]) == (201, answer.json()["id"])
    assert [data["refunded_total"] for _, _, data in await events_of(shop, order_id)] == [0, 250]


async def test_a_provider_that_cannot_be_reached_leaves_the_key_free_and_the_money_untouched(
    shop: Shop, checkout_database: str, redis_url: str, payments_server: Payments
) -> None:
    order_id = await bought(shop)

    async with running(settings_for(checkout_database, redis_url, NOBODY), payments_server) as cut_off:
        refused = await refund(cut_off, order_id, "cut-off", amount=1000)
    done = await refund(shop, order_id, "cut-off", amount=1000)

    assert (refused.status_code, refused.json()["code"]) == (503, "payment_provider_unavailable")
    assert "Retry-After" in refused.headers
    assert done.status_code == 201
    assert await given_back(shop, order_id) == 1000


@pytest.mark.parametrize("executed", [False, True], ids=["before the refund", "after the refund"])
async def test_a_refund_of_a_process_that_died_is_finished_by_another(shop: Shop, executed: bool) -> None:
    """The intent is committed, then kill -9: the lease runs out and the recovery asks with the same key."""
    order_id = await bought(shop)
    begun = await _begin(shop, order_id, f"died-{executed}", amount=300)
    if executed:
        await shop.wiring.refunds._provider.refund(sent(begun.refund))

    await until(lambda: _status_is(shop, _place(begun), "succeeded"), timeout_s=15)

    assert await given_back(shop, order_id) == 300
    stored = await shop.row("SELECT status FROM idempotency_keys WHERE key = :key", key=f"died-{executed}")
    assert stored == 201
    assert len(await events_of(shop, order_id)) == 2
    cause = await shop.row(
        "SELECT cause FROM order_transitions WHERE order_id = :id ORDER BY id DESC LIMIT 1", id=order_id
    )
    assert cause == "recovery: refund of 300 EUR"


async def test_a_process_that_slept_through_its_lease_changes_nothing_when_it_wakes(shop: Shop) -> None:
    order_id = await bought(shop)
    begun = await _begin(shop, order_id, "sleeper", amount=300)
    outcome = await shop.wiring.refunds._provider.refund(sent(begun.refund))
    await until(lambda: _status_is(shop, _place(begun), "succeeded"), timeout_s=15)

    late = SettleRefund(begun.refund, begun.lease_token, outcome, datetime.now(UTC))
    overtaken = await shop.wiring.refunds.settle(late)

    assert overtaken is None
    assert (await shop.get(f"/v1/orders/{order_id}")).json()["refunded_total"] == 300
    assert len(await events_of(shop, order_id)) == 2


@pytest.mark.parametrize("executed", [False, True], ids=["never executed", "executed"])
async def test_once_the_provider_has_forgotten_the_key_it_is_asked_before_anything_is_sent(
    shop: Shop, executed: bool
) -> None:
    order_id = await bought(shop)
    begun = await _begin(shop, order_id, f"forgotten-{executed}", amount=400)
    if executed:
        await shop.wiring.refunds._provider.refund(sent(begun.refund))
    await shop.payments.http.post("/_sandbox/forget-keys")
    async with shop.db.transaction() as connection:
        await connection.exec_driver_sql(
            "UPDATE refunds SET created_at = created_at - interval '25 hours', lease_until = now() "
            f"WHERE id = '{begun.refund.id}'"
        )

    await until(lambda: _status_is(shop, _place(begun), "succeeded"))

    assert await given_back(shop, order_id) == 400


async def test_people_on_call_see_what_is_open(shop: Shop) -> None:
    order_id = await bought(shop)
    await shop.payments.faults(refuse=True)
    answer = await refund(shop, order_id, amount=1)
    await until(_counted)

    page = await shop.http.get("/ops", headers={"Authorization": f"Bearer {OPS_KEY}"})
    await shop.payments.faults()
    await until(lambda: _status_is(shop, answer.headers["Location"], "succeeded"))
    later = await shop.http.get("/ops", headers={"Authorization": f"Bearer {OPS_KEY}"})

    assert '<th scope="row">refund</th><td>unknown</td><td class="number">1</td>' in page.text
    assert "Every refund is final." in later.text


async def _begin(shop: Shop, order_id: str, key: str, amount: int) -> Begun:
    """What a process writes before it asks the provider."""
    command = GiveBack(RefundKind.REFUND, order_id, "demo", key, b"x" * 32, datetime.now(UTC), amount)
    giving_back = shop.wiring.refunds
    begun = await giving_back._transact(lambda connection: giving_back._book.begin(connection, command))
    assert isinstance(begun, Begun)
    return begun


def _place(begun: Begun) -> str:
    return f"/v1/orders/{begun.refund.order_id}/refunds/{begun.refund.id}"


async def _status_is(shop: Shop, place: str, status: str) -> bool:
    found: str = (await shop.get(place)).json()["status"]
    return found == status


async def _counted() -> bool:
    open_: float = metrics.OPEN_REFUNDS._value.get()
    return open_ == 1
