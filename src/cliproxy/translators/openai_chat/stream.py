"""A chat completion's stream on its way to the client: whole events from egress, without the usage event that only the gateway asked for.

Streams always ask the provider for usage (`decode`), so that limits settle on real figures. A client that did not ask must not get the extra event: its
`choices` is empty, and programs that read `choices[0]` of every event break on it.
"""

from __future__ import annotations

import msgspec

from cliproxy.formats.sse import KEEP_ALIVE, EventSplitter, data_line
from cliproxy.translators.openai_chat.decode import ChatRequest
from cliproxy.translators.openai_chat.reader import Reader
from cliproxy.translators.openai_chat.writer import Writer

__all__ = ["KEEP_ALIVE", "Pass", "Reader", "StreamFilter", "Writer", "error_event"]


class _Event(msgspec.Struct, gc=False):
    choices: list[object]
    usage: msgspec.Raw = msgspec.Raw(b"null")


class _Error(msgspec.Struct, gc=False):
    message: str
    type: str
    param: None
    code: str


class _ErrorEvent(msgspec.Struct, gc=False):
    error: _Error


_decoder = msgspec.json.Decoder(_Event)
_encoder = msgspec.json.Encoder()


class StreamFilter:
    """Drops the usage event unless the client asked for it. Pieces may be cut anywhere; what comes out is whole events."""

    __slots__ = ("_include_usage", "_splitter")

    def __init__(self, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._splitter = EventSplitter()

    @property
    def at_boundary(self) -> bool:
        """Whether a comment or an error event may be written now. Always: only whole events come out of `feed`."""
        return True

    def feed(self, data: bytes) -> bytes:
        """Return the events that `data` completes and the client is to have; may be empty."""
        events = self._splitter.feed(data)
        if self._include_usage or events.find(b"[]") < 0:  # a usage event has `"choices":[]`
            return events
        return _without_usage_events(events)


class Pass(StreamFilter):
    """What the client of `request` gets of a stream in its own dialect."""

    __slots__ = ()

    def __init__(self, request: ChatRequest) -> None:
        super().__init__(request.include_usage)


def _without_usage_events(events: bytes) -> bytes:
    kept = []
    for event in events.split(b"\n\n")[:-1]:
        if b"[]" not in event or not _is_usage_event(event):
            kept.append(event)
    return b"\n\n".join([*kept, b""])


def _is_usage_event(event: bytes) -> bool:
    """Say whether `event` has usage and no choices. An empty `choices` without usage is something else (Azure's content filter results)."""
    try:
        parsed = _decoder.decode(data_line(event, event.find(b"[]")))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return not parsed.choices and bytes(parsed.usage) != b"null"


def error_event(message: str, *, kind: str, code: str, status: int) -> bytes:
    """Return the event that ends a broken stream: OpenAI's SDKs raise its message. No `[DONE]` follows it, and it has no place for `status`."""
    return b"data: " + _encoder.encode(_ErrorEvent(_Error(message, kind, None, code))) + b"\n\n"
