"""The worker's end of the worker-egress edge: which calls are under way, their credit, the policy feed, and whether egress is there.

A call gets exactly one ending: an answer that is final, END, or ABORT. When the channel goes, every open call gets an ABORT of ours;
nothing that may have left is sent again. The same when egress says nothing for `EGRESS_SILENT_SECONDS`; then no call is taken until it speaks again.
A bug that raises in one call's code ends that call and no other.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from cliproxy.bounds import MAX_DATA_FRAME_BYTES, MAX_STREAMS_PER_CHANNEL, VAULT_SILENT_SECONDS
from cliproxy.dataplane.backlog import Backlog
from cliproxy.dataplane.rooms import Account, Room
from cliproxy.errors import ChannelError, Unavailable
from cliproxy.ipc.mux import TO_WORKER, Abort, Answer, CallHead, Hello, Kind, MuxChannel, Readiness, Reroute, cancel_of
from cliproxy.ipc.policy_feed import PolicyFeed
from cliproxy.ipc.silence import Silence

# Egress says each second how it stands. Ten in a row missed are no busy machine any more; the supervisor, whose remedy ends every call, waits a little longer.
EGRESS_SILENT_SECONDS: Final = 10.0
CREDIT = struct.Struct("<I")
POLICY_ACK = struct.Struct("<q")
NO_EGRESS = Abort(
    status=503,
    kind="unavailable_error",
    code="egress_unavailable",
    message="The gateway lost its connection to the provider side; try again in a moment.",
    retry_after=1.0,
)
ORDINARY_CALLS: Final = 64  # under way for one key: nobody counts further before it has more
BROKEN = Abort(status=500, kind="internal_error", code="internal_error", message="The gateway failed to answer.", retry_after=0.0)


class CallOwner(Protocol):
    """Who waits for a call's answer. `account`: whose call it is."""

    account: Account

    def on_answer(self, answer: Answer) -> None:
        """The head, with the first bytes of the body; all of it when `answer.final`."""

    def on_data(self, data: bytes) -> None:
        """More of the body."""

    def on_end(self) -> None:
        """The body is whole."""

    def on_abort(self, abort: Abort) -> None:
        """The call failed; nothing more comes."""

    def on_reroute(self, reroute: Reroute) -> None:
        """The call is to be sent again, in another profile; nothing more comes on this stream."""


