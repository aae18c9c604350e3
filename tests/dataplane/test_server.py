"""The worker's server over real sockets: answers, order, deadlines, slow readers, draining, faults."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest

from cliproxy.bounds import PIPELINE_BYTES
from cliproxy.config.schema import IpAllowlist, ServerLimits, ServerSecurity, Tls
from cliproxy.dataplane import connection as connection_module
from cliproxy.dataplane.answering import MAX_UNSENT_BYTES
from cliproxy.ingress.tls import server_context
from fakes.certificates import Authority
from fakes.echo_server import EchoServer, read_all, read_answer

HOST = b"Host: gateway\r\n"
QUICK = ServerLimits(head_timeout_seconds=0.2, body_timeout_seconds=0.3, idle_timeout_seconds=0.3, stalled_reader_seconds=0.3)


def get(path: bytes, *headers: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"".join(header + b"\r\n" for header in headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as running:
        yield running
        assert not running.faults


@pytest.fixture
def quick() -> Iterator[EchoServer]:
    with EchoServer(limits=QUICK) as running:
        yield running
        assert not running.faults


# --- answers ---


def test_a_whole_answer_has_its_length_a_date_and_the_security_headers(server: EchoServer) -> None:
    with server.connect() as sock:
        sock.sendall(post(b"/echo", b"hello"))
        status, headers, body = read_answer(sock)
    assert (status, body) == (200, b"POST /echo hello")
    assert headers["content-length"] == "16"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["date"].endswith(" GMT")
    assert "strict-transport-security" not in headers
    assert "connection" not in headers
    assert "server" not in headers


def test_a_stream_of_one_turn_is_one_chunk(server: EchoServer) -> None:
    with server.connect() as sock:
        sock.sendall(post(b"/stream", b"one,two,,three", b"Connection: close"))
        answer = read_all(sock)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head and b"Content-Length" not in head
    assert body == b"b\r\nonetwothree\r\n0\r\n\r\n"


def test_an_http_1_0_client_gets_no_chunks_and_the_end_of_the_connection(server: EchoServer) -> None:
    answer = server.ask(b"POST /stream HTTP/1.0\r\nContent-Length: 7\r\n\r\none,two")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head and b"Connection: close" in head
    assert body == b"onetwo"


def test_head_has_the_headers_and_no_body(server: EchoServer) -> None:
    with server.connect() as sock:
        for path, framing in ((b"/echo", b"Content-Length: 11"), (b"/stream", b"Transfer-Encoding: chunked")):
            sock.sendall(b"HEAD " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1)
            assert framing in head
        sock.sendall(get(b"/echo"))
        assert read_answer(sock)[2] == b"GET /echo "


def test_an_answer_without_content_says_no_length(server: EchoServer) -> None:
    with server.connect() as sock:
        sock.sendall(get(b"/empty") + get(b"/echo"))
        status, headers, _ = read_answer(sock)
        assert status == 204 and "content-length" not in headers
        assert read_answer(sock)[2] == b"GET /echo "


def test_an_error_that_the_exchange_raises_is_answered_in_openais_shape(server: EchoServer) -> None:
    with server.connect() as sock:
        sock.sendall(get(b"/error") + get(b"/echo"))
        status, headers, body = read_answer(sock)
        assert status == 404
        assert json.loads(body) == {"error": {"message": "There is no such thing.", "type": "not_found_error", "param": "thing", "code": "not_found"}}
        assert headers["x-request-id"].startswith("req_")
        assert read_answer(sock)[0] == 200


def test_expect_is_answered_with_100_after_the_head_was_accepted(server: EchoServer) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"ok")
        assert read_answer(sock)[2] == b"POST /echo ok"
    assert server.ask(b"POST /echo HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 999999999\r\n\r\n").startswith(b"HTTP/1.1 413 ")


# --- order ---


def test_pipelined_requests_are_answered_in_order_one_at_a_time(server: EchoServer) -> None:
    with server.connect() as sock:
        sock.sendall(get(b"/later") + get(b"/1") + post(b"/stream", b"a,b") + get(b"/2"))
        server.wait_until(lambda: server.exchange.waiting)
        assert len(server.exchange.seen) == 1
        server.call(lambda: server.exchange.waiting.pop().respond(200, b"", b"first"))
        assert [read_answer(sock)[2] for _ in range(4)] == [b"first", b"GET /1 ", b"ab", b"GET /2 "]


def test_reading_stops_while_a_request_is_under_way_and_goes_on_after_it(server: EchoServer) -> None:
    with server.connect() as sock:
        sock.sendall(get(b"/later"))
        server.wait_until(lambda: server.exchange.waiting)
        connection = server.exchange.waiting.pop()
        more = 40_000
        writer = threading.Thread(target=sock.sendall, args=(get(b"/x") * more,))
        writer.start()
        server.wait_until(lambda: connection._intake.is_paused)
        held = server.call(lambda: len(connection._framer.buffer))
        assert PIPELINE_BYTES < held <= PIPELINE_BYTES + 256 * 1024 + 64
        server.call(lambda: connection.respond(200, b"", b"first"))
        assert read_answer(sock)[2] == b"first"
        received = 0
        expected = more * len(b"GET /x ")
        stream = sock.makefile("rb")
        while received < expected:
            length = 0
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length"):
                    length = int(line.split()[1])
            received += len(stream.read(length))
        writer.join()
    assert server.call(lambda: server.server.bodies.taken) == 0


def test_what_one_turn_answers_on_one_connection_is_one_write(server: EchoServer) -> None:
    writes = []
    with server.connect() as sock:
        sock.sendall(get(b"/later"))
        server.wait_until(lambda: server.exchange.waiting)
        connection = server.exchange.waiting[0]

        class Counting:
            def __getattr__(self, name: str) -> object:
                return getattr(transport, name)

            def write(self, data: bytes) -> None:
                writes.append(data)
                transport.write(data)

        transport, connection._transport = connection._transport, Counting()

        def turn() -> None:
            server.server.collecting = True
            connection.start_stream(200, b"")
            for _ in range(50):
                connection.write_chunk(b"piece")
            connection.end_stream()
            assert not writes
            server.server.flush_dirty()

        server.call(turn)
        assert read_answer(sock)[2] == b"piece" * 50
    assert len(writes) == 1


# --- the client goes away ---


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_the_exchange_learns_once_that_its_client_is_gone(server: EchoServer, how: str) -> None:
    sock = server.connect()
    sock.sendall(get(b"/later"))
    server.wait_until(lambda: server.exchange.waiting)
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if how == "half-close":
        sock.shutdown(socket.SHUT_WR)
    else:
        sock.close()
    server.wait_until(lambda: server.exchange.gone)
    server.wait_until(lambda: server.server.open_connections == 0)
    (connection,) = server.exchange.waiting
    assert server.exchange.gone == [connection]
    server.call(lambda: (connection.respond(200, b"", b"nobody"), connection.start_stream(200, b""), connection.write_chunk(b"x"), connection.end_stream()))
    sock.close()


def test_an_answer_that_is_broken_off_does_not_look_whole(server: EchoServer) -> None:
    with server.connect() as sock:
        sock.sendall(get(b"/flood"))
        server.wait_until(lambda: server.exchange.waiting)
        connection = server.exchange.waiting[0]
        server.call(lambda: connection.write_chunk(b"half"))
        while b"half" not in sock.recv(65536):
            pass
        server.call(connection.abort)
        assert b"0\r\n\r\n" not in read_all(sock)
    server.wait_until(lambda: server.server.open_connections == 0)
    assert not server.exchange.gone


# --- deadlines ---


def test_a_slow_head_is_answered_with_408(quick: EchoServer) -> None:
    assert quick.ask(b"GET /echo HT").startswith(b"HTTP/1.1 408 ")


def test_a_head_that_trickles_for_ever_ends_too(quick: EchoServer) -> None:
    with quick.connect() as sock:
        sock.settimeout(0.02)
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        answer = b""
        until = time.monotonic() + 15
        while not answer and time.monotonic() < until:
            try:
                sock.sendall(b"a")
                answer = sock.recv(65536)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_slow_body_is_answered_with_408(quick: EchoServer) -> None:
    answer = quick.ask(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"bad_http"' in answer
    assert quick.exchange.seen == []


def test_who_says_nothing_is_closed_without_a_word(quick: EchoServer) -> None:
    assert quick.ask(b"") == b""
    with quick.connect() as sock:
        sock.sendall(get(b"/echo"))
        assert read_answer(sock)[0] == 200
        assert read_all(sock) == b""


def test_a_request_under_way_has_no_deadline_here(quick: EchoServer) -> None:
    with quick.connect() as sock:
        sock.sendall(get(b"/later"))
        quick.wait_until(lambda: quick.exchange.waiting)
        time.sleep(0.6)
        quick.call(lambda: quick.exchange.waiting.pop().respond(200, b"", b"at last"))
        assert read_answer(sock)[2] == b"at last"


def test_an_error_answer_reaches_a_client_that_is_still_sending(server: EchoServer) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999\r\n\r\n" + bytes(1_000_000))
        answer = b""
        while b"}}" not in answer:
            answer += sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert sock.recv(1) == b""


# --- slow readers ---


def flood(server: EchoServer, sock: socket.socket) -> tuple[object, int]:
    """Stream to a client that does not read until the connection says `paused`; return it and how much it took."""
    sock.sendall(get(b"/flood"))
    server.wait_until(lambda: server.exchange.waiting)
    connection = server.exchange.waiting.pop()
    sent = 0
    while not server.call(lambda: connection.paused):
        server.call(lambda: connection.write_chunk(bytes(16384)))
        sent += 16384
        assert sent < 64 * 1024 * 1024
    return connection, sent


def test_a_client_that_does_not_read_pauses_the_exchange_and_resumes_it(server: EchoServer) -> None:
    with server.connect(receive_buffer=4096) as sock:
        connection, sent = flood(server, sock)
        assert server.exchange.paused == [connection]
        server.call(lambda: connection.write_chunk(b"kept while paused"))  # type: ignore[attr-defined]
        received = b""
        while server.call(lambda: connection.paused):  # type: ignore[attr-defined]
            received += sock.recv(65536)
        server.wait_until(lambda: server.exchange.writable == [connection])
        server.call(connection.end_stream)  # type: ignore[attr-defined]
        while not received.endswith(b"0\r\n\r\n"):
            received += sock.recv(65536)
        assert b"kept while paused" in received
        assert received.count(0) == sent


def test_the_end_of_a_stream_waits_for_a_paused_client_whatever_the_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "LINGER_SECONDS", 0.05)
    with EchoServer(limits=ServerLimits(idle_timeout_seconds=0.05)) as server, server.connect(receive_buffer=4096) as sock:
        connection, _ = flood(server, sock)
        server.call(lambda: (connection.write_chunk(b"the end"), connection.end_stream()))  # type: ignore[attr-defined]
        time.sleep(0.4)
        assert read_all(sock).endswith(b"7\r\nthe end\r\n0\r\n\r\n")


def test_what_a_paused_client_is_owed_is_bounded(server: EchoServer) -> None:
    with server.connect(receive_buffer=4096) as sock:
        connection, _ = flood(server, sock)
        for _ in range(MAX_UNSENT_BYTES // 16384):
            server.call(lambda: connection.write_chunk(bytes(16384)))  # type: ignore[attr-defined]
        assert server.exchange.gone == []
        server.call(lambda: connection.write_chunk(b"!"))  # type: ignore[attr-defined]
        assert server.exchange.gone == [connection]
        server.wait_until(lambda: server.server.open_connections == 0)


def test_a_client_that_stays_stalled_is_dropped(quick: EchoServer) -> None:
    with quick.connect(receive_buffer=4096) as sock:
        connection, _ = flood(quick, sock)
        quick.wait_until(lambda: quick.exchange.gone == [connection])
        quick.wait_until(lambda: quick.server.open_connections == 0)


@pytest.mark.parametrize("close", [b"X: y", b"Connection: close"])
def test_neither_idle_time_nor_lingering_cuts_an_answer_that_is_read_slowly(close: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "LINGER_SECONDS", 0.05)
    size = 8_000_000
    with EchoServer(limits=ServerLimits(idle_timeout_seconds=0.05)) as server, server.connect(receive_buffer=65536) as sock:
        sock.sendall(get(b"/large?%d" % size, close))
        received = 0
        while received < size:
            if received < 2_000_000:
                time.sleep(0.02)
            data = sock.recv(65536)
            assert data, received
            received += data.count(0)
        assert read_all(sock) == b""


def test_a_large_answer_that_nobody_reads_is_given_up(quick: EchoServer) -> None:
    for close in (b"X: y", b"Connection: close"):
        with quick.connect(receive_buffer=4096) as sock:
            sock.sendall(get(b"/large?8000000", close) + get(b"/never"))
            quick.wait_until(lambda: quick.exchange.seen)
            quick.wait_until(lambda: quick.server.open_connections == 0)
    assert [request.path for request in quick.exchange.seen] == [b"/large", b"/large"]  # nothing is begun for a client that does not read


@pytest.mark.parametrize("ends", ["read", "dropped"])
def test_what_waits_for_slow_clients_is_counted_together(ends: str) -> None:
    limits = QUICK if ends == "dropped" else ServerLimits()
    with (
        EchoServer(limits=limits, max_unread_bytes=40_000_000) as server,
        server.connect(receive_buffer=4096) as first,
        server.connect(receive_buffer=4096) as second,
    ):

        def ask_and_not_read(sock: socket.socket, already: int) -> None:
            sock.sendall(get(b"/large?8000000", b"Connection: close"))
            server.wait_until(lambda: server.server.unread.taken > already + 8_000_000)

        ask_and_not_read(first, 0)
        ask_and_not_read(second, 8_000_000)
        assert not any(connection.has_room_for(8_000_000) for connection in server.call(lambda: tuple(server.server._connections)))
        if ends == "read":
            assert read_all(first).count(0) == read_all(second).count(0) == 8_000_000
        server.wait_until(lambda: server.server.unread.taken == 0)


def test_who_has_more_unread_than_its_share_is_dropped_and_others_are_served() -> None:
    with EchoServer(max_unread_bytes=20_000_000) as server:
        socks = [server.connect(receive_buffer=4096) for _ in range(12)]
        for sock in socks:
            sock.sendall(get(b"/large?3000000") + get(b"/large?3000000"))
        server.wait_until(lambda: len(server.exchange.seen) >= len(socks))
        server.wait_until(lambda: server.server.open_connections < len(socks))
        assert server.call(lambda: server.server.unread.taken) <= 20_000_000 // 2 + 3_100_000
        assert server.ask(get(b"/echo", b"Connection: close")).startswith(b"HTTP/1.1 200 ")
        for sock in socks:
            sock.close()
        server.wait_until(lambda: server.server.unread.taken == 0)


@pytest.mark.parametrize("how", ["close", "half-close"])
def test_who_leaves_behind_more_than_we_read_is_noticed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its FIN stands behind what it sent, and nobody reads that while a call that has written nothing is under way."""
    monkeypatch.setattr(connection_module, "LISTEN_SECONDS", 0.5)
    with EchoServer(limits=ServerLimits(head_timeout_seconds=600, idle_timeout_seconds=600)) as server, server.connect() as sock:
        sock.sendall(get(b"/later"))
        server.wait_until(lambda: server.exchange.waiting)
        sock.sendall(get(b"/x") * 10_000)
        server.wait_until(lambda: server.exchange.waiting[0]._intake.is_paused)
        assert server.exchange.gone == []
        if how == "close":
            sock.close()
        else:
            sock.shutdown(socket.SHUT_WR)
        server.wait_until(lambda: server.exchange.gone == server.exchange.waiting)
        server.wait_until(lambda: server.server.open_connections == 0)
        assert server.call(lambda: server.server.bodies.taken) == 0


