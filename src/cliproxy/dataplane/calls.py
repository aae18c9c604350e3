"""One call from the moment egress has it until its client has the answer.

What always holds: the client gets exactly one answer; what it does not read stays with egress (credit comes back only for bytes that were used); once a byte
of an answer is out the call is never sent again; a fault in the provider's answer cancels the call, so that egress settles it.

A whole answer in the client's dialect passes as it is. One in another dialect is collected and said anew. While a client does not read, pieces of a translated
stream wait as they came, at most a window of them: translated they may be several times as long.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from cliproxy.bounds import KIB, MAX_DATA_FRAME_BYTES, MAX_REROUTES, MAX_WHOLE_ANSWER_BYTES
from cliproxy.dataplane.answers import JSON_HEADERS, Stream, WholeAnswer, content_type, same_stream, translated_stream, warning_headers
from cliproxy.dataplane.call_frames import BAD_ANSWER, OVERLOADED, TOO_LARGE, abort_of, error_of
from cliproxy.dataplane.errors import problem_of
from cliproxy.dataplane.host import Client
from cliproxy.dataplane.rooms import Room
from cliproxy.dataplane.steps import AdmittedRequest, OutboundRequest
from cliproxy.dataplane.surfaces.surface import Surface
from cliproxy.errors import CliproxyError, Unavailable, UpstreamError
from cliproxy.ipc.mux import Abort, Answer, Reroute
from cliproxy.translators.table import TARGETS, ClientRow

STREAM_GRANT_BYTES = 64 * KIB  # credit goes back in pieces of at least this


class Owner(Protocol):
    """Who sends calls, and keeps account of them."""

    collected: Room  # bytes of whole answers that wait for their end
    kept: Room  # bytes of request bodies that are kept decoded

    def refuse(self, connection: Client, error: CliproxyError, request_id: str, surface: Surface) -> None:
        """Answer with `error`, in the client's dialect."""

    def streaming(self, call: PendingCall) -> None:
        """`call` has begun to stream: keep it alive."""

    def grant(self, call: PendingCall, count: int) -> None:
        """Let egress send `count` more bytes."""

    def finished(self, call: PendingCall) -> None:
        """`call` has its ending."""

    def cancel(self, call: PendingCall, code: str) -> None:
        """Nobody waits for `call`; `code` says why."""

    def reroute(self, call: PendingCall, reroute: Reroute) -> None:
        """Send `call` again as `reroute` says. Raises `CliproxyError` if that cannot be."""

    def origin_headers(self, answer: Answer) -> bytes:
        """Return the header lines that say who answered."""

    clock: float


