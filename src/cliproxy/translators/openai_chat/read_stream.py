"""A provider's stream of chat completion chunks as events of the hub.

What always holds: the stream ended properly only if `[DONE]` came (egress puts it behind whole streams of imitations that never send it) and every choice gave
its reason; anything else is an `UpstreamError` behind the events before it. Work is linear in what comes, and what is kept is bounded.

Most events are a piece of text and differ in it alone. So the bytes before and behind the piece are remembered: an event that begins and ends with them and
has one JSON string in between says the same but for the text. Only the first needs to be taken apart. OpenAI's padding may differ.
"""

from __future__ import annotations

import re
from typing import NoReturn

import msgspec

from cliproxy.bounds import MAX_CHOICES
from cliproxy.errors import UpstreamError
from cliproxy.metering.openai_chat import usage_in
from cliproxy.translators.conversation import Counted, Ended, Reasoning, Started, StreamEvent, TextDelta
from cliproxy.translators.openai_chat.answer_parts import ENCRYPTED, SIGNERS, SUMMARY, THOUGHT, citations_of, is_proof_of, not_a_completion
from cliproxy.translators.openai_chat.answer_wire import NULL, Call, Choice, Event, Said, parse_event
from cliproxy.translators.openai_chat.media import image_of
from cliproxy.translators.openai_chat.stream_parts import Kept, Kind, Parts
from cliproxy.translators.openai_chat.wire import ReasoningDetail
from cliproxy.translators.stream_reader import StreamReader, data_of, error_reported

LEGACY_CALL = -1  # the index of a `function_call`
MAX_TEMPLATES = 4  # tries to find what repeats; a stream in which each event has an id of its own has nothing
MAX_TEMPLATE_BYTES = 16 * 1024  # of an event worth remembering; real ones have 300
_PROBE = "probe"
_CONTENT = re.compile(rb'"content": ?("[^"\\]*(?:\\.[^"\\]*)*")')
_PADDING = re.compile(rb',"obfuscation":"([A-Za-z0-9]*)"')  # OpenAI makes all events equally long
_string_decoder = msgspec.json.Decoder(str)
_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9_-]")


class Reader(StreamReader):
    """Reads a stream of chunks, of as many choices as were asked for."""

    __slots__ = ("_choices", "_id_prefix", "_kept", "_padding", "_plain", "_prefix", "_reasons", "_suffix", "_templates")

    def __init__(self) -> None:
        super().__init__()
        self._choices: dict[int, Parts] = {}
        self._kept = Kept()
        self._reasons: dict[int, str] = {}
        self._id_prefix = "call_"
        self._prefix = self._padding = self._suffix = b""  # of an event that is nothing but text
        self._plain: Parts | None = None  # the choice that it belongs to
        self._templates = 0

    def _read(self, block: bytes, out: list[StreamEvent]) -> None:
        if self._plain is not None and block.startswith(self._prefix) and block.endswith(self._suffix):
            part = self._plain.plain_text
            text = self._text_in(block) if part is not None else None
            if part is not None and text is not None:
                if text:
                    self._plain.chars += len(text)
                    out.append(TextDelta(self._plain.index, part.index, text))
                return
        data = data_of(block)
        if data.startswith(b"[DONE]") and data.strip() == b"[DONE]":
            self._finish(out)
        elif data:
            event = parse_event(data)
            self._event(event, out)
            if self._templates < MAX_TEMPLATES:
                self._learn(block, event)

    def _text_in(self, block: bytes) -> str | None:
        """Return what stands in `block` between what repeats, or None if that is something else than one string."""
        start, stop = len(self._prefix), len(block) - len(self._suffix)
        if self._padding:
            at = block.rfind(self._padding, start)
            padding = block[at + len(self._padding) : stop]
            if at < 0 or (padding and not padding.isalnum()):
                return None
            stop = at
        try:
            return _string_decoder.decode(block[start:stop])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _event(self, event: Event, out: list[StreamEvent]) -> None:
        if event.error is not NULL and bytes(event.error) != b"null":
            raise error_reported()
        usage = usage_in(event.usage) if event.usage is not NULL and bytes(event.usage) != b"null" else None
        if not event.choices:
            if event.choices is None and usage is None:
                raise not_a_completion()
            if usage is None:
                return  # Azure's filter results for the prompt
        if not self._started:
            self._started = True
            id = event.id or ""
            self._id_prefix = f"call_{_NOT_IN_AN_ID.sub('', id)[-24:]}_"
            out.append(Started(id, event.model or "", None, _seconds(event.created)))
        for choice in event.choices or ():
            self._choice(choice, out)
        if usage is not None:
            out.append(Counted(usage))

    def _choice(self, choice: Choice, out: list[StreamEvent]) -> None:
        index = choice.index
        parts = self._choices.get(index)
        if parts is None:
            if not 0 <= index < MAX_CHOICES:
                raise not_a_completion()
            prefix = f"{self._id_prefix}{index}_" if index else self._id_prefix
            parts = self._choices[index] = Parts(index, id_prefix=prefix, kept=self._kept)
        if choice.delta is not None:
            _say(parts, choice.delta, out)
        if choice.finish_reason:
            self._reasons[index] = choice.finish_reason

    def _finish(self, out: list[StreamEvent]) -> None:
        if not self._choices:
            raise not_a_completion()
        for index, parts in sorted(self._choices.items()):
            parts.finish(self._reasons.get(index), out)
        out.append(Ended())
        self._ended = True

    # --- what repeats ---

    def _learn(self, block: bytes, event: Event) -> None:
        """Remember what stands around the text of `block`, if it is nothing but text."""
        if not _is_plain(event):
            return
        self._templates += 1
        if len(block) > MAX_TEMPLATE_BYTES:
            return
        match = _CONTENT.search(block)
        if match is None:
            return
        prefix, suffix = block[: match.start(1)], block[match.end(1) :]
        try:
            probed = parse_event(data_of(prefix + b'"' + _PROBE.encode() + b'"' + suffix))
        except UpstreamError:
            return
        # The text must be what was found: not another field of that name, nor the same words inside a text.
        if _is_plain(probed) and _text_of(probed) == _PROBE:
            self._prefix, self._suffix, self._padding = prefix, suffix, b""
            self._plain = self._choices[_choice_of(event).index]
            padded = _PADDING.search(suffix)
            if padded is not None:
                self._padding, self._suffix = suffix[: padded.start(1)], suffix[padded.end(1) :]


