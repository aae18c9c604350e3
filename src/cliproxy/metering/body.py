"""What a final body asks for, read so that no provider can read it otherwise.

The bytes were written by a worker, which may have fallen, and readers of JSON differ. So a body is refused unless

- its top level is, byte for byte, what this gateway's encoder writes for it: a name stands once, without escapes, and nothing stands between;
- no name is another spelling of one that counts, or of another (`names.py`), or is one that may not leave;
- what counts has its type, and everything else is JSON that every reader takes for the same: UTF-8, and no number that a double cannot hold.

An honest worker refuses all of that of its clients by the same judgement, so a body that breaks the first two rules, or the last, is a `ChannelError`. What
has no cap, a wrong type, too many values or too many levels is a `SchemaError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from operator import attrgetter
from typing import Any, Generic, TypeVar

import msgspec

from cliproxy.bounds import MAX_EMBEDDINGS_VALUES
from cliproxy.errors import ChannelError, SchemaError
from cliproxy.formats.json_bounds import MAX_DOUBLE_DIGITS, may_hold_large_integers, verify_bounds, verify_integers
from cliproxy.metering.names import plain_name, verify_names, verify_spelling

MAX_LEARNT_NAMES = 1024  # of one kind of body, that were judged harmless; a client may make up any number of fields
MAX_LEARNT_NAME_CHARS = 64
MAX_KNOWN_VALUES = 64  # of a nested object
MAX_KNOWN_VALUE_BYTES = 256

_raws = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_check = msgspec.json.Decoder().decode  # unlike a skipped value, a decoded one is checked: UTF-8, range of numbers
_encode = msgspec.json.Encoder().encode
_AMBIGUOUS = "a final body that not every provider reads alike"

T = TypeVar("T", bound=msgspec.Struct)
Decode = Callable[[Any], Any]


ABSENT = msgspec.Raw(b"")  # of a field that does not count


class TextMessage(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A turn of an ordinary conversation: somebody says a text."""

    role: str
    content: str


