"""Framing: what is accepted, that it means what a strict reading says, and that every bound holds."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.errors import FramingError
from cliproxy.ingress.framing import BODY_PIECES_PER_JOIN, MAX_CHUNKS_PER_BODY, Framer, Phase, RawRequest

HOST = b"Host: gateway\r\n"


def framer(*, head: int = 16384, headers: int = 100, body: int = 1 << 20) -> Framer:
    return Framer(max_head_bytes=head, max_headers=headers, max_body_bytes=body)


def read(data: bytes, *, step: int = 0, **bounds: int) -> list[RawRequest]:
    """All requests in `data`, fed whole or in packets of `step` bytes."""
    subject = framer(**bounds)
    requests = []
    for at in range(0, len(data), step or len(data)):
        subject.feed(data[at : at + (step or len(data))])
        while (request := subject.next_request()) is not None:
            requests.append(request)
    return requests


def status_of(data: bytes, *, step: int = 0, **bounds: int) -> int:
    with pytest.raises(FramingError) as caught:
        read(data, step=step, **bounds)
    return caught.value.status


ACCEPTED = {
    "GET": (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", b"GET", b"/", None, b""),
    "query": (b"GET /a?b=c?d/e HTTP/1.1\r\n" + HOST + b"\r\n", b"GET", b"/a", b"b=c?d/e", b""),
    "empty query": (b"GET /a? HTTP/1.1\r\n" + HOST + b"\r\n", b"GET", b"/a", b"", b""),
    "percent-encoding stays raw": (b"GET /a%2Fb HTTP/1.1\r\n" + HOST + b"\r\n", b"GET", b"/a%2Fb", None, b""),
    "double slash": (b"GET //a HTTP/1.1\r\n" + HOST + b"\r\n", b"GET", b"//a", None, b""),
    "length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello", b"POST", b"/", None, b"hello"),
    "length 0": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n", b"POST", b"/", None, b""),
    "no length": (b"POST / HTTP/1.1\r\n" + HOST + b"\r\n", b"POST", b"/", None, b""),
    "length without and with blanks": (b"POST / HTTP/1.1\r\n" + HOST + b"content-length:\t 5 \t\r\n\r\nhello", b"POST", b"/", None, b"hello"),
    "a body on GET": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n\r\n", b"GET", b"/", None, b"\r\n"),
    "chunked": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n00A\r\n, world!\r\n\r\n0\r\n\r\n",
        b"POST",
        b"/",
        None,
        b"hello, world!\r\n",
    ),
    "chunked, empty": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"POST", b"/", None, b""),
    "body that looks like a request": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"POST",
        b"/",
        None,
        b"GET / HTTP/1.1\r\n\r\n",
    ),
    "identity": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Encoding: identity\r\nContent-Length: 1\r\n\r\nx", b"POST", b"/", None, b"x"),
    "IPv6 host": (b"GET / HTTP/1.1\r\nHost: [::1]:8317\r\n\r\n", b"GET", b"/", None, b""),
    "host with underscore (compose services)": (b"GET / HTTP/1.1\r\nHost: my_gateway:80\r\n\r\n", b"GET", b"/", None, b""),
    "obs-text in an ignored value": (b"GET / HTTP/1.1\r\n" + HOST + b"User-Agent: caf\xe9\r\n\r\n", b"GET", b"/", None, b""),
    "empty value": (b"GET / HTTP/1.1\r\n" + HOST + b"X-Empty:\r\n\r\n", b"GET", b"/", None, b""),
    "names in any case": (b"POST / HTTP/1.1\r\nhOsT: a\r\ncOnTeNt-LeNgTh: 1\r\n\r\nx", b"POST", b"/", None, b"x"),
    "every token character but the underscore": (b"GET / HTTP/1.1\r\n" + HOST + b"!#$%&'*+-.^`|~aZ9: x\r\n\r\n", b"GET", b"/", None, b""),
    "HTTP/1.0 without Host": (b"GET / HTTP/1.0\r\n\r\n", b"GET", b"/", None, b""),
    "HTTP/1.0 with a body": (b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nab", b"POST", b"/", None, b"ab"),
    "Expect": (b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-Continue\r\nContent-Length: 2\r\n\r\nab", b"POST", b"/", None, b"ab"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_sound_request_is_read_whole_byte_by_byte_and_with_another_behind_it(name: str) -> None:
    data, *expected = ACCEPTED[name]
    for step in (0, 1, 2, 7):
        (request,) = read(data, step=step)
        assert [request.method, request.path, request.query, request.body] == expected
    if b"HTTP/1.0" not in data:
        first, second = read(data + b"GET /second HTTP/1.1\r\n" + HOST + b"\r\n")
        assert [first.method, first.path, first.query, first.body] == expected
        assert second.path == b"/second"


def test_the_headers_that_we_use_come_out_stripped_and_the_rest_is_gone() -> None:
    (request,) = read(
        b"GET / HTTP/1.1\r\n" + HOST + b"authorization:  Bearer a b\t\r\nX-API-Key:k\r\nContent-Type: application/json; charset=utf-8\r\nAccept: a\r\n"
        b"accept: b\r\nUser-Agent: x\r\n\r\n"
    )
    assert request.authorization == b"Bearer a b"
    assert request.api_key == b"k"
    assert request.content_type == b"application/json; charset=utf-8"
    assert request.accept == b"a,b"
    (bare,) = read(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (bare.authorization, bare.api_key, bare.content_type, bare.accept) == (None, None, None, None)


def test_a_request_does_not_print_what_it_carries() -> None:
    (request,) = read(b"POST /p?token=querysecret HTTP/1.1\r\n" + HOST + b"Authorization: Bearer headersecret\r\nContent-Length: 10\r\n\r\nbodysecret")
    for text in (repr(request), str(request), f"{request}", repr(request.__rich_repr__())):
        assert "secret" not in text


KEEP_ALIVE = {
    "1.1": (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", True),
    "1.1 keep-alive": (b"GET / HTTP/1.1\r\n" + HOST + b"Connection: keep-alive\r\n\r\n", True),
    "1.1 close": (b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", False),
    "1.1 Close in a list": (b"GET / HTTP/1.1\r\n" + HOST + b"Connection: TE , Close\r\n\r\n", False),
    "1.1 close on a second line": (b"GET / HTTP/1.1\r\n" + HOST + b"Connection: keep-alive\r\nConnection: close\r\n\r\n", False),
    "1.1 closed is another word": (b"GET / HTTP/1.1\r\n" + HOST + b"Connection: closed\r\n\r\n", True),
    "1.0": (b"GET / HTTP/1.0\r\n\r\n", False),
    "1.0 keep-alive": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
}


@pytest.mark.parametrize("name", KEEP_ALIVE)
def test_keep_alive(name: str) -> None:
    data, expected = KEEP_ALIVE[name]
    (request,) = read(data)
    assert request.keep_alive is expected
    assert request.http_1_0 is (b"HTTP/1.0" in data)


def test_a_second_request_reuses_the_connection_a_thousand_times() -> None:
    subject = framer()
    for number in range(1000):
        subject.feed(b"POST /%d HTTP/1.1\r\n" % number + HOST + b"Content-Length: 3\r\n\r\n%03d" % number)
        request = subject.next_request()
        assert request is not None and request.keep_alive and request.path == b"/%d" % number and request.body == b"%03d" % number
        assert subject.phase is Phase.BETWEEN and subject.held == 0 and not subject.buffer


def test_expect_wants_a_100_only_while_the_body_is_still_to_come() -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    subject = framer()
    subject.feed(head)
    assert subject.next_request() is None
    assert subject.wants_continue and subject.phase is Phase.BODY
    subject.feed(b"ab")
    assert subject.next_request() is not None
    assert not subject.wants_continue
    subject.feed(head + b"a")
    assert subject.next_request() is None
    assert not subject.wants_continue
    for refused in (
        b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
    ):
        subject = framer()
        subject.feed(refused)
        with pytest.raises(FramingError):
            subject.next_request()
        assert not subject.wants_continue


def test_phases_tell_which_deadline_applies() -> None:
    subject = framer()
    phases = [subject.phase]
    subject.feed(b"POST / HT")
    subject.next_request()
    phases.append(subject.phase)
    subject.feed(b"TP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\na")
    subject.next_request()
    phases.append(subject.phase)
    assert subject.held == 1
    subject.feed(b"bcG")
    assert subject.next_request() is not None
    assert [*phases, subject.phase] == [Phase.BETWEEN, Phase.HEAD, Phase.BODY, Phase.HEAD]
    assert len(subject.buffer) == 1 and subject.held == 0


def test_head_bytes_are_bounded_at_exactly_the_bound() -> None:
    data = b"GET / HTTP/1.1\r\n" + HOST + b"X: \r\n\r\n"
    fits = data.replace(b"X: ", b"X: " + b"a" * (200 - len(data)))
    assert len(fits) == 200
    for step in (0, 1, 64):
        assert len(read(fits, step=step, head=200)) == 1
        assert status_of(fits.replace(b"X:", b"XX:"), step=step, head=200) == 431
        assert status_of(b"GET /" + b"a" * 5000, step=step, head=200) == 431
        assert status_of(b"GET / HTTP/1.1\r\n" + HOST + b"a" * 5000, step=step, head=200) == 431


def test_header_lines_are_bounded_at_exactly_the_bound() -> None:
    line = b"X: y\r\n"
    for step in (0, 1):
        assert len(read(b"GET / HTTP/1.1\r\n" + HOST + line * 9 + b"\r\n", step=step, headers=10)) == 1
        assert status_of(b"GET / HTTP/1.1\r\n" + HOST + line * 10 + b"\r\n", step=step, headers=10) == 431


def test_body_bytes_are_bounded_at_exactly_the_bound() -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST
    chunks = b"6\r\nabcdef\r\n4\r\nabcd\r\n"
    for step in (0, 1):
        assert len(read(head + b"Content-Length: 10\r\n\r\n" + b"a" * 10, step=step, body=10)) == 1
        assert status_of(head + b"Content-Length: 11\r\n\r\n", step=step, body=10) == 413
        assert len(read(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", step=step, body=10)) == 1
        assert status_of(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"1\r\n", step=step, body=10) == 413


def test_chunks_are_counted() -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    (request,) = read(head + b"1\r\na\r\n" * (MAX_CHUNKS_PER_BODY - 1) + b"0\r\n\r\n")
    assert len(request.body) == MAX_CHUNKS_PER_BODY - 1
    assert status_of(head + b"1\r\na\r\n" * MAX_CHUNKS_PER_BODY + b"0\r\n\r\n") == 413


def test_single_bytes_of_a_body_do_not_pile_up_as_objects() -> None:
    subject = framer()
    count = 5 * BODY_PIECES_PER_JOIN + 17
    subject.feed(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % count)
    for number in range(count - 1):
        subject.feed(bytes((number & 0x7F,)))
        assert subject.next_request() is None
        assert len(subject._parts) <= BODY_PIECES_PER_JOIN + 6
    subject.feed(b"!")
    request = subject.next_request()
    assert request is not None and request.body == bytes(number & 0x7F for number in range(count - 1)) + b"!"


def test_after_an_error_nothing_is_kept_or_read() -> None:
    subject = framer()
    subject.feed(b"nonsense\r\n\r\n")
    with pytest.raises(FramingError):
        subject.next_request()
    subject.feed(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert subject.next_request() is None
    assert not subject.buffer and subject.phase is Phase.BROKEN


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_give_requests_or_the_declared_error_and_nothing_else(packets: list[bytes]) -> None:
    subject = framer()
    for packet in packets:
        subject.feed(packet)
        try:
            while subject.next_request() is not None:
                pass
        except FramingError as error:
            assert error.status in (400, 413, 415, 417, 431)


class OtherReading:
    """A parser that reads some byte stream otherwise than we do: the target, or where the message ends."""

    target = b"/"
    ends_after = b"\r\n\r\nhello"

    def __init__(self, protocol: Framer) -> None:
        self.protocol, self.data = protocol, b""

    def feed_data(self, data: bytes) -> None:
        if not self.data:
            self.protocol.on_url(self.target)
        self.data += data
        if self.ends_after and self.ends_after in self.data:
            if self.ends_after.endswith(b"hello"):
                self.protocol.on_body(b"hello")
            self.protocol.on_message_complete()

    def should_keep_alive(self) -> bool:
        return True


OTHER_READINGS = {
    "another target": {"target": b"/admin"},
    "an end before ours": {"ends_after": b"\r\n\r\n"},
    "no end where ours is": {"ends_after": b""},
}


@pytest.mark.parametrize("name", OTHER_READINGS)
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("body", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"])
def test_where_llhttp_and_we_differ_the_request_is_refused(name: str, step: int, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"POST / HTTP/1.1\r\n" + HOST + body
    if b"chunked" not in body:
        monkeypatch.setattr("httptools.HttpRequestParser", OtherReading)
        assert read(data, step=step)[0].body == b"hello"  # it agrees
    monkeypatch.setattr("httptools.HttpRequestParser", type("Other", (OtherReading,), OTHER_READINGS[name]))
    assert status_of(data, step=step) == 400


# --- the differential: whatever is accepted, this other reading, written from RFC 9112 alone, says the same ---

TOKEN = re.compile(rb"[!#$%&'*+.^`|~0-9A-Za-z-]+")


def reference(data: bytes) -> list[tuple[bytes, bytes, bytes]] | None:
    """Read `data` strictly, line by line: (method, target, body) of each request, without one that is not whole. None: not valid."""
    found: list[tuple[bytes, bytes, bytes]] = []
    at = 0
    while at < len(data):
        lines = []
        while True:
            end = at
            while end < len(data) and data[end] not in (0x0A, 0x0D):
                end += 1
            if data[end : end + 2] in (b"", b"\r"):
                return found
            if data[end : end + 2] != b"\r\n":
                return None
            line, at = data[at:end], end + 2
            if not line:
                break
            lines.append(line)
        if not lines:
            return None
        parts = lines[0].split(b" ")
        if len(parts) != 3 or not parts[0].isupper() or not parts[1].startswith(b"/") or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
            return None
        if any(byte <= 0x20 or byte >= 0x7F for byte in parts[1]) or b"#" in parts[1]:
            return None
        fields: dict[bytes, list[bytes]] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon or not TOKEN.fullmatch(name) or any((byte < 0x20 and byte != 9) or byte == 0x7F for byte in value):
                return None
            fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
        length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
        if len(fields.get(b"host", [])) > 1 or (parts[2] == b"HTTP/1.1" and b"host" not in fields):
            return None
        if coding is not None:
            if coding != [b"chunked"] or length is not None or parts[2] == b"HTTP/1.0":
                return None
            body = b""
            while True:
                end = data.find(b"\r\n", at)
                if end < 0:
                    return found
                if not re.fullmatch(rb"[0-9a-fA-F]+", data[at:end]):
                    return None
                size, at = int(data[at:end], 16), end + 2
                if len(data) < at + size + 2:
                    return found if data[at + size : at + size + 2] in (b"", b"\r") else None
                if data[at + size : at + size + 2] != b"\r\n":
                    return None
                body += data[at : at + size]
                at += size + 2
                if not size:
                    break
        else:
            if length is not None and (len(length) != 1 or not re.fullmatch(rb"[0-9]+", length[0])):
                return None
            count = int(length[0]) if length else 0
            if len(data) < at + count:
                return found
            body = data[at : at + count]
            at += count
        found.append((parts[0], parts[1], body))
        if parts[2] == b"HTTP/1.0" or b"close" in b",".join(fields.get(b"connection", [])).lower():
            return found
    return found


PIECES = st.sampled_from(
    [
        b"GET",
        b"POST",
        b"DELETE",
        b"get",
        b" ",
        b"  ",
        b"\t",
        b"/",
        b"/a?b",
        b"http://x/",
        b"*",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"Host: x\r\n",
        b"Host: y\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 03\r\n",
        b"Content-Length: 3, 3\r\n",
        b"content-length : 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"X: y\r\n",
        b" folded\r\n",
        b":",
        b"3\r\nabc\r\n",
        b"3;x\r\nabc\r\n",
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"abc",
        b"\xc3\xa9",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"POST /o HTTP/1.1\r\nHost: x\r\n",
    ]
)


@settings(max_examples=600)
@given(st.one_of(st.lists(PIECES, max_size=14).map(b"".join), st.lists(st.one_of(PIECES, st.binary(max_size=3)), max_size=10).map(b"".join)), st.integers(1, 9))
def test_what_is_accepted_reads_the_same_strictly_and_in_any_cut(data: bytes, step: int) -> None:
    def run(step: int) -> tuple[list[tuple[bytes, bytes, bytes]], int | None]:
        subject = framer()
        accepted = []
        for at in range(0, len(data), step):
            subject.feed(data[at : at + step])
            try:
                while (request := subject.next_request()) is not None:
                    target = request.path if request.query is None else request.path + b"?" + request.query
                    accepted.append((request.method, target, request.body))
                    if not request.keep_alive:
                        return accepted, None
            except FramingError as error:
                return accepted, error.status
        return accepted, None

    whole = run(len(data) or 1)
    assert run(step) == whole
    accepted, refused = whole
    strictly = reference(data)
    if refused is None:
        assert strictly is not None
        assert accepted == strictly
    elif strictly is not None:
        assert accepted == strictly[: len(accepted)]
