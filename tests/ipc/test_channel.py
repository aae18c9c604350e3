"""Typed packets between processes: what may be sent, what is refused, and that a secret crosses only where it may."""

from __future__ import annotations

import os
import socket
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_CONTROL_MESSAGE_BYTES, MAX_DESCRIPTORS_PER_MESSAGE
from cliproxy.errors import ChannelError
from cliproxy.ipc.channel import ChannelClosed, PacketChannel
from cliproxy.ipc.messages import Dial, DialFailed, Dialled, Grant, VaultToEgress, Withdraw
from cliproxy.secret import Secret


def pair(incoming, *, per_second=1e9, secrets=False):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    return PacketChannel(ours, incoming=incoming, peer="peer", per_second=per_second, secrets=secrets), theirs


def test_a_message_arrives_as_the_type_that_was_sent():
    channel, theirs = pair(Dial)
    sender: PacketChannel[Any] = PacketChannel(theirs, incoming=Dialled | DialFailed, peer="x", per_second=1e9)
    assert sender.send(Dial(dial=7, origin="https://a:443"))
    assert channel.receive() == Dial(dial=7, origin="https://a:443")
    assert channel.receive() is None


@pytest.mark.parametrize(
    "packet",
    [
        msgspec.msgpack.encode(Withdraw(id="x")),
        msgspec.msgpack.encode({"type": "Dial", "dial": "7", "origin": "o"}),
        msgspec.msgpack.encode({"type": "Dial", "dial": 7, "origin": "o", "address": "127.0.0.1"}),
        msgspec.msgpack.encode({"type": "Dial", "dial": 7}),
        msgspec.msgpack.encode(Dial(dial=7, origin="o")) + b"\0",
        b"\xc1",
        b"x" * (MAX_CONTROL_MESSAGE_BYTES + 1),
    ],
    ids=["another edge's message", "wrong type", "unknown field", "missing field", "trailing byte", "no MessagePack", "too long"],
)
def test_what_a_peer_may_not_send_is_a_channel_error(packet):
    channel, theirs = pair(Dial)
    theirs.send(packet)
    with pytest.raises(ChannelError):
        channel.receive()


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_give_a_message_or_a_channel_error(packet):
    channel, theirs = pair(VaultToEgress, secrets=True)
    theirs.send(packet)
    try:
        assert channel.receive() is not None
    except ChannelError:
        pass
    finally:
        channel.close()
        theirs.close()


def test_more_messages_than_the_budget_close_the_channel():
    channel, theirs = pair(Dial, per_second=5)
    for number in range(7):
        theirs.send(msgspec.msgpack.encode(Dial(dial=number, origin="o")))
    for _ in range(5):
        assert channel.receive() is not None
    with pytest.raises(ChannelError, match="messages a second"):
        channel.receive()
        channel.receive()


def test_a_closed_peer_is_told_apart_from_silence():
    channel, theirs = pair(Dial)
    assert channel.receive() is None
    theirs.close()
    with pytest.raises(ChannelClosed):
        channel.receive()
    with pytest.raises(ChannelClosed):
        channel.send(Dial(dial=1, origin="o"))


def test_a_full_queue_says_so_and_never_waits():
    channel, _theirs = pair(Dial)
    for number in range(100_000):
        if not channel.send(Dial(dial=number, origin="o" * 1000)):
            return
    pytest.fail("the kernel's queue never filled")


def test_a_secret_crosses_only_channels_made_for_it():
    grant = Grant(id="c", provider="p", origin="https://a:443", secret=Secret(b"sk-canary"))
    plain, _ = pair(VaultToEgress)
    with pytest.raises(TypeError):
        plain.send(grant)
    channel, theirs = pair(VaultToEgress, secrets=True)
    sender: PacketChannel[Any] = PacketChannel(theirs, incoming=VaultToEgress, peer="x", per_second=1e9, secrets=True)
    sender.send(grant)
    received = channel.receive()
    assert isinstance(received, Grant) and received.secret == Secret(b"sk-canary")


def test_descriptors_travel_and_are_owned_by_the_receiver():
    channel, theirs = pair(Dialled)
    sender: PacketChannel[Any] = PacketChannel(theirs, incoming=Dial, peer="x", per_second=1e9)
    read_end, write_end = os.pipe()
    sender.send(Dialled(dial=1, address="127.0.0.1"), [write_end])
    os.close(write_end)
    message, descriptors = channel.receive_with_descriptors()
    assert message == Dialled(dial=1, address="127.0.0.1")
    os.write(descriptors[0], b"through")
    assert os.read(read_end, 7) == b"through"
    assert not os.get_inheritable(descriptors[0])
    os.close(descriptors[0])
    os.close(read_end)


def test_descriptors_of_a_refused_message_are_closed():
    channel, theirs = pair(Dialled)
    null = os.open("/dev/null", os.O_RDONLY)
    before = set(os.listdir("/proc/self/fd"))
    socket.send_fds(theirs, [b"\xc1"], [null])
    with pytest.raises(ChannelError):
        channel.receive_with_descriptors()
    assert set(os.listdir("/proc/self/fd")) == before
    socket.send_fds(theirs, [msgspec.msgpack.encode(Dialled(dial=1, address="a"))], [null] * (MAX_DESCRIPTORS_PER_MESSAGE + 3))
    with pytest.raises(ChannelError):
        channel.receive_with_descriptors()
    assert set(os.listdir("/proc/self/fd")) == before
    os.close(null)


def test_an_abandoned_channel_ends_but_keeps_its_number():
    channel, theirs = pair(Dial)
    number = channel.fileno()
    channel.abandon()
    assert theirs.recv(1) == b""
    os.fstat(number)
    os.close(number)
