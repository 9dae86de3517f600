"""The official Stripe SDK charges, looks up and refunds against the payment sandbox."""

import asyncio

import httpx
import pytest
import stripe
from stripe.params import PaymentIntentCreateParams

from tests.integration.sandboxes.programs import SECRET_KEY, Payments


def charge_of(order_id: str, payment_method: str = "pm_card_visa", amount: int = 1_050) -> PaymentIntentCreateParams:
    return {
        "amount": amount,
        "currency": "eur",
        "confirm": True,
        "payment_method": payment_method,
        "allowed_payment_method_types": ["card"],
        "metadata": {"order_id": order_id, "tenant": "ten_1"},
    }


async def test_a_good_card_is_charged_in_one_call(payments: Payments, order_id: str) -> None:
    intent = await payments.intents.create_async(
        charge_of(order_id), {"idempotency_key": order_id, "stripe_version": "2025-03-31.basil"}
    )

    assert (intent.status, intent.amount_received, intent.metadata["order_id"]) == (
        "succeeded",
        1_050,
        order_id,
    )
    assert intent.last_response is not None
    assert intent.last_response.headers["stripe-version"] == "2025-03-31.basil"
    assert await payments.row(order_id) == {
        "payment_intent": intent.id,
        "order_id": order_id,
        "tenant": "ten_1",
        "amount": 1_050,
        "currency": "eur",
        "status": "succeeded",
        "captured": 1_050,
        "refunded": 0,
        "idempotency_key": order_id,
        "created": intent.created,
    }


