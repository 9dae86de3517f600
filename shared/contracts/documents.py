"""The committed documents: the JSON Schemas and the AsyncAPI document, made from the models.

The golden samples are not made: each is an event as it was once written, and stays readable for ever.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.contracts import asyncapi
from shared.contracts.compatibility import breaking_changes
from shared.contracts.envelope import Envelope
from shared.contracts.orders import EVENTS, MAJOR, SCHEMA_BASE, schema_of

FOLDER = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ENVELOPE_FILE = "schemas/envelope.json"
ASYNCAPI_FILE = "asyncapi.json"

Document = dict[str, Any]


def documents() -> dict[str, Document]:
    """Every document, by its path below this folder."""
    samples = {name: json.loads((FOLDER / sample_file(name)).read_text()) for name in EVENTS}
    return {**schemas(), ASYNCAPI_FILE: asyncapi.document(samples)}


def schemas() -> dict[str, Document]:
    """The JSON Schema of the envelope, and of the data of each type, by file."""
    made = {schema_file(name): _schema(schema_of(name), model) for name, model in EVENTS.items()}
    envelope = _schema(f"{SCHEMA_BASE}:envelope/1", Envelope)
    # Our reader forgives a missing one; whoever writes has to say it.
    envelope["required"] = ["specversion", *envelope["required"]]
    return {ENVELOPE_FILE: envelope, **made}


def schema_file(wire_name: str) -> str:
    """Where the schema of a type's data is kept."""
    return f"schemas/{wire_name}.{MAJOR}.json"


def sample_file(wire_name: str) -> str:
    """Where the golden sample of a type is kept."""
    return f"samples/{wire_name}.{MAJOR}.json"


def as_text(document: Document) -> str:
    """A document as it is committed."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def refusals() -> list[str]:
    """What the models changed that is not allowed under the committed major version; empty if nothing."""
    return [
        f"{path}: {change}"
        for path, schema in schemas().items()
        if (FOLDER / path).exists()
        for change in breaking_changes(json.loads((FOLDER / path).read_text()), schema)
    ]


def _schema(identity: str, model: type[Any]) -> Document:
    return {"$schema": DIALECT, "$id": identity, **model.model_json_schema()}
