"""Each payment fault does what it says: whether money moved, what the client sees, when it ends."""

import asyncio

import httpx
import pytest

from tests.integration.sandboxes.programs import Payments


async def test_latency_delays_the_answer(payments: Payments, order_id: str) -> None:
    await payments.faults(latency_ms=200)

    answer = await payments.charge(order_id)

    assert answer.elapsed.total_seconds() >= 0.2


async def test_charge_then_hang_takes_the_money_and_never_answers(payments: Payments, order_id: str) -> None:
    await payments.faults(charge_then_hang=True)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(payments.charge(order_id), 0.3)

    assert (await payments.row(order_id))["captured"] == 200
    again = await payments.charge(order_id)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")


async def test_a_hanging_answer_comes_late_when_the_fault_ends(payments: Payments, order_id: str) -> None:
    await payments.faults(charge_then_hang=True, for_s=0.3)

    answer = await payments.charge(order_id)

    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() >= 0.2


async def test_charge_then_reset_takes_money_and_connection(payments: Payments, order_id: str) -> None:
    await payments.faults(charge_then_reset=1)

    with pytest.raises(httpx.ReadError):
        await payments.charge(order_id)

    assert (await payments.row(order_id))["captured"] == 200
    assert (await payments.charge(order_id)).headers["idempotent-replayed"] == "true"


async def test_charge_then_500_lies_once_and_then_tells_the_truth(payments: Payments, order_id: str) -> None:
    await payments.faults(charge_then_500=1)

    first = await payments.charge(order_id)
    second = await payments.charge(order_id)

    assert (first.status_code, first.json()["error"]["type"]) == (500, "api_error")
    assert (second.status_code, second.json()["status"]) == (200, "succeeded")
    assert (await payments.row(order_id))["captured"] == 200


@pytest.mark.parametrize(
    ("fault", "member", "truth"),
    [
        ("charge_then_wrong_amount", "amount_received", 200),
        ("charge_then_wrong_currency", "currency", "eur"),
        ("charge_then_other_order", "metadata", {}),
    ],
)
async def test_a_spoilt_answer_lies_once_about_money_that_has_moved(
    payments: Payments, order_id: str, fault: str, member: str, truth: object
) -> None:
    await payments.faults(**{fault: True})

    lie = (await payments.charge(order_id)).json()
    again = (await payments.charge(order_id)).json()

    assert (lie["id"], lie["status"]) == (again["id"], "succeeded")
    assert lie[member] != again[member]
    assert again[member] == truth or again[member] == {"order_id": order_id}
    assert (await payments.row(order_id))["captured"] == 200


async def test_a_truncated_answer_is_half_of_the_true_one(payments: Payments, order_id: str) -> None:
    await payments.faults(charge_then_truncated=True)

    half = await payments.charge(order_id)
    whole = await payments.charge(order_id)

    assert half.status_code == 200
    assert half.content == whole.content[: len(whole.content) // 2]


async def test_a_dripping_answer_outlasts_every_wait_between_two_bytes(payments: Payments, order_id: str) -> None:
    await payments.faults(charge_then_drip=True, for_s=1.5)
    started = asyncio.get_running_loop().time()

    with pytest.raises(httpx.TransportError):
        await payments.charge(order_id)

    assert asyncio.get_running_loop().time() - started >= 1.4
    assert (await payments.charge(order_id)).headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(("fault", "status"), [("too_many", 429), ("bad_gateway", 502)])
async def test_who_is_turned_away_is_not_charged_and_the_key_stays_free(
    payments: Payments, order_id: str, fault: str, status: int
) -> None:
    await payments.faults(**{fault: True})

    turned_away = await payments.charge(order_id)
    await payments.faults()
    charged = await payments.charge(order_id)

    assert turned_away.status_code == status
    assert turned_away.headers.get("retry-after") == ("1" if status == 429 else None)
    assert charged.status_code == 200
    assert "idempotent-replayed" not in charged.headers


async def test_refuse_resets_before_anything_is_done(payments: Payments, order_id: str) -> None:
    await payments.faults(refuse=1)

    with pytest.raises(httpx.ReadError):
        await payments.charge(order_id)

    await payments.faults()
    items = (await payments.http.get("/_sandbox/ledger")).json()["items"]
    assert all(item["order_id"] != order_id for item in items)
    assert "idempotent-replayed" not in (await payments.charge(order_id)).headers


async def test_the_same_seed_makes_the_same_decisions(payments: Payments, order_id: str) -> None:
    rounds = []
    for number in range(2):
        await payments.faults(decline_rate=0.5, seed=7)
        answers = [await payments.charge(f"{order_id}-{number}-{index}") for index in range(20)]
        rounds.append([answer.status_code for answer in answers])

    assert rounds[0] == rounds[1]
    assert set(rounds[0]) == {200, 402}


async def test_a_lost_refund_is_learnt_with_its_key(payments: Payments, order_id: str) -> None:
    intent = (await payments.charge(order_id)).json()["id"]
    await payments.faults(charge_then_500=1)
    options = {"idempotency_key": f"{order_id}-refund"}

    with pytest.raises(Exception, match="unknown error"):
        await payments.refunds.create_async({"payment_intent": intent}, options)  # type: ignore[arg-type]
    refund = await payments.refunds.create_async({"payment_intent": intent}, options)  # type: ignore[arg-type]

    assert refund.status == "succeeded"
    assert (await payments.row(order_id))["refunded"] == 200


async def test_faults_are_shown_and_end_by_themselves(payments: Payments) -> None:
    await payments.faults(decline_rate=0.25, for_s=0.2)

    async def active() -> bool:
        return bool((await payments.http.get("/_sandbox/faults")).json()["active"])

    during = (await payments.http.get("/_sandbox/faults")).json()

    async with asyncio.timeout(5):
        while await active():
            await asyncio.sleep(0.02)

    assert (during["active"], during["decline_rate"]) == (True, 0.25)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_ms", -1),
        ("latency_ms", 1.5),
        ("latency_ms", True),
        ("decline_rate", 1.1),
        ("decline_rate", "0.5"),
        ("refuse", None),
        ("seed", "x"),
        ("for_s", 0),
        ("for_s", True),
        ("surprise", 1),
    ],
)
async def test_nonsense_is_refused_and_changes_nothing(payments: Payments, name: str, value: object) -> None:
    await payments.faults(latency_ms=1)

    answer = await payments.faults(**{name: value})

    assert (answer.status_code, answer.json()["field"]) == (422, name)
    assert (await payments.http.get("/_sandbox/faults")).json()["latency_ms"] == 1


async def test_the_page_shows_payments_and_sets_faults(payments: Payments, order_id: str) -> None:
    await payments.charge(order_id)

    posted = await payments.http.post("/faults", data={"latency_ms": "5", "decline_rate": "0.1", "seed": ""})
    page = await payments.http.get("/")
    wrong = await payments.http.post("/faults", data={"decline_rate": "7"})
    foreign = await payments.http.post("/faults", headers={"sec-fetch-site": "cross-site"})

    assert [posted.status_code, wrong.status_code, foreign.status_code] == [303, 422, 403]
    assert order_id in page.text
    assert "5 ms latency" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
