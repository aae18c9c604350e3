"""How strictly a vendor reads a request: small checks that compose, and the one exception that refuses.

A check takes a value and its path and raises `Refused`, or returns nothing. Names that are not listed are refused, as the vendors do.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], None]


class Refused(Exception):
    """What a vendor does not take. Each dialect writes it in its own words."""

    def __init__(self, message: str, *, path: str = "", status: int = 400, kind: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.status = status
        self.kind = kind


def text(value: Any, path: str) -> None:
    """A string."""
    if not isinstance(value, str):
        raise Refused("Expected a string.", path=path)


def some_text(value: Any, path: str) -> None:
    """A string with something in it."""
    text(value, path)
    if not value:
        raise Refused("Must not be empty.", path=path)


def boolean(value: Any, path: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise Refused("Expected a boolean.", path=path)


def anything(value: Any, path: str) -> None:
    """Whatever it is."""


def mapping(value: Any, path: str) -> None:
    """An object of any content."""
    if not isinstance(value, dict):
        raise Refused("Expected an object.", path=path)


def number(low: float, high: float) -> Check:
    """A number between the two."""

    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise Refused(f"Expected a number from {low} to {high}.", path=path)

    return check


def integer(low: int, high: int = 1 << 31) -> Check:
    """A whole number between the two."""

    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Refused(f"Expected a whole number from {low} to {high}.", path=path)

    return check


def words(*allowed: str) -> Check:
    """One of these strings."""

    def check(value: Any, path: str) -> None:
        if value not in allowed:
            raise Refused(f"Expected one of {', '.join(allowed)}, got {value!r}.", path=path)

    return check


def pattern(expression: str) -> Check:
    """A string that fits the expression as a whole."""

    def check(value: Any, path: str) -> None:
        text(value, path)
        if not re.fullmatch(expression, value):
            raise Refused(f"String should match pattern '{expression}'.", path=path)

    return check


def array(check_one: Check, *, least: int = 0, most: int = 1 << 20) -> Check:
    """A list whose items all pass."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise Refused("Expected a list.", path=path)
        if not least <= len(value) <= most:
            raise Refused(f"Expected {least} to {most} items.", path=path)
        for index, item in enumerate(value):
            check_one(item, f"{path}[{index}]")

    return check


def nullable(inner: Check) -> Check:
    """Null, or what passes."""

    def check(value: Any, path: str) -> None:
        if value is not None:
            inner(value, path)

    return check


def fields(required: dict[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with these members and no others."""
    known = {**required, **(optional or {})}

    def check(value: Any, path: str) -> None:
        mapping(value, path)
        for name in value:
            if name not in known:
                raise Refused("Unknown name: extra inputs are not permitted.", path=f"{path}.{name}".lstrip("."))
        for name in required:
            if name not in value:
                raise Refused("Field required.", path=f"{path}.{name}".lstrip("."))
        for name, member in value.items():
            known[name](member, f"{path}.{name}".lstrip("."))

    return check


def tagged(tag: str, table: dict[str, Check]) -> Check:
    """An object whose member `tag` says which of the checks is for it (which then need not know the tag)."""

    def check(value: Any, path: str) -> None:
        mapping(value, path)
        if value.get(tag) not in table:
            raise Refused(f"Input tag {value.get(tag)!r} does not match any of {', '.join(table)}.", path=f"{path}.{tag}".lstrip("."))
        table[value[tag]]({name: member for name, member in value.items() if name != tag}, path)

    return check


def union(table: dict[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with exactly one of the members of `table`, and any of `optional`."""

    def check(value: Any, path: str) -> None:
        mapping(value, path)
        chosen = [name for name in value if name in table]
        if len(chosen) != 1:
            raise Refused(f"Exactly one of {', '.join(table)} must be set.", path=path)
        fields({chosen[0]: table[chosen[0]]}, optional)(value, path)

    return check


def either(*, of_text: Check, of_list: Check) -> Check:
    """A string or a list, each with its check."""

    def check(value: Any, path: str) -> None:
        (of_list if isinstance(value, list) else of_text)(value, path)

    return check


def base64_text(value: Any, path: str) -> None:
    """Strict base64 of something."""
    some_text(value, path)
    decoded(value, path)


def decoded(value: str, path: str) -> bytes:
    """Return what the base64 text stands for."""
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("Invalid base64 data.", path=path) from None


def either_base64(value: Any, path: str) -> None:
    """Base64 of something, in either alphabet, as protobuf's JSON takes it."""
    some_text(value, path)
    decoded(value.replace("-", "+").replace("_", "/"), path)


def data_url(value: str, path: str) -> tuple[str, bytes]:
    """Return media type and content of a `data:` URL."""
    matched = re.fullmatch(r"data:([\w.+/-]+);base64,(.*)", value, flags=re.DOTALL)
    if not matched:
        raise Refused("Invalid data URL.", path=path)
    return matched[1], decoded(matched[2], path)


PROPERTY_WORDS = {"type", "properties", "required", "items", "enum", "description", "additionalProperties", "title", "format", "anyOf", "minimum", "maximum"}


def strict_schema(schema: Any, path: str, *, all_required: bool) -> None:
    """A JSON Schema as constrained decoding wants it: objects are closed, and (OpenAI) every property is required."""
    mapping(schema, path)
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            raise Refused("'additionalProperties' is required to be supplied and to be false.", path=path)
        if all_required and set(schema.get("required", ())) != set(schema.get("properties", {})):
            raise Refused("'required' is required to be supplied and to be an array including every key in properties.", path=path)
        for name, inner in schema.get("properties", {}).items():
            strict_schema(inner, f"{path}.properties.{name}", all_required=all_required)
    if "items" in schema:
        strict_schema(schema["items"], f"{path}.items", all_required=all_required)
