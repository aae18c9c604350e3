"""What every reader of a provider's stream has in common: how bytes become events, how a fault waits for the events before it, how a stream ends.

A reader promises what `conversation.py` says of readers. A dialect's own adds what one of its events says (`_read`). What always holds:

- Bytes may come in any pieces. An event that is larger than its dialect's bound is an `UpstreamError`.
- A fault comes after the events before it: they are returned first, and the next call raises. From then on every call raises.
- A body that ends before the provider said that the answer is over broke off, and is an `UpstreamError`.
- What follows the end is not looked at.

Where a provider tells one part after the other, in one choice (`OnePartReader`), the JSON of a tool call is kept until the call ends,
`MAX_TOOL_ARGUMENTS_BYTES` at most, so that it can be verified then.
"""

from __future__ import annotations

from cliproxy.bounds import MAX_EVENT_BYTES, MAX_TOOL_ARGUMENTS_BYTES
from cliproxy.errors import UpstreamError
from cliproxy.formats.sse import EventSplitter
from cliproxy.translators.conversation import ArgumentsDelta, AssistantPart, PartEnded, PartStarted, StreamEvent, verify_arguments


class StreamReader:
    """Reads one stream. `feed` and `finish` raise `UpstreamError` as soon as there is nothing before the fault left to return, and from then on."""

    __slots__ = ("_ended", "_error", "_splitter", "_started")

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._splitter = EventSplitter(max_event_bytes)
        self._error: UpstreamError | None = None
        self._started = False  # `Started` was told
        self._ended = False  # `Ended` was told

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Return the hub's events that `data` completes; may be empty."""
        if self._error is not None:
            raise self._error
        out: list[StreamEvent] = []
        if self._ended:
            return out
        try:
            events = self._splitter.feed(data)
            if events:
                for event in events.split(b"\n\n"):
                    if event:
                        self._read(event, out)
                        if self._ended:
                            break
        except UpstreamError as error:
            self._error = error
            if not out:
                raise
        return out

    def finish(self) -> list[StreamEvent]:
        """The provider's body has ended as its framing said: return what ends the answer. Raises `UpstreamError` if it broke off."""
        if self._error is not None:
            raise self._error
        out: list[StreamEvent] = []
        if not self._ended:
            self._end_of_body(out)
        return out

    def _read(self, event: bytes, out: list[StreamEvent]) -> None:
        """Add what `event`, without its blank line, says to the hub. Raises `UpstreamError`."""
        raise NotImplementedError

    def _end_of_body(self, out: list[StreamEvent]) -> None:
        """The body ended, and no event said that the answer is over. In most dialects it broke off."""
        raise broke_off()


class OnePartReader(StreamReader):
    """Reads a stream that tells one part after the other, of one choice."""

    __slots__ = ("_arguments", "_index")

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        super().__init__(max_event_bytes=max_event_bytes)
        self._index = -1  # the hub's, of the last part
        self._arguments = bytearray()  # JSON of the tool call under way

    def _begin_part(self, part: AssistantPart, out: list[StreamEvent]) -> None:
        self._index += 1
        self._arguments.clear()
        out.append(PartStarted(0, self._index, part))

    def _more_arguments(self, piece: str, out: list[StreamEvent]) -> None:
        if not piece:
            return
        self._arguments += piece.encode()
        if len(self._arguments) > MAX_TOOL_ARGUMENTS_BYTES:
            raise UpstreamError("The provider's tool call is larger than the gateway takes.", code="upstream_too_large")
        out.append(ArgumentsDelta(0, self._index, piece))

    def _end_part(self, out: list[StreamEvent], *, called: bool) -> None:
        """End the part under way; `called`: it is a tool call. Raises `UpstreamError` if its arguments are no JSON object."""
        if called:
            if self._arguments:
                verify_arguments(self._arguments.decode())
            else:
                out.append(ArgumentsDelta(0, self._index, "{}"))
        out.append(PartEnded(0, self._index))


def data_of(event: bytes) -> bytes:
    """Return the data of one server-sent event, its lines joined; empty for a comment and for an event without data."""
    at = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    if at == 0 and not event.startswith(b"data:"):
        return b""
    end = event.find(b"\n", at)
    if end < 0:
        return event[at + 5 :].lstrip(b" ")
    if event.find(b"\ndata:", end) >= 0:
        return b"\n".join(line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
    return event[at + 5 : end].lstrip(b" ")


def broke_off() -> UpstreamError:
    """The error for an answer that has no end."""
    return UpstreamError("The provider broke off in the middle of its answer.", code="upstream_broke_off")


def error_reported() -> UpstreamError:
    """The error for an event that is the provider's report of one. What it says is not passed on."""
    return UpstreamError("The provider reported an error in the middle of its answer.", code="upstream_stream_error")
