"""Listening sockets: all or none, kept over a reload, taken from a service manager."""

import os
import socket
import subprocess
import sys

import pytest

from cliproxy.config.schema import Server
from cliproxy.errors import ConfigError
from cliproxy.processes import listeners as subject
from cliproxy.processes.listeners import Listeners, inherited_listeners, open_listeners


def said():
    lines: list[str] = []
    return lines, lines.append


def port_of(url):
    return int(url.rpartition(":")[2])


@pytest.fixture
def taken():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    monkeypatch.setattr(subject, "PORT_RELEASE_SECONDS", 0.1)


def test_port_0_is_one_port_on_all_addresses():
    lines, say = said()
    found = open_listeners(Server(listen=("127.0.0.1", "127.0.0.2"), port=0), before=None, say=say)
    first, second = found.urls
    assert first.startswith("http://127.0.0.1:") and second.startswith("http://127.0.0.2:")
    assert port_of(first) == port_of(second) != 0
    for host in ("127.0.0.1", "127.0.0.2"):
        socket.create_connection((host, port_of(first)), timeout=10).close()
    found.close_except(None)
    assert lines == []


def test_ipv6_is_its_own_socket_and_its_url_has_brackets():
    try:
        found = open_listeners(Server(listen=("::1",), port=0), before=None, say=print)
    except ConfigError:
        pytest.skip("no IPv6 on this machine")
    assert found.urls[0].startswith("http://[::1]:")
    (number,) = found.sockets.values()
    with socket.socket(fileno=os.dup(number)) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        assert not os.get_blocking(number)
    found.close_except(None)


def test_tls_shows_in_the_url():
    assert Listeners({}, scheme="https", inherited=False).urls == []


def test_a_port_in_use_opens_nothing(taken):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=rf"server\.listen: 127\.0\.0\.1:{taken}: the port is in use; stop what listens there"):
        open_listeners(Server(listen=("127.0.0.2", "127.0.0.1"), port=taken), before=None, say=print)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("host", "problem"),
    [("192.0.2.1", "list an address of this machine"), ("2001:db8::1", "server.listen: \\[2001:db8::1\\]")],
)
def test_an_address_that_is_not_ours_is_told(host, problem):
    with pytest.raises(ConfigError, match=problem):
        open_listeners(Server(listen=(host,), port=0), before=None, say=print)


def missing_ipv6(monkeypatch):
    real = subject._open

    def open_one(host, port):
        if ":" in host:
            raise ConfigError(f"[{host}]: cannot assign requested address", cure="x") from OSError(99, "cannot assign")
        return real(host, port)

    monkeypatch.setattr(subject, "_open", open_one)


def test_ipv6_of_the_default_list_may_be_missing(monkeypatch):
    missing_ipv6(monkeypatch)
    lines, say = said()
    found = open_listeners(Server(port=0), before=None, say=say)
    assert [url.rpartition(":")[0] for url in found.urls] == ["http://127.0.0.1"]
    assert lines == ["cliproxy: not listening on [::1]: [::1]: cannot assign requested address"]
    found.close_except(None)


def test_ipv6_that_was_asked_for_may_not(monkeypatch):
    missing_ipv6(monkeypatch)
    with pytest.raises(ConfigError):
        open_listeners(Server(listen=("::1",), port=0), before=None, say=print)


def test_too_many_addresses_are_refused():
    with pytest.raises(ConfigError, match="more than 8 addresses"):
        open_listeners(Server(listen=tuple(f"127.0.0.{n}" for n in range(1, 10)), port=0), before=None, say=print)


def test_a_reload_keeps_the_sockets_that_stay_and_a_failed_one_closes_none_of_them(taken):
    old = open_listeners(Server(listen=("127.0.0.1", "127.0.0.2"), port=0), before=None, say=print)
    port = port_of(old.urls[0])
    old = Listeners({(host, port): number for (host, _), number in old.sockets.items()}, scheme="http", inherited=False)
    new = open_listeners(Server(listen=("127.0.0.2", "127.0.0.3"), port=port), before=old, say=print)
    assert new.sockets[("127.0.0.2", port)] == old.sockets[("127.0.0.2", port)]
    with pytest.raises(ConfigError):
        open_listeners(Server(listen=("127.0.0.2", "192.0.2.1"), port=port), before=new, say=print)
    old.close_except(new)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    for host in ("127.0.0.2", "127.0.0.3"):
        socket.create_connection((host, port), timeout=10).close()
    new.close_except(None)


def test_without_a_service_manager_there_is_nothing_to_inherit():
    assert inherited_listeners(Server(), {}) is None
    assert inherited_listeners(Server(), {"LISTEN_PID": "1", "LISTEN_FDS": "1"}) is None


@pytest.mark.parametrize("count", ["", "0", "-1", "9", "x", "1 "])
def test_a_strange_number_of_inherited_sockets_is_refused(count):
    with pytest.raises(ConfigError, match="LISTEN_FDS is"):
        inherited_listeners(Server(), {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


INHERITING = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
from cliproxy.config.schema import Server
from cliproxy.errors import ConfigError
from cliproxy.processes.listeners import inherited_listeners, open_listeners
try:
    found = inherited_listeners(Server(), {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    print(found.urls, open_listeners(Server(port=1), before=found, say=print).sockets == found.sockets)
except ConfigError as error:
    print(error)
"""


def inheriting(number):
    return subprocess.run([sys.executable, "-c", INHERITING, str(number)], pass_fds=[number], capture_output=True, text=True).stdout


def test_the_service_managers_socket_is_used_and_stays_over_a_reload():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert inheriting(sock.fileno()).strip() == f"['http://127.0.0.1:{sock.getsockname()[1]}'] True"


def test_an_inherited_socket_that_does_not_listen_is_refused():
    with socket.socket() as sock:
        assert "not a listening stream socket; use ListenStream=" in inheriting(sock.fileno())


@pytest.mark.parametrize("shutdowns", [1, 2])
def test_a_socket_that_was_shut_down_takes_connections_that_can_talk(shutdowns):
    """The second shutdown, of what listens no more, leaves a mark that the connections of the next `listen` would inherit."""
    with socket.create_server(("127.0.0.1", 0)) as lost_port:
        port = lost_port.getsockname()[1]
    listeners = open_listeners(Server(listen=("127.0.0.1",), port=port), before=None, say=print)
    (number,) = listeners.sockets.values()
    with socket.socket(fileno=os.dup(number)) as attacker:
        attacker.shutdown(socket.SHUT_RDWR)
        for _ in range(shutdowns - 1):
            with pytest.raises(OSError, match="not connected"):
                attacker.shutdown(socket.SHUT_RDWR)
        assert listeners.reopen() == [(f"127.0.0.1:{port}", "it was shut down")]
        assert listeners.reopen() == []
        with socket.create_connection(("127.0.0.1", port)) as client:
            attacker.settimeout(10)
            accepted, _ = attacker.accept()
            with accepted:
                client.sendall(b"question")
                assert accepted.recv(20) == b"question"
                accepted.sendall(b"answer")
                assert client.recv(20) == b"answer"
    listeners.close_except(None)
