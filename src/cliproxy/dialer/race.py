"""Connect to the first of several vetted addresses that answers (RFC 8305, the simple half of it).

Attempts start in order, the next one when the last has failed or after a quarter of a second; the first that connects wins and the others are
closed. Sockets are non-blocking; the owner polls them and passes the time.
"""

from __future__ import annotations

import errno
import socket

MAX_CONNECT_ATTEMPTS = 8  # addresses tried for one connection
CONNECT_STAGGER_SECONDS = 0.25  # RFC 8305 §5: the recommended delay between attempts


_REASONS = {errno.ECONNREFUSED: "refused", errno.ETIMEDOUT: "timeout"}


class Race:
    """One connection to be made. Ends with `won` (a connected socket and its address) or with `lost` (a reason of `DialFailed`)."""

    def __init__(self, addresses: tuple[str, ...], *, port: int) -> None:
        self._addresses = list(addresses[:MAX_CONNECT_ATTEMPTS])
        self._port = port
        self._running: dict[int, tuple[socket.socket, str]] = {}
        self._next_at = 0.0
        self._reason = "unreachable"
        self.won: tuple[socket.socket, str] | None = None
        self.lost = ""

    def descriptors(self) -> tuple[int, ...]:
        """Return the sockets to poll for writing."""
        return tuple(self._running)

    def next_at(self) -> float | None:
        """Return when `step` has something to do even if no socket is ready."""
        return self._next_at if self._addresses else None

    def step(self, now: float) -> None:
        """Start the attempts that are due at `now` (seconds, the owner's clock)."""
        while self._addresses and self.won is None and (not self._running or now >= self._next_at):
            self._next_at = now + CONNECT_STAGGER_SECONDS
            self._start(self._addresses.pop(0))
        if not self._running and self.won is None:
            self.lost = self._reason

    def ready(self, descriptor: int, now: float) -> None:
        """Take note that the socket `descriptor` is writable or failed."""
        sock, address = self._running[descriptor]
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and not _is_connected(sock):
            return  # the event was for an earlier socket of that number
        del self._running[descriptor]
        self._settle(sock, address, code)
        if self.won is None:
            self.step(now)

    def close(self) -> None:
        """Close what is not won."""
        for sock, _ in self._running.values():
            sock.close()
        self._running.clear()
        self._addresses.clear()

    def _start(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        except OSError:  # this host has no such family, or no descriptors
            return
        sock.setblocking(False)
        code = sock.connect_ex((address, self._port))  # a literal address: nothing is looked up
        if code == errno.EINPROGRESS:
            self._running[sock.fileno()] = (sock, address)
        else:
            self._settle(sock, address, code)

    def _settle(self, sock: socket.socket, address: str, code: int) -> None:
        if code:
            sock.close()
            self._reason = _REASONS.get(code, "unreachable")
        elif self.won is None:
            self.won = (sock, address)
            self.close()
        else:
            sock.close()


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
