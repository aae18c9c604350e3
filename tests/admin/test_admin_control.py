"""The control socket over real sockets: who is answered, and what lines may do."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.admin.control import CONTROL_IDLE_SECONDS, CONTROL_REQUESTS_PER_SECOND, MAX_CONTROL_CONNECTIONS, ControlSocket
from cliproxy.bounds import CONTROL_REQUEST_SECONDS, MAX_COMMAND_LINE_BYTES
from cliproxy.errors import ChannelError
from cliproxy.ipc import commands
from cliproxy.ipc.commands import Hello, OperatorCommand, decode_command, decode_reply, encode_line

OTHER_UID = 54321
HELLO = Hello(build="b1", serving=True)


class Server:
    """The socket under test with a clock and a list of what was asked."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "control.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(64)
        os.chmod(self.path, 0o666)  # so that what refuses another uid is the check under test
        self.now = 1000.0
        self.asked: list[tuple[int, str, OperatorCommand]] = []
        self.strangers: list[int] = []
        self.replies: Callable[[int, OperatorCommand], None] | None = None
        self.control = ControlSocket(listener, operator_uid=os.getuid(), hello=HELLO, ask=self._ask, stranger=self.strangers.append, now=self.now)
        self.clients: list[socket.socket] = []

    def _ask(self, ticket: int, operator: str, command: OperatorCommand) -> None:
        self.asked.append((ticket, operator, command))
        if self.replies is not None:
            self.replies(ticket, command)

    def turn(self, times: int = 8) -> None:
        for _ in range(times):
            poller = select.poll()
            for number, reading, writing in self.control.wanted():
                poller.register(number, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
            for number, mask in poller.poll(0):
                self.control.on_ready(number, now=self.now, ended=bool(mask & (select.POLLHUP | select.POLLERR)))
            self.control.sweep(self.now)

    def connect(self) -> Client:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(5)
        sock.connect(self.path)
        self.clients.append(sock)
        self.turn()
        return Client(self, sock)

    def close(self) -> None:
        for sock in self.clients:
            sock.close()
        self.control.close()


class Client:
    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)
        self.server.turn()

    def read(self) -> bytes:
        """Everything that is there now; `b""` when nothing is, or the end."""
        self.server.turn()
        self.sock.setblocking(False)
        data = b""
        try:
            while piece := self.sock.recv(65536):
                data += piece
        except BlockingIOError:
            pass
        return data

    def is_ended(self) -> bool:
        self.server.turn()
        self.sock.setblocking(False)
        try:
            while self.sock.recv(65536):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        return True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def refusal(data: bytes) -> str:
    reply = decode_reply(data.rstrip(b"\n"))
    assert isinstance(reply, commands.Refused)
    return reply.message


