"""A call in egress, from its first frame to its end: what was asked, how far it has come, and the one state that it is in.

    ARRIVING    its body is still coming
    DECIDING    who is asked next is being decided; never outlasts one function
    RECORDING   an attempt is decided, and the auditor has not taken its intent yet
    UNDER_WAY   the attempt has left, and the worker knows nothing of an answer
    ANSWERING   the worker has the first of the answer: nothing is tried again
    COOLING     waits for a cooldown to end
    REROUTED    went back to its worker, to be written for another profile; its progress goes over to the call that comes again
    OVER        its ending is told, or nobody wants to hear it

What always holds: a call changes its state by `call.state = TRANSITIONS[Event.…][call.state]` and in no other way; what is not in the table raises
`IllegalTransition`, which is a bug of ours.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import Protocol

import msgspec

from cliproxy.auth.principals import Principal
from cliproxy.config.routes import Group, Route, Target
from cliproxy.dialects import ENDPOINTS, Dialect, Endpoint
from cliproxy.egress.admission import Reservation
from cliproxy.egress.cooldowns import Key
from cliproxy.egress.inject import BoundCredential
from cliproxy.egress.rooms import Room
from cliproxy.egress.routing import Tried
from cliproxy.errors import ChannelError, CliproxyError
from cliproxy.ipc.mux import CallHead, Kind, Reroute
from cliproxy.metering.table import Meter

_DIALECTS = {dialect.value: dialect for dialect in Dialect}


class State(IntEnum):
    """Where a call is; an IntEnum because its hash costs no Python call."""

    ARRIVING = 0
    DECIDING = 1
    RECORDING = 2
    UNDER_WAY = 3
    ANSWERING = 4
    COOLING = 5
    REROUTED = 6
    OVER = 7


class Event(IntEnum):
    """What happens to a call."""

    BODY_WHOLE = 0
    AUTHORISED = 1
    SENT = 2
    ANSWERED = 3
    FAILED = 4  # the attempt, before its answer began, and the call may be tried elsewhere
    MUST_COOL = 5
    COOLED = 6
    SENT_BACK = 7
    ENDED = 8


class IllegalTransition(Exception):
    """Something happened to a call that cannot in its state: a bug."""


class After(dict[State, State]):
    """The states that follow one event. A lookup costs no Python call, and one in vain raises `IllegalTransition`."""

    def __missing__(self, state: State) -> State:
        raise IllegalTransition(f"nothing like that can happen to a call that is {state.name}: only to one that is {', '.join(s.name for s in self)}")


TRANSITIONS: dict[Event, After] = {
    Event.BODY_WHOLE: After({State.ARRIVING: State.DECIDING}),
    Event.AUTHORISED: After({State.DECIDING: State.RECORDING}),
    Event.SENT: After({State.RECORDING: State.UNDER_WAY}),
    Event.ANSWERED: After({State.UNDER_WAY: State.ANSWERING}),
    Event.FAILED: After({State.UNDER_WAY: State.DECIDING}),
    Event.MUST_COOL: After({State.DECIDING: State.COOLING}),
    Event.COOLED: After({State.COOLING: State.DECIDING}),
    Event.SENT_BACK: After({State.DECIDING: State.REROUTED}),
    Event.ENDED: After(
        {
            State.ARRIVING: State.OVER,
            State.DECIDING: State.OVER,
            State.RECORDING: State.OVER,
            State.UNDER_WAY: State.OVER,
            State.ANSWERING: State.OVER,
            State.COOLING: State.OVER,
        }
    ),
}


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What a call asks for, as its worker said and `Authoriser.admit` has found it allowed. `model_offset`: where in the body the target's model goes.
    `groups`: the route's targets of the body's profile. `session`: empty, or its name, made the principal's own."""

    request_id: str
    address: str
    principal: Principal
    route: Route
    endpoint: Endpoint
    meter: Meter
    groups: tuple[Group, ...]
    max_tokens: int
    n: int
    stream: bool
    estimate: int
    model_offset: int
    session: str
    said_client: str

    def __repr__(self) -> str:
        return f"Asked({self.request_id})"

    @property
    def client(self) -> Dialect:
        """The client's dialect; the endpoint's, where the worker did not say."""
        return _DIALECTS.get(self.said_client, ENDPOINTS[self.endpoint][1])


