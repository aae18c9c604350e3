"""Replace our own credential wherever a provider's answer contains it (ATTACKS: reflected secrets).

What is found: the secret as it is, as JSON escapes it, percent-encoded, and inside base64 at each of the three alignments. What is not: a
secret that a model spells out over several events, or that was transformed in another way. Bytes that may be the start of a secret which
the next read completes are held back, so a cut between two reads hides nothing.
"""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

from cliproxy.bounds import MIN_GUARDED_SECRET_BYTES

REPLACEMENT = b"[redacted]"
_PROBE_BYTES = 16
# Bytes of JSON and English from frequent to rare; what is not listed is rarer still. Only speed rests on it.
_FREQUENT_FIRST = b'etaoinsrhldcumfpgwybvk":,{}[]0123456789_-.TASCIM'


class ReflectionGuard:
    """Knows one secret in its encodings. `NO_SECRET` guards nothing."""

    __slots__ = ("_alphabet", "_forms", "_probes")

    def __init__(self, secret: bytes) -> None:
        self._forms = _forms_of(secret)
        self._probes = tuple(_probe_of(form) for form in self._forms)
        alphabet = {byte for form in self._forms for byte in form[:-1]}
        self._alphabet = bytes(byte in alphabet for byte in range(256))

    def __repr__(self) -> str:
        return "ReflectionGuard(***)"

    def clean(self, data: bytes) -> bytes:
        """Return a whole body, event or header value without the secret."""
        for probe in self._probes:
            if probe in data:
                return self._replace(data)
        return data

    def feed(self, held: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Return what may be passed on of `held` + `data`, and what to hold back for the next call (shorter than the longest form)."""
        if held:
            data = held + data
        for probe in self._probes:
            if probe in data:
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


def _forms_of(secret: bytes) -> tuple[bytes, ...]:
    """Return the encodings that are looked for, the longest first."""
    if not secret:
        return ()
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
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _probe_of(form: bytes) -> bytes:
    """Return a part of `form` that is quick to search for: CPython's search skips best when the last byte is rare in the text."""
    ends = range(min(len(form), _PROBE_BYTES) - 1, len(form))
    end = max(ends, key=lambda index: (_FREQUENT_FIRST.find(form[index]) if form[index] in _FREQUENT_FIRST else len(_FREQUENT_FIRST), -index))
    return form[max(0, end + 1 - _PROBE_BYTES) : end + 1]


NO_SECRET = ReflectionGuard(b"")
