"""The control socket: who may use it, and lines to commands and replies to lines.

What always holds: only root and the operator's uid get an answer (SO_PEERCRED, looked at before a byte is read); a connection has one
command under way at a time and gets replies in order; a line, the number of connections, the commands per second, the time without a
command, the time to an answer and the unread answer are bounded. It decides nothing about a command: `ask` takes it, `answer` brings the
reply. The clock is passed in.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import msgspec

from cliproxy.bounds import CONTROL_REQUEST_SECONDS, MAX_COMMAND_LINE_BYTES
from cliproxy.errors import ChannelError
from cliproxy.ipc.commands import Hello, OperatorCommand, Refused, Reply, decode_command, encode_line

MAX_CONTROL_CONNECTIONS = 16  # commands at once on the control socket
CONTROL_IDLE_SECONDS = 30.0  # a connection on the control socket that asks nothing
CONTROL_REQUESTS_PER_SECOND = 50.0  # of all connections of the control socket together; one may cost the vault two messages

_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid (unix(7))
Ask = Callable[[int, str, OperatorCommand], None]  # ticket, operator, command


class _Connection(msgspec.Struct):
    sock: socket.socket
    operator: str
    heard: float
    inbox: bytearray = msgspec.field(default_factory=bytearray)
    outbox: bytearray = msgspec.field(default_factory=bytearray)
    ticket: int = 0  # of the command under way; 0: none
    asked: float = 0.0
    closing: bool = False


class ControlSocket:
    """The server side of `run/control.sock`.

    `listener` is bound and listening. `ask(ticket, operator, command)` is called for each command and must lead to `answer(ticket, reply)`,
    at once or later. `stranger(uid)` is told of a peer that was turned away.
    """

    def __init__(self, listener: socket.socket, *, operator_uid: int, hello: Hello, ask: Ask, stranger: Callable[[int], None], now: float) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._allowed = frozenset({0, operator_uid})
        self._hello = encode_line(hello)
        self._ask = ask
        self._stranger = stranger
        self._connections: dict[int, _Connection] = {}
        self._tickets: dict[int, _Connection] = {}
        self._last_ticket = 0
        self._allowance = CONTROL_REQUESTS_PER_SECOND
        self._refilled = now
        self._accepts = True

    def wanted(self) -> list[tuple[int, bool, bool]]:
        """Return what to poll: descriptor, for reading, for writing."""
        room = len(self._connections) < MAX_CONTROL_CONNECTIONS
        wanted = [(self._listener.fileno(), True, False)] if room and self._accepts else []
        for number, connection in self._connections.items():
            # A peer that does not read its answers is not read either, so that they don't pile up.
            wanted.append((number, not connection.closing and not connection.ticket and not connection.outbox, bool(connection.outbox)))
        return wanted

    def stop_accepting(self) -> None:
        """Leave new connections where they are: they get no greeting, and their commands go to the next gateway."""
        self._accepts = False

    def __len__(self) -> int:
        """The number of connections."""
        return len(self._connections)

    def on_ready(self, descriptor: int, *, now: float, ended: bool) -> None:
        """`descriptor` can be read or written, or has `ended` (POLLHUP, POLLERR); unknown ones are ignored.

        A command that is under way when its peer goes away goes on: it may be durable already.
        """
        if descriptor == self._listener.fileno():
            if self._accepts:
                self._accept(now)
            return
        connection = self._connections.get(descriptor)
        if connection is None:
            return
        if ended and connection.ticket:
            self._close(connection)
        elif connection.outbox:
            self._flush(connection)
        elif not connection.closing and not connection.ticket:
            self._read(connection, now)

    def answer(self, ticket: int, reply: Reply, *, now: float) -> None:
        """Send `reply` to whoever asked under `ticket`; if they are gone, or waited too long, nothing happens."""
        connection = self._tickets.pop(ticket, None)
        if connection is None:
            return
        connection.ticket = 0
        connection.heard = now
        self._send(connection, encode_line(reply))

    def sweep(self, now: float) -> None:
        """Enforce the deadlines and go on with commands that waited for the rate; call it at least once a second."""
        for connection in list(self._connections.values()):
            if connection.ticket and now - connection.asked > CONTROL_REQUEST_SECONDS:
                self.answer(connection.ticket, Refused(message=f"no answer within {CONTROL_REQUEST_SECONDS:g} seconds; look at `cliproxy status`"), now=now)
            elif not connection.ticket and now - connection.heard > CONTROL_IDLE_SECONDS:
                self._close(connection)
            elif not (connection.ticket or connection.closing or connection.outbox) and connection.inbox:
                self._take_command(connection, now)

    def close(self) -> None:
        """Close every connection and the listener."""
        for connection in list(self._connections.values()):
            self._close(connection)
        self._listener.close()

    def _accept(self, now: float) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        try:
            _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        except OSError:
            sock.close()
            return
        connection = _Connection(sock, f"uid:{uid}", now)
        self._connections[sock.fileno()] = connection
        if uid not in self._allowed:
            self._stranger(uid)
            self._refuse(connection, f"uid {uid} may not use this control socket; run the command as the user that started the gateway")
            return
        self._send(connection, self._hello)

    def _read(self, connection: _Connection, now: float) -> None:
        try:
            data = connection.sock.recv(MAX_COMMAND_LINE_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.heard = now
        connection.inbox += data
        self._take_command(connection, now)

    def _take_command(self, connection: _Connection, now: float) -> None:
        end = connection.inbox.find(b"\n", 0, MAX_COMMAND_LINE_BYTES + 1)
        if end < 0:
            if len(connection.inbox) > MAX_COMMAND_LINE_BYTES:
                self._refuse(connection, f"a command is longer than {MAX_COMMAND_LINE_BYTES} bytes; shorten it")
            return
        if not self._may_ask(now):
            return  # `sweep` comes back to it
        line = bytes(connection.inbox[:end])
        del connection.inbox[: end + 1]
        try:
            command = decode_command(line)
        except ChannelError as error:
            self._refuse(connection, f"{error}; use the `cliproxy` command of the gateway's own build")
            return
        self._last_ticket += 1
        connection.ticket, connection.asked = self._last_ticket, now
        self._tickets[self._last_ticket] = connection
        self._ask(self._last_ticket, connection.operator, command)

    def _may_ask(self, now: float) -> bool:
        self._allowance = min(CONTROL_REQUESTS_PER_SECOND, self._allowance + (now - self._refilled) * CONTROL_REQUESTS_PER_SECOND)
        self._refilled = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def _refuse(self, connection: _Connection, message: str) -> None:
        connection.closing = True
        self._send(connection, encode_line(Refused(message=message)))

    def _send(self, connection: _Connection, data: bytes) -> None:
        connection.outbox += data
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            sent = connection.sock.send(connection.outbox)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        del connection.outbox[:sent]
        if connection.closing and not connection.outbox:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._connections.pop(connection.sock.fileno(), None)
        self._tickets.pop(connection.ticket, None)
        connection.sock.close()
