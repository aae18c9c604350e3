"""What a final body asks for, read so that no provider can read it otherwise.

The bytes were written by a worker, which may have fallen, and readers of JSON differ. So a body is refused unless

- its top level is, byte for byte, what this gateway's encoder writes for it: a name stands once, without escapes, and nothing stands between;
- no name is another spelling of one that counts, or of another (`names.py`), or is one that may not leave;
- what counts has its type, and everything else is JSON that every reader takes for the same: UTF-8, and no number that a double cannot hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from typing import Any, Generic, TypeVar

import msgspec

from cliproxy.bounds import MAX_EMBEDDINGS_VALUES
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import verify_bounds
from cliproxy.metering.names import plain_name, verify_names, verify_spelling

MAX_LEARNT_NAMES = 1024  # of one kind of body, that were judged harmless; a client may make up any number of fields
MAX_LEARNT_NAME_CHARS = 64
MAX_KNOWN_VALUES = 64  # of a nested object
MAX_KNOWN_VALUE_BYTES = 256
MAX_DOUBLE_DIGITS = 308  # an integer of that many digits still is a double

_raws = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_check = msgspec.json.Decoder().decode  # unlike a skipped value, a decoded one is checked: UTF-8, range of numbers
_encode = msgspec.json.Encoder().encode
_MANY_DIGITS = re.compile(rb"[0-9]{309}")
_SOME_DIGITS = re.compile(rb"[0-9]{7}")
_STRIDE = 40  # 309 digits in a row leave seven in a row in every 40th byte

_QUOTE = ord('"')

T = TypeVar("T", bound=msgspec.Struct)
Decode = Callable[[Any], Any]


class TextMessage(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A turn of an ordinary conversation: somebody says a text, which is not looked at."""

    role: str
    content: msgspec.Raw


class FinalBody(Generic[T]):
    """How the bodies of one kind are read. The fields of `kind` are the names that count, their types what they may be. `nested` are objects with names that
    count too. `usual` is `kind` with the fields of an ordinary conversation, and no others: it is read in one go, without a look at any name.
    """

    __slots__ = ("_closed", "_counted", "_decode", "_decode_usual", "_judged", "_may", "_nested", "_param", "_refusal")

    def __init__(
        self,
        kind: type[T],
        *,
        refusal: str,
        param: str | None = None,
        nested: Mapping[str, NestedObject] | None = None,
        usual: type[T] | None = None,
    ) -> None:
        self._counted = frozenset(field.encode_name for field in msgspec.structs.fields(kind))
        self._closed = kind.__struct_config__.forbid_unknown_fields
        self._decode: Decode = msgspec.json.Decoder(kind).decode
        self._nested = dict(nested or {})
        self._judged = set(self._counted) - self._nested.keys()  # names that are harmless whatever stands beside them
        self._decode_usual: Decode | None = None
        self._may: tuple[str, ...] = ()
        if usual is not None:
            config = usual.__struct_config__
            assert config.forbid_unknown_fields and config.omit_defaults
            self._decode_usual = msgspec.json.Decoder(usual).decode
            self._may = tuple(field.name for field in msgspec.structs.fields(usual) if field.name not in self._counted and not field.required)
        self._refusal = refusal
        self._param = param

    def read(self, body: bytes) -> T:
        """Return what counts in `body`. Raises `SchemaError` if it is no such body, or one that somebody could read otherwise."""
        try:
            if self._decode_usual is not None:
                try:
                    usual = self._decode_usual(body)
                except msgspec.ValidationError:
                    usual = None
                # No member is shorter than what our encoder writes for it: a body of just that length has no other member, no name twice, nothing between.
                if usual is not None and len(_encode(usual)) == len(body) and self._is_plain(usual, body):
                    return usual  # type: ignore[no-any-return]
            if len(body) > MAX_DOUBLE_DIGITS:
                _verify_size(body)
            self._verify(body)
            unambiguous: T = self._decode(body)
        except (msgspec.MsgspecError, RecursionError, ValueError):  # the latter is UnicodeDecodeError too
            raise SchemaError(self._refusal, param=self._param) from None
        return unambiguous

    def _is_plain(self, usual: Any, body: bytes) -> bool:
        """Whether everything that was skipped in `body` is text, or small enough to be looked at here."""
        if not body.isascii():
            body.decode()
        for message in usual.messages:
            if memoryview(message.content)[0] != _QUOTE:
                return False
        for name in self._may:
            raw = getattr(usual, name)
            if raw is not None:
                inner = self._nested.get(name)
                if inner is not None:
                    inner.verify(raw)
                elif len(memoryview(raw)) > MAX_DOUBLE_DIGITS:
                    return False
                else:
                    _check(raw)
        return True

    def _verify(self, body: bytes) -> None:
        """Raise unless everybody reads the same in `body`."""
        fields = _raws(body)
        if _encode(fields) != body:
            raise ValueError("not as this gateway writes it")
        if not self._judged.issuperset(fields):
            self._judge(fields.keys() - self._counted)
        for name, raw in fields.items():
            inner = self._nested.get(name)
            if inner is None:
                _check(raw)
            else:
                inner.verify(raw)

    def _judge(self, unknown: Set[str]) -> None:
        """Raise `SchemaError` if one of the names `unknown` may not leave. Those that are as plain as can be are remembered: no other can be taken for one."""
        if self._closed:
            return  # the decoder of `kind` refuses them
        verify_names(unknown, self._counted)
        if len(self._judged) > MAX_LEARNT_NAMES:
            self._judged = set(self._counted) - self._nested.keys()
        self._judged.update(name for name in unknown if len(name) <= MAX_LEARNT_NAME_CHARS and plain_name(name) == name)


class NestedObject:
    """How an object inside a body is read that holds what counts. Other names pass, unless they could be taken for one that counts or for each other."""

    __slots__ = ("_counted", "_known")

    def __init__(self, *counted: str) -> None:
        self._counted = frozenset(counted)
        self._known: set[bytes] = set()  # values that passed; most clients send the same

    def verify(self, raw: msgspec.Raw) -> None:
        """Raise unless everybody reads the same in `raw`."""
        value = bytes(raw)
        if value in self._known:
            return
        held = _check(value)
        if held is None:
            return
        if type(held) is not dict or _encode(_raws(value)) != value:
            raise ValueError("not an object as this gateway writes it")
        verify_spelling(held.keys() - self._counted, self._counted)
        if len(value) <= MAX_KNOWN_VALUE_BYTES and len(self._known) < MAX_KNOWN_VALUES:
            self._known.add(value)


def _verify_size(body: bytes) -> None:
    """Raise for more values than a worker takes of its clients, and for an integer that no double can hold."""
    verify_bounds(body, max_values=MAX_EMBEDDINGS_VALUES)
    if _SOME_DIGITS.search(body[::_STRIDE]) is None or _MANY_DIGITS.search(body) is None:
        return
    held = [_check(body)]
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
                raise ValueError("an integer that no double can hold") from None
