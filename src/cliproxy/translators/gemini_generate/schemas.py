"""Gemini's `Schema`, a subset of OpenAPI 3.0's, as JSON Schema. The way back is not needed: Gemini takes JSON Schema in fields of its own."""

from __future__ import annotations

from typing import Any

# Names of `Schema` as protobuf spells them, and JSON Schema's.
_SNAKE = {
    "any_of": "anyOf",
    "max_items": "maxItems",
    "min_items": "minItems",
    "max_length": "maxLength",
    "min_length": "minLength",
    "max_properties": "maxProperties",
    "min_properties": "minProperties",
    "property_ordering": "propertyOrdering",
    "additional_properties": "additionalProperties",
}
_COUNTS = frozenset({"maxItems", "minItems", "maxLength", "minLength", "maxProperties", "minProperties"})  # int64, which JSON may hold as strings
_LEFT_OUT = frozenset({"nullable", "propertyOrdering", "example"})  # the first becomes a type; the others are hints


def json_schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema that means the same. Raises `RecursionError` for a schema of a thousand levels."""
    made: dict[str, Any] = {}
    for name, value in schema.items():
        name = _SNAKE.get(name, name)
        if name in _LEFT_OUT or value is None:
            continue
        if name == "type" and isinstance(value, str):
            if value.upper() == "TYPE_UNSPECIFIED":
                continue
            value = value.lower()
        elif name == "properties" and isinstance(value, dict):
            value = {key: _inner(inner) for key, inner in value.items()}
        elif name == "anyOf" and isinstance(value, list):
            value = [_inner(inner) for inner in value]
        elif name in ("items", "additionalProperties"):
            value = _inner(value)
        elif name in _COUNTS and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        made[name] = value
    if schema.get("nullable") is True:
        _allow_null(made)
    return made


def _inner(value: Any) -> Any:
    return json_schema_of(value) if isinstance(value, dict) else value


def _allow_null(made: dict[str, Any]) -> None:
    if isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
        if isinstance(made.get("enum"), list):
            made["enum"] = [*made["enum"], None]
    elif isinstance(made.get("anyOf"), list):
        made["anyOf"] = [*made["anyOf"], {"type": "null"}]