class FinalBody(Generic[T]):
    """How the bodies of one kind are read. The fields of `kind` are the names that count, their types what they may be. `nested` are objects with names that
    count too. `usual` is `kind` with the fields of an ordinary conversation, and no others: it is read in one go, without a look at any name. Its fields are
    texts, whole numbers, truth values, such objects and lists of them, whose encoding is their shortest; all else is `Raw`, with `ABSENT` for none.
    """

    __slots__ = ("_closed", "_counted", "_decode_usual", "_judged", "_kind", "_nested", "_no_raws", "_param", "_raws_of", "_refusal", "_spelt")

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
        self._kind = kind
        self._nested = dict(nested or {})
        self._forget()
        self._decode_usual: Decode | None = None
        self._raws_of: Callable[[Any], tuple[msgspec.Raw, ...]] = lambda usual: ()
        self._no_raws: tuple[msgspec.Raw, ...] = ()
        if usual is not None:
            config = usual.__struct_config__
            assert config.forbid_unknown_fields and config.omit_defaults
            self._decode_usual = msgspec.json.Decoder(usual).decode
            raws = list(_raw_fields(usual))
            assert len(raws) > 1  # or `attrgetter` returns no tuple
            self._raws_of = attrgetter(*raws)
            self._no_raws = (ABSENT,) * len(raws)
        self._refusal = refusal
        self._param = param

    def _forget(self) -> None:
        self._judged = set(self._counted)  # names that are harmless, whichever of them stand in a body together
        self._spelt: dict[str, str] = {}  # those of them that do not count, by what they are to a reader that folds

    def read(self, body: bytes) -> T:
        """Return what counts in `body`. Raises `SchemaError` if it is no such body, `ChannelError` if it is one that somebody could read otherwise, which no
        honest worker writes."""
        try:
            if self._decode_usual is not None:
                try:
                    usual = self._decode_usual(body)
                    # No member is shorter than what our encoder writes for it: a body of just that length has no other member, no name twice, nothing between.
                    if len(_encode(usual)) == len(body):
                        raws = self._raws_of(usual)
                        if raws != self._no_raws:
                            for raw in raws:
                                if raw is not ABSENT:
                                    _verify_small(raw)
                        return usual  # type: ignore[no-any-return]
                except msgspec.DecodeError:
                    pass
            unambiguous = msgspec.convert(self._verified(body), self._kind)
        except (msgspec.MsgspecError, RecursionError):
            raise SchemaError(self._refusal, param=self._param) from None
        except ValueError as error:  # UnicodeDecodeError too, which would quote the body
            raise ChannelError(_AMBIGUOUS if type(error) is UnicodeDecodeError else f"{_AMBIGUOUS}: {error}") from None
        return unambiguous

    def _verified(self, body: bytes) -> Any:
        """Return what `body` holds. Raises `ValueError` unless everybody reads the same in it, a decoder's error if nobody reads it, `SchemaError` if it is too
        much to be read."""
        verify_bounds(body, max_values=MAX_EMBEDDINGS_VALUES)
        fields = _raws(body)
        if _encode(fields) != body:
            raise ValueError("not as this gateway writes it")
        if not self._judged.issuperset(fields):
            self._judge(fields.keys() - self._counted)
        try:
            held = _check(body)
            for name, nested in self._nested.items():
                if name in fields:
                    nested.verify(fields[name])
            if may_hold_large_integers(body):
                verify_integers(held)
        except msgspec.DecodeError:  # what is skipped is JSON, or `_raws` had refused it
            raise ValueError("a value that not every reader takes") from None
        except SchemaError:
            raise ValueError("an integer that no double can hold") from None
        return held

    def _judge(self, unknown: Set[str]) -> None:
        """Raise `ValueError` if one of the names `unknown` may not leave. The others are remembered, each in one spelling, so that no two of them can
        be taken for one."""
        if self._closed:
            return  # the decoder of `kind` refuses them
        try:
            verify_names(unknown, self._counted)
        except SchemaError as error:
            raise ValueError(error.code) from None
        if len(self._judged) > MAX_LEARNT_NAMES:
            self._forget()
        for name in unknown:
            if len(name) <= MAX_LEARNT_NAME_CHARS and self._spelt.setdefault(plain_name(name), name) == name:
                self._judged.add(name)


class NestedObject:
    """How an object inside a body is read that holds what counts. Other names pass, unless they could be taken for one that counts or for each other."""

    __slots__ = ("_counted", "_known")

    def __init__(self, *counted: str) -> None:
        self._counted = frozenset(counted)
        self._known: set[bytes] = set()  # values that passed; most clients send the same

    def verify(self, raw: msgspec.Raw) -> None:
        """Raise `ValueError` unless everybody reads the same in `raw`, a decoder's error if nobody reads it."""
        value = bytes(raw)
        if value in self._known:
            return
        held = _check(value)
        if held is None:
            return
        if type(held) is not dict or _encode(_raws(value)) != value:
            raise ValueError("not an object as this gateway writes it")
        try:
            verify_spelling(held.keys() - self._counted, self._counted)
        except SchemaError as error:
            raise ValueError(error.code) from None
        if len(value) <= MAX_KNOWN_VALUE_BYTES and len(self._known) < MAX_KNOWN_VALUES:
            self._known.add(value)


def _raw_fields(kind: type[msgspec.Struct]) -> Iterator[str]:
    """The paths of the fields of `kind`, and of the objects that it always has, that are not read."""
    for field in msgspec.structs.fields(kind):
        if field.default is ABSENT:
            yield field.name
        elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from (f"{field.name}.{inner}" for inner in _raw_fields(field.type))


def _verify_small(raw: msgspec.Raw) -> None:
    """Raise a decoder's error if `raw` is more than can be judged at a look, or not what every reader takes."""
    if len(memoryview(raw)) > MAX_DOUBLE_DIGITS:
        raise msgspec.DecodeError
    _check(raw)