def test_the_last_bytes_that_nobody_reads_hold_no_connection_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "LINGER_SECONDS", 0.05)
    with EchoServer(limits=QUICK) as server, server.connect(receive_buffer=4096) as sock:
        sock.sendall(get(b"/flood"))
        server.wait_until(lambda: server.exchange.waiting)
        connection = server.exchange.waiting.pop()

        def waits() -> bool:
            """Write what fits, and a little more."""
            if not connection.paused:
                connection.write_chunk(bytes(8192))
            return connection.paused

        server.wait_until(waits)
        server.call(connection.end_stream)
        server.wait_until(lambda: server.server.open_connections == 0)


# --- rules ---


def test_a_denied_address_is_told_403_in_clear_and_never_reaches_the_exchange() -> None:
    with EchoServer(security=ServerSecurity(ip_denylist=("127.0.0.0/8",))) as server:
        answer = server.ask(get(b"/echo"))
        assert answer == b"" or answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert server.exchange.seen == [] and server.denied[0] == ("127.0.0.1", "ip_lists")
        assert server.call(lambda: server.server.open_connections) == 0


def test_the_specifications_lists_admit_who_is_allowed() -> None:
    security = ServerSecurity(ip_allowlist=IpAllowlist(allowed_ips=("127.0.0.0/8",)), ip_denylist=("0.0.0.0/0",))
    with EchoServer(security=security) as server:
        assert server.ask(get(b"/echo", b"Connection: close")).startswith(b"HTTP/1.1 200 ")


