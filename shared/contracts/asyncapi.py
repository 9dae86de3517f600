"""The AsyncAPI 3.0 document: which streams there are, what is in them, and what a reader may rely on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from shared.contracts.envelope import Attributes
from shared.contracts.orders import EVENTS, MAJOR, schema_of

_SCHEMAS = "#/components/schemas"
_MESSAGES = "#/components/messages"
_CHANNEL = "#/channels/events"

Json = dict[str, Any]

DELIVERY = """\
Every event is committed in the same transaction as the change that it reports, and stays in a log. A
relay copies the log into one stream per service and partition; a service that was away for days finds
everything it missed.

**At least once.** An entry may come again, after a crash or after the stream was lost and written anew.
Drop an event whose `id` you have seen; what you remember of it must be committed together with what you
did about it.

**Order.** Within one partition in the order of the commits, so per order too, until something is
delivered again. `orderversion` counts an order's events: 1, 2, 3 … Apply an event only if its version is
newer than what you have.

**State, not change.** Each event carries the order as it was at its version: missing one loses no
information that the next one does not bring, and no reader has to call back.

**Entries.** The id of an entry is `<position>-0`; positions are dense (1, 2, 3 …), so a gap is a loss.
The one field `event` holds the event as structured-mode CloudEvents JSON. Entries are removed once the
service has settled them.

**Evolution.** Within a major version fields are only ever added, and only optional ones: ignore what you
do not know. A change that would break a reader gets a new major version at the end of `dataschema`. Keep
aside, do not drop, what has a type or a major version that you do not know: the version of your code
that knows it will want it.

**Money** is an integer in the currency's minor unit: 1999 is 19.99 EUR, 1999 JPY, and 1.999 KWD.
"""


def document(samples: Mapping[str, Json]) -> Json:
    """The document; `samples` are the golden samples by type."""
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Orderstream order events", "version": f"{MAJOR}.0.0", "description": DELIVERY},
        "defaultContentType": "application/cloudevents+json",
        "servers": {"streams": _server()},
        "channels": {"events": _channel()},
        "operations": {
            "publish": _operation("send", "Checkout's relay appends what the log has and the stream has not."),
            "consume": _operation("receive", "A service reads its own stream, with a consumer group of its name."),
        },
        "components": {
            "messages": {name: _message(name, samples[name]) for name in EVENTS},
            "schemas": _schemas(),
        },
    }


def _server() -> Json:
    return {
        "host": "{host}",
        "protocol": "redis",
        "description": "Redis 6.2 or newer, or Valkey. It may lose everything at any time: the log has it.",
        "variables": {"host": {"default": "localhost:6379", "description": "host and port"}},
    }


def _channel() -> Json:
    return {
        "address": "events:{service}:{partition}",
        "title": "The stream of one service and partition",
        "description": "Every service has its own, and each of them gets every event.",
        "parameters": {
            "service": {
                "description": "name of the subscribed service",
                "examples": ["email", "analytics", "warehouse"],
            },
            "partition": {
                "description": "0, 1, 2 …: all events of an order are in the same one",
                "default": "0",
            },
        },
        "messages": {name: {"$ref": f"{_MESSAGES}/{name}"} for name in EVENTS},
    }


def _operation(action: str, summary: str) -> Json:
    messages = [{"$ref": f"{_CHANNEL}/messages/{name}"} for name in EVENTS]
    return {"action": action, "channel": {"$ref": _CHANNEL}, "summary": summary, "messages": messages}


def _message(name: str, sample: Json) -> Json:
    model = EVENTS[name]
    own = {
        "type": {"const": name},
        "dataschema": {"const": schema_of(name)},
        "data": {"$ref": f"{_SCHEMAS}/{model.__name__}"},
    }
    payload = {
        "allOf": [
            {"$ref": f"{_SCHEMAS}/Attributes"},
            {"type": "object", "properties": own, "required": ["data"]},
        ]
    }
    return {
        "name": name,
        "title": model.__name__,
        "summary": model.__doc__,
        "payload": payload,
        "examples": [{"name": f"{name}.{MAJOR}", "payload": sample}],
    }


def _schemas() -> Json:
    models = [(model, "validation") for model in (Attributes, *EVENTS.values())]
    _, made = models_json_schema(models, ref_template=f"{_SCHEMAS}/{{model}}")  # type: ignore[arg-type]
    schemas: Json = made["$defs"]
    schemas["Attributes"]["required"].insert(0, "specversion")
    return schemas
