"""How thoughts that another vendor signed travel through a client of this dialect and back (ADR 0092).

The dialect has two places for proof that a thought is a model's own, both opaque texts that clients give back as they were: `signature` of a `thinking` block
and `data` of a `redacted_thinking` one. What another vendor wrote goes there behind a tag that names the vendor, so that the next request gives it back to
that vendor, who verifies it, and to nobody else: blocks with a tag never reach Anthropic. A client could write such a text itself: it gains what a client of
that vendor's own dialect can do anyway.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from cliproxy.dialects import Dialect
from cliproxy.translators.conversation import Reasoning

TAG = "cliproxy:"  # Anthropic's own are base64, which has no colon
_OURS = Dialect.ANTHROPIC_MESSAGES


class Kind(Enum):
    """What the text behind the tag is: a signature of the block's thought (or none at all), of the tool call before the block, or thought itself."""

    SIGNATURE = "signature"
    CALL = "call"
    REDACTED = "redacted"


class Tagged(NamedTuple):
    """`signer` is None and `text` empty where nobody signed. `id` is OpenAI's item id."""

    signer: Dialect | None
    kind: Kind
    id: str
    text: str


_DIALECTS = {dialect.value: dialect for dialect in Dialect} | {"": None}
_KINDS = {kind.value: kind for kind in Kind}


def tag(signer: Dialect | None, kind: Kind, text: str, id: str = "") -> str:
    """Return what the block says. Anthropic's own goes untagged."""
    if signer is _OURS:
        return text
    return f"{TAG}{signer.value if signer is not None else ''}:{kind.value}:{'' if ':' in id else id}:{text}"


def untag(given: str, kind: Kind) -> Tagged:
    """Return what `tag` was given; without a tag it is Anthropic's, of `kind`. What begins like a tag and is none was signed by nobody."""
    if not given.startswith(TAG):
        return Tagged(_OURS if given else None, kind, "", given)
    _, dialect, told, id, text = (*given.split(":", 4), "", "", "", "")[:5]
    signer = _DIALECTS.get(dialect)
    if signer is None or told not in _KINDS or not text:
        return Tagged(None, Kind.SIGNATURE, id, "")
    return Tagged(signer, _KINDS[told], id, text)


def signature_of(part: Reasoning) -> str:
    """Return the signature of a thought as this dialect's clients get it: never empty, so that one which nobody signed is known when it comes back."""
    return tag(part.signer if part.signature else None, Kind.SIGNATURE, part.signature, part.id)
