"""`multipart/form-data` (RFC 7578) as this gateway reads and writes it.

What always holds: a body has one meaning or is refused. No preamble, no epilogue, no header but the two that a form needs, no nesting, no second encoding, no
`filename*`; names, counts and sizes are bounded. What leaves is written by us, with a boundary of ours that no value contains, so what a client wrote
between the parts never reaches a provider.
"""

from __future__ import annotations

import re

import msgspec

from cliproxy.bounds import KIB, MAX_FORM_PARTS, MAX_IDENTIFIER_CHARS
from cliproxy.errors import SchemaError

MAX_PART_HEAD_BYTES = 2 * KIB  # a disposition with a long file name and a media type

BOUNDARY = b"cliproxy-form-2a6f0c51d98e4b7fa3e1"
CONTENT_TYPE = b"multipart/form-data; boundary=" + BOUNDARY

# RFC 2046 §5.1.1: 1 to 70 characters, the last not a blank. Blanks within are refused altogether: no client sends them.
_CONTENT_TYPE = re.compile(rb"""multipart/form-data[ \t]*;[ \t]*boundary=(?:"([0-9A-Za-z'()+_,./:=?-]{1,70})"|([0-9A-Za-z'+_.-]{1,70}))[ \t]*""", re.IGNORECASE)
_DISPOSITION = re.compile(
    rb"""form-data[ \t]*;[ \t]*name="([^"\x00-\x1f\x7f]{1,128})"(?:[ \t]*;[ \t]*filename="([^"\x00-\x1f\x7f]{0,512})")?[ \t]*""", re.IGNORECASE
)
_MEDIA_TYPE = re.compile(rb"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}(?:[ \t]*;[ \t]*[A-Za-z0-9-]{1,32}=[A-Za-z0-9._-]{1,64}){0,2}")


class Part(msgspec.Struct, frozen=True, gc=False):
    """One field. `filename` is `None` for a plain value; `media_type` is empty where the client named none."""

    name: str
    value: bytes
    filename: str | None = None
    media_type: str = ""


def parse_form(body: bytes, content_type: bytes) -> list[Part]:
    """Return the fields of `body`, in order. Raises `SchemaError`; its message never quotes the client."""
    match = _CONTENT_TYPE.fullmatch(content_type.strip(b" \t"))
    if match is None:
        raise SchemaError("Send this as multipart/form-data with one plain boundary.", code="bad_form")
    opening = b"--" + (match[1] or match[2])
    delimiter = b"\r\n" + opening
    if not body.startswith(opening + b"\r\n"):
        raise SchemaError("The form does not begin with its boundary.", code="bad_form")
    if body.count(delimiter) > MAX_FORM_PARTS:
        raise SchemaError(f"The form has more than {MAX_FORM_PARTS} fields.", code="bad_form")
    first, *others = body[len(opening) :].split(delimiter)
    if not others or others.pop() not in (b"--", b"--\r\n"):
        raise SchemaError("The form does not end with its boundary.", code="bad_form")
    return [_parse_part(part) for part in (first, *others)]


def _parse_part(part: bytes) -> Part:
    """Return the field in `part`, which begins with the line end behind a boundary."""
    head, separator, value = part.partition(b"\r\n\r\n")
    if not separator or not head.startswith(b"\r\n") or len(head) > MAX_PART_HEAD_BYTES:
        raise SchemaError("A field of the form has no proper head.", code="bad_form")
    disposition = media_type = None
    for line in head[2:].split(b"\r\n"):
        name, colon, content = line.partition(b":")
        content = content.strip(b" \t")
        if colon and name.lower() == b"content-disposition" and disposition is None:
            disposition = _DISPOSITION.fullmatch(content)
        elif colon and name.lower() == b"content-type" and media_type is None and _MEDIA_TYPE.fullmatch(content):
            media_type = content
        else:
            raise SchemaError("A field of the form has a head that this gateway does not take.", code="bad_form")
    if disposition is None:
        raise SchemaError("A field of the form has no plain name.", code="bad_form")
    try:
        field = disposition[1].decode()
        filename = None if disposition[2] is None else disposition[2].decode()
    except UnicodeDecodeError:
        raise SchemaError("A name in the form is not UTF-8.", code="bad_form") from None
    return Part(field, value, filename, "" if media_type is None else media_type.decode("ascii"))


def encode_form(parts: list[Part], *, first: str) -> tuple[bytes, bytes]:
    """Return what stands before and behind the value of the field `first`, which comes first. Raises `SchemaError` if a field contains our boundary."""
    written = [b"\r\n"]
    for part in parts:
        head = _head_of(part)
        if BOUNDARY in part.value or BOUNDARY in head:
            raise SchemaError("A field of the form holds this gateway's boundary.", code="bad_form")
        written += [b"--", BOUNDARY, b"\r\n", head, b"\r\n\r\n", part.value, b"\r\n"]
    written += [b"--", BOUNDARY, b"--\r\n"]
    return b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="' + first.encode("ascii") + b'"\r\n\r\n', b"".join(written)


def _head_of(part: Part) -> bytes:
    """Return the head of `part`. What `_DISPOSITION` let through needs no escaping; names of our own have no quotes either."""
    head = f'Content-Disposition: form-data; name="{part.name}"'
    if part.filename is not None:
        head += f'; filename="{part.filename[-MAX_IDENTIFIER_CHARS:]}"'
    if part.media_type:
        head += f"\r\nContent-Type: {part.media_type}"
    return head.encode()
