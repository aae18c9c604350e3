"""The worker-egress channel: frames whole and cut, and everything else a channel error."""

from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliproxy.bounds import MAX_DATA_FRAME_BYTES
from cliproxy.errors import ChannelError
from cliproxy.ipc.mux import (
    CANCEL_CODES,
    CHANNEL_HIGH_WATER_BYTES,
    HEADER,
    MAX_FRAME_BYTES,
    TO_EGRESS,
    TO_WORKER,
    Abort,
    Kind,
    MuxChannel,
    cancel_code,
    cancel_of,
)


class Receiver:
    def __init__(self, accepts=TO_EGRESS):
        self.accepts = accepts
        self.frames = []
        self.turns = 0
        self.lost = []
        self.pauses = []

    def frame_handlers(self):
        return {kind: (lambda stream, payload, kind=kind: self.frames.append((kind, stream, payload))) for kind in self.accepts}

    def turn_began(self):
        pass

    def turn_ended(self):
        self.turns += 1

    def channel_lost(self, error):
        self.lost.append(error)

    def channel_paused(self, paused):
        self.pauses.append(paused)


def run(scenario):
    return asyncio.run(scenario())


async def connected(receiver, accepts=TO_EGRESS):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, channel = await asyncio.get_running_loop().create_connection(lambda: MuxChannel(receiver, peer="peer", accepts=accepts), sock=ours)
    return channel, theirs


def frame(kind, stream, payload=b""):
    return HEADER.pack(len(payload), kind, stream) + payload


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)
    await asyncio.sleep(0.005)


FRAMES = frame(Kind.DATA, 1, b"one") + frame(Kind.END, 1) + frame(Kind.CALL, 2, b"x" * 1000)
EXPECTED = [(Kind.DATA, 1, b"one"), (Kind.END, 1, b""), (Kind.CALL, 2, b"x" * 1000)]


@pytest.mark.parametrize("cut", [*range(1, 40), len(FRAMES) - 1, len(FRAMES)])
def test_frames_are_the_same_wherever_the_stream_is_cut(cut):
    receiver = Receiver()

    async def scenario():
        channel = MuxChannel(receiver, peer="peer", accepts=TO_EGRESS)
        channel.data_received(FRAMES[:cut])
        if FRAMES[cut:]:
            channel.data_received(FRAMES[cut:])

    run(scenario)
    assert receiver.frames == EXPECTED


def test_frames_of_one_turn_leave_in_one_write():
    receiver = Receiver()

    async def scenario():
        channel, theirs = await connected(receiver)
        writes = []
        write = channel._transport.write

        def noted(data):
            writes.append(data)
            write(data)

        channel._transport = type(
            "T",
            (),
            {
                "write": lambda self, data: noted(data),
                "is_closing": lambda self: False,
                "abort": lambda self: None,
                "get_write_buffer_size": lambda self: 0,
            },
        )()
        for number in range(10):
            channel.queue(Kind.DATA, number, b"d")
        await settle()
        assert len(writes) == 1
        assert theirs.recv(10_000) == b"".join(frame(Kind.DATA, number, b"d") for number in range(10))

    run(scenario)


@pytest.mark.parametrize(
    "garbage",
    [frame(Kind.ANSWER, 1, b"x"), frame(99, 1), HEADER.pack(MAX_FRAME_BYTES + 1, Kind.DATA, 1), b"\xff" * 64],
    ids=["a kind of the other direction", "no kind", "a length above the bound", "noise"],
)
def test_what_the_peer_may_not_send_closes_the_channel_before_it_is_kept(garbage):
    receiver = Receiver()

    async def scenario():
        _, theirs = await connected(receiver)
        theirs.send(garbage)
        await asyncio.sleep(0.05)
        assert theirs.recv(1) == b""

    run(scenario)
    assert receiver.frames == []
    assert isinstance(receiver.lost[0], ChannelError)


