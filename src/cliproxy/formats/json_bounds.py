"""How much JSON a body may hold, judged before it is decoded, and decoding that fails in one way only.

A byte of JSON can cost 25 bytes of memory and 75 ns: 8 MB of `[],` took 1 s and 193 MB. So arrays and objects (`[`, `{`) and values (`,`) of a large body
are counted first: one pass over the bytes at 0.25 ns each. Brackets and commas inside strings count too; only a body that has too many with those is counted
again without its strings, which costs 3 ns a byte. Nesting is bounded by the decoder, which stops at the interpreter's recursion limit (about 1,000 levels),
and the length of integers by what a double holds: some readers take a longer one for infinite, some for the largest, some refuse it.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from cliproxy.bounds import MAX_ANSWER_OBJECTS, SMALL_JSON_BYTES
from cliproxy.errors import SchemaError, UpstreamError

MAX_JSON_CONTAINERS = 32_768  # arrays and objects of one body; 1,000 messages with 128 large tools have 10,000. 0.25 µs and 72 bytes each

MAX_DOUBLE_DIGITS = 308  # an integer of that many digits still is a double

T = TypeVar("T")

_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[{,"))
_decoder = msgspec.json.Decoder()
_MANY_DIGITS = re.compile(rb"[0-9]{309}")
_SOME_DIGITS = re.compile(rb"[0-9]{7}")
_STRIDE = 40  # 309 digits in a row leave seven in a row in every 40th byte


def verify_bounds(body: bytes, *, max_values: int) -> None:
    """Raise `SchemaError` if `body` holds more than `MAX_JSON_CONTAINERS` arrays and objects or `max_values` commas. It need not be valid JSON."""
    if len(body) <= SMALL_JSON_BYTES:
        return
    if _is_within(body.translate(None, _NOT_STRUCTURE), max_values):
        return
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # what is left of `"` begins or ends a string
    if bare.count(b'"') <= 4 * max_values + 4:  # two quotes each for a name and a value: more strings than that are too many values
        outside = b"".join(bare.split(b'"')[::2])
        if _is_within(outside.translate(None, _NOT_STRUCTURE), max_values):
            return
    raise SchemaError("The body holds too many JSON values.", code="too_many_values")


def _is_within(structure: bytes, max_values: int) -> bool:
    commas = structure.count(b",")
    return commas <= max_values and len(structure) - commas <= MAX_JSON_CONTAINERS


def may_hold_large_integers(body: bytes) -> bool:
    """Whether the JSON in `body` can hold an integer beyond a double. False for almost every body, at the cost of a look at every 40th byte."""
    return len(body) > MAX_DOUBLE_DIGITS and _SOME_DIGITS.search(body[::_STRIDE]) is not None and _MANY_DIGITS.search(body) is not None


def verify_integers(value: Any) -> None:
    """Raise `SchemaError`, which names the field, if decoded JSON holds an integer that no double can hold."""
    for name, member in value.items() if type(value) is dict else ((None, value),):
        held = [member]
        while held:
            one = held.pop()
            if type(one) is dict:
                held.extend(one.values())
            elif type(one) is list:
                held.extend(one)
            elif type(one) is int:
                try:
                    float(one)
                except OverflowError:
                    raise SchemaError("An integer is larger than any double.", param=name, code="number_out_of_range") from None


def decode_json(body: bytes, *, max_values: int) -> Any:
    """Return the value of `body`: one JSON text in UTF-8 without a byte order mark, and nothing behind it. Of duplicate names the last one counts.

    Raises `SchemaError` for everything else: NaN, a lone surrogate, numbers out of range, nesting too deep, more than the bounds allow.
    """
    verify_bounds(body, max_values=max_values)
    try:
        value = _decoder.decode(body)
    except RecursionError:
        raise SchemaError("The body is nested too deeply.", code="nested_too_deeply") from None
    except UnicodeDecodeError:
        raise SchemaError("The body is not UTF-8.", code="invalid_json") from None
    except msgspec.DecodeError as error:  # its text names a position, never content
        raise SchemaError(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if may_hold_large_integers(body):
        verify_integers(value)
    return value


def answer_as(decoder: msgspec.json.Decoder[T], body: bytes) -> T | None:
    """Return a provider's whole answer as the type of `decoder`; `None` if it is not of that type, no JSON or not UTF-8.

    Raises `UpstreamError` if it holds more than `MAX_ANSWER_OBJECTS` objects: its client asked for that much, so it says nothing of the provider.
    """
    if body.count(b"{") > MAX_ANSWER_OBJECTS:
        raise UpstreamError("The provider's answer holds too many objects.", code="provider_answer_too_large")
    try:
        if not body.isascii():
            body.decode()  # strings that a decoder skips are not looked at by it
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def encode_json(value: Any) -> bytes:
    """Return `value`, as `decode_json` made it, in JSON. Raises `SchemaError` if it is nested more deeply here than the decoder found it to be there."""
    try:
        return _encoder.encode(value)
    except RecursionError:
        raise SchemaError("The body is nested too deeply.", code="nested_too_deeply") from None


_encoder = msgspec.json.Encoder()
