"""The committed documents say what the code does, and the golden samples are what they describe."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from shared.contracts import __main__ as generator
from shared.contracts.documents import (
    ASYNCAPI_FILE,
    ENVELOPE_FILE,
    FOLDER,
    as_text,
    documents,
    refusals,
    sample_file,
    schema_file,
)
from shared.contracts.envelope import decode, encode
from shared.contracts.orders import EVENTS, MAJOR, ORDER_ENVELOPE, schema_of

ASYNCAPI_SCHEMA = Path(__file__).with_name("asyncapi-3.0.0.schema.json")
TYPES = sorted(EVENTS)


@pytest.mark.parametrize("path", sorted(documents()))
def test_the_committed_document_is_what_the_generator_makes(path: str) -> None:
    assert (FOLDER / path).read_text() == as_text(documents()[path]), "run make contracts"


def test_nothing_is_committed_that_nobody_makes() -> None:
    committed = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.json")}

    # An old major version stays for as long as somebody writes it, so only the present ones are known here.
    assert {path for path in committed if f".{MAJOR}." in path or "." not in Path(path).stem} == {
        *documents(),
        *(sample_file(name) for name in TYPES),
    }


def test_the_models_fit_the_committed_schemas_of_their_major_version() -> None:
    assert refusals() == []


@pytest.mark.parametrize("name", TYPES)
def test_a_golden_sample_fits_the_schemas(name: str) -> None:
    sample = _read(sample_file(name))

    _validator(ENVELOPE_FILE).validate(sample)
    _validator(schema_file(name)).validate(sample["data"])


@pytest.mark.parametrize("name", TYPES)
def test_a_golden_sample_is_read_in_one_pass_and_in_two(name: str) -> None:
    raw = (FOLDER / sample_file(name)).read_text()

    envelope, known = decode(raw), ORDER_ENVELOPE.validate_json(raw)

    assert (envelope.type, envelope.major, envelope.dataschema) == (name, MAJOR, schema_of(name))
    assert type(known.data) is EVENTS[name]
    assert known.data == EVENTS[name].model_validate(envelope.data)
    assert known.data.order_id == envelope.subject
    assert known.data.version == envelope.orderversion


@pytest.mark.parametrize("name", TYPES)
def test_a_golden_sample_comes_out_as_it_went_in(name: str) -> None:
    sample = _read(sample_file(name))

    assert json.loads(encode(decode(json.dumps(sample)))) == sample


@pytest.mark.parametrize("name", TYPES)
def test_a_golden_sample_adds_up(name: str) -> None:
    data = _read(sample_file(name))["data"]

    assert all(line["subtotal"] == line["quantity"] * line["unit_price"] for line in data["lines"])
    assert data["total"] == sum(line["subtotal"] for line in data["lines"])
    assert 0 <= data["refunded_total"] <= data["total"]


def test_the_samples_show_currencies_without_and_with_three_decimals() -> None:
    assert {_read(sample_file(name))["data"]["currency"] for name in TYPES} >= {"EUR", "JPY", "KWD"}


@pytest.mark.parametrize("name", TYPES)
def test_the_schema_refuses_what_the_model_refuses(name: str) -> None:
    data = _read(sample_file(name))["data"]
    validator = _validator(schema_file(name))

    for broken in (
        {**data, "total": -1},
        {**data, "currency": "eur"},
        {**data, "lines": []},
        {**data, "version": 0},
        {field: value for field, value in data.items() if field != "customer"},
    ):
        assert not validator.is_valid(broken)
        with pytest.raises(ValueError, match="validation error"):
            EVENTS[name].model_validate(broken)


def test_the_asyncapi_document_fits_asyncapis_own_schema() -> None:
    validator = jsonschema_rs.validator_for(json.loads(ASYNCAPI_SCHEMA.read_text()))
    document = _read(ASYNCAPI_FILE)

    validator.validate(document)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("asyncapi",), "2.6.0"),
        (("operations", "publish", "action"), "shout"),
        (("operations", "publish", "channel"), "events"),
        (("servers", "streams"), {"protocol": "redis"}),
        (("components", "messages", "order.completed", "contentTypo"), "application/json"),
    ],
)
def test_asyncapis_own_schema_sees_a_mistake(place: tuple[str, ...], value: object) -> None:
    validator = jsonschema_rs.validator_for(json.loads(ASYNCAPI_SCHEMA.read_text()))
    document = _read(ASYNCAPI_FILE)
    target = document
    for step in place[:-1]:
        target = target[step]

    target[place[-1]] = value

    assert not validator.is_valid(document)


def test_every_reference_in_the_asyncapi_document_leads_somewhere() -> None:
    document = _read(ASYNCAPI_FILE)

    for reference in _references(document):
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


@pytest.mark.parametrize("name", TYPES)
def test_an_asyncapi_message_describes_its_sample_and_no_other(name: str) -> None:
    document = _read(ASYNCAPI_FILE)
    schema = {**document["components"]["messages"][name]["payload"], "components": document["components"]}
    validator = jsonschema_rs.validator_for(schema)

    fitting = [other for other in TYPES if validator.is_valid(_read(sample_file(other)))]

    assert fitting == [name]


def test_the_generator_writes_what_is_missing_and_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _copy_documents(tmp_path, monkeypatch)
    (tmp_path / ASYNCAPI_FILE).unlink()

    generator.main()
    generator.main()

    assert capsys.readouterr().out == f"{ASYNCAPI_FILE}\n"


def test_the_generator_refuses_to_overwrite_a_schema_with_an_incompatible_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _copy_documents(tmp_path, monkeypatch)
    path = tmp_path / schema_file("order.completed")
    schema = json.loads(path.read_text())
    schema["properties"]["channel"] = {"type": "string"}
    path.write_text(json.dumps(schema))

    with pytest.raises(SystemExit) as refusal:
        generator.main()

    assert str(refusal.value).splitlines() == [
        "schemas/order.completed.1.json: channel: removed",
        "Incompatible: keep what is there, or raise MAJOR in shared/contracts/orders.py.",
    ]
    assert "channel" in path.read_text()


def _copy_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in FOLDER.rglob("*.json"):
        copy = folder / path.relative_to(FOLDER)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text())
    monkeypatch.setattr("shared.contracts.documents.FOLDER", folder)
    monkeypatch.setattr(generator, "FOLDER", folder)


def _read(path: str) -> Any:
    return json.loads((FOLDER / path).read_text())


def _validator(path: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(_read(path), validate_formats=True)


def _references(document: object) -> list[str]:
    if isinstance(document, list):
        return [found for item in document for found in _references(item)]
    if not isinstance(document, dict):
        return []
    own = [document["$ref"]] if isinstance(document.get("$ref"), str) else []
    return own + [found for item in document.values() for found in _references(item)]