class Progress(msgspec.Struct):
    """How far a call has come. `rounds`: how often it has waited for a cooldown; `waited`: seconds since its last attempt; `error`: of its last attempt;
    `is_unknown`: what one of its attempts used, nobody knows."""

    tried: Tried | None = None
    attempts: int = 0
    rounds: int = 0
    waited: float = 0.0
    reroutes: int = 0
    reservation: Reservation | None = None
    error: CliproxyError | None = None
    is_unknown: bool = False

    def note(self) -> Tried:
        """Return what was tried, to be added to."""
        if self.tried is None:
            self.tried = Tried()
        return self.tried


class Outgoing(Protocol):
    """The channel to a call's worker."""

    paused: bool

    def queue(self, kind: Kind, stream: int, payload: bytes) -> None:
        """Send a frame."""


class Channel(Outgoing, Protocol):
    """What a call's owner may do with it beside."""

    def fail(self, error: ChannelError) -> None:
        """The worker broke the protocol: close at once."""


class Worker(Protocol):
    """Whose call it is. `calls` are all of its calls that are not over, by stream, and `places` how many of them each owner has."""

    index: int
    calls: dict[int, Call]
    places: Room[bytes]

    @property
    def channel(self) -> Channel: ...

    def refuse(self, call: Call, error: CliproxyError) -> None:
        """Tell the worker that the call does not happen."""

    def reroute(self, call: Call, reroute: Reroute) -> None:
        """Tell the worker to write the call anew."""


class Running(Protocol):
    """An attempt that has left."""

    request: AuthorizedRequest

    def cancel(self, code: str) -> None:
        """Nobody waits for it any more."""

    def abort(self, error: CliproxyError) -> None:
        """The gateway ends it: the worker is told."""

    def credit(self, count: int) -> bool:
        """The worker takes `count` more bytes; `False`: it grants more than was sent."""

    def channel_ready(self) -> None:
        """The channel takes more again."""


class Call:
    """One call. `owner` is whom its places are counted for, before it is known to be a principal: the proof of its key. `kept` bytes of `body` are counted, so
    that it can be sent again. `asked` and `progress` are there once it was admitted; `request` is the attempt while RECORDING, `attempt` while UNDER_WAY or
    ANSWERING: not longer, or call and attempt would hold each other for ever."""

    __slots__ = ("asked", "attempt", "body", "head", "kept", "owner", "pieces", "progress", "request", "state", "stream", "timer", "worker")

    asked: Asked
    progress: Progress
    head: CallHead | None  # while its body is coming
    pieces: bytearray  # what has come of it; no list, since a worker chooses how small the pieces are, and each would cost us 40 bytes

    def __init__(self, worker: Worker, stream: int, state: State, owner: bytes) -> None:
        self.worker = worker
        self.stream = stream
        self.state = state
        self.owner = owner
        self.head = None
        self.body = b""
        self.kept = 0
        self.request: AuthorizedRequest | None = None
        self.attempt: Running | None = None
        self.timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Call(stream {self.stream}, {self.state.name})"


class AuthorizedRequest(msgspec.Struct):
    """One attempt of a call, which may leave once, to `target` only. `credential` is None for a provider inside the process; `started`: when it was
    decided, on the monotonic clock."""

    call: Call
    target: Target
    credential: BoundCredential | None
    reservation: Reservation
    stream: bool
    attempt: int
    started: float
    body: bytes | None
    probe: bool = False
    counted: bool = False  # among the calls under way, where a router has a choice

    def __repr__(self) -> str:
        return f"AuthorizedRequest({self.call.asked.request_id}, {self.attempt})"

    @property
    def size(self) -> int:
        """Bytes of the body, while it has not left."""
        return 0 if self.body is None else len(self.body)

    @property
    def endpoint(self) -> Endpoint:
        """What is asked of the provider."""
        return self.call.asked.endpoint

    @property
    def key(self) -> Key:
        """What cools when this fails."""
        return Key(self.target.provider, "" if self.credential is None else self.credential.id, self.target.model, int(self.call.asked.endpoint))

    def take_body(self) -> bytes:
        """Return the final bytes, once: whoever sends them has them."""
        body, self.body = self.body, None
        if body is None:
            raise ChannelError("a call was about to leave twice")
        return body