def _choice_of(event: Event) -> Choice:
    choices = event.choices or ()
    return choices[0] if len(choices) == 1 else Choice()


def _text_of(event: Event) -> str | None:
    delta = _choice_of(event).delta
    return delta.content if delta is not None else None


def _is_plain(event: Event) -> bool:
    """Say whether `event` is one choice's text and nothing else."""
    choice = _choice_of(event)
    delta = choice.delta
    return delta is not None and bool(delta.content) and delta == Said(content=delta.content) and not choice.finish_reason and bytes(event.usage) == b"null"


def _seconds(created: float | None) -> int:
    return int(created) if created is not None and 0 <= created < 2**53 else 0


# --- one delta ---------------------------------------------------------------------------------------------------------


def _say(parts: Parts, said: Said, out: list[StreamEvent]) -> None:
    """What a delta may say at once is told in this order: thoughts, text, refusal, sources, pictures, calls."""
    told = False
    for detail in said.reasoning_details or ():
        told = _think(parts, detail, out) or told
    thought = said.reasoning_content or said.reasoning
    if thought and not told:  # else it is the same again
        parts.say(Kind.THOUGHT, thought, out)
    if said.content:
        parts.say(Kind.TEXT, said.content, out)
    if said.refusal:
        parts.say(Kind.REFUSAL, said.refusal, out)
    for citation in citations_of(said.annotations):
        parts.cite(citation, out)
    for picture in said.images or ():
        image = image_of(picture.image_url.url)
        if image is None:
            _refuse_picture()
        parts.put(image, out)
    for call in said.tool_calls or ():
        _call(parts, call, out)
    if said.function_call is not None:
        _call(parts, Call(LEGACY_CALL, None, said.function_call), out)


def _refuse_picture() -> NoReturn:
    raise UpstreamError("The provider's answer has a picture that is none.", code="bad_upstream_answer")


def _think(parts: Parts, detail: ReasoningDetail, out: list[StreamEvent]) -> bool:
    """Tell `detail`, and return whether it has a text. A proof whose vendor is not known is left out."""
    signer = SIGNERS.get(detail.format or "")
    id = detail.id or ""
    if detail.type == ENCRYPTED:
        if signer is None or not detail.data:
            return False
        thought = parts.last_thought()
        if thought is not None and is_proof_of(detail, thought.id, signed=False):
            parts.sign(detail.data, signer, out)
        else:
            parts.put(Reasoning(redacted=detail.data, signer=signer, id=id), out)
        return False
    if detail.type not in (THOUGHT, SUMMARY):
        return False
    text = detail.summary if detail.type == SUMMARY else detail.text
    if text:
        parts.say(Kind.THOUGHT, text, out, key=detail.index, id=id, signer=signer)
    if detail.signature and signer is not None:
        parts.sign(detail.signature, signer, out, key=detail.index, id=id)
    return bool(text)


def _call(parts: Parts, call: Call, out: list[StreamEvent]) -> None:
    function = call.function
    google = call.extra_content.google if call.extra_content is not None else None
    parts.call(
        call.index,
        call.id or "",
        (function.name or "") if function is not None else "",
        (function.arguments or "") if function is not None else "",
        (google.thought_signature or "") if google is not None else "",
        out,
    )