def test_a_payload_that_does_not_decode_closes_the_channel():
    decoder = msgspec.msgpack.Decoder(Abort)

    class Decoding(Receiver):
        def frame_handlers(self):
            return {kind: lambda stream, payload: decoder.decode(payload) for kind in TO_WORKER}

    receiver = Decoding(TO_WORKER)

    async def scenario():
        _, theirs = await connected(receiver, TO_WORKER)
        theirs.send(frame(Kind.ABORT, 1, b"\x93\x01"))
        await asyncio.sleep(0.05)

    run(scenario)
    assert isinstance(receiver.lost[0], ChannelError)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_any_bytes_give_frames_or_a_channel_error(pieces):
    receiver = Receiver()

    async def scenario():
        channel = MuxChannel(receiver, peer="peer", accepts=TO_EGRESS)
        for piece in pieces:
            channel.data_received(piece)

    run(scenario)
    assert all(kind in TO_EGRESS for kind, _, _ in receiver.frames)


def test_a_receiver_must_handle_just_what_its_peer_may_send():
    async def scenario():
        with pytest.raises(ValueError, match="table"):
            MuxChannel(Receiver(TO_WORKER), peer="peer", accepts=TO_EGRESS)

    run(scenario)


def test_the_owner_hears_once_that_the_channel_is_gone():
    receiver = Receiver()

    async def scenario():
        channel, theirs = await connected(receiver)
        theirs.close()
        await asyncio.sleep(0.05)
        channel.queue(Kind.DATA, 1, b"late")
        await settle()
        assert not channel.is_open

    run(scenario)
    assert receiver.lost == [None]


def test_a_turn_of_many_frames_pauses_the_channel_before_one_byte_is_written():
    """Hundreds of streams that all had a read to pass on filled it beyond its bound in one turn, and it was closed with all calls on it."""
    receiver = Receiver()
    room = CHANNEL_HIGH_WATER_BYTES // MAX_DATA_FRAME_BYTES

    async def scenario():
        channel, theirs = await connected(receiver)
        for number in range(room):
            channel.queue(Kind.DATA, number, bytes(MAX_DATA_FRAME_BYTES))
        assert not channel.paused and channel.backlog == CHANNEL_HIGH_WATER_BYTES
        channel.queue(Kind.DATA, room, b"!")
        assert channel.paused and receiver.pauses == [True]
        channel.queue(Kind.END, room, b"")
        received = b""
        while not received.endswith(frame(Kind.END, room)):
            await settle()
            received += theirs.recv(1 << 20)
        await settle()
        assert not channel.paused and receiver.pauses[-1] is False and channel.backlog == 0
        assert received == b"".join(frame(Kind.DATA, number, bytes(MAX_DATA_FRAME_BYTES)) for number in range(room)) + frame(Kind.DATA, room, b"!") + frame(
            Kind.END, room
        )
        theirs.close()

    run(scenario)
    assert [one for one, next in zip(receiver.pauses, receiver.pauses[1:], strict=False) if one is next] == []  # told of changes only


def test_an_owner_that_has_dropped_the_channel_hears_no_more_of_it():
    receiver = Receiver()

    async def scenario():
        channel, theirs = await connected(receiver)
        channel.drop()
        await asyncio.sleep(0.05)
        assert theirs.recv(1) == b""

    run(scenario)
    assert receiver.lost == []


def test_a_channel_that_was_dropped_before_it_was_connected_closes_then():
    receiver = Receiver()

    async def scenario():
        ours, theirs = socket.socketpair()
        theirs.settimeout(5)

        def made():
            channel = MuxChannel(receiver, peer="peer", accepts=TO_EGRESS)
            channel.queue(Kind.DATA, 1, b"hello")
            channel.drop()
            return channel

        await asyncio.get_running_loop().create_connection(made, sock=ours)
        await asyncio.sleep(0.05)
        assert theirs.recv(1) == b""

    run(scenario)
    assert receiver.lost == []


def test_every_reason_of_a_cancel_is_read_as_it_was_said():
    assert [cancel_code(cancel_of(code)) for code in CANCEL_CODES] == list(CANCEL_CODES)
    assert cancel_of("client_gone") == b""
    assert cancel_code(cancel_of("something_new")) == "bad_upstream_answer"


@pytest.mark.parametrize("payload", [b"\x00", bytes([len(CANCEL_CODES)]), b"\xff", b"\x01\x01", b"client_gone"])
def test_a_reason_that_is_not_in_the_table_is_refused(payload):
    with pytest.raises(ChannelError):
        cancel_code(payload)
