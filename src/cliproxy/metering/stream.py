"""A provider's stream on its way through egress: whole events come out, and when the stream is over is decided here, for all dialects in one way.

What always holds: the first event that ends the stream, well or badly, ends it, and nothing behind it comes out. A good end comes out itself; a failure does
not, but the events before it do. A body that ends before either broke off, unless its dialect has no event for the end and what came was whole. A provider may
be hostile: whatever it answers, the work is linear in its length and the memory a small multiple of it.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum
from typing import ClassVar

from cliproxy.bounds import MAX_EVENT_BYTES
from cliproxy.errors import UpstreamError
from cliproxy.formats.sse import CR, EventSplitter, data_line
from cliproxy.metering.usage import Usage

KEPT_PIECES = 4  # of a stream's end, where usage is looked for when it is over
KEPT_PIECE_BYTES = 64 * 1024  # of one piece, which may be a whole read of 256 KiB: 1,000 streams would hold a gigabyte


class Verdict(Enum):
    """What a line makes of its stream."""

    GOES_ON = 0
    END = 1
    FAILURE = 2


class StreamMeter:
    """The frame of all dialects. A dialect says which words make a line worth a look (`signs`), what such a line means (`_judge`), and what its stream used.

    `signs`: whatever ends a stream holds one of them; a line with none of them is passed on unread. `pattern`: one more sign. `usage_sign`: the word that a
    line with usage holds, where that is an event like any other: the last pieces are kept, and searched for it when the stream is over. `closing`: what
    clients are owed when a stream was whole without telling its end.
    """

    signs: ClassVar[tuple[bytes, ...]] = ()
    pattern: ClassVar[re.Pattern[bytes] | None] = None
    usage_sign: ClassVar[bytes] = b""
    max_event_bytes: ClassVar[int] = MAX_EVENT_BYTES
    closing: ClassVar[bytes] = b""

    __slots__ = ("_error", "_keeps", "_kept", "_noted", "_pattern", "_signs", "_splitter", "is_over")

    def __init__(self) -> None:
        self._splitter = EventSplitter(self.max_event_bytes)
        self._signs = self.signs  # a slot is found faster than what the class says
        self._pattern = self.pattern
        self._keeps = bool(self.usage_sign)
        self._kept: deque[bytes] = deque(maxlen=KEPT_PIECES)
        self._noted: Usage | None = None
        self._error: UpstreamError | None = None
        self.is_over = False  # the stream has told its end: what becomes of its connection then is nobody's business

    @property
    def usage(self) -> Usage | None:
        """What the stream told of its usage, so far; None if it told nothing that makes sense."""
        for events in reversed(self._kept):
            at = events.rfind(self.usage_sign)
            while at >= 0:
                usage = self._usage_of(data_line(events, at))
                if usage is not None:
                    return usage
                at = events.rfind(self.usage_sign, 0, max(0, events.rfind(b"\n", 0, at)))  # each line is parsed once, however often it says the word
        return self._noted

    @property
    def held_bytes(self) -> int:
        """Bytes of an event that is not whole yet."""
        return self._splitter.held_bytes

    def feed(self, data: bytes) -> bytes:
        """Return the whole events that `data` completes, to be forwarded; empty if none.

        Raises `UpstreamError` for an event that is too large, and for a failure that the provider reports inside its stream. Events before it still come out:
        then the next call raises.
        """
        if self._error is not None:
            raise self._error
        if self.is_over:
            return b""
        splitter = self._splitter
        if splitter.clear and data.endswith(b"\n\n") and CR not in data and len(data) <= splitter.max_bytes:
            events = data
        else:
            events = splitter.feed(data)
            if not events:
                return b""
        for sign in self._signs:
            at = events.find(sign)  # `sign in events` first tries whether it is a number, which takes five times as long
            if at >= 0:
                events = self._until_over(events, sign, at)
                break
        else:
            if self._pattern is not None:
                match = self._pattern.search(events)
                if match is not None:
                    events = self._until_over(events, self._pattern, match.start())
        if self._keeps:
            if len(events) > KEPT_PIECE_BYTES:
                self._kept.append(events[events.find(b"\n\n", len(events) - KEPT_PIECE_BYTES) + 2 :])  # a copy, from an event's beginning
            else:
                self._kept.append(events)
        return events

    def finish(self) -> bytes:
        """The provider's body has ended as its framing said: return what the client is still owed.

        Raises `UpstreamError` if the stream broke off before its end.
        """
        if self._error is not None:
            raise self._error
        if self.is_over:
            return b""
        if self._splitter.at_boundary and self._is_whole():
            self.is_over = True
            return self.closing
        raise UpstreamError("The provider broke off in the middle of its answer.", code="upstream_broke_off")

    # --- what a dialect says ---

    def _judge(self, events: bytes, start: int, end: int) -> Verdict:
        """Return what the line `events[start:end]`, which holds a sign, makes of the stream. Called once for each such line, in their order."""
        raise NotImplementedError

    def _usage_of(self, data: bytes) -> Usage | None:
        """Return the usage in the event `data`, whose line holds `usage_sign`; None if it has none that makes sense."""
        raise NotImplementedError

    def _is_whole(self) -> bool:
        """Return whether a body that ended without an event for its end is whole all the same."""
        return False

    # --- inside ---

    def _until_over(self, events: bytes, sign: bytes | re.Pattern[bytes], at: int) -> bytes:
        """Return `events` up to the one that ends the stream, if it is among them. Raises the failure if nothing comes before it.

        `at` is where `sign` stands first; the signs before it in the list stand nowhere.
        """
        signs: tuple[bytes | re.Pattern[bytes], ...] = (*self._signs, self._pattern) if self._pattern is not None else self._signs
        places: dict[bytes | re.Pattern[bytes], int] = {sign: at}  # where each sign stands next
        for other in signs[signs.index(sign) + 1 :]:
            _note_place(places, other, events, 0)
        while places:
            at = min(places.values())
            end = events.find(b"\n", at)
            verdict = self._judge(events, events.rfind(b"\n", 0, at) + 1, end)
            if verdict is Verdict.END:
                self.is_over = True
                return events[: events.find(b"\n\n", at) + 2]
            if verdict is Verdict.FAILURE:
                self._error = UpstreamError("The provider reported an error in the middle of its answer.", code="upstream_stream_error")
                before = events.rfind(b"\n\n", 0, at)
                if before < 0:
                    raise self._error
                return events[: before + 2]
            for passed in [sign for sign, place in places.items() if place < end]:
                _note_place(places, passed, events, end)
        return events


def _note_place(places: dict[bytes | re.Pattern[bytes], int], sign: bytes | re.Pattern[bytes], events: bytes, start: int) -> None:
    """Note in `places` where `sign` stands first from `start` on, if it does."""
    if isinstance(sign, bytes):
        at = events.find(sign, start)
    else:
        match = sign.search(events, start)
        at = match.start() if match is not None else -1
    if at >= 0:
        places[sign] = at
    else:
        places.pop(sign, None)
