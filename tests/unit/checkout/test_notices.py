"""Who signed a webhook is checked over every byte of it, and what it says is read as a hint."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.payments.webhooks import sign
from services.checkout.payments.notices import NotGenuineError, notice_of, verify

SECRET, OLD_SECRET = "whsec_new", "whsec_old"
NOW = datetime(2026, 3, 2, 8, 41, 0, tzinfo=UTC)
BODY = b'{"id": "evt_1"}'
EVENT: dict[str, Any] = {
    "id": "evt_1",
    "type": "payment_intent.succeeded",
    "data": {"object": {"id": "pi_1", "object": "payment_intent", "amount": 1, "metadata": {"order_id": "ord_1"}}},
}


def signed(body: bytes = BODY, secret: str = SECRET, at: datetime = NOW) -> str:
    return sign(body, secret, at.timestamp())


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
def test_while_secrets_are_exchanged_either_is_good(secret: str) -> None:
    verify(BODY, signed(secret=secret), [SECRET, OLD_SECRET], NOW)


def test_one_good_signature_of_several_is_enough() -> None:
    stamp, digest = signed().split(",")

    verify(BODY, f"{stamp},v1={'0' * 64},{digest},v0={'0' * 64}", [SECRET], NOW)


@pytest.mark.parametrize("seconds", [-300, 0, 300])
def test_a_clock_may_be_five_minutes_off_either_way(seconds: int) -> None:
    verify(BODY, signed(at=NOW + timedelta(seconds=seconds)), [SECRET], NOW)


STAMP, DIGEST = signed().split(",")
BAD = {
    "nothing": "",
    "no time": DIGEST,
    "no signature": STAMP,
    "two times": f"{STAMP},{STAMP},{DIGEST}",
    "a time that is none": DIGEST.replace("v1", "t=now,v1"),
    "a time with a sign": f"t=+{STAMP[2:]},{DIGEST}",
    "a time with a gap": f"t={STAMP[2:4]}_{STAMP[4:]},{DIGEST}",
    "a time without end": f"t={'9' * 4000},{DIGEST}",
    "another version only": f"{STAMP},{DIGEST.replace('v1', 'v0')}",
    "an empty signature": f"{STAMP},v1=",
    "half a signature": f"{STAMP},{DIGEST[:35]}",
    "a signature in capitals": f"{STAMP},v1={DIGEST[3:].upper()}",
    "letters that are none": f"{STAMP},v1={'é' * 32}",
    "another's secret": signed(secret="whsec_another"),
    "an empty secret": signed(secret=""),
    "five minutes and a second ago": signed(at=NOW - timedelta(seconds=301)),
    "an hour ago": signed(at=NOW - timedelta(hours=1)),
    "five minutes and a second ahead": signed(at=NOW + timedelta(seconds=301)),
    "a new time on an old signature": signed(at=NOW - timedelta(hours=1)).replace(
        str(int((NOW - timedelta(hours=1)).timestamp())), str(int(NOW.timestamp()))
    ),
}


@pytest.mark.parametrize("header", BAD.values(), ids=BAD)
def test_what_is_not_signed_right_is_refused(header: str) -> None:
    with pytest.raises(NotGenuineError):
        verify(BODY, header, [SECRET, OLD_SECRET], NOW)


def test_without_a_secret_nothing_is_genuine() -> None:
    with pytest.raises(NotGenuineError):
        verify(BODY, signed(secret=""), [], NOW)


@given(st.binary(min_size=1, max_size=200), st.data())
def test_no_byte_of_the_body_can_be_changed(body: bytes, data: st.DataObject) -> None:
    header = signed(body)
    place = data.draw(st.integers(0, len(body) - 1))
    flipped = body[:place] + bytes([body[place] ^ data.draw(st.integers(1, 255))]) + body[place + 1 :]

    verify(body, header, [SECRET], NOW)
    with pytest.raises(NotGenuineError):
        verify(flipped, header, [SECRET], NOW)


@given(st.text(max_size=100))
def test_the_providers_own_library_signs_what_we_take(payload: str) -> None:
    stamp = int(NOW.timestamp())
    digest = stripe.WebhookSignature._compute_signature(f"{stamp}.{payload}", SECRET)

    verify(payload.encode(), f"t={stamp},v1={digest}", [SECRET], NOW)


def test_an_event_of_a_payment_names_its_order() -> None:
    notice = notice_of(EVENT)

    assert notice is not None
    assert (notice.event_id, notice.order_id, notice.reference, notice.paid) == ("evt_1", "ord_1", "pi_1", True)


@pytest.mark.parametrize("kind", ["payment_intent.payment_failed", "payment_intent.canceled"])
def test_an_event_of_a_failure_is_a_notice_that_says_nothing_of_money(kind: str) -> None:
    notice = notice_of({**EVENT, "type": kind})

    assert notice is not None
    assert not notice.paid


@pytest.mark.parametrize(
    "event",
    [
        {**EVENT, "type": "customer.created", "data": {"object": {"id": "cus_1"}}},
        {**EVENT, "type": "invented.yesterday", "data": None},
        {**EVENT, "data": {"object": {"id": "pi_1", "metadata": {}}}},
    ],
    ids=["of something else", "of a type that nobody knows", "of a payment that is not ours"],
)
def test_other_events_are_nothing_to_us(event: object) -> None:
    assert notice_of(event) is None


@pytest.mark.parametrize(
    "event",
    [None, [], "evt_1", {}, {"id": 1, "type": "x"}, {**EVENT, "id": ""}, {**EVENT, "data": {}}],
    ids=json.dumps,
)
def test_what_is_no_event_is_called_so(event: object) -> None:
    with pytest.raises(ValueError, match="not an event"):
        notice_of(event)
