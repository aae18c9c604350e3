"""Egress's end of one worker's channel: calls come in whole or in pieces, answers go out, policy is acknowledged.

The worker is the process that parses the internet, so everything here is checked as if it were the internet: sizes before they are kept,
streams that exist, credit that was spent, a budget for what one worker makes us hold.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

import msgspec

from cliproxy.bounds import MAX_DATA_FRAME_BYTES, MAX_STREAMS_PER_CHANNEL, MAX_TOKEN_COUNT, MIB
from cliproxy.egress.attempt import abort_of
from cliproxy.egress.call import TRANSITIONS, Call, Event, State
from cliproxy.egress.rooms import Room
from cliproxy.errors import ChannelError, CliproxyError, Unavailable
from cliproxy.ipc.mux import TO_EGRESS, CallHead, Hello, Kind, MuxChannel, Reroute, cancel_code

MAX_REQUEST_BYTES_PER_WORKER = 128 * MIB  # bodies that egress holds for one worker until they are whole
MAX_REQUEST_ID_CHARS = 64  # `x-request-id`, which a worker makes up; ours have 24
MAX_ADDRESS_CHARS = 45  # an IPv6 address with a dotted quad; the kernel spells no longer one

_CREDIT = struct.Struct("<I")
_POLICY_ACK = struct.Struct("<q")


class Dispatcher(Protocol):
    """Who decides about calls."""

    def submit(self, call: Call, head: CallHead, body: bytes) -> None:
        """A call is whole: authorise it and, at the end of the turn, send it."""

    def withdraw(self, call: Call, code: str) -> None:
        """Nobody waits for the call any more; `code` says why."""

    def acknowledged(self, worker: WorkerChannel, number: int) -> None:
        """The worker says that policy `number` is in force in it. Raises `ChannelError` when there is none of that number."""

    def worker_lost(self, worker: WorkerChannel, error: ChannelError | None) -> None:
        """The channel is closed; its calls have been withdrawn."""

    def flush(self) -> None:
        """The end of a turn: what happened goes to the auditor before the worker, and so a client, hears of it."""

    def introduce(self, worker: WorkerChannel) -> None:
        """The worker said hello: it wants the policy."""


class WorkerChannel:
    """One worker, as egress sees it. `index` is its number in the topology; `policy_number` what it last acknowledged; `calls` are all of its calls that are
    not over, whatever their state, by stream, and `places` counts them for each owner."""

    def __init__(self, index: int, dispatcher: Dispatcher, *, build: str, max_body_bytes: int) -> None:
        self.index = index
        self.policy_number = -1
        self.introduced = False
        self.calls: dict[int, Call] = {}
        self.places: Room[bytes] = Room(MAX_STREAMS_PER_CHANNEL)
        self._dispatcher = dispatcher
        self._build = build
        self._max_body_bytes = max_body_bytes
        self._arriving: Room[bytes] = Room(MAX_REQUEST_BYTES_PER_WORKER)  # bytes of bodies that are coming
        self._next = 0  # the place of the call that has the first turn
        self._head_decoder = msgspec.msgpack.Decoder(CallHead)
        self._hello_decoder = msgspec.msgpack.Decoder(Hello)
        self._encoder = msgspec.msgpack.Encoder()
        self.channel = MuxChannel(self, peer=f"worker {index}", accepts=TO_EGRESS, before_write=dispatcher.flush)

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
        """Nothing to do: the audit gate collects until the loop's turn ends, over all workers."""

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
            if call.attempt is not None:
                call.attempt.channel_ready()

    def channel_lost(self, error: ChannelError | None) -> None:
        self.withdraw_all()
        self._dispatcher.worker_lost(self, error)

    def withdraw_all(self) -> None:
        """The worker is gone, and nobody waits for its calls."""
        for call in list(self.calls.values()):
            self._withdraw(call, "worker_gone")

    # --- sending ---

    def refuse(self, call: Call, error: CliproxyError) -> None:
        """Tell the worker that the call does not happen."""
        self.channel.queue(Kind.ABORT, call.stream, self._encoder.encode(abort_of(error)))

    def reroute(self, call: Call, reroute: Reroute) -> None:
        """Tell the worker to write the call anew, for another profile."""
        self.channel.queue(Kind.REROUTE, call.stream, self._encoder.encode(reroute))

    def policy(self, message: object) -> None:
        """Pass on a message of the policy feed."""
        self.channel.queue(Kind.POLICY, 0, self._encoder.encode(message))

    def send(self, kind: Kind, message: object) -> None:
        """Send a message about the channel itself."""
        self.channel.queue(kind, 0, self._encoder.encode(message))

    # --- frames ---

    def _on_hello(self, stream: int, payload: bytes) -> None:
        if self.introduced or self._hello_decoder.decode(payload).build != self._build:
            raise ChannelError(f"worker {self.index} is of another build, or said hello twice")
        self.introduced = True
        self._dispatcher.introduce(self)

    def _on_call(self, stream: int, payload: bytes) -> None:
        head = self._head_decoder.decode(payload)
        if not self.introduced or stream == 0 or stream in self.calls:
            raise ChannelError(f"worker {self.index} used stream {stream} twice or before its hello")
        inline = len(head.body)
        if (
            not 0 <= head.model_offset <= head.body_bytes <= self._max_body_bytes
            or inline not in (0, head.body_bytes)
            or not 0 <= head.estimate <= MAX_TOKEN_COUNT  # `n` and `max_tokens` are held against the body
            or not _is_plain(head.request_id, at_most=MAX_REQUEST_ID_CHARS)  # these two go into the log, which takes no more from us
            or not _is_plain(head.address, at_most=MAX_ADDRESS_CHARS)
        ):
            raise ChannelError(f"worker {self.index} described a call that cannot be")
        call = Call(self, stream, State.DECIDING if inline else State.ARRIVING, head.proof)
        if not self.places.take(call.owner, 1):
            self.refuse(call, Unavailable("The gateway has more calls under way than it takes.", code="overloaded"))
        elif inline:
            self.calls[stream] = call
            self._dispatcher.submit(call, head, head.body)
        elif not self._arriving.take(call.owner, head.body_bytes):
            self.places.give_back(call.owner, 1)
            self.refuse(call, Unavailable("The gateway holds more request data than it takes.", code="overloaded"))
        else:
            self.calls[stream] = call
            call.head = head
            call.pieces = bytearray()

    def _on_data(self, stream: int, payload: bytes) -> None:
        call = self.calls.get(stream)
        head = None if call is None else call.head
        if call is None or head is None:
            return  # refused while its body was on the way
        if len(payload) > MAX_DATA_FRAME_BYTES or len(call.pieces) + len(payload) > head.body_bytes:
            raise ChannelError(f"worker {self.index} sent more body than it announced")
        call.pieces += payload

    def _on_end(self, stream: int, payload: bytes) -> None:
        call = self.calls.get(stream)
        head = None if call is None else call.head
        if call is None or head is None:
            return
        if len(call.pieces) != head.body_bytes:
            raise ChannelError(f"worker {self.index} sent less body than it announced")
        body = bytes(call.pieces)
        call.state = TRANSITIONS[Event.BODY_WHOLE][call.state]
        self._arrived(call, head)
        self._dispatcher.submit(call, head, body)

    def _on_cancel(self, stream: int, payload: bytes) -> None:
        code = cancel_code(payload)
        call = self.calls.get(stream)
        if call is not None:
            self._withdraw(call, code)

    def _withdraw(self, call: Call, code: str) -> None:
        if call.head is not None:
            self._arrived(call, call.head)
        self._dispatcher.withdraw(call, code)

    def _arrived(self, call: Call, head: CallHead) -> None:
        """Nothing more of the body is waited for."""
        call.head = None
        del call.pieces
        self._arriving.give_back(head.proof, head.body_bytes)

    def _on_credit(self, stream: int, payload: bytes) -> None:
        if len(payload) != _CREDIT.size:
            raise ChannelError(f"worker {self.index} sent a malformed credit")
        (count,) = _CREDIT.unpack(payload)
        call = self.calls.get(stream)
        if call is not None and call.attempt is not None and not call.attempt.credit(count):
            raise ChannelError(f"worker {self.index} granted more than was sent")

    def _on_policy_ack(self, stream: int, payload: bytes) -> None:
        if len(payload) != _POLICY_ACK.size:
            raise ChannelError(f"worker {self.index} sent a malformed acknowledgement")
        (number,) = _POLICY_ACK.unpack(payload)
        if not self.introduced or number < 0:
            raise ChannelError(f"worker {self.index} acknowledged what it was not sent")
        self._dispatcher.acknowledged(self, number)


def _is_plain(text: str, *, at_most: int) -> bool:
    """Whether `text` is printable ASCII of 1 to `at_most` characters."""
    return 0 < len(text) <= at_most and text.isascii() and text.isprintable()
