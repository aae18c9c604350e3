"""The worker-egress edge: many calls over one stream socket, in frames whose length is checked before a byte is kept.

A frame is `payload length (u32), kind (u8), stream (u32)`, little-endian, then the payload. Who may send what is a table: `TO_EGRESS` and
`TO_WORKER`; a kind outside the receiver's table, a length above the bound or a payload that does not decode closes the channel.

All frames of one loop turn leave in one write (`queue` collects, the loop's next turn writes): a write each made streams eight times
dearer. Flow control is by credit: a sender of DATA holds at most `STREAM_WINDOW_BYTES` unacknowledged bytes a stream. A channel is `paused` when its
peer is behind, and also from `CHANNEL_HIGH_WATER_BYTES` on in one turn: hundreds of streams fill a channel before one byte is written.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Protocol, cast

import msgspec

from cliproxy.bounds import KIB, MIB
from cliproxy.errors import ChannelError

MAX_FRAME_BYTES = 128 * KIB  # a HEAD with an inline body of one DATA frame, and its fields
CHANNEL_HIGH_WATER_BYTES = 1 * MIB  # unsent bytes above which upstream reading pauses
MAX_CHANNEL_BACKLOG_BYTES = 64 * MIB  # unsent bytes above which the peer counts as dead and the channel is closed

HEADER = struct.Struct("<IBI")
HEADER_BYTES = HEADER.size


class Kind(IntEnum):
    """Frame kinds. Stream 0 is the channel itself."""

    HELLO = 0
    CALL = 1
    DATA = 2
    END = 3
    CANCEL = 4
    CREDIT = 5
    POLICY = 6
    POLICY_ACK = 7
    ANSWER = 8
    ABORT = 9
    READINESS = 10
    REROUTE = 11


# Why a worker cancels a call. A CANCEL without a payload is the first; else its payload is one byte, the place in here. Egress writes the word into the
# log and does nothing else with it: a worker's word about a provider cools nothing.
CANCEL_CODES = (
    "client_gone",
    "bad_upstream_answer",
    "bad_tool_arguments",
    "bad_tool_call",
    "bad_stop_reason",
    "upstream_broke_off",
    "upstream_stream_error",
    "upstream_too_large",
    "provider_answer_too_large",
    "overloaded",
    "internal_error",
    "egress_unavailable",
)
_BAD_ANSWER = bytes([CANCEL_CODES.index("bad_upstream_answer")])
_CANCELS = {code: bytes([place]) if place else b"" for place, code in enumerate(CANCEL_CODES)}

TO_EGRESS = frozenset({Kind.HELLO, Kind.CALL, Kind.DATA, Kind.END, Kind.CANCEL, Kind.CREDIT, Kind.POLICY_ACK})
TO_WORKER = frozenset({Kind.HELLO, Kind.ANSWER, Kind.DATA, Kind.END, Kind.ABORT, Kind.POLICY, Kind.READINESS, Kind.REROUTE})


def cancel_of(code: str) -> bytes:
    """Return the payload of the CANCEL that says `code`; what is not in the table is an answer that is not what was asked for."""
    return _CANCELS.get(code, _BAD_ANSWER)


def cancel_code(payload: bytes) -> str:
    """Return what a CANCEL says. Raises `ChannelError` for what no `cancel_of` makes."""
    if not payload:
        return CANCEL_CODES[0]
    if len(payload) != 1 or not 0 < payload[0] < len(CANCEL_CODES):
        raise ChannelError("a CANCEL says why in a word that is not in the table")
    return CANCEL_CODES[payload[0]]


class _Payload(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A payload, encoded as an array."""


class Hello(_Payload, frozen=True):
    """The first frame in each direction: the sender's build id and configuration generation."""

    build: str
    generation: int


class CallHead(_Payload, frozen=True):
    """The head of a call for egress to authorise and send; its body is in it or follows.

    `proof` is SHA-256 of the client key. Egress puts the upstream's model name into `body` at `model_offset`; when `body_bytes` is
    greater than `len(body)`, the rest follows in DATA frames and END. `max_tokens` and `n` are what the worker read; egress reads again.
    `endpoint` and `quirks` are the profile that the body was written for (`dialects.Endpoint`, `dialects.Quirks`): only targets of that profile may get it.
    `tried` are targets (`provider/model`) that failed before a REROUTE. Calls of one `session` go to one target where the route wants that; empty: none.
    `client` is the client's `dialects.Dialect`, for the choice of a REROUTE's profile; empty: that of `endpoint`.
    """

    endpoint: int
    proof: bytes
    request_id: str
    address: str
    model: str
    max_tokens: int
    n: int
    stream: bool
    estimate: int
    model_offset: int
    body_bytes: int
    body: bytes
    quirks: int = 0
    session: str = ""
    tried: tuple[str, ...] = ()
    client: str = ""


class Answer(_Payload, frozen=True):
    """The head of an answer and as much of its body as there is. `final`: that is all. `sse`: an event stream; else JSON, unless `media` names another type.

    `provider` and `model` say who answered, under the provider's own name of the model; `attempts` counts what was sent, REROUTEs included.
    """

    status: Annotated[int, msgspec.Meta(ge=200, le=299)]
    sse: bool
    final: bool
    upstream_id: str
    retry_after: float
    body: bytes
    provider: str = ""
    model: str = ""
    attempts: int = 1
    media: str = ""


class Reroute(_Payload, frozen=True):
    """No target of the call's profile can take it, one of another profile may: the stream is over, and the worker sends the call again, on a new one, with
    its body written for `endpoint` and `quirks` and with `tried`. Sent before any byte of an answer."""

    endpoint: int
    quirks: int
    tried: tuple[str, ...]


