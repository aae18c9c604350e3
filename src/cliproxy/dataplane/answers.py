"""From what egress sends to what the client gets: how a whole answer is said in another dialect, and how a stream is.

What always holds: only whole events come out, so that a comment or an error may stand between; a stream that broke ends with its dialect's error, never with
its normal ending; nothing of a provider's answer gets into a header unless it is plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from cliproxy.bounds import MAX_RESPONSES_EVENT_BYTES
from cliproxy.dataplane.surfaces.surface import Problem
from cliproxy.errors import UpstreamError
from cliproxy.formats.sse import EventSplitter
from cliproxy.ipc.mux import Answer
from cliproxy.translators.conversation import Ended, StreamEvent
from cliproxy.translators.table import ArrayPassthrough, ArrayWriter, ClientRow, Passthrough, Reader, TargetRow, Writer

MAX_HEADER_VALUE_CHARS = 256  # of what we put into an answer's header; MAX_MODEL_NAME_CHARS
MAX_WARNINGS = 16  # `Warning` headers of one answer, one for each field that was left out

JSON_HEADERS: Final = b"Content-Type: application/json\r\n"
SSE_HEADERS: Final = b"Content-Type: text/event-stream; charset=utf-8\r\nX-Accel-Buffering: no\r\n"
ARRAY_HEADERS: Final = b"Content-Type: application/json; charset=utf-8\r\nX-Accel-Buffering: no\r\n"
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9.+-]{1,64}/[a-z0-9.+-]{1,64}(?:; ?[a-z0-9-]{1,32}=[A-Za-z0-9._-]{1,64})?", re.ASCII)


class Stream(Protocol):
    """A streamed answer on its way. All three return whole events, or whole elements of an array."""

    headers: bytes
    keep_alive: bytes

    def feed(self, data: bytes) -> bytes:
        """Return what the client is to have of `data`. Raises `UpstreamError` when the provider broke off or speaks another language."""

    def finish(self) -> bytes:
        """The provider's answer is whole. Raises `UpstreamError` when it is not."""

    def broken(self, problem: Problem) -> bytes:
        """Return how a stream ends that broke, in the words that a whole answer has for `problem`."""


class SameStream:
    """A stream that stays in its dialect. What begins as another dialect's is refused; beyond that egress has judged it."""

    __slots__ = ("_passthrough", "_row", "_splitter", "feed", "headers", "keep_alive")

    def __init__(self, row: ClientRow, passthrough: Passthrough) -> None:
        self._row = row
        self._passthrough = passthrough
        # Egress sends whole events, in frames that may cut long ones; it holds each dialect to its own bound, of which this is the largest.
        self._splitter = None if row.splits else EventSplitter(MAX_RESPONSES_EVENT_BYTES)
        self.feed: Callable[[bytes], bytes] = self._feed_first
        self.headers = SSE_HEADERS
        self.keep_alive = row.keep_alive

    def _feed_first(self, data: bytes) -> bytes:
        """Until there is an event to judge. Comments, with which some providers begin, pass."""
        if self._splitter is None:
            passed = self._passthrough.feed(data)
            if self._is_begun(passed):
                self.feed = self._passthrough.feed
            return passed
        events = self._splitter.feed(data)
        if self._is_begun(events):
            self.feed = self._feed_next
        return self._passthrough.feed(events) if events else b""

    def _feed_next(self, data: bytes) -> bytes:
        assert self._splitter is not None
        events = self._splitter.feed(data)
        return self._passthrough.feed(events) if events else b""

    def _is_begun(self, events: bytes) -> bool:
        start = 0 if events.startswith(b"data:") else events.find(b"\ndata:")  # a comment may say it too
        if start < 0:
            return False
        first = events[start : events.index(b"\n\n", start)]
        for text in self._row.first_event_has:
            if text in first:
                return True
        raise UpstreamError("The provider answered in a form that was not asked for.", code="bad_upstream_answer")

    def finish(self) -> bytes:
        self._verify_begun()
        return b""

    def _verify_begun(self) -> None:
        """Raise `UpstreamError` for a stream that ends without one event."""
        if self.feed == self._feed_first:
            raise UpstreamError("The provider answered in a form that was not asked for.", code="bad_upstream_answer")

    def broken(self, problem: Problem) -> bytes:
        return _error_event(self._row, problem)


class TranslatedStream:
    """A stream in another dialect than the client's: the provider's bytes to the hub's events to the client's bytes."""

    __slots__ = ("_is_over", "_reader", "_row", "_writer", "headers", "keep_alive")

    def __init__(self, row: ClientRow, reader: Reader, writer: Writer) -> None:
        self._row = row
        self._is_over = False  # the client has the end
        self._reader = reader
        self._writer = writer
        self.headers = SSE_HEADERS
        self.keep_alive = row.keep_alive

    def feed(self, data: bytes) -> bytes:
        events = self._reader.feed(data)
        return self._write(events) if events else b""

    def finish(self) -> bytes:
        events = self._reader.finish()
        return self._write(events) if events else b""

    def _write(self, events: Sequence[StreamEvent]) -> bytes:
        written = self._writer.write(events)
        self._is_over = type(events[-1]) is Ended
        return written

    def broken(self, problem: Problem) -> bytes:
        return b"" if self._is_over else self._error(problem)

    def _error(self, problem: Problem) -> bytes:
        return _error_event(self._row, problem)


