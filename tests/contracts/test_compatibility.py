"""The gate that keeps a contract from changing under those who rely on it really closes."""

import copy
import json
from collections.abc import Callable
from typing import Any

import jsoncompat
import pytest

from shared.contracts.compatibility import breaking_changes
from shared.contracts.documents import schemas
from shared.contracts.orders import EVENTS

Schema = dict[str, Any]
Change = Callable[[Schema], object]


def _drop(field: str) -> Change:
    def change(schema: Schema) -> None:
        del schema["properties"][field]
        schema["required"] = [name for name in schema["required"] if name != field]

    return change


def _within(part: str, change: Change) -> Change:
    return lambda schema: change(schema["$defs"][part])


def _set(field: str, **keywords: object) -> Change:
    return lambda schema: schema["properties"][field].update(keywords)


def _unset(field: str, keyword: str) -> Change:
    return lambda schema: schema["properties"][field].pop(keyword)


def _add(field: str, definition: object, *, required: bool = False) -> Change:
    def change(schema: Schema) -> None:
        schema["properties"][field] = definition
        schema["required"] = [*schema["required"], field] if required else schema["required"]

    return change


BREAKING: dict[str, tuple[Change, str]] = {
    "a required field is removed": (_drop("total"), "total: removed"),
    "an optional field is removed": (_drop("completed_at"), "completed_at: removed"),
    "a required field is added": (
        _add("channel", {"type": "string"}, required=True),
        "channel: added as required",
    ),
    "an optional field becomes required": (
        lambda schema: schema["required"].append("shipping_address"),
        "shipping_address: became required",
    ),
    "a required field becomes optional": (
        lambda schema: schema["required"].remove("tenant"),
        "tenant: became optional",
    ),
    "a type changes": (_set("total", type="string"), "total: type 'integer' became 'string'"),
    "a range narrows": (_set("total", maximum=1000), "total: maximum 1000000000000000 became 1000"),
    "a range widens": (_unset("total", "minimum"), "total: minimum 0 became (none)"),
    "a text is bounded": (_set("status", maxLength=5), "status: maxLength (none) became 5"),
    "a text gets a closed set of values": (
        _set("status", enum=["completed"]),
        "status: enum (none) became ['completed']",
    ),
    "a pattern changes": (_set("currency", pattern="^[a-z]{3}$"), "currency: pattern"),
    "a format is dropped": (_unset("created_at", "format"), "created_at: format 'date-time' became (none)"),
    "null is no longer allowed": (
        lambda schema: schema["properties"]["completed_at"].update(anyOf=[{"type": "string"}]),
        "completed_at: anyOf",
    ),
    "a field of a line is removed": (_within("Line", _drop("sku")), "lines[].sku: removed"),
    "a field of a line narrows": (
        _within("Line", _set("quantity", maximum=10)),
        "lines[].quantity: maximum (none) became 10",
    ),
    "a field of the customer is added as required": (
        _within("Customer", _add("phone", {"type": "string"}, required=True)),
        "customer.phone: added as required",
    ),
    "unknown fields are refused": (
        lambda schema: schema.update(additionalProperties=False),
        "event: additionalProperties (none) became False",
    ),
}

COMPATIBLE: dict[str, Change] = {
    "nothing": lambda _: None,
    "an optional field is added": _add("channel", {"type": "string"}),
    "an optional field is added to a line": _within("Line", _add("tax", {"type": "integer"})),
    "a description changes": _set("total", description="what the customer pays"),
    "a class is renamed": lambda schema: schema.update(
        json.loads(json.dumps(schema).replace("#/$defs/Line", "#/$defs/Position")),
        **{"$defs": {{"Line": "Position"}.get(name, name): part for name, part in schema["$defs"].items()}},
    ),
    "the order of the fields changes": lambda schema: schema.update(
        properties=dict(reversed(schema["properties"].items())), required=sorted(schema["required"])
    ),
}


@pytest.mark.parametrize("name", sorted(EVENTS))
@pytest.mark.parametrize("what", BREAKING)
def test_the_gate_closes_when(what: str, name: str) -> None:
    old = _schema(name)
    change, complaint = BREAKING[what]

    new = _changed(old, change)

    assert [line for line in breaking_changes(old, new) if line.startswith(complaint)]


@pytest.mark.parametrize("name", sorted(EVENTS))
@pytest.mark.parametrize("what", COMPATIBLE)
def test_the_gate_stays_open_when(what: str, name: str) -> None:
    old = _schema(name)

    assert breaking_changes(old, _changed(old, COMPATIBLE[what])) == []


@pytest.mark.parametrize("values", [["a", "b", "c"], ["a"], ["a", "c"]])
def test_the_gate_closes_when_a_closed_set_of_values_changes(values: list[str]) -> None:
    old = {"type": "object", "properties": {"size": {"enum": ["a", "b"]}}}

    assert breaking_changes(old, {"type": "object", "properties": {"size": {"enum": values}}})
    assert not breaking_changes(old, {"type": "object", "properties": {"size": {"enum": ["b", "a"]}}})


# To jsoncompat patterns and formats say nothing.
@pytest.mark.parametrize("what", sorted({*BREAKING, *COMPATIBLE} - {"a format is dropped", "a pattern changes"}))
def test_an_independent_judge_agrees(what: str) -> None:
    # It counts a new optional field as a break (who knows what it held before), so it is not shown those.
    old = _schema("order.refunded")
    del old["$id"]  # jsoncompat would look for it elsewhere
    new = _changed(old, BREAKING[what][0] if what in BREAKING else COMPATIBLE[what])

    verdict = jsoncompat.check_compat(json.dumps(old), json.dumps(_without_new_options(old, new)), "both")

    assert verdict is (what in COMPATIBLE)


def test_a_field_may_be_called_like_a_keyword() -> None:
    old = {"type": "object", "properties": {"description": {"type": "string"}, "title": {"type": "string"}}}
    new = {"type": "object", "properties": {"description": {"type": "integer"}}}

    assert breaking_changes(old, new) == [
        "description: type 'string' became 'integer'",
        "title: removed",
    ]


def _schema(name: str) -> Schema:
    return copy.deepcopy(schemas()[f"schemas/{name}.1.json"])


def _changed(old: Schema, change: Change) -> Schema:
    new = copy.deepcopy(old)
    change(new)
    return new


def _without_new_options(old: Schema, new: Schema) -> Schema:
    new = copy.deepcopy(new)
    pairs = [(old, new)] + [(part, new["$defs"][name]) for name, part in old["$defs"].items() if name in new["$defs"]]
    for before, after in pairs:
        for field in after["properties"].keys() - before["properties"].keys():
            if field not in after["required"]:
                del after["properties"][field]
    return new
