"""The locked-down process, over its channels."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator

import pytest

from cliproxy.audit.events import AddressDenied, ChannelViolation
from cliproxy.bounds import MAX_HOST_CHARS, MAX_PENDING_DIALS
from cliproxy.config.schema import Provider, ProviderTimeouts, Settings, encode_settings
from cliproxy.errors import ChannelError
from cliproxy.ipc.control import Down, Up
from cliproxy.ipc.messages import DialFailed
from fakes.dialer_process import DialerProcess

LONGEST_ORIGIN = MAX_HOST_CHARS + len("https://[]:65535")  # the longest host, and what may stand around it


@pytest.fixture(scope="module")
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        listening.settimeout(10)
        yield listening


@pytest.fixture(scope="module")
def port(server: socket.socket) -> int:
    return int(server.getsockname()[1])


@pytest.fixture
def dialer(port: int) -> Iterator[DialerProcess]:
    providers = {
        "literal": Provider(base_url=f"http://127.0.0.1:{port}/v1"),
        "named": Provider(base_url=f"http://localhost:{port}/v1"),
        "private": Provider(base_url="https://10.0.0.1/v1"),
        "metadata": Provider(base_url="http://169.254.169.254/v1", plain_http=True, private_network=True),
        "missing": Provider(base_url="https://name.invalid/v1"),
        "closed": Provider(base_url="http://127.0.0.1:1/v1"),
    }
    with DialerProcess(providers) as running:
        yield running


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_enrolled_origin_gives_a_connected_socket(dialer: DialerProcess, server: socket.socket, port: int, host: str) -> None:
    dialer.ask(f"http://{host}:{port}")
    message, sock = dialer.answer()
    assert sock is not None and message.dial == 1
    accepted, _ = server.accept()
    sock.sendall(b"through")
    assert accepted.recv(10) == b"through"
    accepted.close()
    sock.close()


@pytest.mark.parametrize(
    "origin",
    [
        "https://attacker.example:443",
        "http://127.0.0.1:2",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:{port}/v1",
        "http://127.0.0.1:{port}@attacker.example:80",
        "HTTP://127.0.0.1:{port}",
        "127.0.0.1",
        "",
        "x" * LONGEST_ORIGIN,
    ],
)
def test_an_origin_that_is_not_enrolled_is_not_dialled(dialer: DialerProcess, port: int, origin: str) -> None:
    assert dialer.dial(origin.replace("{port}", str(port))) == "not_enrolled"


@pytest.mark.parametrize("characters", [LONGEST_ORIGIN + 1, 10_000])
def test_an_origin_longer_than_any_closes_the_channel_and_is_audited(dialer: DialerProcess, port: int, characters: int) -> None:
    dialer.ask("x" * characters)
    with pytest.raises(ChannelError):
        dialer.answer()
    (event,) = dialer.events()
    assert isinstance(event, ChannelViolation) and event.peer == "egress"
    dialer.replace_egress()
    assert dialer.dial(f"http://x.example:{port}") == "not_enrolled"


@pytest.mark.parametrize(
    ("origin", "address", "why"), [("https://10.0.0.1:443", "10.0.0.1", "private"), ("http://169.254.169.254:80", "169.254.169.254", "metadata")]
)
def test_a_forbidden_address_is_refused_and_audited(dialer: DialerProcess, origin: str, address: str, why: str) -> None:
    for _ in range(3):
        assert dialer.dial(origin) == "forbidden_address"
    events = dialer.events()
    assert all(isinstance(event, AddressDenied) and event.address == address and event.reason == f"{why}: {origin}" for event in events)


def test_other_failures_have_their_reasons(dialer: DialerProcess) -> None:
    assert dialer.dial("https://name.invalid:443") == "resolve"
    assert dialer.dial("http://127.0.0.1:1") == "refused"


def test_many_dials_at_once_are_all_answered(dialer: DialerProcess, server: socket.socket, port: int) -> None:
    asked = {dialer.ask(f"http://localhost:{port}") for _ in range(60)}
    answered = set()
    for _ in range(60):
        message, sock = dialer.answer()
        assert sock is not None
        answered.add(message.dial)
        sock.close()
        server.accept()[0].close()
    assert answered == asked


def test_an_egress_that_does_not_read_loses_no_answer(dialer: DialerProcess) -> None:
    asked = 0
    while select.select([], [dialer.channel.fileno()], [], 0.5)[1]:  # until both queues are full
        dialer.ask("https://not-enrolled.example:443")
        asked += 1
    assert asked > 20
    answered = [dialer.answer()[0].dial for _ in range(asked)]
    assert answered == list(range(1, asked + 1))
    assert dialer.dial("http://127.0.0.1:1") == "refused"


def test_what_nobody_answers_times_out_and_more_than_the_queue_holds_is_busy() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        with DialerProcess({"p": Provider(base_url=f"http://127.0.0.1:{port}", timeouts=ProviderTimeouts(connect=0.5))}) as dialer:
            for _ in range(MAX_PENDING_DIALS + 5):
                dialer.ask(f"http://127.0.0.1:{port}")
            reasons = []
            for _ in range(MAX_PENDING_DIALS + 5):
                message, _ = dialer.answer()
                assert isinstance(message, DialFailed)
                reasons.append(message.reason)
            assert reasons.count("busy") == 5 and reasons.count("timeout") == MAX_PENDING_DIALS
            assert dialer.dial(f"http://127.0.0.1:{port}") == "timeout"  # and it goes on
        for filler in fillers:
            filler.close()


def test_a_hostile_packet_closes_the_channel_and_is_audited(dialer: DialerProcess, port: int) -> None:
    dialer.egress.send(b"\x81\xa4type\xa7Connect")
    with pytest.raises((ChannelError, AssertionError)):
        dialer.answer()
    (event,) = dialer.events()
    assert isinstance(event, ChannelViolation) and event.peer == "egress"
    dialer.replace_egress()
    sock = dialer.dial(f"http://127.0.0.1:{port}")
    assert isinstance(sock, socket.socket)
    sock.close()


def test_two_dials_of_one_number_close_the_channel(dialer: DialerProcess) -> None:
    os.kill(dialer.pid, signal.SIGSTOP)  # or it has answered the first before it has the second
    try:
        dialer._next = 0
        dialer.ask("https://name.invalid:443")
        dialer._next = 0
        dialer.ask("https://name.invalid:443")
    finally:
        os.kill(dialer.pid, signal.SIGCONT)
    (event,) = dialer.events()
    assert isinstance(event, ChannelViolation) and "number" in event.reason


def test_a_restarted_egress_gets_its_own_answers_only(dialer: DialerProcess, server: socket.socket, port: int) -> None:
    for _ in range(5):
        dialer.ask("https://name.invalid:443")
    dialer.replace_egress()
    sock = dialer.dial(f"http://127.0.0.1:{port}")
    assert isinstance(sock, socket.socket)
    sock.close()
    server.accept()[0].close()
    assert not select.select([dialer.channel.fileno()], [], [], 0.3)[0]


def test_a_reload_replaces_the_table_at_commit_and_not_before(dialer: DialerProcess, port: int) -> None:
    elsewhere = encode_settings(Settings(providers={"p": Provider(base_url="http://127.0.0.1:1/v1")}))
    dialer.order_settings(2, elsewhere)
    assert (dialer.report().kind, isinstance(dialer.dial(f"http://127.0.0.1:{port}"), socket.socket)) == (Up.PREPARED, True)
    dialer.control.order(Down.COMMIT, 2)
    report = dialer.report()
    assert (report.kind, report.argument) == (Up.COMMITTED, 2)
    assert dialer.dial(f"http://127.0.0.1:{port}") == "not_enrolled"
    assert dialer.dial("http://127.0.0.1:1") == "refused"


@pytest.mark.parametrize(
    "blob",
    [b"", b"\xc1", b"\x80 and more", encode_settings(Settings(providers={"p": Provider(base_url="http://clear.example/v1")}))],
    ids=["empty", "garbage", "trailing", "plain http"],
)
def test_settings_that_will_not_do_are_refused_and_nothing_changes(dialer: DialerProcess, port: int, blob: bytes) -> None:
    dialer.order_settings(2, blob)
    report = dialer.report()
    assert (report.kind, report.argument) == (Up.REFUSED, 2)
    assert isinstance(dialer.dial(f"http://127.0.0.1:{port}"), socket.socket)


def test_an_abandoned_reload_changes_nothing(dialer: DialerProcess, port: int) -> None:
    dialer.order_settings(2, encode_settings(Settings()))
    assert dialer.report().kind is Up.PREPARED
    dialer.control.order(Down.ABANDON, 2)
    assert isinstance(dialer.dial(f"http://127.0.0.1:{port}"), socket.socket)


def test_it_leaves_when_told_and_when_the_supervisor_is_gone(port: int) -> None:
    for end in ("stop", "gone"):
        with DialerProcess({"p": Provider(base_url=f"http://127.0.0.1:{port}")}) as dialer:
            if end == "stop":
                dialer.control.order(Down.STOP)
            else:
                dialer.control.close()
            assert os.waitstatus_to_exitcode(os.waitpid(dialer.pid, 0)[1]) == 0


def test_a_failed_auditor_does_not_keep_it_from_working(dialer: DialerProcess, port: int) -> None:
    dialer.audit.close()
    for _ in range(3):
        sock = dialer.dial(f"http://127.0.0.1:{port}")
        assert isinstance(sock, socket.socket)
        sock.close()
