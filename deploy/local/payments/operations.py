"""What each call of the API does: parameters in, ledger changed, answer out."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from deploy.local.payments import intents, pages, refunds
from deploy.local.payments.cards import find_card, refuse_number
from deploy.local.payments.currencies import CURRENCIES
from deploy.local.payments.errors import InvalidRequest, Missing, encode
from deploy.local.payments.events import EventType
from deploy.local.payments.events import render as render_event
from deploy.local.payments.faults import FaultPlan
from deploy.local.payments.form import (
    Form,
    flag,
    integer,
    mapping,
    refuse_unknown,
    required_text,
    strings,
    text,
)
from deploy.local.payments.idempotency import Claim
from deploy.local.payments.intents import Intent
from deploy.local.payments.ledger import Answer, Ledger
from deploy.local.payments.search import find

MAX_AMOUNT = 99_999_999  # Stripe's limit: eight digits
MAX_METADATA = 50
MAX_METADATA_NAME = 40
MAX_METADATA_VALUE = 500

CREATE = frozenset(
    {
        "allowed_payment_method_types",
        "amount",
        "automatic_payment_methods",
        "capture_method",
        "confirm",
        "confirmation_method",
        "currency",
        "description",
        "error_on_requires_action",
        "metadata",
        "off_session",
        "payment_method",
        "payment_method_types",
        "receipt_email",
        "return_url",
        "shipping",
        "statement_descriptor_suffix",
        "use_stripe_sdk",
    }
)
CONFIRM = frozenset(
    {
        "error_on_requires_action",
        "off_session",
        "payment_method",
        "receipt_email",
        "return_url",
        "use_stripe_sdk",
    }
)
EXPANDABLE = frozenset({"data.latest_charge"})
CANCEL = frozenset({"cancellation_reason"})
REFUND = frozenset({"amount", "charge", "metadata", "payment_intent", "reason"})
METHOD_LISTS = ("payment_method_types", "allowed_payment_method_types")  # the older name and the newer
CARD_NUMBER_FIELDS = ("card", "payment_method_data", "source")
OUTCOMES: dict[str, EventType] = {
    "succeeded": "payment_intent.succeeded",
    "requires_payment_method": "payment_intent.payment_failed",
    "requires_action": "payment_intent.requires_action",
}


@dataclass(slots=True)
class Call:
    """One authenticated request. `moved_money` is set by the operations whose answer a fault may lose."""

    ledger: Ledger
    faults: FaultPlan
    form: Form
    object_id: str
    claim: Claim | None
    origin: str
    moved_money: bool = False


Operation = Callable[[Call], Answer]


def create_intent(call: Call) -> Answer:
    form = call.form
    _refuse_card_data(form)
    refuse_unknown(form, CREATE)
    intent = intents.new_intent(_amount(form), _currency(form), _metadata(form), call.ledger.clock())
    _check_methods(form)
    intent.description = text(form, "description")
    intent.receipt_email = text(form, "receipt_email")
    _attach(intent, form)
    if flag(form, "confirm"):
        return _confirm(call, intent)
    if intent.payment_method is not None:
        intent.status = "requires_confirmation"
    return call.ledger.record_intent(intent, None, call.claim)


def confirm_intent(call: Call) -> Answer:
    _refuse_card_data(call.form)
    refuse_unknown(call.form, CONFIRM)
    intent = intents.evolve(call.ledger.intent(call.object_id))
    intents.require_state(intent, intents.CONFIRMABLE, "confirm")
    _attach(intent, call.form)
    return _confirm(call, intent)


def _confirm(call: Call, intent: Intent) -> Answer:
    intents.confirm(
        intent,
        challengeable=_challengeable(call.form),
        unlucky=call.faults.hits(call.faults.active.decline_rate),
        challenge_url=f"{call.origin}/3ds",
        return_url=_return_url(call.form),
    )
    call.moved_money = True
    return call.ledger.record_intent(intent, OUTCOMES[intent.status], call.claim)


def cancel_intent(call: Call) -> Answer:
    refuse_unknown(call.form, CANCEL)
    intent = intents.evolve(call.ledger.intent(call.object_id))
    intents.cancel(intent, text(call.form, "cancellation_reason"))
    return call.ledger.record_intent(intent, "payment_intent.canceled", call.claim)


def get_intent(call: Call) -> Answer:
    refuse_unknown(call.form, frozenset({"client_secret"}))
    return _answer(intents.render(call.ledger.intent(call.object_id)))


def list_intents(call: Call) -> Answer:
    page = pages.read_page(call.form, frozenset({"created", "expand"}))
    expand = strings(call.form, "expand")
    if not EXPANDABLE.issuperset(expand):
        raise InvalidRequest(f"This property cannot be expanded here: use {', '.join(EXPANDABLE)}.", param="expand")
    ledger = call.ledger
    within = pages.created_within(call.form, ledger.intents)
    found, more = pages.newest_first(ledger.intents, page, ledger.intent_position, lambda _intent: True, within)
    rendered = [intents.render_with_charge(intent) if expand else intents.render(intent) for intent in found]
    return _list("/v1/payment_intents", rendered, more=more)


def search_intents(call: Call) -> Answer:
    refuse_unknown(call.form, frozenset({"query", "limit", "page"}))
    found, next_page = find(
        call.ledger, required_text(call.form, "query"), pages.read_limit(call.form), text(call.form, "page")
    )
    body = {
        "object": "search_result",
        "data": [intents.render(intent) for intent in found],
        "has_more": next_page is not None,
        "next_page": next_page,
        "url": "/v1/payment_intents/search",
    }
    return _answer(body)


def get_charge(call: Call) -> Answer:
    """A charge is an intent seen from the card's side; its id differs in the prefix only."""
    refuse_unknown(call.form, frozenset())
    if not call.object_id.startswith("ch_3"):
        raise Missing("charge", call.object_id)
    intent = call.ledger.intent("pi_3" + call.object_id.removeprefix("ch_3"))
    if intent.charge is None:
        raise Missing("charge", call.object_id)
    return _answer(intents.render_charge(intent, intent.refunded))


