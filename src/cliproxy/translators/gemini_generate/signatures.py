"""How thoughts that another vendor signed travel through a client of this dialect and back.

Vendors take a conversation with thoughts and tools only with the proof that the thoughts are their model's own, and Google's clients give back one opaque
thing: `thoughtSignature`. What another vendor signed goes there behind a tag, as base64 of a JSON list; the thought's words are in it too, since clients need
not keep those. The next request gives it back to that vendor, who verifies it, and to nobody else: parts with a tag never reach Google. A client could write
such a tag itself: it gains what a client of that vendor's own dialect can do anyway.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from cliproxy.dialects import Dialect
from cliproxy.errors import SchemaError
from cliproxy.translators.conversation import Reasoning
from cliproxy.translators.gemini_generate.media import standard_base64

_TAG = b"cliproxy:"
TAG = base64.b64encode(_TAG).decode()  # nine bytes are twelve characters, whatever follows


class _Thought(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    signer: Dialect
    text: str
    signature: str
    redacted: str
    id: str


_decoder = msgspec.json.Decoder(_Thought)


def is_tagged(signature: str | None) -> bool:
    """Whether `signature` is one of ours."""
    return signature is not None and signature.startswith(TAG)


def tag_of(part: Reasoning) -> str:
    """Return the `thoughtSignature` that carries `part`, empty where no other vendor signed it."""
    if part.signer is None or part.signer is Dialect.GEMINI_GENERATE or not (part.signature or part.redacted):
        return ""
    thought = _Thought(part.signer, part.text, part.signature, part.redacted, part.id)
    return base64.urlsafe_b64encode(_TAG + msgspec.json.encode(thought)).decode()


def thought_in(tag: str, at: str) -> Reasoning:
    """Return the thought that `tag` carries. Raises `SchemaError` if it is not as we wrote it."""
    try:
        said = base64.b64decode(standard_base64(tag), validate=True)
        thought = _decoder.decode(said[len(_TAG) :])
    except (msgspec.DecodeError, UnicodeError, binascii.Error, ValueError, RecursionError):
        raise SchemaError("This signature was altered on its way.", param=f"{at}.thoughtSignature", code="invalid_value") from None
    if thought.signer is Dialect.GEMINI_GENERATE:
        raise SchemaError("Google's own signatures have no tag.", param=f"{at}.thoughtSignature", code="invalid_value")
    return Reasoning(thought.text, thought.signature, thought.redacted, thought.signer, thought.id)
