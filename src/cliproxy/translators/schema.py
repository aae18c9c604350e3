"""What OpenAI's request bodies have in common: how a violation is told, and which unknown fields may pass.

A same-dialect body keeps fields that this gateway does not know, so that a new parameter works on the day the provider has it. Fields that choose where a
request goes, with which credential, or which code runs on the way are never kept, whatever the upstream: many upstreams are gateways themselves
(LiteLLM CVE-2024-6587, Portkey CVE-2025-66405). Nor is a second spelling of a field that was checked: Go's decoder takes `Model` for `model`.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

import msgspec

from cliproxy.errors import SchemaError
from cliproxy.metering.names import verify_names

T = TypeVar("T")

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`| - at `key` in `(?P<map>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(\w+)`")


def convert(value: Any, type: type[T]) -> T:
    """Return `value` (decoded JSON) as `type`. Raises `SchemaError` with the field's path; its message never quotes what the client sent."""
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        refuse(error)


def refuse(error: msgspec.ValidationError) -> NoReturn:
    """Raise `error` as a `SchemaError`: `$.messages[0].content` becomes the param `messages[0].content`."""
    match = _PLACE.match(str(error))
    what, path = (match["what"], match["path"] or match["map"] or "") if match else ("", "")
    param = path.removeprefix("$").removeprefix(".")
    missing = _MISSING.match(what)
    if missing:
        param = f"{param}.{missing[1]}" if param else missing[1]
        raise SchemaError(f"The field {param} is missing.", param=param, code="missing_field") from None
    if not what.startswith("Expected"):  # "Invalid value 'what the client sent'"
        what = "This is not one of the values that are allowed"
    where = f" ({param})" if param else ""
    raise SchemaError(f"{what[0].upper()}{what[1:]}{where}.", param=param or None, code="invalid_type") from None


def verify_unknown_fields(body: dict[str, Any], known: frozenset[str]) -> None:
    """Raise `SchemaError` for a field of `body` that must not reach an upstream; return if every unknown one may."""
    unknown = body.keys() - known
    if unknown:
        verify_names(unknown, known)


def refuse_excess(param: str, cap: int) -> NoReturn:
    """Raise the refusal of more output tokens than the operator allows."""
    message = f"{param} is above this gateway's limit of {cap}: ask for less, or have its operator raise requests.max_tokens."
    raise SchemaError(message, param=param, code="max_tokens_exceeded")


def refuse_other_model(param: str) -> NoReturn:
    """Raise the refusal of a second model, which no route leads to and no key is held against."""
    message = "A request uses the one model that it names, which its key is permitted: a tool may not bring another."
    raise SchemaError(message, param=param, code="forbidden_field")


def refuse_state(param: str, *, how_to: str = "send the content itself") -> NoReturn:
    """Raise the refusal of what a provider keeps (ADR 0096)."""
    raise SchemaError(
        f"The clients of this gateway share the provider's account, so a request may not refer to what is stored there: {how_to}.",
        param=param,
        code="forbidden_field",
    )