@pytest.mark.parametrize(
    ("payment_method", "code", "decline_code"),
    [
        ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_visa_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_visa_chargeDeclinedLostCard", "card_declined", "lost_card"),
        ("pm_card_visa_chargeDeclinedStolenCard", "card_declined", "stolen_card"),
        ("pm_card_visa_chargeDeclinedVelocityLimitExceeded", "card_declined", "card_velocity_exceeded"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", "expired_card"),
        ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc", "incorrect_cvc"),
        ("pm_card_chargeDeclinedProcessingError", "processing_error", "processing_error"),
    ],
)
async def test_a_bad_card_is_declined_with_its_code(
    payments: Payments, order_id: str, payment_method: str, code: str, decline_code: str
) -> None:
    with pytest.raises(stripe.CardError) as caught:
        await payments.intents.create_async(charge_of(order_id, payment_method))

    error = caught.value.error
    assert error is not None
    assert (caught.value.http_status, error.code, error.decline_code) == (402, code, decline_code)
    assert error.payment_intent is not None
    assert error.payment_intent.status == "requires_payment_method"
    assert (await payments.row(order_id))["captured"] == 0


async def test_a_declined_intent_is_paid_with_another_card(payments: Payments, order_id: str) -> None:
    with pytest.raises(stripe.CardError) as caught:
        await payments.intents.create_async(charge_of(order_id, "pm_card_visa_chargeDeclined"))
    assert caught.value.error is not None
    assert caught.value.error.payment_intent is not None
    intent_id = caught.value.error.payment_intent.id

    intent = await payments.intents.confirm_async(intent_id, {"payment_method": "pm_card_mastercard"})

    assert intent.status == "succeeded"
    assert (await payments.row(order_id))["captured"] == 1_050


async def test_an_order_is_found_by_its_metadata(payments: Payments, order_id: str) -> None:
    intent = await payments.intents.create_async(charge_of(order_id))

    query = f"metadata['order_id']:'{order_id}' AND status:'succeeded'"
    found = await payments.intents.search_async({"query": query})
    other = await payments.intents.search_async({"query": f"metadata['order_id']:'{order_id}x'"})

    assert [item.id for item in found.data] == [intent.id]
    assert other.data == []


async def test_lists_page_from_the_newest_to_the_oldest(payments: Payments, order_id: str) -> None:
    made = [(await payments.intents.create_async(charge_of(f"{order_id}-{number}"))).id for number in range(5)]

    first = await payments.intents.list_async({"limit": 2})
    second = await payments.intents.list_async({"limit": 3, "starting_after": first.data[-1].id})

    assert [item.id for item in [*first.data, *second.data]] == made[::-1]
    assert first.has_more


async def test_a_list_keeps_to_its_time_and_shows_what_was_given_back(payments: Payments, order_id: str) -> None:
    intent = await payments.intents.create_async(charge_of(order_id))
    await payments.refunds.create_async({"payment_intent": intent.id, "amount": 50})
    at = intent.created

    within = await payments.intents.list_async(
        {"created": {"gte": at, "lte": at}, "limit": 100, "expand": ["data.latest_charge"]}
    )
    before = await payments.intents.list_async({"created": {"lt": at}, "limit": 100})
    after = await payments.intents.list_async({"created": {"gt": at}})

    seen = {item.id: item for item in within.data}
    charge = seen[intent.id].latest_charge
    assert isinstance(charge, stripe.Charge)
    assert (charge.amount_captured, charge.amount_refunded) == (1_050, 50)
    assert all(item.created == at for item in within.data)
    assert intent.id not in {item.id for item in [*before.data, *after.data]}


@pytest.mark.parametrize(
    "query", ["created[gte]=yesterday", "created[about]=1", "created=1", "expand[]=data.customer", "expand=x"]
)
async def test_a_list_that_cannot_be_meant_is_refused(payments: Payments, query: str) -> None:
    answer = await payments.http.get(f"/v1/payment_intents?{query}", headers={"authorization": f"Bearer {SECRET_KEY}"})

    assert answer.status_code == 400


async def test_refunds_add_up_to_the_captured_amount_at_most(payments: Payments, order_id: str) -> None:
    intent = await payments.intents.create_async(charge_of(order_id))
    part = await payments.refunds.create_async({"payment_intent": intent.id, "amount": 50})

    with pytest.raises(stripe.InvalidRequestError) as too_much:
        await payments.refunds.create_async({"payment_intent": intent.id, "amount": 1_001})
    rest = await payments.refunds.create_async({"payment_intent": intent.id})
    with pytest.raises(stripe.InvalidRequestError) as again:
        await payments.refunds.create_async({"payment_intent": intent.id, "amount": 1})

    assert (part.amount, rest.amount, rest.status) == (50, 1_000, "succeeded")
    assert (too_much.value.code, too_much.value.param) == ("amount_too_large", "amount")
    assert again.value.code == "charge_already_refunded"
    assert (await payments.row(order_id))["refunded"] == 1_050
    listed = await payments.refunds.list_async({"payment_intent": intent.id})
    assert [refund.id for refund in listed.data] == [rest.id, part.id]
    assert (await payments.refunds.retrieve_async(part.id)).amount == 50


async def test_concurrent_refunds_never_exceed_what_was_taken(payments: Payments, order_id: str) -> None:
    intent = await payments.intents.create_async(charge_of(order_id, amount=500))

    answers = await asyncio.gather(
        *(payments.refunds.create_async({"payment_intent": intent.id, "amount": 200}) for _ in range(5)),
        return_exceptions=True,
    )

    assert sum(isinstance(answer, stripe.Refund) for answer in answers) == 2
    assert (await payments.row(order_id))["refunded"] == 400


async def test_an_unpaid_intent_is_cancelled_and_a_paid_one_is_not(payments: Payments, order_id: str) -> None:
    unpaid = await payments.intents.create_async({"amount": 100, "currency": "eur"})
    paid = await payments.intents.create_async(charge_of(order_id))

    cancelled = await payments.intents.cancel_async(unpaid.id)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await payments.intents.cancel_async(paid.id)

    assert cancelled.status == "canceled"
    assert refused.value.code == "payment_intent_unexpected_state"


@pytest.mark.parametrize("outcome", ["complete", "fail"])
async def test_3d_secure_waits_for_the_customer(payments: Payments, order_id: str, outcome: str) -> None:
    intent = await payments.intents.create_async(charge_of(order_id, "pm_card_authenticationRequired"))
    assert (intent.status, (await payments.row(order_id))["captured"]) == ("requires_action", 0)
    assert intent.client_secret is not None
    assert intent.next_action is not None
    assert intent.next_action.redirect_to_url is not None
    page = intent.next_action.redirect_to_url.url
    assert page is not None

    challenge = await payments.http.get(page)
    await payments.http.post(page, data={"client_secret": intent.client_secret, "outcome": outcome})

    assert "Complete authentication" in challenge.text
    after = await payments.intents.retrieve_async(intent.id)
    if outcome == "complete":
        assert (after.status, after.amount_received) == ("succeeded", 1_050)
    else:
        assert after.last_payment_error is not None
        assert after.last_payment_error.code == "payment_intent_authentication_failure"


async def test_a_challenge_is_decided_once_and_with_its_secret(payments: Payments, order_id: str) -> None:
    intent = await payments.intents.create_async(charge_of(order_id, "pm_card_threeDSecureRequired"))

    stranger = await payments.http.post(f"/3ds/{intent.id}", data={"client_secret": "guess", "outcome": "complete"})
    first = await payments.http.post(f"/_sandbox/3ds/{intent.id}", json={"outcome": "complete"})
    second = await payments.http.post(f"/_sandbox/3ds/{intent.id}", json={"outcome": "fail"})

    assert [stranger.status_code, first.status_code, second.status_code] == [404, 200, 400]
    assert (await payments.row(order_id))["status"] == "succeeded"


async def test_without_the_customer_3d_secure_is_a_decline(payments: Payments, order_id: str) -> None:
    with pytest.raises(stripe.CardError) as caught:
        await payments.intents.create_async(
            {**charge_of(order_id, "pm_card_authenticationRequired"), "off_session": True}
        )

    assert caught.value.code == "authentication_required"


@pytest.mark.parametrize("authorization", ["", "Bearer sk_test_other", "Basic c2s6", "Bearer"])
async def test_without_the_key_nothing_is_done(payments: Payments, order_id: str, authorization: str) -> None:
    answer = await payments.http.post(
        "/v1/payment_intents",
        data={"amount": "1", "currency": "eur", "metadata[order_id]": order_id},
        headers={"authorization": authorization} if authorization else {},
    )

    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "invalid_request_error")
    items = (await payments.http.get("/_sandbox/ledger")).json()["items"]
    assert all(item["order_id"] != order_id for item in items)


