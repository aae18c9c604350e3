"""One spelling for every field that is checked, before it is checked.

Google's servers take each field under two names, `maxOutputTokens` and protobuf's `max_output_tokens`, and its documentation uses both. What was checked under
one name only could be said under the other. So known names become camelCase first, wherever the schema has them, and nowhere else: what clients make up
(`args`, `response`, schemas of tools) is left alone. A body with both spellings of a field is refused.

A single object where the schema has a list becomes a list of one, which is also what Google's servers make of it (its examples write `"parts": {"text": …}`).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from cliproxy.errors import SchemaError
from cliproxy.metering.names import OUTPUT_CAPS_ELSEWHERE, plain_name
from cliproxy.translators.schema import verify_unknown_fields

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Spelling:
    """The names of one kind of object: `names` as we write them, `snake` the other spellings, `nested` the objects inside (and whether they come in a list)."""

    __slots__ = ("folded", "names", "nested", "snake")

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()
        self.snake: dict[str, str] = {}
        self.folded: dict[str, str] = {}
        self.nested: dict[str, tuple[Spelling, bool]] = {}


def spelling_of(kind: type[msgspec.Struct]) -> Spelling:
    """Return the spelling of a struct of `wire`."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return _spelling(info, {})


def _spelling(info: msgspec.inspect.StructType, known: dict[type, Spelling]) -> Spelling:
    if info.cls in known:
        return known[info.cls]
    spelling = known[info.cls] = Spelling()
    names = [field.encode_name for field in info.fields]
    spelling.names = frozenset(names)
    spelling.snake = {_HUMP.sub("_", name).lower(): name for name in names if _HUMP.search(name)}
    spelling.folded = {name.lower(): name for name in names}
    for field in info.fields:
        found = _struct_in(field.type)
        if found is not None:
            spelling.nested[field.encode_name] = (_spelling(found[0], known), found[1])
    return spelling


def _struct_in(kind: msgspec.inspect.Type) -> tuple[msgspec.inspect.StructType, bool] | None:
    if isinstance(kind, msgspec.inspect.UnionType):
        return next((found for found in map(_struct_in, kind.types) if found is not None), None)
    if isinstance(kind, msgspec.inspect.ListType):
        inner = _struct_in(kind.item_type)
        return None if inner is None else (inner[0], True)
    return (kind, False) if isinstance(kind, msgspec.inspect.StructType) else None


def may_be_misspelt(body: bytes) -> bool:
    """Whether a name in `body` can be snake_case at all: it holds an underscore, as it is or escaped (`\\u005f`)."""
    return 95 in body or body.find(b"u005") >= 0  # 95: `_`; a number, since `b"_" in body` raises and clears an exception


def normalise(value: Any, spelling: Spelling, path: str = "") -> None:
    """Give the fields of `value`, and of the objects inside that the schema knows, their one spelling, in place.

    Raises `SchemaError` for a field in both spellings. What is no object is left for the schema to judge.
    """
    if not isinstance(value, dict):
        return
    if not spelling.names.issuperset(value):
        for name in [name for name in value if name in spelling.snake]:
            known = spelling.snake[name]
            if known in value:
                raise SchemaError("The field is there in two spellings.", param=path + known, code="ambiguous_field")
            value[known] = value.pop(name)
    for name, (inner, many) in spelling.nested.items():
        held = value.get(name)
        if held is None:
            continue
        if not many:
            normalise(held, inner, f"{path}{name}.")
            continue
        if isinstance(held, dict):
            held = value[name] = [held]
        if isinstance(held, list):
            for index, item in enumerate(held):
                normalise(item, inner, f"{path}{name}[{index}].")


def verify_names(value: dict[str, Any], spelling: Spelling, path: str = "") -> None:
    """Raise `SchemaError` for a field of `value` that is unknown and must not pass: it routes, carries a credential, caps the output under another server's
    name, or differs from a known one in case, hyphens or underscores only."""
    unknown = value.keys() - spelling.names
    if not unknown:
        return
    for name in unknown:
        plain = plain_name(name).replace("_", "")
        if plain in spelling.folded:
            raise SchemaError("The field is spelt in another way.", param=path + spelling.folded[plain], code="ambiguous_field")
        if plain in _CAPS:
            raise SchemaError("Say generationConfig.maxOutputTokens instead.", param=path + plain, code="forbidden_field")
    verify_unknown_fields(value, spelling.names)


_CAPS = frozenset(name.replace("_", "") for name in (*OUTPUT_CAPS_ELSEWHERE, "max_tokens", "max_completion_tokens", "max_output_tokens"))