def test_a_block_ends_open_connections_too(server: EchoServer) -> None:
    with server.connect() as sock:
        sock.sendall(get(b"/later"))
        server.wait_until(lambda: server.exchange.waiting)
        server.call(lambda: server.server.block(("127.0.0.1",)))
        assert read_all(sock) == b""
        server.wait_until(lambda: server.exchange.gone)
    assert server.ask(get(b"/echo"))[:13] in (b"", b"HTTP/1.1 403 ")
    server.call(lambda: server.server.block(()))
    assert server.ask(get(b"/echo", b"Connection: close")).startswith(b"HTTP/1.1 200 ")


# --- draining and faults ---


def test_draining_closes_idle_connections_and_finishes_the_others(server: EchoServer) -> None:
    idle, busy, late = server.connect(), server.connect(), server.connect()
    busy.sendall(get(b"/later"))
    for sock in (idle, late):
        sock.sendall(get(b"/echo"))
        read_answer(sock)
    server.wait_until(lambda: server.exchange.waiting)
    server.call(server.server.drain)
    late.sendall(get(b"/echo"))  # crosses the news on the wire
    _, headers, _ = read_answer(late)
    assert headers["connection"] == "close"
    assert read_all(late) == b"" and read_all(idle) == b""
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    assert server.call(lambda: server.server.open_connections) >= 1
    server.call(lambda: server.exchange.waiting.pop().respond(200, b"", b"finished"))
    _, headers, body = read_answer(busy)
    assert body == b"finished" and headers["connection"] == "close"
    for sock in (idle, busy, late):
        sock.close()
    server.wait_until(lambda: server.server.open_connections == 0)


