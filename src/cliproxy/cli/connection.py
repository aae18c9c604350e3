"""How a command reaches the vault and the auditor: over the control socket of the running gateway, or of one that it starts for itself.

One implementation either way: without a running gateway, supervisor, vault, auditor and admin are started without listeners, do the command,
and end with the last connection. The lock of the home makes sure that there are never two.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import click

from cliproxy.bounds import CONTROL_REQUEST_SECONDS, MAX_REPLY_LINE_BYTES
from cliproxy.cli.home import Home
from cliproxy.errors import EXIT_CHECK_FAILED, EXIT_CONFIG, ChannelError, CliproxyError, ConfigError
from cliproxy.ipc.commands import Command, Hello, OperatorReply, Refused, Reply, answer_type, complaint_about, decode_reply, encode_line
from cliproxy.processes.plan import spawn_supervisor
from cliproxy.processes.spawn import build_id
from cliproxy.processes.workspace import CONTROL_SOCKET, Workspace

COMMAND_START_SECONDS = 30.0  # until the processes that a command starts for itself are ready; START_SECONDS of a child

R = TypeVar("R", bound=Reply)
_RETRY_SECONDS = 0.05


class CommandRefused(CliproxyError):
    """The gateway did not carry out the command, and said why."""


class GatewayFailed(CliproxyError):
    """The processes that a command needs did not start. `is_said`: they have told why on stderr, and nothing is left to add."""

    def __init__(self, message: str, *, exit_code: int, is_said: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.is_said = is_said


class Session:
    """A connection to admin. `serving`: it belongs to a gateway that serves clients."""

    def __init__(self, sock: socket.socket, hello: Hello, rest: bytearray) -> None:
        self._sock = sock
        self._rest = rest
        self.serving = hello.serving

    def ask(self, command: Command[R]) -> R:
        """Return the answer of `command`. Raises `CommandRefused`, `click.UsageError` for a value that no gateway takes, or
        `ChannelError` when the connection breaks."""
        complaint = complaint_about(command)
        if complaint is not None:
            raise click.UsageError(complaint)
        try:
            self._sock.settimeout(CONTROL_REQUEST_SECONDS + 5.0)
            self._sock.sendall(encode_line(command))
            reply = _read_reply(self._sock, self._rest)
        except OSError as error:
            raise ChannelError(f"the gateway did not answer ({error.strerror or 'too slow'}); see `cliproxy status`") from error
        if reply is None:
            raise ChannelError("the gateway ended the connection; see `cliproxy status` and repeat the command")
        if isinstance(reply, Refused):
            raise CommandRefused(reply.message)
        if not isinstance(reply, answer_type(type(command))):
            raise ChannelError("the gateway answered something else; is it of the same build? See `cliproxy version` and `cliproxy status`")
        return cast("R", reply)

    def close(self) -> None:
        """End the connection."""
        self._sock.close()


def attach(home: Home) -> Session | None:
    """Return a session with the gateway that runs on `home`, or `None` when none does. Raises `ConfigError` when it is of another build."""
    try:
        directory = os.open(home.path / "run", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    owner = os.fstat(directory).st_uid
    if os.geteuid() not in (0, owner):  # whoever answers there would be told what our operator says, and whose key to seal a credential to
        os.close(directory)
        raise ConfigError(f"belongs to uid {owner}, not to you", cure="run the command as that user, or give another --home", file=str(home.path / "run"))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(COMMAND_START_SECONDS)
        sock.connect(f"/proc/self/fd/{directory}/{CONTROL_SOCKET}")  # through the descriptor: a socket's path has at most 107 bytes
        rest = bytearray()
        hello = _read_reply(sock, rest)
    except (ConnectionRefusedError, FileNotFoundError, ConnectionResetError):
        sock.close()
        return None
    except PermissionError:
        sock.close()
        raise ConfigError("this control socket is another user's", cure="run the command as the user that started the gateway", file=str(home.path)) from None
    except OSError as error:
        sock.close()
        raise ChannelError(f"the gateway does not answer ({error.strerror or 'too slow'}); look at its messages") from error
    finally:
        os.close(directory)
    if hello is None:
        sock.close()
        return None  # it was just ending
    if isinstance(hello, Refused):
        sock.close()
        raise CommandRefused(hello.message)
    if not isinstance(hello, Hello) or hello.build != build_id():
        sock.close()
        raise ConfigError("the running gateway is of another build than this command", cure="restart it, or use the command it came with", file=str(home.path))
    return Session(sock, hello, rest)


@contextmanager
def connect(home: Home, *, may_create: bool = False) -> Iterator[Session]:
    """Give a session with the running gateway, else with one that is started for this command and ended after it. `may_create`: with a new vault, where
    there is none."""
    until = time.monotonic() + COMMAND_START_SECONDS
    own: _OwnGateway | None = None
    session = attach(home)
    try:
        if session is None:
            with _turn_to_start(home, until):
                while (session := attach(home)) is None:
                    if own is None and not _is_locked(home):
                        own = _OwnGateway(home, may_create=may_create)
                        own.wait_ready(until)
                    elif time.monotonic() > until:
                        raise GatewayFailed("the vault did not get ready in time; look at `cliproxy status` and the disk", exit_code=EXIT_CHECK_FAILED)
                    else:
                        time.sleep(_RETRY_SECONDS)  # a gateway that is just starting or ending
        yield session
    finally:
        if session is not None:
            session.close()
        if own is not None:
            own.end(at_once=session is None)


@contextmanager
def _turn_to_start(home: Home, until: float) -> Iterator[None]:
    """Of several commands without a gateway one starts it, and the others find it running: the directory `run` is locked meanwhile."""
    try:
        directory = os.open(home.path / "run", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield  # the start says what is wrong with it
        return
    try:
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > until:
                    raise GatewayFailed(f"another command is starting the gateway ({error.strerror}); try again", exit_code=EXIT_CHECK_FAILED) from error
                time.sleep(_RETRY_SECONDS)
        yield
    finally:
        os.close(directory)


class _OwnGateway:
    """Supervisor, vault, auditor and admin, started for one command."""

    def __init__(self, home: Home, *, may_create: bool) -> None:
        from cliproxy.cli.starting import make_plan

        starter, self._starter = os.pipe2(os.O_CLOEXEC)  # closing our end stops the run
        self._ready, ready = os.pipe2(os.O_CLOEXEC)
        plan = make_plan(home, home.config_file, serving=False, announce=False, starter_fd=starter, ready_fd=ready, may_create=may_create)
        try:
            self._pid = spawn_supervisor(plan)
        finally:
            for number in (plan.master_key_fd, starter, ready):
                os.close(number)

    def wait_ready(self, until: float) -> None:
        """Return when all of it is ready. Raises `GatewayFailed`; what is wrong stands on stderr then."""
        poller = select.poll()
        poller.register(self._ready, select.POLLIN)
        if not poller.poll(max(0, int((until - time.monotonic()) * 1000))):
            raise GatewayFailed("the vault did not get ready in time; the lines above say more", exit_code=EXIT_CHECK_FAILED)
        if not os.read(self._ready, 4096):
            code, self._pid = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), 0
            raise GatewayFailed(
                "the vault did not start; the line above says why", exit_code=EXIT_CONFIG if code == EXIT_CONFIG else EXIT_CHECK_FAILED, is_said=code > 0
            )

    def end(self, *, at_once: bool) -> None:
        """Wait for the end, which comes by itself with the last connection (another command may be using it too), or bring it about."""
        if at_once:
            os.close(self._starter)
        if self._pid:
            os.waitpid(self._pid, 0)
        if not at_once:
            os.close(self._starter)
        os.close(self._ready)


def _is_locked(home: Home) -> bool:
    try:
        Workspace(str(home.path)).verify_free()
    except ConfigError:
        return True
    return False


def _read_reply(sock: socket.socket, rest: bytearray) -> OperatorReply | None:
    """Return the next line's reply, or `None` at the end of the connection. Raises `OSError`, `ChannelError`."""
    while True:
        end = rest.find(b"\n")
        if end >= 0:
            line = bytes(rest[:end])
            del rest[: end + 1]
            return decode_reply(line)
        if len(rest) > MAX_REPLY_LINE_BYTES:
            raise ChannelError("the gateway's answer is too long")
        data = sock.recv(65536)
        if not data:
            return None
        rest += data
