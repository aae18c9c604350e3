"""Request smuggling: two readings of one byte stream. Each case is refused with its status and the connection closed; the request
that the attacker put behind it never runs, however the bytes are cut."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from cliproxy.errors import FramingError
from cliproxy.ingress.framing import Framer
from fakes.echo_server import EchoServer, read_all

HEAD = b"POST /echo HTTP/1.1\r\nHost: gateway\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nHost: gateway\r\n\r\n"

# Name: (bytes, status). Sources: RFC 9112 §11.2, PortSwigger "HTTP Desync Attacks" (2019, 2021, 2025), the CVEs named.
CASES: dict[str, tuple[bytes, int]] = {
    "CL and TE (RFC 9112 §6.1)": (HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "TE and CL, other order": (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
    "CL as a list, equal": (HEAD + b"Content-Length: 5, 5\r\n\r\nhello", 400),
    "CL as a list, different (CVE-2018-7068)": (HEAD + b"Content-Length: 5, 0\r\n\r\nhello", 400),
    "CL twice, equal": (HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    "CL twice, different": (HEAD + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello", 400),
    "CL twice, other spelling": (HEAD + b"Content-Length: 5\r\ncontent-length: 5\r\n\r\nhello", 400),
    "CL with a plus (CVE-2018-7159)": (HEAD + b"Content-Length: +5\r\n\r\nhello", 400),
    "CL negative": (HEAD + b"Content-Length: -5\r\n\r\nhello", 400),
    "CL padded with zeros": (HEAD + b"Content-Length: 005\r\n\r\nhello", 400),
    "CL hexadecimal": (HEAD + b"Content-Length: 0x5\r\n\r\nhello", 400),
    "CL with an underscore (int() reads it)": (HEAD + b"Content-Length: 1_0\r\n\r\nhellohello", 400),
    "CL in other digits": (HEAD + b"Content-Length: \xd9\xa5\r\n\r\nhello", 400),
    "CL empty": (HEAD + b"Content-Length: \r\n\r\nhello", 400),
    "CL with a blank inside": (HEAD + b"Content-Length: 5 0\r\n\r\nhello", 400),
    "CL quoted": (HEAD + b'Content-Length: "5"\r\n\r\nhello', 400),
    "CL fraction": (HEAD + b"Content-Length: 5.0\r\n\r\nhello", 400),
    "CL overflow": (HEAD + b"Content-Length: 18446744073709551621\r\n\r\nhello", 413),
    "CL above the bound": (HEAD + b"Content-Length: 99999999\r\n\r\nhello", 413),
    "CL with a vertical tab": (HEAD + b"Content-Length: \x0b5\r\n\r\nhello", 400),
    "Content_Length": (HEAD + b"Content_Length: 5\r\n\r\nhello", 400),
    "Transfer_Encoding (underscore)": (HEAD + b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "any name with an underscore": (HEAD + b"X_Forwarded: a\r\n\r\n", 400),
    "TE xchunked": (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "TE gzip, chunked": (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "TE chunked, identity": (HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "TE chunked, chunked": (HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "TE identity": (HEAD + b"Transfer-Encoding: identity\r\n\r\n", 400),
    "TE empty": (HEAD + b"Transfer-Encoding: \r\n\r\n", 400),
    "TE twice": (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "TE twice, one nonsense": (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n", 400),
    "TE in capitals": (HEAD + b"Transfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n", 400),
    "TE quoted": (HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    "TE with a parameter": (HEAD + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n", 400),
    "TE with a vertical tab": (HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "TE with a trailing comma": (HEAD + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n", 400),
    "TE with a blank before the colon (CVE-2019-16869)": (HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "TE in the line before's fold": (HEAD + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "TE behind a bare CR": (HEAD + b"X: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "TE behind a bare LF": (HEAD + b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "TE behind a NUL": (HEAD + b"X: a\0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "TE in HTTP/1.0": (b"POST /echo HTTP/1.0\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "obs-fold with a blank": (HEAD + b"X: a\r\n b\r\n\r\n", 400),
    "obs-fold with a tab": (HEAD + b"X: a\r\n\tb\r\n\r\n", 400),
    "obs-fold on the first line": (b"POST /echo HTTP/1.1\r\n Host: gateway\r\n\r\n", 400),
    "bare LF line ends": (b"POST /echo HTTP/1.1\nHost: gateway\n\n", 400),
    "bare LF at one line": (b"POST /echo HTTP/1.1\r\nHost: gateway\nX: y\r\n\r\n", 400),
    "bare CR line ends": (b"POST /echo HTTP/1.1\rHost: gateway\r\r", 400),
    "bare CR in a value": (HEAD + b"X: a\rb\r\n\r\n", 400),
    "CR CR LF": (HEAD + b"X: a\r\r\n\r\n", 400),
    "NUL in a value": (HEAD + b"X: a\0b\r\n\r\n", 400),
    "NUL in a name": (HEAD + b"X\0: a\r\n\r\n", 400),
    "DEL in a value": (HEAD + b"X: a\x7fb\r\n\r\n", 400),
    "escape in a value": (HEAD + b"X: a\x1bb\r\n\r\n", 400),
    "blank before the colon": (HEAD + b"Content-Length : 5\r\n\r\nhello", 400),
    "tab before the colon": (HEAD + b"Content-Length\t: 5\r\n\r\nhello", 400),
    "blank inside a name": (HEAD + b"Content Length: 5\r\n\r\nhello", 400),
    "no name": (HEAD + b": a\r\n\r\n", 400),
    "no colon": (HEAD + b"Content-Length\r\n\r\n", 400),
    "known name without a colon": (b"POST /echo HTTP/1.1\r\nHost\r\n\r\n", 400),
    "non-ASCII name": (HEAD + b"Tr\xc3\xa4nsfer-Encoding: chunked\r\n\r\n", 400),
    "name in parentheses": (HEAD + b"(X): a\r\n\r\n", 400),
    "chunk size with a plus": (CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size with a minus": (CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size 0x5": (CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size with an underscore": (CHUNKED + b"0_5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size with a blank before": (CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size with a blank after": (CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n", 400),
    "chunk size with a tab after": (CHUNKED + b"5\t\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size empty": (CHUNKED + b"\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size of nine digits (CVE-2013-2028)": (CHUNKED + b"000000005\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size overflow": (CHUNKED + b"fffffffffffffff5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size above the bound": (CHUNKED + b"ffffffff\r\nhello\r\n0\r\n\r\n", 413),
    "chunk extension (CVE-2025-55315, TERM.EXT)": (CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", 400),
    "chunk extension with a bare LF": (CHUNKED + b"5;\nxx\r\nhello\r\n0\r\n\r\n", 400),
    "chunk extension, empty": (CHUNKED + b"5;\r\nhello\r\n0\r\n\r\n", 400),
    "chunk extension at the last chunk": (CHUNKED + b"5\r\nhello\r\n0;a\r\n\r\n", 400),
    "chunk line ends in a bare LF": (CHUNKED + b"5\nhello\r\n0\r\n\r\n", 400),
    "chunk line ends in a bare CR": (CHUNKED + b"5\rhello\r\n0\r\n\r\n", 400),
    "chunk longer than its size": (CHUNKED + b"4\r\nhello\r\n0\r\n\r\n", 400),
    "chunk without its CRLF": (CHUNKED + b"5\r\nhello0\r\n\r\n", 400),
    "chunk with LF behind it": (CHUNKED + b"5\r\nhello\n0\r\n\r\n", 400),
    "chunk with two other bytes behind it": (CHUNKED + b"5\r\nhelloXX0\r\n\r\n", 400),
    "last chunk with LF": (CHUNKED + b"5\r\nhello\r\n0\r\n\n", 400),
    "trailer": (CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", 400),
    "trailer Content-Length": (CHUNKED + b"0\r\nContent-Length: 50\r\n\r\n", 400),
    "trailer Authorization": (CHUNKED + b"0\r\nAuthorization: Bearer other\r\n\r\n", 400),
    "announced trailer": (HEAD + b"Trailer: Expires\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "absolute-form (RFC 9112 §3.2.2)": (b"GET http://other/echo HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "absolute-form https": (b"GET https://gateway/echo HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "authority-form": (b"GET gateway:80 HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "asterisk-form": (b"OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "fragment": (b"GET /echo#/admin HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "target without a slash": (b"GET echo HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "target with a backslash": (b"GET /\\echo HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "target with non-ASCII": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "target with a control byte": (b"GET /\x01 HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "target with a tab": (b"GET /a\tb HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "target with DEL": (b"GET /\x7f HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "target with a blank": (b"GET /a b HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "target with half a percent-encoding": (b"GET /%2 HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "target with quotes": (b'GET /"a" HTTP/1.1\r\nHost: gateway\r\n\r\n', 400),
    "empty target": (b"GET  HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "two blanks in the request line": (b"GET /echo  HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "tab in the request line": (b"GET\t/echo HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "blank after the version": (b"GET /echo HTTP/1.1 \r\nHost: gateway\r\n\r\n", 400),
    "blank line before the request": (b"\r\nGET /echo HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "blank before the method": (b" GET /echo HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "Host missing": (b"GET /echo HTTP/1.1\r\n\r\n", 400),
    "Host twice": (b"GET /echo HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "Host empty": (b"GET /echo HTTP/1.1\r\nHost: \r\n\r\n", 400),
    "Host with a slash (CVE-2026-48710)": (b"GET /echo HTTP/1.1\r\nHost: a/?\r\n\r\n", 400),
    "Host as a list": (b"GET /echo HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "Host with a user": (b"GET /echo HTTP/1.1\r\nHost: me@a\r\n\r\n", 400),
    "Host with a scheme": (b"GET /echo HTTP/1.1\r\nHost: http://a\r\n\r\n", 400),
    "Host with a blank": (b"GET /echo HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "Host with a bad port": (b"GET /echo HTTP/1.1\r\nHost: a:80a\r\n\r\n", 400),
    "Host non-ASCII": (b"GET /echo HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n", 400),
    "Host with an unclosed bracket": (b"GET /echo HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /echo\r\n\r\n", 400),
    "HTTP/0.9, no blank line": (b"GET /echo\r\n", 400),
    "HTTP/0.9 by name": (b"GET /echo HTTP/0.9\r\nHost: gateway\r\n\r\n", 400),
    "HTTP/1.2": (b"GET /echo HTTP/1.2\r\nHost: gateway\r\n\r\n", 400),
    "HTTP/2.0 by name": (b"GET /echo HTTP/2.0\r\nHost: gateway\r\n\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "version in small letters": (b"GET /echo http/1.1\r\nHost: gateway\r\n\r\n", 400),
    "version with more digits": (b"GET /echo HTTP/1.10\r\nHost: gateway\r\n\r\n", 400),
    "RTSP": (b"GET /echo RTSP/1.0\r\nHost: gateway\r\n\r\n", 400),
    "TLS on the plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "method in small letters": (b"get /echo HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "method unknown": (b"FOO /echo HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "CONNECT": (b"CONNECT gateway:443 HTTP/1.1\r\nHost: gateway:443\r\n\r\n", 400),
    "CONNECT with a path": (b"CONNECT /echo HTTP/1.1\r\nHost: gateway\r\n\r\n", 400),
    "Upgrade h2c (h2c smuggling)": (
        b"GET /echo HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        400,
    ),
    "Upgrade websocket": (b"GET /echo HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
    "Expect something else": (HEAD + b"Expect: the-unexpected\r\nContent-Length: 5\r\n\r\nhello", 417),
    "Expect in HTTP/1.0": (b"POST /echo HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", 417),
    "Expect twice (CVE-2025, 0.CL desync)": (HEAD + b"Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", 400),
    "Authorization twice": (HEAD + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n", 400),
    "x-api-key twice": (HEAD + b"x-api-key: a\r\nX-Api-Key: b\r\n\r\n", 400),
    "Content-Type twice": (HEAD + b"Content-Type: a/b\r\nContent-Type: c/d\r\n\r\n", 400),
    "compressed body": (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", 415),
}


def outcome(packets: list[bytes]) -> tuple[int | None, list[bytes]]:
    """The status of the refusal, and the paths of what was accepted."""
    framer = Framer(max_head_bytes=16384, max_headers=100, max_body_bytes=1 << 23)
    paths = []
    for packet in packets:
        framer.feed(packet)
        try:
            while (request := framer.next_request()) is not None:
                paths.append(request.path)
        except FramingError as error:
            for later in packets:
                framer.feed(later)
                assert framer.next_request() is None
            return error.status, paths
    return None, paths


@pytest.mark.parametrize("name", CASES)
def test_is_refused_however_it_is_cut_and_nothing_behind_it_runs(name: str) -> None:
    data, status = CASES[name]
    assert outcome([data]) == (status, [])
    data += EVIL
    assert outcome([data]) == (status, [])
    assert outcome([bytes((byte,)) for byte in data]) == (status, [])
    for cut in range(1, len(data)):
        assert outcome([data[:cut], data[cut:]]) == (status, []), cut


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    with EchoServer() as running:
        yield running


@pytest.mark.parametrize("name", CASES)
def test_a_real_client_gets_one_error_answer_and_is_closed(server: EchoServer, name: str) -> None:
    data, status = CASES[name]
    server.exchange.seen.clear()
    answer = server.ask(b"GET /good HTTP/1.1\r\nHost: gateway\r\n\r\n" + data + EVIL)
    first, _, rest = answer.partition(b"GET /good ")
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    head, _, body = rest.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close" in head
    assert json.loads(body)["error"]["code"] == "bad_http"  # exactly one JSON text: no second answer follows
    assert [request.path for request in server.exchange.seen] == [b"/good"]
    assert not server.faults


def test_a_body_that_is_cut_off_is_never_a_request(server: EchoServer) -> None:
    server.exchange.seen.clear()
    with server.connect() as sock:
        sock.sendall(HEAD + b"Content-Length: 100\r\n\r\n" + EVIL)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    assert server.exchange.seen == []


def test_bytes_of_a_body_are_never_read_as_a_request(server: EchoServer) -> None:
    server.exchange.seen.clear()
    server.ask(HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(EVIL) + EVIL)
    assert [request.body for request in server.exchange.seen] == [EVIL]
