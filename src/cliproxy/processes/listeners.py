"""The listening sockets of the gateway: opened before anything else, so that a port in use changes nothing on disk.

A reload keeps the sockets of addresses that stay, so no connection is refused meanwhile.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from cliproxy.bounds import MAX_LISTENERS
from cliproxy.config.schema import Server
from cliproxy.errors import ConfigError
from cliproxy.processes.spawn import lift

LISTEN_BACKLOG = 1024  # the kernel's own cap (net.core.somaxconn) is 4096
PORT_RELEASE_SECONDS = 1.0  # for the processes of a killed gateway to let go of the port

_FIRST_INHERITED_FD: Final = 3  # SD_LISTEN_FDS_START
_RETRY_SECONDS: Final = 0.05

Address = tuple[str, int]


class Listeners:
    """Listening sockets by the address that the configuration names. `urls` is what a client may type."""

    def __init__(self, sockets: dict[Address, int], *, scheme: str, inherited: bool) -> None:
        self.sockets = sockets
        self.inherited = inherited
        self._scheme = scheme

    @property
    def urls(self) -> list[str]:
        """The URLs, in the order of `server.listen`."""
        return [f"{self._scheme}://{f'[{host}]' if ':' in host else host}:{_port_of(number)}" for (host, _), number in self.sockets.items()]

    def reopen(self) -> list[tuple[str, str]]:
        """Make every socket listen again that does not accept; return the addresses with what was wrong.

        All who accept on a socket share one open file description, so what one of them did to it is done to all, and undone for all.
        """
        return [(f"{host}:{port}", fault) for (host, port), number in self.sockets.items() if (fault := _put_right(number))]

    def close_except(self, kept: Listeners | None) -> None:
        """Close the sockets that `kept` does not share."""
        shared = set() if kept is None else set(kept.sockets.values())
        for number in self.sockets.values():
            if number not in shared:
                os.close(number)


def open_listeners(server: Server, *, before: Listeners | None, say: Callable[[str], None]) -> Listeners:
    """Return the listeners of `server`, sharing the sockets of `before` where the address is the same.

    Raises `ConfigError` when an address cannot be had; nothing stays open then. `::1` of the default list is left out, with a line, where
    the machine has no IPv6. Port 0: the first address gets any port, the others the same one.
    """
    scheme = "https" if server.tls.enabled else "http"
    if before is not None and before.inherited:
        return Listeners(before.sockets, scheme=scheme, inherited=True)
    if len(server.listen) > MAX_LISTENERS:
        raise ConfigError(f"more than {MAX_LISTENERS} addresses", cure="list fewer, or 0.0.0.0 and ::", key="server.listen")
    known: Mapping[Address, int] = {} if before is None else before.sockets
    sockets: dict[Address, int] = {}
    port = server.port
    try:
        for host in server.listen:
            address = (host, server.port)
            if address in known:
                sockets[address] = known[address]
            else:
                try:
                    sockets[address] = _open(host, port)
                except ConfigError as error:
                    if not _may_be_missing(host, server, error, sockets):
                        raise
                    say(f"cliproxy: not listening on [::1]: {error.problem}")
                    continue
            port = _port_of(sockets[address])
    except ConfigError:
        Listeners(sockets, scheme=scheme, inherited=False).close_except(before)
        raise
    return Listeners(sockets, scheme=scheme, inherited=False)


def inherited_listeners(server: Server, environment: Mapping[str, str]) -> Listeners | None:
    """Return the sockets that a service manager opened for us (sd_listen_fds(3)), `None` if there are none. Raises `ConfigError`."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal() or not 0 < int(count) <= MAX_LISTENERS:
        raise ConfigError(f"LISTEN_FDS is {count!r}", cure=f"list 1 to {MAX_LISTENERS} sockets in the socket unit")
    sockets: dict[Address, int] = {}
    for number in range(_FIRST_INHERITED_FD, _FIRST_INHERITED_FD + int(count)):
        try:
            with socket.socket(fileno=os.dup(number)) as sock:
                if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) or sock.type != socket.SOCK_STREAM:
                    raise OSError(errno.EINVAL, "not a listening stream socket")
                host = str(sock.getsockname()[0]) if sock.family != socket.AF_UNIX else ""
                port = _port_of(number)
        except OSError as error:
            raise ConfigError(f"descriptor {number} from the service manager: {error.strerror}", cure="use ListenStream= in the socket unit") from error
        os.set_blocking(number, False)  # a locked worker may not
        sockets[(host, port)] = lift(number)
    return Listeners(sockets, scheme="https" if server.tls.enabled else "http", inherited=True)


def _put_right(number: int) -> str:
    """Return what was wrong with a listening socket, empty if nothing was, and mend it."""
    sock = socket.socket(fileno=number)
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            name = sock.getsockname()
            try:
                sock.listen(LISTEN_BACKLOG)
                sock.shutdown(socket.SHUT_RDWR)  # a second shutdown, of a socket that did not listen any more, marked it, and every connection would be born
                sock.listen(LISTEN_BACKLOG)  # with the mark: shut down. Only the shutdown of a listening socket takes it away (Linux, `tcp_disconnect`)
                lost = sock.getsockname() != name  # a port that the system chose is free again after a shutdown
            except OSError:
                lost = True
            os.set_blocking(number, False)
            return "it is shut down for good: restart the gateway" if lost else "it was shut down"
        if os.get_blocking(number):
            os.set_blocking(number, False)
            return "it was made to block"
        return ""
    finally:
        sock.detach()


def _may_be_missing(host: str, server: Server, error: ConfigError, sockets: Mapping[Address, int]) -> bool:
    cause = error.__cause__
    absent = isinstance(cause, OSError) and cause.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return absent and host == "::1" and server.listen == Server().listen and bool(sockets)


def _open(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            _bind(sock, host, port)
            sock.listen(LISTEN_BACKLOG)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        where = f"{f'[{host}]' if ':' in host else host}:{port}"
        cures = {
            errno.EADDRINUSE: f"stop what listens there (ss -ltnp 'sport = :{port}'), or set server.port",
            errno.EACCES: "use a port above 1023, or grant CAP_NET_BIND_SERVICE",
            errno.EADDRNOTAVAIL: "list an address of this machine in server.listen",
        }
        problem = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or "cannot listen").lower()
        raise ConfigError(f"{where}: {problem}", cure=cures.get(error.errno or 0, "change server.listen"), key="server.listen") from error
    return lift(sock.detach())


def _bind(sock: socket.socket, host: str, port: int) -> None:
    """Bind; wait a moment for the processes of a gateway that was killed just now to let go of the port."""
    until = time.monotonic() + PORT_RELEASE_SECONDS
    while True:
        try:
            sock.bind((host, port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise
        time.sleep(_RETRY_SECONDS)


def _port_of(number: int) -> int:
    duplicate = socket.socket(fileno=number)
    try:
        name = duplicate.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0
    finally:
        duplicate.detach()
