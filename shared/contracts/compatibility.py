"""Whether a JSON Schema may follow another one under the same major version.

Writers and readers are deployed one at a time, and the log keeps old events: old readers read new events, new
readers read old ones. So within a major version nothing may change but what both sides ignore:
descriptions and new optional fields. Anything else is a new major version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated"}
_BY_FIELD = {"properties", "required"}

Schema = Mapping[str, Any]


def breaking_changes(old: Schema, new: Schema) -> list[str]:
    """One line per change that would break a reader or a writer of the old schema; empty if there is none."""
    return _compare(_resolved(old, old), _resolved(new, new), "")


def _compare(old: Schema, new: Schema, place: str) -> list[str]:
    changes = _compare_fields(old, new, place)
    for keyword in sorted((old.keys() | new.keys()) - _BY_FIELD):
        before, after = old.get(keyword), new.get(keyword)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += _compare(before, after, f"{place}[]")
        elif before != after:
            changes.append(f"{place or 'event'}: {keyword} {_shown(before)} became {_shown(after)}")
    return changes


def _compare_fields(old: Schema, new: Schema, place: str) -> list[str]:
    fields, fields_now = old.get("properties", {}), new.get("properties", {})
    required, required_now = set(old.get("required", ())), set(new.get("required", ()))
    path = {name: f"{place}.{name}".lstrip(".") for name in fields | fields_now}
    changes = [f"{path[name]}: removed" for name in fields if name not in fields_now]
    changes += [f"{path[name]}: added as required" for name in fields_now if name in required_now - fields.keys()]
    for name in fields.keys() & fields_now.keys():
        if (name in required) != (name in required_now):
            changes.append(f"{path[name]}: became {'required' if name in required_now else 'optional'}")
        changes += _compare(fields[name], fields_now[name], path[name])
    return sorted(changes)


def _resolved(schema: Any, root: Schema) -> Any:  # noqa: ANN401 - any JSON
    """The schema without annotations, and what it refers to in place: class names are nobody's contract."""
    if isinstance(schema, list):
        return [_resolved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    kept = {name: value for name, value in schema.items() if name not in _ANNOTATIONS | {"$defs"}}
    resolved = {name: _resolved(value, root) for name, value in kept.items() if name != "properties"}
    if "properties" in kept:  # a field may be called `description`
        resolved["properties"] = {name: _resolved(value, root) for name, value in kept["properties"].items()}
    if "enum" in resolved:
        resolved["enum"] = sorted(resolved["enum"], key=repr)
    return resolved


def _shown(value: object) -> str:
    return "(none)" if value is None else repr(value)
