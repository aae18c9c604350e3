"""Egress's end of the edge to the dialer: ask for an origin, get a connected socket.

At most one answer per question; an answer to no question, a descriptor where none belongs, or a socket that leads elsewhere than was asked (`peer.py`) closes
the channel. When the dialer is gone
every pending question fails, and new ones fail until the supervisor hands over a new channel. We ask at half the rate at which the dialer
would take us for broken, so that a dead provider under load costs its own calls and not the channel.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from cliproxy.bounds import MAX_DIALS_PER_SECOND, MAX_PENDING_DIALS
from cliproxy.egress.peer import Peer
from cliproxy.errors import ChannelError
from cliproxy.ipc.channel import ChannelClosed, PacketChannel
from cliproxy.ipc.messages import Dial, DialerToEgress, DialFailed, Dialled

Done = Callable[[socket.socket | None, str], None]

_RATE = MAX_DIALS_PER_SECOND / 2


class DialerClient:
    """Asks for connections. `violated` is called with a reason when the dialer broke the protocol, before the channel is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, *, violated: Callable[[str], None]) -> None:
        self._loop = loop
        self._violated = violated
        self._pending: dict[int, tuple[Done, Peer]] = {}
        self._next = 0
        self._allowance = _RATE
        self._refilled = loop.time()
        self._channel: PacketChannel[DialerToEgress] | None = None
        self._open(sock)

    def replace(self, sock: socket.socket) -> None:
        """Use a new channel, on the same number, after the dialer was restarted; what was asked over the old one fails."""
        self._close(replaced=True)
        self._open(sock)

    @property
    def is_there(self) -> bool:
        """Whether there is a channel; the dialer may still take no more questions at once."""
        return self._channel is not None

    def dial(self, peer: Peer, done: Done) -> bool:
        """Ask for a connection to `peer`; `done(sock, "")` or `done(None, reason)` is called later. `False`: it can't be asked now."""
        now = self._loop.time()
        self._allowance = min(_RATE, self._allowance + (now - self._refilled) * _RATE)
        self._refilled = now
        if self._channel is None or self._allowance < 1.0 or len(self._pending) >= MAX_PENDING_DIALS:
            return False
        self._allowance -= 1.0
        self._next += 1
        try:
            if not self._channel.send(Dial(dial=self._next, origin=str(peer.origin))):
                return False
        except ChannelError:
            self._loop.call_soon(self._close_if, self._channel)  # not now: our caller is in the middle of something
            return False
        self._pending[self._next] = (done, peer)
        return True

    def close(self) -> None:
        """End the channel; pending questions fail."""
        self._close()

    def _open(self, sock: socket.socket) -> None:
        self._channel = PacketChannel(sock, incoming=DialerToEgress, peer="dialer", per_second=MAX_DIALS_PER_SECOND)
        self._loop.add_reader(self._channel.fileno(), self._readable)

    def _close_if(self, channel: PacketChannel[DialerToEgress]) -> None:
        if self._channel is channel:  # else the next one is there already
            self._close()

    def _close(self, *, replaced: bool = False) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._loop.remove_reader(channel.fileno())
            if replaced:
                channel.release()
            else:
                channel.abandon()
        pending, self._pending = self._pending, {}
        for done, _ in pending.values():
            done(None, "dialer_gone")

    def _readable(self) -> None:
        channel = self._channel
        try:
            while channel is not None and channel is self._channel:
                received = channel.receive_with_descriptors()
                if received is None:
                    return
                self._take(*received)
        except ChannelClosed:
            self._close()
        except ChannelError as error:
            self._violated(str(error))
            self._close()

    def _take(self, message: DialerToEgress, descriptors: list[int]) -> None:
        done, peer = self._pending.pop(message.dial, (None, None))
        sock = _socket_of(message, descriptors) if done is not None else None
        if done is None or (sock is None) is isinstance(message, Dialled) or (sock is None and descriptors):
            for descriptor in descriptors:
                os.close(descriptor)
            if done is not None:
                done(None, "dialer_gone")
            raise ChannelError("the dialer answered what was not asked, or with the wrong descriptors")
        if sock is not None and peer is not None:
            try:
                peer.verify(sock)
            except ChannelError:
                sock.close()
                done(None, "dialer_gone")
                raise
            except OSError:  # it was connected, and the other end has closed it
                sock.close()
                done(None, "unreachable")
                return
        done(sock, message.reason if isinstance(message, DialFailed) else "")


def _socket_of(message: DialerToEgress, descriptors: list[int]) -> socket.socket | None:
    """Return the connected socket that came with `message`; `None` if it is a failure, or not exactly one socket came."""
    if not isinstance(message, Dialled) or len(descriptors) != 1:
        return None
    # Family and type given, so that Python does not ask the kernel for them.
    family = socket.AF_INET6 if ":" in message.address else socket.AF_INET
    try:
        return socket.socket(family, socket.SOCK_STREAM, 0, fileno=descriptors[0])
    except OSError:
        return None
