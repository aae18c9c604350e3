"""The bodies of OpenAI's media endpoints as documented (API reference, "Images" and "Audio"). `null` stands for an absent field.

Values that grow with each model (`size`, `quality`, `voice`) are short strings. `stream` may only be false: partial pictures and sound in events are larger
than the events that this gateway takes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_IDENTIFIER_CHARS, MAX_KEYWORD_CHARS, MAX_MODEL_NAME_CHARS

MAX_IMAGE_PROMPT_CHARS = 32_000  # OpenAI: gpt-image
MAX_SPEECH_INPUT_CHARS = 4096  # OpenAI: `input`

ModelName = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_NAME_CHARS)]
Keyword = Annotated[str, Meta(max_length=MAX_KEYWORD_CHARS)]
Identifier = Annotated[str, Meta(max_length=MAX_IDENTIFIER_CHARS)]


class ImageBody(msgspec.Struct, frozen=True, gc=False):
    """`POST /v1/images/generations`."""

    model: ModelName
    prompt: Annotated[str, Meta(min_length=1, max_length=MAX_IMAGE_PROMPT_CHARS)]
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: Keyword | None = None
    quality: Keyword | None = None
    style: Keyword | None = None
    background: Keyword | None = None
    moderation: Keyword | None = None
    complexity: Keyword | None = None
    output_format: Keyword | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    frame_count: Annotated[int, Meta(ge=1, le=1024)] | None = None
    frame_duration_ms: Annotated[int, Meta(ge=1, le=60_000)] | None = None
    svg: dict[str, Any] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None


class VoiceId(msgspec.Struct, frozen=True, gc=False):
    id: Identifier


class SpeechBody(msgspec.Struct, frozen=True, gc=False):
    """`POST /v1/audio/speech`. The last three are not of this endpoint; what egress counts in every JSON body of media must not say anything else here."""

    model: ModelName
    input: Annotated[str, Meta(min_length=1, max_length=MAX_SPEECH_INPUT_CHARS)]
    voice: Keyword | VoiceId
    instructions: Annotated[str, Meta(max_length=MAX_SPEECH_INPUT_CHARS)] | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None
    stream_format: Literal["sse", "audio"] | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=0)] | None = None


IMAGE_FIELDS = frozenset(ImageBody.__struct_fields__)
SPEECH_FIELDS = frozenset(SpeechBody.__struct_fields__)
# Of a form: the field, and whether it may come several times (`name` or `name[]`).
TRANSCRIPTION_FIELDS = {
    "model": False,
    "file": False,
    "language": False,
    "prompt": False,
    "response_format": False,
    "temperature": False,
    "chunking_strategy": False,
    "stream": False,
    "include": True,
    "keywords": True,
    "languages": True,
    "timestamp_granularities": True,
    "known_speaker_names": True,
    "known_speaker_references": True,
}
TRANSLATION_FIELDS = {"model": False, "file": False, "prompt": False, "response_format": False, "temperature": False}
TEXT_FORMATS = frozenset({"json", "text", "srt", "verbose_json", "vtt", "diarized_json"})