class Abort(_Payload, frozen=True):
    """The call failed before or inside its answer. The worker words it in the client's dialect."""

    status: Annotated[int, msgspec.Meta(ge=400, le=599)]
    kind: str
    code: str
    message: str
    retry_after: float


class Readiness(_Payload, frozen=True):
    """Once a second: ages in seconds of what egress last heard of the vault and whether the auditor takes events."""

    policy_number: int
    vault_age: float
    auditor: bool


class Receiver(Protocol):
    """Who gets a channel's frames."""

    def frame_handlers(self) -> dict[Kind, Callable[[int, bytes], None]]:
        """One function for each kind that the peer may send; called with the stream and the payload."""

    def turn_began(self) -> None:
        """Bytes have arrived: their frames come now, then `turn_ended` (or `channel_lost`)."""

    def turn_ended(self) -> None:
        """All frames that arrived together have been handled."""

    def channel_lost(self, error: ChannelError | None) -> None:
        """The channel is closed; `error` says what the peer did wrong, `None` that it is gone."""

    def channel_paused(self, paused: bool) -> None:
        """The peer does not keep up, or this turn's frames are many; `False`: neither any more."""


class MuxChannel(asyncio.Protocol):
    """One end of the worker-egress edge, as an asyncio protocol on a connected stream socket."""

    def __init__(self, receiver: Receiver, *, peer: str, accepts: frozenset[Kind], before_write: Callable[[], None] | None = None) -> None:
        """`before_write` is called before each write: what has to happen before the peer hears of it. It may queue more, which goes along."""
        handlers = receiver.frame_handlers()
        if set(handlers) != set(accepts):
            raise ValueError("the receiver's handlers are not the table of what its peer may send")
        self._receiver = receiver
        self._handlers: list[Callable[[int, bytes], None] | None] = [handlers.get(Kind(k)) if k in accepts else None for k in range(max(Kind) + 1)]
        self.peer = peer
        self._before_write = before_write
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._connected = False  # has been: frames queued before wait for it
        self._rest = b""
        self._out: list[bytes] = []
        self._queued = 0  # bytes of payloads in `_out`
        self._flush_due = False
        self._error: ChannelError | None = None
        self._dropped = False
        self._is_behind = False  # the peer
        self.paused = False

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses of asyncio's
        self._transport.set_write_buffer_limits(high=CHANNEL_HIGH_WATER_BYTES)
        self._connected = True
        if self._dropped:
            self._transport.abort()
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        end = len(data)
        start = 0
        handlers = self._handlers
        unpack = HEADER.unpack_from
        self._receiver.turn_began()
        try:
            while end - start >= HEADER_BYTES:
                length, kind, stream = unpack(data, start)
                if length > MAX_FRAME_BYTES:
                    raise ChannelError(f"{self.peer} announced a frame of {length} bytes")
                stop = start + HEADER_BYTES + length
                if stop > end:
                    break
                handler = handlers[kind] if kind < len(handlers) else None
                if handler is None:
                    raise ChannelError(f"{self.peer} sent a frame of kind {kind}, which it may not")
                handler(stream, data[start + HEADER_BYTES : stop])
                start = stop
        except (ChannelError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.fail(error if isinstance(error, ChannelError) else ChannelError(f"{self.peer} sent a payload that does not decode"))
            return
        self._rest = data[start:] if start < end else b""
        self._receiver.turn_ended()

    def pause_writing(self) -> None:
        self._is_behind = True
        self._pause()

    def resume_writing(self) -> None:
        self._is_behind = False
        if self._queued <= CHANNEL_HIGH_WATER_BYTES:
            self._go_on()

    def _pause(self) -> None:
        if not self.paused:
            self.paused = True
            self._receiver.channel_paused(True)

    def _go_on(self) -> None:
        if self.paused:
            self.paused = False
            self._receiver.channel_paused(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._out.clear()
        self._queued = 0
        if not self._dropped:
            self._receiver.channel_lost(self._error)

    # --- sending ---

    def queue(self, kind: Kind, stream: int, payload: bytes) -> None:
        """Send a frame with this loop turn's write. Frames to a closed channel are dropped; `channel_lost` has told the owner."""
        out = self._out
        out.append(HEADER.pack(len(payload), kind, stream))
        out.append(payload)
        self._queued += len(payload)
        if self._queued > CHANNEL_HIGH_WATER_BYTES:
            self._pause()
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what was queued."""
        if self._before_write is not None and self._out:
            try:
                self._before_write()
            finally:  # what it raises goes to the loop, and what was queued to the peer
                self._write()
        else:
            self._write()

    def _write(self) -> None:
        self._flush_due = False
        out = self._out
        if not out or not self._connected:
            return
        self._out = []
        self._queued = 0
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(b"".join(out))
        if not self._is_behind:
            self._go_on()
        elif transport.get_write_buffer_size() > MAX_CHANNEL_BACKLOG_BYTES:
            self.fail(ChannelError(f"{self.peer} does not read its channel"))

    def fail(self, error: ChannelError) -> None:
        """Close at once and tell the owner why."""
        if self._error is None:
            self._error = error
        self.close()

    def close(self) -> None:
        """Close at once; what was queued is lost."""
        if self._transport is not None:
            self._transport.abort()

    def drop(self) -> None:
        """Close at once, even before it is connected; the owner has taken leave of it and is told no more."""
        self._dropped = True
        self.close()

    @property
    def backlog(self) -> int:
        """Bytes queued, or written and not yet taken by the kernel."""
        return self._queued + (0 if self._transport is None else self._transport.get_write_buffer_size())

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and not self._transport.is_closing()
