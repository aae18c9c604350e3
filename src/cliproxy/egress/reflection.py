"""Replace our own credential wherever a provider's answer contains it.

What is found: the secret as it is, as JSON escapes it, percent-encoded, and inside base64 at each of the three alignments. What is not: a
secret that a model spells out over several events, or that was transformed in another way. Bytes that may be the start of a secret which
the next read completes are held back, so a cut between two reads hides nothing.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from urllib.parse import quote

from cliproxy.bounds import MIN_GUARDED_SECRET_BYTES

REPLACEMENT = b"[redacted]"
# What ordinary answers look like; only speed rests on it.
_SAMPLE = (
    b'data: {"id":"chatcmpl-9x","object":"chat.completion.chunk","created":1730000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":'
    b'"Hello! How can I assist you today? This is an answer of ordinary length."},"logprobs":null,"finish_reason":null}]}\n\n'
)
_SAMPLE_BYTES = Counter(_SAMPLE)
_SAMPLE_BLOOM = Counter(byte & 63 for byte in _SAMPLE)
_PROBE_LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96)


class ReflectionGuard:
    """Knows the secrets of one credential in their encodings. `NO_SECRET` guards nothing."""

    __slots__ = ("_alphabet", "_forms", "_probes")

    def __init__(self, *secrets: bytes) -> None:
        forms = {form for secret in secrets for form in _forms_of(secret)}
        self._forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))  # the longest first
        self._probes = tuple(_probe_of(form) for form in self._forms)
        alphabet = {byte for form in self._forms for byte in form[:-1]}
        self._alphabet = bytes(byte in alphabet for byte in range(256))

    def __repr__(self) -> str:
        return "ReflectionGuard(***)"

    def clean(self, data: bytes) -> bytes:
        """Return a whole body, event or header value without the secret."""
        for probe in self._probes:
            if data.find(probe) >= 0:  # `in` costs twice as much for bytes: it tries for a number first
                return self._replace(data)
        return data

    def feed(self, held: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Return what may be passed on of `held` + `data`, and what to hold back for the next call (shorter than the longest form)."""
        if held:
            data = held + data
        for probe in self._probes:
            if data.find(probe) >= 0:
                data = self._replace(data)
                break
        if not data or not self._alphabet[data[-1]]:
            return data, b""
        cut = self._start_of_a_form(data)
        return data[:cut], data[cut:]

    def last(self, held: bytes) -> bytes:
        """Return what to pass on of `held` when nothing follows: a start of the secret of half its length or more is replaced too."""
        if any(form.startswith(held) and 2 * len(held) >= len(form) for form in self._forms):
            return REPLACEMENT
        return held

    def _replace(self, data: bytes) -> bytes:
        for form in self._forms:
            data = data.replace(form, REPLACEMENT)
        return data

    def _start_of_a_form(self, data: bytes) -> int:
        """Return the first index from which the rest of `data` is the start of a form; `len(data)` if there is none."""
        first = len(data)
        for form in self._forms:
            at = data.find(form[:1], max(0, len(data) - len(form) + 1))
            while 0 <= at < first:
                if form.startswith(data[at:]):
                    first = at
                    break
                at = data.find(form[:1], at + 1)
        return first


def _forms_of(secret: bytes) -> set[bytes]:
    """Return the encodings that are looked for."""
    if not secret:
        return set()
    text = secret.decode("latin-1")
    escaped = json.dumps(text)[1:-1]
    angles = escaped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")  # Go's encoding/json does this
    forms = {secret, escaped.encode(), escaped.replace("/", "\\/").encode(), angles.encode()}
    percent = quote(text, safe="", encoding="latin-1")
    forms |= {percent.encode(), quote(text, safe="/:", encoding="latin-1").encode()}
    for shift, start in ((0, 0), (1, 2), (2, 3)):
        # The characters that depend on the secret's bits alone, whatever stands before and after it.
        end = (shift + len(secret)) * 8 // 6
        plain = base64.b64encode(bytes(shift) + secret + b"\0\0")[start:end]
        if len(plain) >= MIN_GUARDED_SECRET_BYTES:
            forms |= {plain, plain.translate(bytes.maketrans(b"+/", b"-_"))}
    return forms


def _probe_of(form: bytes) -> bytes:
    """Return the part of `form` that CPython's search gets over text with fastest.

    It looks at the byte after the window and skips a whole length if that is not in the needle, as far as a filter of 64 bits tells
    (Objects/stringlib/fastsearch.h): long needles with bytes that are rare in the text win by a factor of four.
    """
    best, best_score = form, 0.0
    for length in _PROBE_LENGTHS:
        for start in range(len(form) - length + 1):
            part = form[start : start + length]
            met = sum(_SAMPLE_BLOOM[bit] for bit in {byte & 63 for byte in part}) / len(_SAMPLE)
            score = (met + (length + 1) * (1 - met)) / (1 + 5 * _SAMPLE_BYTES[part[-1]] / len(_SAMPLE))
            if score > best_score:
                best, best_score = part, score
    return best


NO_SECRET = ReflectionGuard()
