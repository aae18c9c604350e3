"""AWS's event stream as server-sent events; the reference is botocore's decoder and encodings made by hand after the specification."""

from __future__ import annotations

import json
import struct
import zlib

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_EVENT_BYTES
from cliproxy.formats.event_stream import MAX_EVENT_HEADER_BYTES, EventStreamDecoder


def header(name: str, value: str) -> bytes:
    return bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value.encode())) + value.encode()


def framed(headers: bytes, payload: bytes) -> bytes:
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    body = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return body + struct.pack(">I", zlib.crc32(body))


def event(name: str, payload: object | bytes, *, kind: str = "event", type: str = "application/json") -> bytes:
    names = {"event": ":event-type", "exception": ":exception-type"}
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return framed(header(names.get(kind, ":x"), name) + header(":content-type", type) + header(":message-type", kind), data)


ANSWER = [
    ("messageStart", {"role": "assistant"}),
    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Grüße, мир"}}),
    ("contentBlockStop", {"contentBlockIndex": 0}),
    ("messageStop", {"stopReason": "end_turn"}),
    ("metadata", {"usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}, "metrics": {"latencyMs": 5}}),
]
WIRE = b"".join(event(name, payload) for name, payload in ANSWER)
SSE = b"".join(b"event: %s\ndata: %s\n\n" % (name.encode(), json.dumps(payload).encode()) for name, payload in ANSWER)


def decoded(*pieces: bytes) -> tuple[bytes, str]:
    """Return the events and the code of what broke the stream, if anything did."""
    decoder = EventStreamDecoder()
    out = b"".join(decoder.feed(piece) for piece in pieces)
    decoder.finish()
    return out, decoder.broken.code if decoder.broken is not None else ""


def test_botocore_reads_what_these_tests_make() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(WIRE)
    assert [(message.headers[":event-type"], json.loads(message.payload)) for message in buffer] == ANSWER


def test_each_message_becomes_an_event() -> None:
    assert decoded(WIRE) == (SSE, "")


def test_it_does_not_matter_how_the_bytes_come() -> None:
    assert decoded(*(WIRE[at : at + 1] for at in range(len(WIRE)))) == (SSE, "")
    for cut in range(len(WIRE)):
        assert decoded(WIRE[:cut], WIRE[cut:]) == (SSE, "")


def test_an_answer_cut_anywhere_is_an_error_after_the_whole_messages() -> None:
    ends, at = {0}, 0
    for name, payload in ANSWER:
        at += len(event(name, payload))
        ends.add(at)
    for cut in range(len(WIRE)):
        out, code = decoded(WIRE[:cut])
        assert SSE.startswith(out) and (not out or out.endswith(b"\n\n"))
        assert code == ("" if cut in ends else "provider_broke_off")


def test_a_flipped_bit_anywhere_breaks_the_stream_before_its_message() -> None:
    for at in range(len(WIRE)):
        damaged = bytearray(WIRE)
        damaged[at] ^= 1 << (at % 8)
        out, code = decoded(bytes(damaged))
        assert code in ("provider_bad_stream", "provider_broke_off") and out != SSE
        assert SSE.startswith(out)  # nothing that was damaged comes out


def test_nothing_comes_out_after_a_fault() -> None:
    decoder = EventStreamDecoder()
    assert decoder.feed(WIRE + b"x" * 16) == SSE
    assert decoder.broken is not None
    assert decoder.feed(WIRE) == b""


EXCEPTIONS = {
    "an exception": (event("throttlingException", {"message": "Too many"}, kind="exception"), {"type": "throttlingException", "message": "Too many"}),
    "an exception without a text": (event("modelStreamErrorException", b"", kind="exception"), {"type": "modelStreamErrorException", "message": ""}),
    "an exception with nonsense": (event("x", b'{"message":\xff', kind="exception"), {"type": "x", "message": ""}),
    "a deep exception": (event("x", b"[" * 100_000, kind="exception"), {"type": "x", "message": ""}),
    "an error": (
        framed(header(":message-type", "error") + header(":error-code", "InternalError") + header(":error-message", "Oh\nno"), b""),
        {"type": "InternalError", "message": "Oh\nno"},
    ),
}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_is_an_error_event(name: str) -> None:
    wire, said = EXCEPTIONS[name]
    out, code = decoded(wire)
    head, _, data = out.partition(b"\ndata: ")
    assert head == b"event: error" and json.loads(data) == said and data.count(b"\n") == 2 and code == ""


def test_line_ends_between_the_parts_of_the_json_do_not_end_the_event() -> None:
    out, code = decoded(event("metadata", b'{\r\n"a":\n1}'))
    assert out == b'event: metadata\ndata: {  "a": 1}\n\n' and code == ""


def test_headers_of_other_types_are_passed_over() -> None:
    values = [b"\x00", b"\x01", b"\x02a", b"\x03ab", b"\x04abcd", b"\x05abcdefgh", b"\x06\x00\x03abc", b"\x08abcdefgh", b"\x09" + b"a" * 16]
    more = b"".join(bytes([2]) + b"h%d" % number + value for number, value in enumerate(values))
    wire = framed(more + header(":event-type", "x") + header(":content-type", "application/json") + header(":message-type", "event"), b"{}")
    assert decoded(wire) == (b"event: x\ndata: {}\n\n", "")


JSON_EVENT = header(":content-type", "application/json") + header(":message-type", "event")
BAD = {
    "an empty name": event("", {}),
    "a name with a line end": event("a\ndata: x", {}),
    "a name that is too long": event("a" * 65, {}),
    "no JSON": event("x", b"bytes", type="application/octet-stream"),
    "no type": framed(header(":event-type", "x") + header(":message-type", "event"), b"{}"),
    "an empty payload": event("x", b""),
    "no kind": framed(header(":event-type", "x"), b"{}"),
    "another kind": event("x", {}, kind="initial-response"),
    "no headers": framed(b"", b""),
    "a header twice": framed(header(":event-type", "x") + header(":event-type", "y") + JSON_EVENT, b"{}"),
    "a header of an unknown type": framed(b"\x01a\x0a" + header(":event-type", "x") + JSON_EVENT, b"{}"),
    "a header that runs over the end": framed(header(":event-type", "x") + JSON_EVENT + b"\x01a\x07\x00\x09x", b"{}"),
    "a header's name that runs over the end": framed(header(":event-type", "x") + JSON_EVENT + b"\xffa", b"{}"),
    "a header that is no UTF-8": framed(b"\x01a\x07\x00\x01\xff" + header(":event-type", "x") + JSON_EVENT, b"{}"),
    "a header's name that is no ASCII": framed(b"\x01\xff\x07\x00\x01a" + header(":event-type", "x") + JSON_EVENT, b"{}"),
    "too many headers": framed(b"".join(b"\x04" + struct.pack(">I", number) + b"\x00" for number in range(MAX_EVENT_HEADER_BYTES // 6 + 1)), b"{}"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_understood_breaks_the_stream(name: str) -> None:
    assert decoded(WIRE + BAD[name] + WIRE) == (SSE, "provider_bad_stream")


@pytest.mark.parametrize(("total", "headers"), [(0, 0), (15, 0), (16, 1), (2**32 - 1, 0), (MAX_EVENT_BYTES + 1, 0), (20, 2**32 - 1), (MAX_EVENT_BYTES, 2**31)])
def test_lengths_are_judged_before_anything_is_kept_for_them(total: int, headers: int) -> None:
    prelude = struct.pack(">II", total, headers)
    decoder = EventStreamDecoder()
    assert decoder.feed(prelude + struct.pack(">I", zlib.crc32(prelude))) == b""
    too_large = headers == 0 and total > MAX_EVENT_BYTES
    assert decoder.broken is not None and decoder.broken.code == ("upstream_too_large" if too_large else "provider_bad_stream")


def test_the_largest_message_is_taken() -> None:
    room = MAX_EVENT_BYTES - len(event("x", b'""'))
    out, code = decoded(event("x", b'"' + b"a" * room + b'"'))
    assert code == "" and len(out) > room
    assert decoded(event("x", b'"' + b"a" * (room + 1) + b'"'))[1] == "upstream_too_large"  # as in other dialects, and nothing cools for it


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_never_raises(pieces: list[bytes]) -> None:
    out, _ = decoded(*pieces)
    assert out == b"" or out.endswith(b"\n\n")


@given(st.binary(max_size=60), st.binary(max_size=200))
def test_garbage_behind_good_checksums_never_raises(headers: bytes, payload: bytes) -> None:
    out, code = decoded(framed(headers, payload))
    assert bool(code) is not bool(out)
