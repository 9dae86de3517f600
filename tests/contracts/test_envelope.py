"""What goes over the wire is CloudEvents, whoever reads it, and what is not gets one line that says why."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.contracts.documents import FOLDER, sample_file
from shared.contracts.envelope import UnreadableEvent, decode, encode, rfc3339
from shared.contracts.orders import EVENTS, ORDER_COMPLETED, ORDER_ENVELOPE, OrderCompleted

ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
INSTANTS = st.datetimes(
    min_value=datetime(2, 1, 1),  # noqa: DTZ001 - the strategy adds the zone
    max_value=datetime(9998, 12, 31),  # noqa: DTZ001
    timezones=ZONES,
)
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=100)
# JSON has one kind of number and most readers hold it in a double.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(INSTANTS)
def test_an_instant_is_written_in_utc_whatever_zone_it_came_in(instant: datetime) -> None:
    text = rfc3339(instant)

    assert datetime.fromisoformat(text) == instant
    assert len(text) == len("2026-01-31T09:15:00.123456Z")
    assert text.endswith("Z")


def test_an_event_from_another_time_zone_keeps_its_instant() -> None:
    raw = json.dumps({**_sample(), "time": "2026-01-31T11:15:00+02:00"})

    assert json.loads(encode(decode(raw)))["time"] == "2026-01-31T09:15:00.000000Z"


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_the_official_cloudevents_sdk_reads_our_bytes(name: str) -> None:
    sample = _sample(name)

    event = JSONFormat().read(CloudEvent, encode(decode(json.dumps(sample))))

    assert event.get_specversion() == "1.0"
    assert event.get_id() == sample["id"]
    assert event.get_source() == sample["source"]
    assert event.get_type() == name
    assert event.get_subject() == sample["subject"]
    assert event.get_time() == datetime.fromisoformat(sample["time"])
    assert event.get_datacontenttype() == "application/json"
    assert event.get_dataschema() == f"urn:orderstream:schema:{name}/1"
    assert event.get_extension("orderversion") == sample["orderversion"]
    assert event.get_data() == sample["data"]


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_we_read_what_the_official_cloudevents_sdk_writes(name: str) -> None:
    sample = _sample(name)
    attributes = {key: value for key, value in sample.items() if key != "data"}
    attributes["time"] = datetime.fromisoformat(sample["time"])

    raw = JSONFormat().write(CloudEvent(attributes, sample["data"]))

    assert decode(raw) == decode(json.dumps(sample))


@given(
    subject=WORDS,
    source=WORDS,
    data=st.dictionaries(st.text("xyz", min_size=1), JSON, max_size=4),
    time=INSTANTS,
)
def test_any_event_comes_back_as_it_was_sent(subject: str, source: str, data: dict[str, Any], time: datetime) -> None:
    raw = {**_sample(), "subject": subject, "source": source, "data": data, "time": time.isoformat()}
    event = decode(json.dumps(raw))

    again = decode(encode(event))

    assert again == event
    assert again.data == data


def test_an_absent_attribute_is_left_out_and_not_null() -> None:
    sample = _sample()
    sample.pop("traceparent", None)

    assert "traceparent" not in json.loads(encode(decode(json.dumps(sample))))


def test_readers_ignore_what_they_do_not_know() -> None:
    newer = _sample()
    newer["partitionkey"] = "a newer attribute"
    newer["data"] |= {"gift": True, "lines": [{**line, "tax": 19} for line in newer["data"]["lines"]]}

    known = ORDER_ENVELOPE.validate_json(json.dumps(newer))

    assert known.data == OrderCompleted.model_validate(_sample()["data"])
    assert decode(json.dumps(newer)).id == UUID(newer["id"])


@pytest.mark.parametrize(
    ("dataschema", "major"),
    [
        ("urn:orderstream:schema:order.completed/1", 1),
        ("urn:orderstream:schema:order.completed/12", 12),
        ("https://example.com/schemas/order.completed/2.1", 2),
        ("urn:orderstream:schema:order.completed/latest", 0),
        ("urn:orderstream:schema:order.completed", 0),
        ("urn:orderstream:schema:order.completed/-1", 0),
    ],
)
def test_the_major_version_is_the_end_of_the_schema(dataschema: str, major: int) -> None:
    assert decode(json.dumps({**_sample(), "dataschema": dataschema})).major == major


UNREADABLE: dict[str, tuple[str | bytes, str]] = {
    "nothing": (b"", "event: Invalid JSON"),
    "no JSON": (b"\x80\x04pickle", "event: Invalid JSON"),
    "half of an event": ('{"id": "019cadb5-', "event: Invalid JSON"),
    "a list": ("[]", "event: Input should be an object"),
    "null": ("null", "event: Input should be an object"),
    "a lone surrogate": (r'{"id": "\ud800"}', "event: Invalid JSON"),
    "UTF-16": ('{"id": 1}'.encode("utf-16"), "event: Invalid JSON"),
    "deep nesting": ("[" * 100_000, "event: Invalid JSON"),
}

WRONG: dict[str, tuple[str, object]] = {
    "an id that is no UUID": ("id", "42"),
    "another version of CloudEvents": ("specversion", "0.3"),
    "a number for a type": ("type", 5),
    "an empty type": ("type", ""),
    "an endless type": ("type", "x" * 101),
    "a NUL in the subject": ("subject", "ord_1\x00"),
    "a line break in the subject": ("subject", "ord_1\r\nBcc: x@example.com"),
    "a NUL in the type": ("type", "order.completed\x00"),
    "a time without a zone": ("time", "2026-01-31T09:15:00"),
    "a time that is none": ("time", "yesterday"),
    "data that are not JSON": ("datacontenttype", "application/xml"),
    "version 0": ("orderversion", 0),
    "half a version": ("orderversion", 1.5),
    "a version that no 32 bits hold": ("orderversion", 2**31),
    "a list for data": ("data", []),
    "text for data": ("data", "{}"),
    "null for data": ("data", None),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_bytes_that_are_no_event_are_refused_with_one_line(what: str) -> None:
    raw, complaint = UNREADABLE[what]

    with pytest.raises(UnreadableEvent, match=f"^{complaint}") as refusal:
        decode(raw)

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_attribute_is_named(what: str) -> None:
    attribute, value = WRONG[what]
    raw = json.dumps({**_sample(), attribute: value})

    with pytest.raises(UnreadableEvent, match=f"^{attribute}: "):
        decode(raw)
    with pytest.raises(ValidationError):
        ORDER_ENVELOPE.validate_json(raw)


@pytest.mark.parametrize("attribute", ["id", "source", "type", "subject", "time", "dataschema", "orderversion", "data"])
def test_a_missing_attribute_is_named(attribute: str) -> None:
    sample = _sample()
    del sample[attribute]

    with pytest.raises(UnreadableEvent, match=f"^{attribute}: Field required"):
        decode(json.dumps(sample))


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise_anything_but_unreadable(raw: bytes) -> None:
    with pytest.raises(UnreadableEvent):
        decode(raw)


@pytest.mark.parametrize("year", ["0001", "1970", "9999"])
def test_an_impossible_time_is_still_an_event(year: str) -> None:
    event = decode(json.dumps({**_sample(), "time": f"{year}-06-01T00:00:00Z"}))

    assert event.time == datetime(int(year), 6, 1, tzinfo=UTC)
    assert json.loads(encode(event))["time"] == f"{year}-06-01T00:00:00.000000Z"


def _sample(name: str = ORDER_COMPLETED) -> dict[str, Any]:
    sample: dict[str, Any] = json.loads((FOLDER / sample_file(name)).read_text())
    return sample
