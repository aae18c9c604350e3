"""The embedded provider: it answers with what it was asked, in the bytes that an OpenAI upstream would send.

Pure functions of the request's final body: same bytes, same answer. A token is four characters, as in the estimate of the prompt. An answer is bounded by
the request's `max_tokens` and `MAX_ECHO_CHARS`, a stream by `MAX_ECHO_EVENTS`, vectors by `MAX_ECHO_FLOATS`, since it all happens inside egress.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterator
from hashlib import shake_256
from math import sqrt
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_CHOICES, MIB
from cliproxy.errors import SchemaError

MAX_ECHO_EVENTS = 1024  # delta events of one streamed echo, all choices together
MAX_ECHO_CHARS = 4 * MIB  # of one echo, all choices together: some 10 ms of egress, in which nobody else is served
MAX_ECHO_FLOATS = 65_536  # numbers in one echoed embeddings answer: some 20 ms

CHARS_PER_TOKEN = 4
DEFAULT_MAX_TOKENS = 4096
DEFAULT_DIMENSIONS = 64
DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


# --- what is read of a request ---------------------------------------------------------------------------------------


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Message]
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


_Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class _Embeddings(msgspec.Struct):
    model: str
    input: str | list[str | _Token | list[_Token]]
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


# --- what is answered ------------------------------------------------------------------------------------------------


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _AnswerMessage(msgspec.Struct):
    role: str
    content: str
    refusal: None = None


class _Choice(msgspec.Struct):
    index: int
    message: _AnswerMessage
    finish_reason: str
    logprobs: None = None


class _Answer(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: _Usage


class _Delta(msgspec.Struct, omit_defaults=True):
    role: str = ""
    content: str | None = None


class _DeltaChoice(msgspec.Struct):
    index: int
    delta: _Delta
    finish_reason: str | None = None
    logprobs: None = None


class _Event(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[_DeltaChoice]
    usage: _Usage | None = None


class _Vector(msgspec.Struct):
    object: str
    index: int
    embedding: list[float] | str


class _Vectors(msgspec.Struct):
    object: str
    data: list[_Vector]
    model: str
    usage: dict[str, int]


_chat_decoder = msgspec.json.Decoder(_Chat)
_embeddings_decoder = msgspec.json.Decoder(_Embeddings)


def answer_chat(body: bytes, *, id: str, created: int) -> Iterator[bytes]:
    """Return the answer to a chat completion: one piece of JSON, or the events of a stream one by one, `[DONE]` last.

    `id` and `created` (seconds since the epoch) are the caller's. Raises `SchemaError` if `body` is no chat completion request.
    """
    request: _Chat = _read(_chat_decoder, body)
    texts = [_text_of(message) for message in request.messages]
    spoken = [text for text, message in zip(texts, request.messages, strict=True) if message.role == "user"] or texts
    whole = spoken[-1] if spoken else ""
    choices = request.n or 1
    room = min(CHARS_PER_TOKEN * (request.max_completion_tokens or request.max_tokens or DEFAULT_MAX_TOKENS), MAX_ECHO_CHARS // choices)
    text, reason = (whole, "stop") if len(whole) <= room else (whole[:room], "length")
    prompt, completion = sum(map(_tokens_of, texts)), choices * _tokens_of(text)
    usage = _Usage(prompt, completion, prompt + completion)
    id = f"chatcmpl-{id}"
    if request.stream is True:
        return _events(request, text, reason, usage, id=id, created=created)
    answers = [_Choice(index, _AnswerMessage("assistant", text), reason) for index in range(choices)]
    return iter([_encoder.encode(_Answer(id, "chat.completion", created, request.model, answers, usage))])


def _events(request: _Chat, text: str, reason: str, usage: _Usage, *, id: str, created: int) -> Iterator[bytes]:
    choices = range(request.n or 1)

    def event(deltas: list[_DeltaChoice], usage: _Usage | None = None) -> bytes:
        return b"data: " + _encoder.encode(_Event(id, "chat.completion.chunk", created, request.model, deltas, usage)) + b"\n\n"

    for index in choices:
        yield event([_DeltaChoice(index, _Delta("assistant", ""))])
    for piece in _pieces_of(text, at_most=max(1, MAX_ECHO_EVENTS // len(choices))):
        for index in choices:
            yield event([_DeltaChoice(index, _Delta(content=piece))])
    for index in choices:
        yield event([_DeltaChoice(index, _Delta(), reason)])
    if request.stream_options is not None and request.stream_options.include_usage is True:
        yield event([], usage)
    yield DONE


def answer_embeddings(body: bytes) -> bytes:
    """Return the answer to an embeddings request: for each input a vector of length 1 that hangs on the input alone.

    Raises `SchemaError` if `body` is no embeddings request, or asks for more than `MAX_ECHO_FLOATS` numbers.
    """
    request: _Embeddings = _read(_embeddings_decoder, body)
    inputs: list[Any] = request.input if isinstance(request.input, list) else [request.input]
    kinds = set(map(type, inputs))
    if len(kinds) != 1:
        raise SchemaError("The input is empty, or mixes texts and tokens.", param="input", code="invalid_type")
    if kinds == {int}:
        inputs = [inputs]  # one list of tokens
    dimensions = request.dimensions or DEFAULT_DIMENSIONS
    if dimensions * len(inputs) > MAX_ECHO_FLOATS:
        raise SchemaError(f"The echo provider answers with at most {MAX_ECHO_FLOATS} numbers.", param="input", code="echo_too_large")
    packed = request.encoding_format == "base64"
    vectors = []
    for index, item in enumerate(inputs):
        vector = _vector_of(item, dimensions)
        vectors.append(_Vector("embedding", index, b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() if packed else vector))
    tokens = sum(_tokens_of(item) if isinstance(item, str) else len(item) for item in inputs)
    return _encoder.encode(_Vectors("list", vectors, request.model, {"prompt_tokens": tokens, "total_tokens": tokens}))


def _read(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SchemaError("The echo provider cannot read this request.") from None


def _text_of(message: _Message) -> str:
    content = message.content
    if isinstance(content, list):
        return "\n".join(part.text for part in content if part.text)
    return content or ""


def _tokens_of(text: str) -> int:
    return (len(text) + CHARS_PER_TOKEN - 1) // CHARS_PER_TOKEN


def _pieces_of(text: str, *, at_most: int) -> list[str]:
    """Cut `text` into words with the space behind them; where that makes more than `at_most` pieces, into as many of equal length."""
    words = text.split(" ", at_most)
    if len(words) <= at_most:
        return [word for word in [*(f"{word} " for word in words[:-1]), words[-1]] if word]
    size = -(-len(text) // at_most)
    return [text[start : start + size] for start in range(0, len(text), size)]


def _vector_of(item: str | list[int], dimensions: int) -> list[float]:
    seed = item.encode() if isinstance(item, str) else b"".join(token.to_bytes(4, "big") for token in item)
    numbers = struct.unpack(f"<{dimensions}h", shake_256(seed).digest(2 * dimensions))
    length = sqrt(sum(number * number for number in numbers)) or 1.0
    return [number / length for number in numbers]
