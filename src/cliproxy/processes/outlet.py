"""The supervisor's own stdout or stderr, written without ever waiting for who reads it.

That may be a terminal that was stopped with ^S, or a pipe whose reader sleeps; the supervisor would stand still with it, and with it every restart. What is
not taken waits within `MAX_WAITING_BYTES`; beyond that whole lines are dropped and counted.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from typing import Final

from cliproxy.processes.spawn import lift

MAX_WAITING_BYTES: Final = 65536  # as much again as a pipe holds
_PIECE_BYTES: Final = select.PIPE_BUF  # a pipe that polls writable takes so many at once


class Outlet:
    """Lines for descriptor `number`. While something waits it is registered with `poll` under `descriptor`."""

    def __init__(self, number: int, poll: select.poll) -> None:
        self._poll = poll
        self._waiting = bytearray()
        self._dropped = 0
        self._socket: socket.socket | None = None
        self._asks = False  # a write may wait: ask first
        self.descriptor = number
        self._open(number)

    def _open(self, number: int) -> None:
        """Get an open file description of our own, which can be made non-blocking: the terminal's is the shell's too."""
        try:
            mode = os.fstat(number).st_mode
        except OSError:
            return  # closed: every write fails
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=lift(os.dup(number)))
            self.descriptor = self._socket.fileno()
        elif not stat.S_ISREG(mode):  # a file never waits, and another description would not share its offset
            try:
                self.descriptor = lift(os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
            except OSError:
                # another user's terminal, or no /proc. A pipe that polls writable takes a piece; a terminal with less room than that could still hold us up.
                self.descriptor = lift(os.dup(number))
                self._asks = True

    def write(self, line: str) -> None:
        """Write one line, now or when there is room."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if len(self._waiting) + len(data) > MAX_WAITING_BYTES:
            self._dropped += 1
            return
        idle = not self._waiting
        self._waiting += data
        if idle:
            self._flush()
            if self._waiting:
                self._poll.register(self.descriptor, select.POLLOUT)

    def ready(self) -> None:
        """`poll` has something to say about the descriptor."""
        self._flush()
        if self._waiting:
            return
        self._poll.unregister(self.descriptor)
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self.write(f"cliproxy: lines dropped that nobody read in time: {dropped}")

    def finish(self, seconds: float) -> None:
        """Write what still waits, for no longer than `seconds`."""
        until = time.monotonic() + seconds
        own = select.poll()
        own.register(self.descriptor, select.POLLOUT)
        while self._waiting and (left := until - time.monotonic()) > 0:
            own.poll(int(left * 1000) + 1)
            self._flush()

    def _flush(self) -> None:
        while self._waiting:
            try:
                sent = self._send(bytes(self._waiting[:_PIECE_BYTES]))
            except BlockingIOError:
                return
            except OSError:
                self._waiting.clear()  # the reader is gone, the terminal hung up, the disk full
                return
            del self._waiting[:sent]

    def _send(self, piece: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(piece, socket.MSG_DONTWAIT)
        if self._asks and not self._is_writable():
            raise BlockingIOError
        return os.write(self.descriptor, piece)

    def _is_writable(self) -> bool:
        own = select.poll()
        own.register(self.descriptor, select.POLLOUT)
        return bool(own.poll(0))
