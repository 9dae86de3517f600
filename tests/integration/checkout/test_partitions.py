"""The log gets more partitions over the ops API, while orders are taken."""

import httpx
import pytest

from tests.integration.checkout.changed_requests import refused
from tests.integration.checkout.conftest import API_KEY, OPS_KEY, Shop, until

OPERATOR = {"Authorization": f"Bearer {OPS_KEY}"}
HOMES = "SELECT count(DISTINCT partition), count(DISTINCT (partition, subject)), count(DISTINCT subject) FROM event_log"


async def test_orders_go_on_while_the_log_gets_eight_partitions(shop: Shop) -> None:
    early = [(await shop.order()).json()["id"] for _ in range(6)]

    done = await raised(shop, 8)
    again = await raised(shop, 8)
    await until(lambda: spread_over(shop, 8))
    for _ in range(24):
        assert (await shop.order()).status_code == 201
    for order_id in early:
        headers = {"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": f"cancel-{order_id}"}
        assert (await shop.http.post(f"/v1/orders/{order_id}/cancel", headers=headers)).status_code == 200

    assert [(one.status_code, one.json()) for one in (done, again)] == [(200, {"partitions": 8})] * 2
    assert (await shop.get("/ops/partitions", api_key=OPS_KEY)).json() == {"partitions": 8}
    partitions, homes, orders = await shop.row(HOMES)
    assert partitions > 4
    assert homes == orders == 30
    assert await shop.row("SELECT count(*) FROM subscriptions") == 3 * 8
    audited = await shop.row("SELECT key_id, detail FROM ops_audit WHERE action = 'partitions'")
    assert audited == ("key_ops", "from 1 to 8")


async def test_partitions_are_never_taken_away(shop: Shop) -> None:
    await raised(shop, 8)

    fewer = await raised(shop, 3)

    refused(fewer, 409, "partitions_only_grow")
    assert "There are 8 partitions" in fewer.json()["detail"]
    assert await shop.row("SELECT count(*) FROM log_head") == 8


@pytest.mark.parametrize("number", [0, -1, 1025, "8", True, 1.5, None])
async def test_a_number_that_cannot_be_is_refused(shop: Shop, number: object) -> None:
    answer = await shop.http.put("/ops/partitions", json={"partitions": number}, headers=OPERATOR)

    refused(answer, 422, "validation_failed", "/partitions")


async def raised(shop: Shop, partitions: int) -> httpx.Response:
    return await shop.http.put("/ops/partitions", json={"partitions": partitions}, headers=OPERATOR)


async def spread_over(shop: Shop, partitions: int) -> bool:
    """Whether the process has noticed."""
    return shop.wiring.log.partitions == partitions