def test_a_bug_closes_its_connection_and_no_other() -> None:
    with EchoServer() as server, server.connect() as other:
        other.sendall(get(b"/echo"))
        assert read_answer(other)[0] == 200
        assert server.ask(get(b"/bug") + get(b"/echo")) == b""
        assert [type(fault) for fault in server.faults] == [ValueError]
        assert len(server.exchange.gone) == 1  # its request was under way
        other.sendall(get(b"/echo"))
        assert read_answer(other)[0] == 200


def test_a_second_answer_to_one_request_is_a_bug_and_is_never_sent() -> None:
    with EchoServer() as server:
        assert b"two" not in server.ask(get(b"/twice"))
        assert [type(fault) for fault in server.faults] == [RuntimeError]


def test_a_bug_in_what_is_told_to_the_exchange_closes_that_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with EchoServer() as server:

        def broken(_: object) -> None:
            raise ValueError("a bug of ours")

        monkeypatch.setattr(server.exchange, "on_client_gone", broken)
        with server.connect() as sock:
            sock.sendall(get(b"/later"))
            server.wait_until(lambda: server.exchange.waiting)
        server.wait_until(lambda: server.faults)
        server.wait_until(lambda: server.server.open_connections == 0)
        assert server.ask(get(b"/echo", b"Connection: close")).startswith(b"HTTP/1.1 200 ")


