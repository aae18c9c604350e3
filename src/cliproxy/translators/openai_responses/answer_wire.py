"""The events of a provider's stream that say something to the hub.

Their types and fields are the vendor's (API reference, "Streaming events"). A field that a provider may leave out without harm has a default. What an event
carries as `Raw` is read later, by whoever knows what it is and has counted its objects.
"""

from __future__ import annotations

import msgspec

from cliproxy.translators.openai_responses.answer import Incomplete, Seconds
from cliproxy.translators.openai_responses.wire import Annotation

ABSENT = msgspec.Raw(b"null")


class Event(msgspec.Struct, gc=False, tag_field="type"):
    pass


class OutputTextDelta(Event, gc=False, tag="response.output_text.delta"):
    delta: str
    output_index: int = 0
    content_index: int = 0


class RefusalDelta(Event, gc=False, tag="response.refusal.delta"):
    delta: str
    output_index: int = 0
    content_index: int = 0


class CallArgumentsDelta(Event, gc=False, tag="response.function_call_arguments.delta"):
    delta: str
    output_index: int = 0


class SummaryDelta(Event, gc=False, tag="response.reasoning_summary_text.delta"):
    delta: str
    output_index: int = 0
    summary_index: int = 0


class ThoughtDelta(Event, gc=False, tag="response.reasoning_text.delta"):
    delta: str
    output_index: int = 0
    content_index: int = 0


class AnnotationAdded(Event, gc=False, tag="response.output_text.annotation.added"):
    annotation: Annotation
    output_index: int = 0
    content_index: int = 0


class PartAdded(Event, gc=False, tag="response.content_part.added"):
    part: msgspec.Raw
    output_index: int = 0
    content_index: int = 0


class ItemAdded(Event, gc=False, tag="response.output_item.added"):
    item: msgspec.Raw
    output_index: int = 0


class ItemDone(Event, gc=False, tag="response.output_item.done"):
    item: msgspec.Raw
    output_index: int = 0


class StreamedResponse(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    status: str | None = None
    incomplete_details: Incomplete | None = None
    usage: msgspec.Raw = ABSENT
    created_at: Seconds | None = None


class Created(Event, gc=False, tag="response.created"):
    response: StreamedResponse


class EndedWell(Event, gc=False, tag="response.completed"):
    response: StreamedResponse


class EndedEarly(Event, gc=False, tag="response.incomplete"):
    response: StreamedResponse


class Failed(Event, gc=False, tag="response.failed"):
    pass


class ErrorReported(Event, gc=False, tag="error"):
    pass


class Other(msgspec.Struct, gc=False):
    """An event of another kind."""

    type: str = ""
    error: msgspec.Raw = ABSENT


Known = (
    OutputTextDelta
    | RefusalDelta
    | CallArgumentsDelta
    | SummaryDelta
    | ThoughtDelta
    | AnnotationAdded
    | PartAdded
    | ItemAdded
    | ItemDone
    | Created
    | EndedWell
    | EndedEarly
    | Failed
    | ErrorReported
)
decode = msgspec.json.Decoder(Known).decode
decode_other = msgspec.json.Decoder(Other).decode
KNOWN_KINDS = frozenset(kind.__struct_config__.tag for kind in Known.__args__)
