"""What Google answers, as far as it is translated: a whole answer, or one event of a stream."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_CHOICES

ABSENT = msgspec.Raw(b"null")  # compared by identity: what the decoder puts where a field is not there


class _Object(msgspec.Struct, gc=False, rename="camel"):
    """An object of an answer. Only what is translated is decoded."""


class CallPart(_Object, gc=False):
    name: str
    args: msgspec.Raw = ABSENT
    id: str | None = None
    partial_args: msgspec.Raw = ABSENT  # only for clients that ask for it, in Google's own dialect


class BlobPart(_Object, gc=False):
    mime_type: str
    data: str


class AnswerPart(_Object, gc=False):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: CallPart | None = None
    inline_data: BlobPart | None = None
    executable_code: msgspec.Raw = ABSENT
    code_execution_result: msgspec.Raw = ABSENT
    file_data: msgspec.Raw = ABSENT
    tool_call: msgspec.Raw = ABSENT
    tool_response: msgspec.Raw = ABSENT


class AnswerContent(_Object, gc=False):
    parts: list[AnswerPart] | None = None


class Candidate(_Object, gc=False):
    content: AnswerContent | None = None
    finish_reason: str | None = None
    index: Annotated[int, Meta(ge=0, lt=MAX_CHOICES)] | None = None
    citation_metadata: msgspec.Raw = ABSENT
    grounding_metadata: msgspec.Raw = ABSENT


class Feedback(_Object, gc=False):
    block_reason: str | None = None


class Answer(_Object, gc=False):
    """A whole answer, or one event of a stream."""

    candidates: list[Candidate] | None = None
    usage_metadata: msgspec.Raw = ABSENT
    model_version: str | None = None
    response_id: str | None = None
    prompt_feedback: Feedback | None = None
    error: msgspec.Raw = ABSENT


class Source(_Object, gc=False):
    uri: str | None = None
    title: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class CitationMetadata(_Object, gc=False):
    """The Gemini API says `citationSources`, Vertex AI `citations`."""

    citation_sources: list[Source] | None = None
    citations: list[Source] | None = None


class Web(_Object, gc=False):
    uri: str | None = None
    title: str | None = None


class Chunk(_Object, gc=False):
    web: Web | None = None
    retrieved_context: Web | None = None


class Segment(_Object, gc=False):
    start_index: int | None = None
    end_index: int | None = None


class Support(_Object, gc=False):
    segment: Segment | None = None
    grounding_chunk_indices: list[int] | None = None


class Grounding(_Object, gc=False):
    grounding_chunks: list[Chunk] | None = None
    grounding_supports: list[Support] | None = None


answer_decoder = msgspec.json.Decoder(Answer)
citations_decoder = msgspec.json.Decoder(CitationMetadata)
grounding_decoder = msgspec.json.Decoder(Grounding)