def test_a_lack_of_descriptors_passes_and_accepting_goes_on() -> None:
    with EchoServer() as server:
        (listener,) = server.server._listeners
        failures = [OSError(24, "Too many open files")]

        class Failing:
            def accept(self) -> object:
                if failures:
                    raise failures.pop()
                return listener.accept()

            def fileno(self) -> int:
                return listener.fileno()

        def replace() -> None:
            server._loop.remove_reader(listener)
            server._loop.add_reader(listener, server.server._accept, Failing())

        server.call(replace)
        assert server.ask(get(b"/echo", b"Connection: close")).startswith(b"HTTP/1.1 200 ")
        assert [type(fault) for fault in server.faults] == [OSError]


# --- TLS ---


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def secured(authority: Authority) -> Iterator[EchoServer]:
    issued = authority.issue("localhost", "127.0.0.1")
    issued.key.chmod(0o600)
    limits = ServerLimits(head_timeout_seconds=0.3, max_connections=3, max_connections_per_address=3)
    with EchoServer(limits=limits, tls=server_context(Tls(enabled=True, cert_file=str(issued.cert), key_file=str(issued.key)))) as running:
        yield running
        assert not running.faults


def tls_client(authority: Authority, sock: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority.ca))
    return context.wrap_socket(sock, server_hostname="localhost")