class EgressLink:
    """All calls of one worker. `policy` is public: the exchange asks it."""

    def __init__(
        self,
        *,
        build: str,
        generation: int,
        violation: Callable[[ChannelError], None],
        policy_applied: Callable[[], None],
        collect: Callable[[bool], None],
        fault: Callable[[BaseException], None],
    ) -> None:
        """`fault` is told what a bug raised."""
        self._build = build
        self._generation = generation
        self._violation = violation
        self._policy_applied = policy_applied
        self._collect = collect
        self._fault = fault
        self.policy = PolicyFeed()
        self.readiness: Readiness | None = None
        self._readiness_at = 0.0
        self._channel: MuxChannel | None = None
        self._taking: MuxChannel | None = None  # the channel, while egress is heard of on it: what new calls go to
        self._silence = Silence()
        self._calls: dict[int, CallOwner] = {}
        self._room = Room(MAX_STREAMS_PER_CHANNEL, least=ORDINARY_CALLS)
        self._backlog = Backlog()
        self._next_stream = 1
        self._call_encoder = msgspec.msgpack.Encoder()
        self._answers = msgspec.msgpack.Decoder(Answer)
        self._aborts = msgspec.msgpack.Decoder(Abort)
        self._reroutes = msgspec.msgpack.Decoder(Reroute)
        self._hellos = msgspec.msgpack.Decoder(Hello)
        self._readinesses = msgspec.msgpack.Decoder(Readiness)
        self.build_mismatch = False
        self.lost_at: float | None = None  # since when there is no channel

    # --- the channel ---

    def attach(self) -> MuxChannel:
        """Return the protocol for a new channel to egress, and introduce ourselves on it. The old one must be gone."""
        channel = MuxChannel(self, peer="egress", accepts=TO_WORKER)
        self._channel = self._taking = channel
        self._silence.end()
        self.lost_at = None
        channel.queue(Kind.HELLO, 0, self._call_encoder.encode(Hello(build=self._build, generation=self._generation)))
        return channel

    def frame_handlers(self) -> dict[Kind, Callable[[int, bytes], None]]:
        return {
            Kind.HELLO: self._on_hello,
            Kind.ANSWER: self._on_answer,
            Kind.DATA: self._on_data,
            Kind.END: self._on_end,
            Kind.ABORT: self._on_abort,
            Kind.POLICY: self._on_policy,
            Kind.READINESS: self._on_readiness,
            Kind.REROUTE: self._on_reroute,
        }

    def turn_began(self) -> None:
        """Answers of one turn leave together."""
        self._collect(True)

    def turn_ended(self) -> None:
        """Now they leave."""
        self._collect(False)

    def channel_paused(self, paused: bool) -> None:
        """`send` looks at the channel itself."""

    def channel_lost(self, error: ChannelError | None) -> None:
        if error is not None:
            self._violation(error)
        self._channel = self._taking = None
        self.lost_at = time.monotonic()
        self.readiness = None
        calls, self._calls = self._calls, {}
        self._backlog.clear()
        for call in calls.values():
            call.account.calls -= 1
            self._abort(call, NO_EGRESS)
        self._collect(False)  # a turn may have begun that nobody ends

    def close(self) -> None:
        """Drop the channel (its peer was replaced); open calls are aborted. The next one may be attached at once."""
        if self._channel is not None:
            self._channel.drop()  # not told of its end: by then the link may have the next one
            self.channel_lost(None)

    # --- calls ---

    @property
    def open_calls(self) -> int:
        """How many calls have no ending yet."""
        return len(self._calls)

    def is_ready(self, now: float) -> bool:
        """Whether egress, vault and auditor all said within three seconds that they serve."""
        heard = self.readiness
        return (
            heard is not None
            and heard.auditor
            and now - self._readiness_at <= VAULT_SILENT_SECONDS
            and heard.vault_age <= VAULT_SILENT_SECONDS
            and self.policy.is_fresh(now)
        )

    def send(self, owner: CallOwner, call: CallHead, body: bytes) -> int:
        """Send `call`, whose body is inline when small (then `body` is `call.body`), else follows. Returns the stream's number.

        Raises `Unavailable` when there is no channel, nothing is heard on it, there are too many calls, or egress does not keep up.
        """
        channel = self._taking
        if channel is None:
            raise Unavailable(NO_EGRESS.message, code=NO_EGRESS.code)
        account = owner.account
        taken = len(self._calls)
        if (account.calls >= ORDINARY_CALLS or taken >= MAX_STREAMS_PER_CHANNEL) and not self._has_room(account, taken):
            raise Unavailable("The gateway has more calls under way than it takes; try again in a moment.", code="overloaded")
        if channel.paused and not self._backlog.admits(account, len(body), channel.backlog):
            raise Unavailable("The gateway has more calls under way than it takes; try again in a moment.", code="overloaded")
        stream = self._next_stream
        self._next_stream = stream + 1 if stream < 0xFFFFFFFF else 1
        self._calls[stream] = owner
        account.calls += 1
        channel.queue(Kind.CALL, stream, self._call_encoder.encode(call))
        if not call.body:
            for start in range(0, len(body), MAX_DATA_FRAME_BYTES):
                channel.queue(Kind.DATA, stream, body[start : start + MAX_DATA_FRAME_BYTES])
            channel.queue(Kind.END, stream, b"")
        if channel.paused:
            self._backlog.add(account, len(body))
        elif self._backlog.waiting:
            self._backlog.clear()
        return stream

    def _has_room(self, account: Account, taken: int) -> bool:
        self._room.taken = taken
        return self._room.admits(account.calls, 1)

    def watch(self, now: float) -> None:
        """Once a second: when egress has said nothing for too long, end every call, and take none until it speaks again."""
        if self._channel is None or self._silence.look(now) <= EGRESS_SILENT_SECONDS or self._taking is None:
            return
        self._taking = None
        self._collect(True)
        for stream, call in tuple(self._calls.items()):
            self.cancel(stream, NO_EGRESS.code)  # should it wake up, it learns that nobody waits
            self._abort(call, NO_EGRESS)
        self._collect(False)

    def cancel(self, stream: int, code: str) -> None:
        """Nobody waits for the answer any more, because of `code` (`ipc.mux.CANCEL_CODES`): that goes into the log, if egress has not settled the call."""
        owner = self._calls.pop(stream, None)
        if owner is None:
            return
        owner.account.calls -= 1
        if self._channel is not None:
            self._channel.queue(Kind.CANCEL, stream, cancel_of(code))

    def grant(self, stream: int, count: int) -> None:
        """Let egress send `count` more bytes of the answer."""
        if self._channel is not None:
            self._channel.queue(Kind.CREDIT, stream, CREDIT.pack(count))

    # --- frames ---

    def _on_hello(self, stream: int, payload: bytes) -> None:
        if self._hellos.decode(payload).build != self._build:
            self.build_mismatch = True
            raise ChannelError("egress is of another build")

    def _on_answer(self, stream: int, payload: bytes) -> None:
        owner = self._calls.get(stream)
        if owner is None:
            return  # cancelled while it was on its way
        answer = self._answers.decode(payload)
        if answer.final:
            del self._calls[stream]
            owner.account.calls -= 1
        try:
            owner.on_answer(answer)
        except Exception as error:  # noqa: BLE001 - raised further it would close the channel and end every call
            self._failed(stream, owner, error)

    def _on_data(self, stream: int, payload: bytes) -> None:
        owner = self._calls.get(stream)
        if owner is not None:
            try:
                owner.on_data(payload)
            except Exception as error:  # noqa: BLE001 - as in _on_answer
                self._failed(stream, owner, error)

    def _on_end(self, stream: int, payload: bytes) -> None:
        owner = self._calls.pop(stream, None)
        if owner is not None:
            owner.account.calls -= 1
            try:
                owner.on_end()
            except Exception as error:  # noqa: BLE001 - as in _on_answer
                self._failed(stream, owner, error)

    def _on_abort(self, stream: int, payload: bytes) -> None:
        abort = self._aborts.decode(payload)  # first: when this raises, the call gets its ending with all the others of the channel
        owner = self._calls.pop(stream, None)
        if owner is not None:
            owner.account.calls -= 1
            self._abort(owner, abort)

    def _on_reroute(self, stream: int, payload: bytes) -> None:
        reroute = self._reroutes.decode(payload)
        owner = self._calls.pop(stream, None)
        if owner is not None:
            owner.account.calls -= 1
            try:
                owner.on_reroute(reroute)
            except Exception as error:  # noqa: BLE001 - as in _on_answer
                self._failed(stream, owner, error)

    def _failed(self, stream: int, owner: CallOwner, error: Exception) -> None:
        """A bug: report it, end this call on both sides, go on."""
        self._fault(error)
        self.cancel(stream, BROKEN.code)
        self._abort(owner, BROKEN)

    def _abort(self, owner: CallOwner, abort: Abort) -> None:
        try:
            owner.on_abort(abort)
        except Exception as error:  # noqa: BLE001 - as in _on_answer
            self._fault(error)

    def _on_policy(self, stream: int, payload: bytes) -> None:
        if self.policy.apply(self.policy.decode(payload)) is None:
            return
        self._policy_applied()
        assert self._channel is not None
        self._channel.queue(Kind.POLICY_ACK, 0, POLICY_ACK.pack(self.policy.number))

    def _on_readiness(self, stream: int, payload: bytes) -> None:
        self.readiness = self._readinesses.decode(payload)
        self._readiness_at = time.monotonic()
        self._silence.end()
        self._taking = self._channel
        self.policy.heard(vault_age=self.readiness.vault_age, now=self._readiness_at)
