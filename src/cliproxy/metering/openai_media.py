"""What egress reads of media calls, and nothing more: the model of a final body, what an answer used."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_FORM_PARTS, MAX_TOKEN_COUNT
from cliproxy.errors import SchemaError, UpstreamError
from cliproxy.formats.form import BOUNDARY
from cliproxy.formats.json_bounds import answer_as
from cliproxy.metering.body import FinalBody
from cliproxy.metering.usage import AskedFor, Usage

__all__ = ["AskedFor", "Usage", "reread", "reread_form", "usage_of_images", "usage_of_transcript"]

_DELIMITER = b"\r\n--" + BOUNDARY
_MODEL_FIRST = re.compile(b"--" + BOUNDARY + rb'\r\nContent-Disposition: form-data; name="model"\r\n\r\n([^\x00-\x1f\x7f]{1,1024})\r\n--' + BOUNDARY + b"\r\n")
_HEAD = re.compile(rb"""Content-Disposition: form-data; name="([^"\x00-\x1f\x7f]+)"(?:; filename="[^"\x00-\x1f\x7f]*")?(?:\r\nContent-Type: [^\r\n]+)?""")


class _AskedFor(msgspec.Struct, gc=False):
    model: str
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=0)] | None = None


_final = FinalBody(_AskedFor, refusal="The body is not a media request.")


def reread(body: bytes) -> AskedFor:
    """Return what the final JSON of a request for pictures or speech asks for; `max_tokens` is 0, since neither has a cap. Raises `SchemaError`."""
    read = _final.read(body)
    return AskedFor(read.model, 0, read.n or 1, read.stream is True)


def reread_form(body: bytes) -> AskedFor:
    """Return what the final form of a transcription asks for. Raises `SchemaError` unless it is one that this gateway wrote: the model first, and only once."""
    first = _MODEL_FIRST.match(body)
    if first is None or not body.endswith(_DELIMITER + b"--\r\n") or body.count(_DELIMITER) > MAX_FORM_PARTS:
        raise SchemaError("The body is not a form of this gateway's.")
    parts = body[first.end() : -len(_DELIMITER) - 4].split(_DELIMITER + b"\r\n")
    if body.count(BOUNDARY) != len(parts) + 2:  # elsewhere some readers take it for a delimiter: behind a bare LF, with blanks after it
        raise SchemaError("The body is not a form of this gateway's.")
    for part in parts:
        head = _HEAD.fullmatch(part.partition(b"\r\n\r\n")[0])
        if head is None or head[1].lower().startswith(b"model"):
            raise SchemaError("The body is not a form of this gateway's.")
    try:
        return AskedFor(first[1].decode(), 0, 1, False)
    except UnicodeDecodeError:
        raise SchemaError("The body's model is not UTF-8.") from None


_Count = Annotated[int, Meta(ge=0, le=MAX_TOKEN_COUNT)]


class _Usage(msgspec.Struct, gc=False):
    input_tokens: _Count
    output_tokens: _Count


class _Images(msgspec.Struct, gc=False):
    """`data` holds pictures in base64: large, and skipped."""

    data: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=64)]
    usage: msgspec.Raw = msgspec.Raw(b"null")


class _Transcript(msgspec.Struct, gc=False):
    text: msgspec.Raw
    usage: msgspec.Raw = msgspec.Raw(b"null")


_images_decoder = msgspec.json.Decoder(_Images)
_transcript_decoder = msgspec.json.Decoder(_Transcript)
_usage_decoder = msgspec.json.Decoder(_Usage)


def usage_of_images(body: bytes) -> Usage | None:
    """Return the usage in a whole answer, or None if it has none that makes sense. Raises `UpstreamError` if `body` is no answer with pictures."""
    answer = answer_as(_images_decoder, body)
    if answer is None:
        raise UpstreamError("The provider's answer has no pictures.", code="bad_upstream_answer")
    return _usage_in(answer.usage)


def usage_of_transcript(body: bytes) -> Usage | None:
    """Return the usage in a whole answer in JSON, or None: subtitles and plain text, of any form, tell none. Raises `UpstreamError` for other JSON."""
    if body.lstrip()[:1] != b"{":
        try:
            body.decode()
        except UnicodeDecodeError:
            raise _no_transcript() from None
        return None
    answer = answer_as(_transcript_decoder, body)
    if answer is None:
        raise _no_transcript()
    return _usage_in(answer.usage)


def _no_transcript() -> UpstreamError:
    return UpstreamError("The provider's answer is no transcript.", code="bad_upstream_answer")


def _usage_in(raw: msgspec.Raw) -> Usage | None:
    try:
        read = _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Usage(read.input_tokens, read.output_tokens)
