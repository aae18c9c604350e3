"""How a signature of another vendor travels through a Responses client and back.

The dialect has one place for proof that a thought is a model's own: `encrypted_content` of a `reasoning` item, an opaque text that clients give back as it was.
A signature that Anthropic or Gemini wrote goes there behind a tag that names the vendor, so that the next request can give it back to that vendor, which
verifies it, and to nobody else. A client could write such a text itself: it gains what a client of that vendor's own dialect can do anyway.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from cliproxy.dialects import Dialect

TAG = "cliproxy:"  # OpenAI's own are base64, which has no colon


class Kind(Enum):
    """What the text behind the tag is: of the item's own summary, of thought that only the vendor reads, or of the tool call before the item."""

    SIGNATURE = "signature"
    REDACTED = "redacted"
    CALL = "call"


class Tagged(NamedTuple):
    signer: Dialect
    kind: Kind
    text: str


_DIALECTS = {dialect.value: dialect for dialect in Dialect}
_KINDS = {kind.value: kind for kind in Kind}


def tag(signer: Dialect, kind: Kind, text: str) -> str:
    """Return what `encrypted_content` says. OpenAI's own goes untagged."""
    if signer is Dialect.OPENAI_RESPONSES:
        return text
    return f"{TAG}{signer.value}:{kind.value}:{text}"


def untag(encrypted: str) -> Tagged | None:
    """Return what `tag` was given; `None` for a text that begins like a tag and is none. A text without a tag is OpenAI's."""
    if not encrypted.startswith(TAG):
        return Tagged(Dialect.OPENAI_RESPONSES, Kind.SIGNATURE, encrypted)
    _, dialect, kind, text = (*encrypted.split(":", 3), "", "", "")[:4]
    if dialect not in _DIALECTS or kind not in _KINDS or not text:
        return None
    return Tagged(_DIALECTS[dialect], _KINDS[kind], text)