class PendingCall:
    """A call under way. `kept` is what it can be written anew from while a reroute is possible, `reroutes` how many there were."""

    __slots__ = (
        "_array",
        "_dropped",
        "_ended",
        "_keeps",
        "_owed",
        "_owner",
        "_row",
        "_stream",
        "_streams",
        "_surface",
        "_waiting",
        "_waits",
        "_whole",
        "account",
        "connection",
        "heard_at",
        "kept",
        "request_id",
        "reroutes",
        "started",
        "stream",
    )

    def __init__(self, owner: Owner, connection: Client, request_id: str, surface: Surface, *, array: bool) -> None:
        self._owner = owner
        self.connection = connection
        self.account = connection.account  # whose call it is, whatever the connection asks next
        self.request_id = request_id
        self._surface = surface
        self._array = array
        self._owed = 0  # bytes used and not yet granted anew
        self._ended = False
        self._keeps = 0  # bytes of the body that is kept decoded
        self._waits = 0  # bytes of a translated stream that the client is too slow for
        self.kept: AdmittedRequest | None = None
        self.reroutes = 0
        self.started = False
        self.stream = 0
        self.heard_at = 0.0

    def expect(self, outbound: OutboundRequest) -> None:
        """What leaves for egress is `outbound`: read the answer accordingly. Its bytes are not held on to; its decoded value is where that is needed.

        Raises `Unavailable` when too much is kept already.
        """
        admitted = outbound.admitted
        decoded = admitted.decoded
        self._row: ClientRow = decoded.row
        self._streams: bool = decoded.facts.stream
        self._dropped = outbound.dropped
        self._stream: Stream | None = None
        self._whole: WholeAnswer | None = None
        self._waiting: deque[bytes] | None = None  # of a translated stream: pieces that the client is too slow for
        self.kept = admitted if len(admitted.profiles) > 1 else None
        if outbound.translated:
            self._expect_another_dialect(outbound)
        elif self._streams:
            self._stream = same_stream(decoded.row, decoded.body, array=self._array)
        elif decoded.row.same_answer is not None:
            self._whole = WholeAnswer(decoded.row, None, decoded.body, id=self.request_id, model=decoded.facts.model)
        if self.kept is not None or self._whole is not None or self._waiting is not None:
            self._keep(decoded.size)

    def _expect_another_dialect(self, outbound: OutboundRequest) -> None:
        decoded = outbound.admitted.decoded
        target = TARGETS[outbound.profile.endpoint]
        model = decoded.facts.model
        if self._streams:
            self._waiting = deque()
            self._stream = translated_stream(decoded.row, target, decoded.body, array=self._array, id=self.request_id, model=model, created=int(time.time()))
        else:
            self._whole = WholeAnswer(decoded.row, target, decoded.body, id=self.request_id, model=model)

    # --- what egress sends ---

    def on_answer(self, answer: Answer) -> None:
        if self.kept is not None:
            self.kept = None
            if self._whole is None and self._waiting is None:
                self._keep(0)
        if answer.sse is not self._streams or (answer.media and not self._row.media):
            self._give_up(BAD_ANSWER)
        elif self._streams:
            self._begin_stream(answer)
        elif self._whole is not None:
            self._collect(self._whole, answer)
        else:
            media = content_type(answer) if answer.media else JSON_HEADERS
            if media is None:
                self._give_up(BAD_ANSWER)
                return
            connection = self.connection
            headers = self._headers(media, answer)
            if answer.final:
                connection.call = None  # before the answer is written: that may start the connection's next request
                connection.respond(answer.status, headers, answer.body)
                return
            self.started = True
            connection.start_stream(answer.status, headers)
            if answer.body:
                self.on_data(answer.body)

    def on_data(self, data: bytes) -> None:
        connection = self.connection
        stream = self._stream
        if stream is None:
            if self._whole is not None:
                self._add(self._whole, data)
                return
            passed = data
        else:
            if self._waiting is not None and (self._waiting or connection.paused):
                self._waiting.append(data)
                self._waits += len(data)
                connection.hold_back(len(data))
                return
            try:
                passed = stream.feed(data)
            except UpstreamError as error:
                self._give_up(abort_of(error))
                return
        if passed:  # what the client hears nothing of (a provider's comments, arguments that are told whole) breaks no silence
            self.heard_at = self._owner.clock
            connection.write_chunk(passed)
        self._owed += len(data)
        if self._owed >= STREAM_GRANT_BYTES and not connection.paused:
            self._pay()

    def on_end(self) -> None:
        if self._whole is not None:
            self._say(self._whole)
        elif self._waiting is not None and (self._waiting or self.connection.paused):
            self._ended = True  # the client does not read, and the end may be long; `resume` goes on
        else:
            self._end()

    def on_abort(self, abort: Abort) -> None:
        self._owner.finished(self)
        self._forget()
        stream, self._stream = self._stream, None
        if not self.started:
            self._owner.refuse(self.connection, error_of(abort), self.request_id, self._surface)
        elif stream is None:
            self.connection.abort()  # half a JSON text: the broken framing is the only honest ending
        else:
            self.connection.write_chunk(stream.broken(problem_of(error_of(abort))))
            self.connection.end_stream()

    def on_reroute(self, reroute: Reroute) -> None:
        self.reroutes += 1
        has_answer = self._waits or (self._whole is not None and self._whole.size)  # DATA without its ANSWER: no egress of ours
        if self.kept is None or self.reroutes > MAX_REROUTES or has_answer:
            self.on_abort(BAD_ANSWER)
            return
        try:
            self._owner.reroute(self, reroute)
        except CliproxyError as error:
            self._owner.finished(self)
            self._forget()
            self._owner.refuse(self.connection, error, self.request_id, self._surface)

    # --- what the client does ---

    def resume(self) -> None:
        """The client reads: translate what waits, and pay what is owed in credit."""
        waiting = self._waiting
        if waiting:
            self._waiting = None  # so that `on_data` takes the pieces
            self._wait_no_more()
            while waiting and self._stream is not None:
                self.on_data(waiting.popleft())
            if self._stream is None:
                return
            self._waiting = waiting
        if self._ended:
            self._end()
            return
        self._pay()

    def keep_alive(self) -> None:
        """Send a comment, unless the client is not even reading. Only whole events were written, so it stands between two."""
        if self._stream is not None and not self.connection.paused:
            self.connection.write_chunk(self._stream.keep_alive)

    def cancelled(self) -> None:
        """The client is gone; nothing more comes of this call."""
        self._forget()
        self._stream = None

    # --- inside ---

    def _begin_stream(self, answer: Answer) -> None:
        stream = self._stream
        if stream is None:
            self._give_up(BAD_ANSWER)
            return
        try:  # before the head: what is no stream at all is told by the status
            passed = stream.feed(answer.body) if answer.body else b""
        except UpstreamError as error:
            self._give_up(abort_of(error))
            return
        self.started = True
        connection = self.connection
        connection.start_stream(answer.status, self._headers(stream.headers, answer))
        self._owner.streaming(self)
        connection.write_chunk(passed)
        self._owed = len(answer.body)
        if answer.final:
            self._end()

    def _headers(self, media: bytes, answer: Answer) -> bytes:
        id = self.request_id.encode("ascii")
        headers = media + b"x-request-id: " + id + b"\r\n" + self._owner.origin_headers(answer)
        if self._surface.id_header:
            headers += b"%s: %s\r\n" % (self._surface.id_header, id)
        return headers + warning_headers(self._dropped) if self._dropped else headers

    def _collect(self, whole: WholeAnswer, answer: Answer) -> None:
        whole.headers = self._headers(JSON_HEADERS, answer)
        if answer.final:  # in one frame: nothing waits for its end, and nobody waits for credit
            whole.add(answer.body)
            self._count_collected(len(answer.body))
            self._say(whole)
        elif answer.body:
            self._add(whole, answer.body)

    def _add(self, whole: WholeAnswer, data: bytes) -> None:
        """Hold a piece of an answer that is translated when it is whole. Egress bounds it too; the receiver checks."""
        fits = self._owner.collected.admits(self.account.collected, len(data))
        whole.add(data)
        self._count_collected(len(data))
        self._owed += len(data)
        if whole.size > MAX_WHOLE_ANSWER_BYTES:
            self._give_up(TOO_LARGE)
        elif not fits:
            self._give_up(OVERLOADED)
        elif self._owed >= STREAM_GRANT_BYTES:
            self._pay()

    def _say(self, whole: WholeAnswer) -> None:
        """The whole answer is there: say it in the client's dialect."""
        self._owner.finished(self)
        self._forget()
        try:
            said = whole.said(created=int(time.time()))
            if len(said) > MAX_DATA_FRAME_BYTES and not self.connection.has_room_for(len(said)):
                raise error_of(OVERLOADED)
        except CliproxyError as error:
            self._owner.refuse(self.connection, error, self.request_id, self._surface)
        else:
            self.connection.respond(200, whole.headers, said)

    def _end(self) -> None:
        """The stream, or the untranslated answer, is whole."""
        stream = self._stream
        if stream is not None:
            try:
                rest = stream.finish()
            except UpstreamError as error:
                self.on_abort(abort_of(error))
                return
            self._stream = None
            self.connection.write_chunk(rest)
        self._owner.finished(self)
        self._forget()
        self.connection.end_stream()

    def _give_up(self, abort: Abort) -> None:
        """What came is not what was asked for: cancel the call, unless egress has ended it already, and say so."""
        self._owner.cancel(self, abort.code)
        self.on_abort(abort)

    def _pay(self) -> None:
        owed, self._owed = self._owed, 0
        if owed:
            self._owner.grant(self, owed)

    def _forget(self) -> None:
        """Let go of what was collected, is kept or waits."""
        if self._whole is not None:
            self._count_collected(-self._whole.size)
            self._whole = None
        self._waiting = None
        if self._waits:
            self._wait_no_more()
        self.kept = None
        if self._keeps:
            self._keep(0)

    def _count_collected(self, change: int) -> None:
        self._owner.collected.taken += change
        self.account.collected += change

    def _wait_no_more(self) -> None:
        waits, self._waits = self._waits, 0
        self.connection.hold_back(-waits)

    def _keep(self, count: int) -> None:
        """Account for `count` bytes of a body that is kept decoded. Raises `Unavailable` if that is more than this account may keep."""
        room = self._owner.kept
        change = count - self._keeps
        if change > 0 and not room.admits(self.account.kept, change):
            raise Unavailable("The gateway keeps more requests than it may; try again in a moment.", code="overloaded")
        self._keeps = count
        room.taken += change
        self.account.kept += change