async def test_the_secret_key_works_as_basic_user_too(payments: Payments) -> None:
    answer = await payments.http.get("/v1/payment_intents", auth=httpx.BasicAuth(SECRET_KEY, ""))

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "name", ["payment_method_types[]", "payment_method_types[0]", "allowed_payment_method_types[]"]
)
async def test_older_and_newer_names_of_a_parameter_work(payments: Payments, order_id: str, name: str) -> None:
    answer = await payments.charge(order_id, **{name: "card"})

    assert (answer.status_code, answer.json()["payment_method_types"]) == (200, ["card"])


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"amount": "0"}, "amount"),
        ({"amount": "-5"}, "amount"),
        ({"amount": "1.5"}, "amount"),
        ({"amount": "100000000"}, "amount"),
        ({"amount": "9" * 5_000}, "amount"),
        ({"currency": "xxx"}, "currency"),
        ({"payment_method": "pm_card_unheard_of"}, "payment_method"),
        ({"payment_method": "4242424242424242"}, "payment_method"),
        ({"payment_method_data[card][number]": "4242424242424242"}, "payment_method"),
        ({"payment_method_types[]": "sepa_debit"}, "payment_method_types"),
        ({"confirm": "yes"}, "confirm"),
        ({"return_url": "javascript:alert(1)"}, "return_url"),
        ({"metadata[x]": "v" * 501}, "metadata"),
        ({"surprise": "1"}, "surprise"),
    ],
)
async def test_wrong_parameters_are_named_and_nothing_is_charged(
    payments: Payments, order_id: str, form: dict[str, str], param: str
) -> None:
    answer = await payments.charge(order_id, **form)

    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert "4242" not in answer.text
    assert (await payments.charge(order_id)).status_code == 200, "a refused request leaves its key free"


async def test_a_body_over_64_kib_is_refused(payments: Payments, order_id: str) -> None:
    answer = await payments.charge(order_id, description="x" * 70_000)

    assert answer.status_code == 413


async def test_an_unknown_address_and_an_unknown_id_are_404(payments: Payments) -> None:
    headers = {"authorization": f"Bearer {SECRET_KEY}"}
    answers = [
        await payments.http.get(path, headers=headers)
        for path in (
            "/v1/customers",
            "/v1/payment_intents/pi_none",
            "/v1/refunds/re_none",
            "/v1/events/evt_none",
        )
    ]

    assert [answer.status_code for answer in answers] == [404] * 4
    assert answers[1].json()["error"]["code"] == "resource_missing"