def test_over_tls_hsts_is_sent_and_everything_else_is_the_same(secured: EchoServer, authority: Authority) -> None:
    with tls_client(authority, secured.connect()) as sock:
        assert sock.version() == "TLSv1.3"
        for body in (b"a", bytes(200_000)):
            sock.sendall(post(b"/echo", body))
            status, headers, answer = read_answer(sock)
            assert status == 200 and answer == b"POST /echo " + body
            assert headers["strict-transport-security"].startswith("max-age=")
        sock.sendall(post(b"/stream", b"x,y", b"Connection: close"))
        assert read_answer(sock)[2] == b"xy"
        assert sock.recv(1) == b""


def test_clear_text_on_the_tls_port_is_never_read_as_http(secured: EchoServer) -> None:
    assert b"HTTP/1.1 200" not in secured.ask(get(b"/echo"))
    assert secured.exchange.seen == []
    secured.wait_until(lambda: secured.server.open_connections == 0)


def test_a_handshake_that_does_not_go_on_gives_way(authority: Authority) -> None:
    issued = authority.issue("localhost", "127.0.0.1")
    issued.key.chmod(0o600)
    context = server_context(Tls(enabled=True, cert_file=str(issued.cert), key_file=str(issued.key)))
    with EchoServer(limits=ServerLimits(max_connections_per_address=3), tls=context) as server:
        silent = [server.connect() for _ in range(3)]
        server.wait_until(lambda: server.server.open_connections == 3)
        with tls_client(authority, server.connect()) as sock:
            sock.sendall(get(b"/echo"))
            assert read_answer(sock)[0] == 200
            assert read_all(silent[0]) == b""
            assert server.rules._caps.open == server.call(lambda: server.server.open_connections) == 3
        assert not server.faults


def test_handshakes_are_counted_timed_and_forgotten(secured: EchoServer, authority: Authority) -> None:
    for _ in range(3):
        socks = [secured.connect() for _ in range(3)]
        secured.wait_until(lambda: secured.server.open_connections == 3)
        assert read_all(secured.connect()) == b""  # the fourth
        assert ("127.0.0.1", "connection_caps") in secured.denied
        for sock in socks:
            assert read_all(sock) == b""  # head timeout
        secured.wait_until(lambda: secured.server.open_connections == 0)
    with tls_client(authority, secured.connect()) as sock:
        sock.sendall(get(b"/echo"))
        assert read_answer(sock)[0] == 200
    assert secured.rules._caps.open <= 1


def test_a_request_that_comes_with_the_end_of_the_handshake_is_served(secured: EchoServer, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.ca))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with secured.connect() as sock:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        client.write(get(b"/echo"))
        sock.sendall(outgoing.read())  # Finished and the request in one packet
        answer = b""
        while b"GET /echo" not in answer:
            incoming.write(sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                answer += client.read(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")
