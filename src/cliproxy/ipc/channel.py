"""Typed messages between two of our processes over a SOCK_SEQPACKET socketpair: one packet, one message.

The receiver enforces the protocol: a channel is made with the union of messages that its peer may send and how many a second; anything
else (an unknown tag, a wrong type, trailing bytes, a packet too long, too many) raises `ChannelError`, and the owner closes the channel
and audits it. A full kernel queue is never waited for: `send` says `False`.

Only channels made with `secrets=True` can encode or decode a `Secret`; elsewhere a `Secret` in a message raises `TypeError`.
"""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from cliproxy.bounds import MAX_CONTROL_MESSAGE_BYTES, MAX_DESCRIPTORS_PER_MESSAGE
from cliproxy.errors import ChannelError
from cliproxy.secret import Secret

Incoming = TypeVar("Incoming")


class ChannelClosed(ChannelError):
    """The peer closed its end, or is gone."""


def _encode_secret(value: object) -> bytes:
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"{type(value).__name__} is not a message type")


def _decode_secret(kind: type[Any], value: object) -> Secret:
    if kind is Secret and isinstance(value, bytes):
        return Secret(value)
    raise TypeError(f"{kind.__name__} is not a message type")


class PacketChannel(Generic[Incoming]):
    """One end of an edge.

    `incoming` is the type (usually a union of tagged Structs) that the peer may send; `per_second` bounds how many, with a burst of as many.
    The socket is made non-blocking. Not thread-safe.
    """

    def __init__(self, sock: socket.socket, *, incoming: Any, peer: str, per_second: float, secrets: bool = False) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.peer = peer
        if secrets:
            self._encoder = msgspec.msgpack.Encoder(enc_hook=_encode_secret)
            self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(incoming, dec_hook=_decode_secret)
        else:
            self._encoder = msgspec.msgpack.Encoder()
            self._decoder = msgspec.msgpack.Decoder(incoming)
        self._per_second = per_second
        self._allowance = per_second
        self._refilled = time.monotonic()

    def fileno(self) -> int:
        """The descriptor, for `poll`."""
        return self._sock.fileno()

    def send(self, message: object, descriptors: Sequence[int] = ()) -> bool:
        """Hand `message` to the kernel. `False`: its queue is full, nothing was sent. Raises `ChannelClosed` when the peer is gone."""
        packet = self._encoder.encode(message)
        if len(packet) > MAX_CONTROL_MESSAGE_BYTES:
            raise ChannelError(f"a message to {self.peer} is {len(packet)} bytes long, more than {MAX_CONTROL_MESSAGE_BYTES}")
        try:
            if descriptors:
                socket.send_fds(self._sock, [packet], list(descriptors))
            else:
                self._sock.send(packet)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ChannelClosed(f"the channel to {self.peer} is closed ({error.strerror})") from error
        return True

    def receive(self) -> Incoming | None:
        """Return the next message, or `None` when none waits. Descriptors sent along are discarded by the kernel."""
        try:
            packet = self._sock.recv(MAX_CONTROL_MESSAGE_BYTES + 1)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosed(f"the channel to {self.peer} is closed ({error.strerror})") from error
        return self._decode(packet)

    def receive_with_descriptors(self) -> tuple[Incoming, list[int]] | None:
        """As `receive`, with the descriptors that came along; the caller owns (and closes) them."""
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS_PER_MESSAGE * array.array("i").itemsize)
        try:
            packet, ancillary, flags, _ = self._sock.recvmsg(MAX_CONTROL_MESSAGE_BYTES + 1, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosed(f"the channel to {self.peer} is closed ({error.strerror})") from error
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        try:
            if flags & socket.MSG_CTRUNC:
                raise ChannelError(f"{self.peer} sent more than {MAX_DESCRIPTORS_PER_MESSAGE} descriptors")
            return self._decode(packet), list(descriptors)
        except ChannelError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def close(self) -> None:
        """Close our end."""
        self._sock.close()

    def abandon(self) -> None:
        """End the channel but keep its number occupied, for a slot onto which the next channel will be put."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was first
        self._sock.detach()

    def release(self) -> None:
        """Let go of the number without a word to the peer: the next channel is on it already (`REPLACE`), and must not be shut down."""
        self._sock.detach()

    def _decode(self, packet: bytes) -> Incoming:
        if not packet:
            raise ChannelClosed(f"{self.peer} closed its channel")
        if len(packet) > MAX_CONTROL_MESSAGE_BYTES:
            raise ChannelError(f"{self.peer} sent a packet of more than {MAX_CONTROL_MESSAGE_BYTES} bytes")
        now = time.monotonic()
        self._allowance = min(self._per_second, self._allowance + (now - self._refilled) * self._per_second) - 1.0
        self._refilled = now
        if self._allowance < 0.0:
            raise ChannelError(f"{self.peer} sent more than {self._per_second:g} messages a second")
        try:
            return self._decoder.decode(packet)
        except (msgspec.DecodeError, TypeError, ValueError, RecursionError) as error:
            raise ChannelError(f"{self.peer} sent what it may not: {type(error).__name__}") from error