def create_refund(call: Call) -> Answer:
    form = call.form
    refuse_unknown(form, REFUND)
    intent = call.ledger.intent(_refunded_intent(form), "payment_intent")
    amount = None if text(form, "amount") is None else _amount(form)
    refund = refunds.new_refund(intent, amount, text(form, "reason"), _metadata(form), call.ledger.clock())
    call.moved_money = True
    return call.ledger.record_refund(intent, refund, call.claim)


def get_refund(call: Call) -> Answer:
    refuse_unknown(call.form, frozenset())
    return _answer(refunds.render(call.ledger.refund(call.object_id)))


def list_refunds(call: Call) -> Answer:
    ledger = call.ledger
    page = pages.read_page(call.form, frozenset({"payment_intent"}))
    wanted = text(call.form, "payment_intent")
    if wanted is not None:
        ledger.intent(wanted, "payment_intent")
    found, more = pages.newest_first(
        ledger.refunds, page, ledger.refund_position, lambda refund: wanted in {None, refund.payment_intent}
    )
    return _list("/v1/refunds", [refunds.render(refund) for refund in found], more=more)


def get_event(call: Call) -> Answer:
    refuse_unknown(call.form, frozenset())
    event = call.ledger.event(call.object_id)
    return Answer(200, render_event(event, call.ledger.event_object(event)))


def list_events(call: Call) -> Answer:
    ledger = call.ledger
    page = pages.read_page(call.form, frozenset({"type"}))
    wanted = text(call.form, "type")
    found, more = pages.newest_first(
        ledger.events, page, ledger.event_position, lambda event: wanted in {None, event.type}
    )
    rendered = b",".join(render_event(event, ledger.event_object(event)) for event in found)
    head = encode({"object": "list", "url": "/v1/events", "has_more": more})[:-1].encode()
    return Answer(200, head + b',"data":[' + rendered + b"]}")


def _answer(body: dict[str, Any]) -> Answer:
    return Answer(200, encode(body).encode())


def _list(url: str, data: list[dict[str, Any]], *, more: bool) -> Answer:
    return _answer({"object": "list", "url": url, "has_more": more, "data": data})


def _amount(form: Form) -> int:
    return integer(required_text(form, "amount"), "amount", 1, MAX_AMOUNT)


def _currency(form: Form) -> str:
    currency = required_text(form, "currency").lower()
    if currency not in CURRENCIES:
        raise InvalidRequest(f"Invalid currency: {currency}", param="currency")
    return sys.intern(currency)


def _metadata(form: Form) -> dict[str, str]:
    metadata = mapping(form, "metadata")
    if len(metadata) > MAX_METADATA:
        raise InvalidRequest(f"Metadata can have up to {MAX_METADATA} keys", param="metadata")
    for name, value in metadata.items():
        if not name or len(name) > MAX_METADATA_NAME or len(value) > MAX_METADATA_VALUE:
            problem = f"names have up to {MAX_METADATA_NAME} characters, values up to {MAX_METADATA_VALUE}"
            raise InvalidRequest(f"Invalid metadata: {problem}", param="metadata")
    return metadata


def _check_methods(form: Form) -> None:
    """The sandbox is an account that takes cards and nothing else, captured at once."""
    methods = next((name for name in METHOD_LISTS if name in form), None)
    if methods is not None and strings(form, methods) != ["card"]:
        raise InvalidRequest("This account takes cards only.", param=methods)
    automatic = mapping(form, "automatic_payment_methods")
    refuse_unknown(dict(automatic), frozenset({"enabled", "allow_redirects"}))
    if methods == "payment_method_types" and automatic.get("enabled") == "true":
        message = "Specify one of automatic_payment_methods and payment_method_types."
        raise InvalidRequest(message, param="payment_method_types")
    if text(form, "capture_method") not in {None, "automatic", "automatic_async"}:
        raise InvalidRequest("The sandbox captures automatically only.", param="capture_method")
    if text(form, "confirmation_method") not in {None, "automatic"}:
        raise InvalidRequest("The sandbox confirms automatically only.", param="confirmation_method")


def _attach(intent: Intent, form: Form) -> None:
    payment_method = text(form, "payment_method")
    if payment_method is not None:
        find_card(payment_method)
        intent.payment_method = sys.intern(payment_method)


def _challengeable(form: Form) -> bool:
    """Whether there is a customer who could pass 3-D Secure now; else a card that wants it is declined."""
    if text(form, "off_session") in {"one_off", "recurring"}:
        return False
    return not flag(form, "off_session") and not flag(form, "error_on_requires_action")


def _return_url(form: Form) -> str | None:
    url = text(form, "return_url")
    if url is not None and urlsplit(url).scheme not in {"http", "https"}:
        raise InvalidRequest("Not a valid URL", code="url_invalid", param="return_url")
    return url


def _refuse_card_data(form: Form) -> None:
    for name in CARD_NUMBER_FIELDS:
        if name in form:
            refuse_number("0000000000000000")


def _refunded_intent(form: Form) -> str:
    charge = text(form, "charge")
    if charge is None:
        return required_text(form, "payment_intent")
    return "pi_3" + charge.removeprefix("ch_3")