def test_the_operator_is_greeted_and_answered_in_order(server: Server) -> None:
    client = server.connect()
    assert decode_reply(client.read()[:-1]) == HELLO
    server.replies = lambda ticket, command: server.control.answer(ticket, commands.Done(), now=server.now)
    client.send(encode_line(commands.RemoveCredential(id="c1")))
    assert client.read() == encode_line(commands.Done())
    assert server.asked == [(1, f"uid:{os.getuid()}", commands.RemoveCredential(id="c1"))]


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_uid_is_refused_before_anything_is_read(server: Server) -> None:
    directory = Path(server.path).parent
    os.chmod(directory, 0o755)
    reader, writer = os.pipe()
    gate, opener = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(directory)  # while it may: where the temporary folder is, another uid need not be able to go
            os.setgid(OTHER_UID)
            os.setuid(OTHER_UID)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(10)
            sock.connect(Path(server.path).name)
            sock.sendall(encode_line(commands.Lockdown(on=True)))
            os.write(writer, b"c")
            os.read(gate, 1)
            data = b""
            try:
                while piece := sock.recv(65536):
                    data += piece
            except ConnectionResetError:
                pass
            os.write(writer, data)
        finally:
            os._exit(0)
    os.close(writer)  # its end is then the child's alone: one that fails ends the read
    try:
        assert os.read(reader, 1) == b"c"
        server.turn()
        os.write(opener, b"g")
        said = b""
        while piece := os.read(reader, 65536):
            said += piece
    finally:
        os.waitpid(child, 0)
        for number in (reader, gate, opener):
            os.close(number)
    assert f"uid {OTHER_UID} may not use" in refusal(said)
    assert server.asked == []
    assert server.strangers == [OTHER_UID]


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_root_is_let_in_beside_the_operator(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.control._allowed = frozenset({0, OTHER_UID})
    assert decode_reply(server.connect().read()[:-1]) == HELLO
    server.close()


BAD_LINES = {
    "no JSON": b"hello\n",
    "empty": b"\n",
    "no object": b"[]\n",
    "no command": b"{}\n",
    "unknown command": b'{"command":"execute"}\n',
    "a reply": encode_line(commands.Done()),
    "unknown field": b'{"command":"lockdown","on":true,"x":1}\n',
    "missing field": b'{"command":"lockdown"}\n',
    "wrong type": b'{"command":"lockdown","on":"yes"}\n',
    "short digest": b'{"command":"keys.create","digest":"AAAA","name":"n","models":["*"]}\n',
    "no model": b'{"command":"keys.create","digest":"' + b"A" * 43 + b'=","name":"n","models":[]}\n',
    "negative": b'{"command":"keys.create","digest":"' + b"A" * 43 + b'=","name":"n","models":["*"],"concurrency":-1}\n',
    "name too long": b'{"command":"keys.revoke","key":"' + b"n" * 129 + b'"}\n',
    "not UTF-8": b'{"command":"block","network":"\xff\xff"}\n',
    "deep": b"[" * 5000 + b"\n",
    "binary": bytes(range(256)) + b"\n",
    "carriage return only": b'{"command":"status"}\r{"command":"status"}\n',
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_refused_in_one_line_and_the_connection_closed(server: Server, name: str) -> None:
    client = server.connect()
    client.read()
    client.send(BAD_LINES[name])
    said = client.read()
    assert said.count(b"\n") == 1
    assert refusal(said)
    assert client.is_ended()
    assert server.asked == []
    assert len(server.control) == 0


def test_a_line_that_does_not_end_is_refused_at_its_bound(server: Server) -> None:
    client = server.connect()
    client.read()
    client.send(b"a" * MAX_COMMAND_LINE_BYTES)
    assert client.read() == b""
    client.send(b"aa")
    assert "longer than" in refusal(client.read())
    assert client.is_ended()


def test_a_line_of_the_bound_is_read_byte_by_byte(server: Server) -> None:
    client = server.connect()
    client.read()
    line = encode_line(commands.RevokeKey(key="k"))
    padded = line[:-1] + b" " * (MAX_COMMAND_LINE_BYTES - len(line) + 1) + b"\n"
    client.send(padded[:-40])
    for index in range(len(padded) - 40, len(padded)):
        client.send(padded[index : index + 1])
    assert [command for _, _, command in server.asked] == [commands.RevokeKey(key="k")]


def test_one_command_at_a_time_and_the_next_waits(server: Server) -> None:
    client = server.connect()
    client.read()
    client.send(encode_line(commands.GetStatus()) + encode_line(commands.GetRules()))
    assert [command for _, _, command in server.asked] == [commands.GetStatus()]
    server.control.answer(server.asked[0][0], commands.Done(), now=server.now)
    server.turn()
    assert [command for _, _, command in server.asked] == [commands.GetStatus(), commands.GetRules()]


def test_connections_are_counted(server: Server) -> None:
    for _ in range(MAX_CONTROL_CONNECTIONS + 4):
        server.connect()
    assert len(server.control) == MAX_CONTROL_CONNECTIONS
    server.clients[0].close()
    server.turn()
    assert len(server.control) == MAX_CONTROL_CONNECTIONS


def test_nobody_is_greeted_any_more_once_the_end_has_begun(server: Server) -> None:
    before = server.connect()
    server.control.stop_accepting()
    after = server.connect()
    assert before.read() and after.read() == b""
    assert len(server.control) == 1
    before.send(encode_line(commands.GetStatus()))
    assert len(server.asked) == 1


def test_a_silent_connection_is_closed_after_its_time(server: Server) -> None:
    client = server.connect()
    client.read()
    server.now += CONTROL_IDLE_SECONDS + 1
    assert client.is_ended()


def test_a_command_without_an_answer_is_refused_after_its_time_and_a_late_answer_is_dropped(server: Server) -> None:
    client = server.connect()
    client.read()
    client.send(encode_line(commands.Reload()))
    server.now += CONTROL_REQUEST_SECONDS + 1
    assert "no answer within" in refusal(client.read())
    server.control.answer(server.asked[0][0], commands.Reloaded(generation=9), now=server.now)
    assert client.read() == b""
    client.send(encode_line(commands.GetStatus()))
    assert len(server.asked) == 2


def test_an_answer_for_a_peer_that_is_gone_is_dropped(server: Server) -> None:
    client = server.connect()
    client.read()
    client.send(encode_line(commands.GetStatus()))
    client.sock.close()
    server.turn()
    assert len(server.control) == 0
    server.control.answer(server.asked[0][0], commands.Done(), now=server.now)


def test_a_peer_that_does_not_read_is_not_read(server: Server) -> None:
    client = server.connect()
    server.replies = lambda ticket, command: server.control.answer(ticket, commands.CheckpointTaken(note="n" * 400_000), now=server.now)
    client.send(encode_line(commands.TakeCheckpoint()) * 50)
    for _ in range(20):
        server.turn()
    assert len(server.asked) < 5


def test_commands_per_second_are_bounded_and_go_on_later(server: Server) -> None:
    server.replies = lambda ticket, command: server.control.answer(ticket, commands.Done(), now=server.now)
    client = server.connect()
    many = int(CONTROL_REQUESTS_PER_SECOND) + 20
    client.send(encode_line(commands.GetRules()) * many)
    for _ in range(many):
        server.turn(2)
    assert len(server.asked) == int(CONTROL_REQUESTS_PER_SECOND)
    server.now += 1.0
    for _ in range(many):
        server.turn(2)
    assert len(server.asked) == many


def test_peer_credentials_are_the_kernels_struct() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with left, right:
        assert struct.unpack("iII", left.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)) == (os.getpid(), os.getuid(), os.getgid())


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: f'{{"command":"{text}"}}'.encode("utf-8", "replace")))
def test_any_line_is_a_command_or_a_channel_error(line: bytes) -> None:
    for decode in (decode_command, decode_reply):
        try:
            decode(line)
        except ChannelError:
            pass


@given(st.builds(commands.CreateKey, digest=st.binary(min_size=32, max_size=32), name=st.text(min_size=1, max_size=50), models=st.just(("*",))))
def test_a_command_survives_its_line(command: commands.CreateKey) -> None:
    line = encode_line(command)
    assert line.count(b"\n") == 1
    assert decode_command(line[:-1]) == command
