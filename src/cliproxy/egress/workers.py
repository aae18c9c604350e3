"""Egress's end of one worker's channel: calls come in whole or in pieces, answers go out, policy is acknowledged.

The worker is the process that parses the internet, so everything here is checked as if it were the internet: sizes before they are kept,
streams that exist, credit that was spent, a budget for what one worker makes us hold.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

import msgspec

from cliproxy.bounds import (
    MAX_ADDRESS_CHARS,
    MAX_DATA_FRAME_BYTES,
    MAX_REQUEST_BYTES_PER_WORKER,
    MAX_REQUEST_ID_CHARS,
    MAX_STREAMS_PER_CHANNEL,
    MAX_TOKEN_COUNT,
)
from cliproxy.egress.calls import ProviderCall, abort_of
from cliproxy.errors import ChannelError, CliproxyError, Unavailable
from cliproxy.ipc.mux import TO_EGRESS, Call, Hello, Kind, MuxChannel, Reroute, cancel_code

_CREDIT = struct.Struct("<I")
_POLICY_ACK = struct.Struct("<q")


class Desk(Protocol):
    """Who decides about calls."""

    def submit(self, worker: WorkerChannel, stream: int, call: Call, body: bytes) -> None:
        """A call is whole: authorise it and, at the end of the turn, send it."""

    def withdraw(self, worker: WorkerChannel, stream: int) -> None:
        """A call that was submitted in this turn has lost its client: it does not leave."""

    def acknowledged(self, worker: WorkerChannel, number: int) -> None:
        """The worker says that policy `number` is in force in it. Raises `ChannelError` when there is none of that number."""

    def worker_lost(self, worker: WorkerChannel, error: ChannelError | None) -> None:
        """The channel is closed; its calls have been cancelled."""

    def flush(self) -> None:
        """The end of a turn: what happened goes to the auditor before the worker, and so a client, hears of it."""

    def introduce(self, worker: WorkerChannel) -> None:
        """The worker said hello: it wants the policy."""


class _Arriving:
    """A call whose body is still coming."""

    __slots__ = ("body", "call")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.body = bytearray()  # and no list of pieces: a worker chooses how small they are, and each would cost us 40 bytes


class WorkerChannel:
    """One worker, as egress sees it. `slot` is its number in the topology; `policy_number` what it last acknowledged.

    A stream is `arriving` until its body is whole, `waiting` at the desk until the end of the turn, then in `calls` until it is settled.
    """

    def __init__(self, slot: int, desk: Desk, *, build: str, max_body_bytes: int) -> None:
        self.slot = slot
        self.policy_number = -1
        self.introduced = False
        self.calls: dict[int, ProviderCall] = {}
        self.waiting: set[int] = set()  # the desk's
        self._desk = desk
        self._build = build
        self._max_body_bytes = max_body_bytes
        self._arriving: dict[int, _Arriving] = {}
        self._held = 0
        self._next = 0  # the place of the call that has the first turn
        self._call_decoder = msgspec.msgpack.Decoder(Call)
        self._hello_decoder = msgspec.msgpack.Decoder(Hello)
        self._encoder = msgspec.msgpack.Encoder()
        self.channel = MuxChannel(self, peer=f"worker slot {slot}", accepts=TO_EGRESS, before_write=desk.flush)

    # --- ipc.mux.Receiver ---

    def frame_handlers(self) -> dict[Kind, Callable[[int, bytes], None]]:
        return {
            Kind.HELLO: self._on_hello,
            Kind.CALL: self._on_call,
            Kind.DATA: self._on_data,
            Kind.END: self._on_end,
            Kind.CANCEL: self._on_cancel,
            Kind.CREDIT: self._on_credit,
            Kind.POLICY_ACK: self._on_policy_ack,
        }

    def turn_began(self) -> None:
        """Nothing to do: the desk collects until the loop's turn ends, over all workers."""

    def turn_ended(self) -> None:
        """As above."""

    def channel_paused(self, paused: bool) -> None:
        """When there is room again, calls use it in turns: those that found none are first."""
        if paused:
            return
        calls = list(self.calls.values())
        first = self._next % (len(calls) or 1)
        for number, call in enumerate(calls[first:] + calls[:first]):
            if self.channel.paused:
                self._next = first + number
                return
            call.channel_ready()

    def channel_lost(self, error: ChannelError | None) -> None:
        self._arriving.clear()
        for call in list(self.calls.values()):
            call.cancel("worker_gone")
        self._desk.worker_lost(self, error)

    # --- sending ---

    def refuse(self, stream: int, error: CliproxyError) -> None:
        """Tell the worker that the call does not happen."""
        self.channel.queue(Kind.ABORT, stream, self._encoder.encode(abort_of(error)))

    def reroute(self, stream: int, reroute: Reroute) -> None:
        """Tell the worker to write the call anew, for another profile."""
        self.channel.queue(Kind.REROUTE, stream, self._encoder.encode(reroute))

    def policy(self, message: object) -> None:
        """Pass on a message of the policy feed."""
        self.channel.queue(Kind.POLICY, 0, self._encoder.encode(message))

    def send(self, kind: Kind, message: object) -> None:
        """Send a message about the channel itself."""
        self.channel.queue(kind, 0, self._encoder.encode(message))

    # --- frames ---

    def _on_hello(self, stream: int, payload: bytes) -> None:
        if self.introduced or self._hello_decoder.decode(payload).build != self._build:
            raise ChannelError(f"worker slot {self.slot} is of another build, or said hello twice")
        self.introduced = True
        self._desk.introduce(self)

    def _on_call(self, stream: int, payload: bytes) -> None:
        call = self._call_decoder.decode(payload)
        if not self.introduced or stream == 0 or stream in self.calls or stream in self._arriving or stream in self.waiting:
            raise ChannelError(f"worker slot {self.slot} used stream {stream} twice or before its hello")
        inline = len(call.body)
        if (
            not 0 <= call.hole <= call.body_bytes <= self._max_body_bytes
            or inline not in (0, call.body_bytes)
            or not 0 <= call.estimate <= MAX_TOKEN_COUNT  # `n` and `max_tokens` are held against the body
            or not _is_plain(call.request_id, at_most=MAX_REQUEST_ID_CHARS)  # these two go into the log, which takes no more from us
            or not _is_plain(call.address, at_most=MAX_ADDRESS_CHARS)
        ):
            raise ChannelError(f"worker slot {self.slot} described a call that cannot be")
        if len(self.calls) + len(self._arriving) + len(self.waiting) >= MAX_STREAMS_PER_CHANNEL:
            self.refuse(stream, Unavailable("The gateway has more calls under way than it takes.", code="overloaded"))
        elif inline:
            self._desk.submit(self, stream, call, call.body)
        elif self._held + call.body_bytes > MAX_REQUEST_BYTES_PER_WORKER:
            self.refuse(stream, Unavailable("The gateway holds more request data than it takes.", code="overloaded"))
        else:
            self._held += call.body_bytes
            self._arriving[stream] = _Arriving(call)

    def _on_data(self, stream: int, payload: bytes) -> None:
        arriving = self._arriving.get(stream)
        if arriving is None:
            return  # refused while its body was on the way
        if len(payload) > MAX_DATA_FRAME_BYTES or len(arriving.body) + len(payload) > arriving.call.body_bytes:
            raise ChannelError(f"worker slot {self.slot} sent more body than it announced")
        arriving.body += payload

    def _on_end(self, stream: int, payload: bytes) -> None:
        arriving = self._arriving.pop(stream, None)
        if arriving is None:
            return
        self._held -= arriving.call.body_bytes
        if len(arriving.body) != arriving.call.body_bytes:
            raise ChannelError(f"worker slot {self.slot} sent less body than it announced")
        self._desk.submit(self, stream, arriving.call, bytes(arriving.body))

    def _on_cancel(self, stream: int, payload: bytes) -> None:
        code = cancel_code(payload)
        arriving = self._arriving.pop(stream, None)
        if arriving is not None:
            self._held -= arriving.call.body_bytes
        if stream in self.waiting:
            self._desk.withdraw(self, stream)
        call = self.calls.get(stream)
        if call is not None:
            call.cancel(code)

    def _on_credit(self, stream: int, payload: bytes) -> None:
        if len(payload) != _CREDIT.size:
            raise ChannelError(f"worker slot {self.slot} sent a malformed credit")
        (count,) = _CREDIT.unpack(payload)
        call = self.calls.get(stream)
        if call is not None and not call.credit(count):
            raise ChannelError(f"worker slot {self.slot} granted more than was sent")

    def _on_policy_ack(self, stream: int, payload: bytes) -> None:
        if len(payload) != _POLICY_ACK.size:
            raise ChannelError(f"worker slot {self.slot} sent a malformed acknowledgement")
        (number,) = _POLICY_ACK.unpack(payload)
        if not self.introduced or number < 0:
            raise ChannelError(f"worker slot {self.slot} acknowledged what it was not sent")
        self._desk.acknowledged(self, number)


def _is_plain(text: str, *, at_most: int) -> bool:
    """Whether `text` is printable ASCII of 1 to `at_most` characters."""
    return 0 < len(text) <= at_most and text.isascii() and text.isprintable()