class SameArray(SameStream):
    """A stream that stays in its dialect, as the elements of one JSON array (Gemini without `alt=sse`). White space between them is its keep-alive."""

    __slots__ = ()

    _passthrough: ArrayPassthrough

    def __init__(self, row: ClientRow, passthrough: ArrayPassthrough) -> None:
        super().__init__(row, passthrough)
        self.headers = ARRAY_HEADERS

    def finish(self) -> bytes:
        self._verify_begun()
        return self._passthrough.finish()

    def broken(self, problem: Problem) -> bytes:
        return self._passthrough.error_event(problem.message, kind=problem.kind, code=problem.code, status=problem.status)


class TranslatedArray(TranslatedStream):
    """The same of a stream in another dialect; the array's end comes with the last event."""

    __slots__ = ()

    _writer: ArrayWriter

    def __init__(self, row: ClientRow, reader: Reader, writer: ArrayWriter) -> None:
        super().__init__(row, reader, writer)
        self.headers = ARRAY_HEADERS

    def _error(self, problem: Problem) -> bytes:
        return self._writer.error_event(problem.message, kind=problem.kind, code=problem.code, status=problem.status)


class WholeAnswer:
    """A whole answer that the client gets in another dialect (without `target`: in another shape of its own): collected, then said anew.

    `size` is what was collected, `headers` what goes with it.
    """

    __slots__ = ("_id", "_model", "_pieces", "_request", "_row", "_target", "headers", "size")

    def __init__(self, row: ClientRow, target: TargetRow | None, request: Any, *, id: str, model: str) -> None:
        self._row = row
        self._target = target
        self._request = request
        self._id = id
        self._model = model
        self._pieces: list[bytes] = []
        self.headers = b""
        self.size = 0

    def add(self, data: bytes) -> None:
        """Hold a piece."""
        self._pieces.append(data)
        self.size += len(data)

    def said(self, *, created: int) -> bytes:
        """Return the answer for the client; `created` in seconds since the epoch. Raises `UpstreamError` if it is none, or of a third dialect."""
        row, body = self._row, b"".join(self._pieces)
        if self._target is None and row.same_answer is not None:
            return row.same_answer(body, self._request)
        if self._target is None or row.encode_answer is None:
            raise UpstreamError("The provider answered in a form that was not asked for.", code="bad_upstream_answer")
        answer = self._target.decode_answer(body)
        return row.encode_answer(answer, request=self._request, id=self._id, model=self._model, created=created)


def same_stream(row: ClientRow, request: Any, *, array: bool) -> Stream | None:
    """Return how the stream of an answer to `request` goes to the client unchanged; `None`: the dialect has no streams for this."""
    if array:
        return None if row.array_passthrough is None else SameArray(row, row.array_passthrough(request))
    return None if row.passthrough is None else SameStream(row, row.passthrough(request))


def translated_stream(row: ClientRow, target: TargetRow, request: Any, *, array: bool, id: str, model: str, created: int) -> Stream | None:
    """Return how a stream of another dialect goes to the client; `None`: one of the two has no streams for this."""
    if target.reader is None:
        return None
    if array:
        writer = row.array_writer
        return None if writer is None else TranslatedArray(row, target.reader(), writer(request=request, id=id, model=model, created=created))
    if row.writer is None:
        return None
    return TranslatedStream(row, target.reader(), row.writer(request=request, id=id, model=model, created=created))


def _error_event(row: ClientRow, problem: Problem) -> bytes:
    return b"" if row.error_event is None else row.error_event(problem.message, kind=problem.kind, code=problem.code, status=problem.status)


# --- headers -----------------------------------------------------------------------------------------------------------


def warning_headers(dropped: Sequence[str]) -> bytes:
    """Return a `Warning` header for each field that was left out, `MAX_WARNINGS` at most. RFC 9111 §5.5 keeps the name; RFC 7234 §5.5 defined its form."""
    lines = []
    for name in list(dict.fromkeys(dropped))[:MAX_WARNINGS]:
        plain = "".join(character if " " <= character <= "~" and character not in '"\\' else "?" for character in name[:MAX_HEADER_VALUE_CHARS])
        lines.append(f'Warning: 299 cliproxy "field {plain} is not supported by the provider and was left out"\r\n')
    return "".join(lines).encode("ascii")


def is_plain(value: str) -> bool:
    """Whether `value` may stand in a header: printable ASCII of bounded length."""
    return 0 < len(value) <= MAX_HEADER_VALUE_CHARS and value.isascii() and value.isprintable()


class Origins:
    """The headers that say who answered. What was encoded before is remembered, up to a bound."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], bytes] = {}

    def headers(self, answer: Answer) -> bytes:
        """Return the header lines for `answer`; what is empty or not plain is left out."""
        key = (answer.provider, answer.model, answer.attempts)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            lines = [(b"x-cliproxy-provider", answer.provider), (b"x-cliproxy-model", answer.model), (b"x-cliproxy-attempts", str(answer.attempts))]
            known = self._known[key] = b"".join(b"%s: %s\r\n" % (name, value.encode("ascii")) for name, value in lines if is_plain(value))
        return known


_REMEMBERED: Final = 1024


def content_type(answer: Answer) -> bytes | None:
    """Return the `Content-Type` line of a whole answer; `None` if the media type that egress names is none."""
    if not answer.media:
        return JSON_HEADERS
    if not _MEDIA_TYPE.fullmatch(answer.media):
        return None
    return b"Content-Type: %s\r\n" % answer.media.encode("ascii")
