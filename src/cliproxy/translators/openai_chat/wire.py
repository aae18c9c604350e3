"""The body of a chat completion request as OpenAI documents it (API reference, "Create chat completion").

Types and ranges are the vendor's. Unknown roles, content parts, tools and response formats are refused, unknown fields are not looked at: `decode` says which
may pass. Enumerations that grow with each model (`reasoning_effort`, `service_tier`, `modalities`) are short strings. `null` stands for an absent field.

Beside the vendor's own fields stand those in which imitations give back what chat completions have no place for: thoughts with their proofs as OpenRouter says
them (`reasoning_details`), Gemini's signature of a tool call as Google's own imitation says it (`extra_content`), and cache markers (`cache_control`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cliproxy.bounds import (
    MAX_CHOICES,
    MAX_FUNCTION_NAME_CHARS,
    MAX_IDENTIFIER_CHARS,
    MAX_KEYWORD_CHARS,
    MAX_LOGIT_BIASES,
    MAX_METADATA_ENTRIES,
    MAX_MODEL_NAME_CHARS,
    MAX_STOP_SEQUENCES,
    MAX_TOOLS,
)

ModelName = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_NAME_CHARS)]
FunctionName = Annotated[str, Meta(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]
Identifier = Annotated[str, Meta(max_length=MAX_IDENTIFIER_CHARS)]
Keyword = Annotated[str, Meta(max_length=MAX_KEYWORD_CHARS)]
Positive = Annotated[int, Meta(ge=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=MAX_METADATA_ENTRIES)]


class _Object(msgspec.Struct, frozen=True, gc=False):
    """A JSON object. Not tracked by the collector: decoded JSON has no cycles."""


# --- content parts ---------------------------------------------------------------------------------------------------


class CacheControl(_Object, frozen=True, gc=False):
    """Anthropic's cache marker, which OpenRouter takes on parts."""

    type: Literal["ephemeral"]
    ttl: Keyword | None = None


class TextPart(_Object, frozen=True, gc=False, tag_field="type", tag="text"):
    text: str
    cache_control: CacheControl | None = None


class RefusalPart(_Object, frozen=True, gc=False, tag_field="type", tag="refusal"):
    refusal: str


class ImageUrl(_Object, frozen=True, gc=False):
    """`url` may hold the image itself as a `data:` URL."""

    url: str
    detail: Keyword | None = None


class ImagePart(_Object, frozen=True, gc=False, tag_field="type", tag="image_url"):
    image_url: ImageUrl
    cache_control: CacheControl | None = None


class InputAudio(_Object, frozen=True, gc=False):
    """`data` is base64."""

    data: str
    format: Keyword


class AudioPart(_Object, frozen=True, gc=False, tag_field="type", tag="input_audio"):
    input_audio: InputAudio


class File(_Object, frozen=True, gc=False):
    """`file_data` is base64."""

    file_data: str | None = None
    file_id: Identifier | None = None
    filename: Identifier | None = None


class FilePart(_Object, frozen=True, gc=False, tag_field="type", tag="file"):
    file: File
    cache_control: CacheControl | None = None


UserContent = str | Annotated[list[TextPart | ImagePart | AudioPart | FilePart], Meta(min_length=1)]
TextContent = str | Annotated[list[TextPart], Meta(min_length=1)]
AssistantContent = str | Annotated[list[TextPart | RefusalPart], Meta(min_length=1)]


# --- tools -----------------------------------------------------------------------------------------------------------


class FunctionDefinition(_Object, frozen=True, gc=False):
    """`parameters` is a JSON Schema, which is the provider's to judge."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomDefinition(_Object, frozen=True, gc=False):
    name: FunctionName
    description: str | None = None
    format: dict[str, Any] | None = None


class FunctionTool(_Object, frozen=True, gc=False, tag_field="type", tag="function"):
    function: FunctionDefinition
    cache_control: CacheControl | None = None


class CustomTool(_Object, frozen=True, gc=False, tag_field="type", tag="custom"):
    custom: CustomDefinition


class Named(_Object, frozen=True, gc=False):
    name: FunctionName


class FunctionChoice(_Object, frozen=True, gc=False, tag_field="type", tag="function"):
    function: Named


class CustomChoice(_Object, frozen=True, gc=False, tag_field="type", tag="custom"):
    custom: Named


class AllowedTools(_Object, frozen=True, gc=False):
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)]


class AllowedToolsChoice(_Object, frozen=True, gc=False, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | FunctionChoice | CustomChoice | AllowedToolsChoice


class CalledFunction(_Object, frozen=True, gc=False):
    """`arguments` is JSON that a model wrote: a string, valid or not."""

    name: FunctionName
    arguments: str


class CalledCustom(_Object, frozen=True, gc=False):
    name: FunctionName
    input: str


class GoogleContent(_Object, frozen=True, gc=False):
    thought_signature: str | None = None


class ExtraContent(_Object, frozen=True, gc=False):
    google: GoogleContent | None = None


class FunctionCall(_Object, frozen=True, gc=False, tag_field="type", tag="function"):
    """`index` is left over from a stream."""

    id: Identifier
    function: CalledFunction
    index: int | None = None
    extra_content: ExtraContent | None = None


class CustomCall(_Object, frozen=True, gc=False, tag_field="type", tag="custom"):
    id: Identifier
    custom: CalledCustom


# --- messages --------------------------------------------------------------------------------------------------------


class SystemMessage(_Object, frozen=True, gc=False, tag_field="role", tag="system"):
    content: TextContent
    name: Identifier | None = None


class DeveloperMessage(_Object, frozen=True, gc=False, tag_field="role", tag="developer"):
    content: TextContent
    name: Identifier | None = None


class UserMessage(_Object, frozen=True, gc=False, tag_field="role", tag="user"):
    content: UserContent
    name: Identifier | None = None


class SpokenAnswer(_Object, frozen=True, gc=False):
    id: Identifier


class ReasoningDetail(_Object, frozen=True, gc=False):
    """A thought, or a piece of one that a client collected from a stream (then with the `index` of the others). `type` is `reasoning.text` (with `text` and
    its `signature`), `reasoning.summary` (`summary`) or `reasoning.encrypted` (`data`); `format` says whose proof it is."""

    type: Keyword
    text: str | None = None
    summary: str | None = None
    data: str | None = None
    signature: str | None = None
    format: Keyword | None = None
    id: Identifier | None = None
    index: int | None = None


class UrlCitation(_Object, frozen=True, gc=False):
    url: str
    title: str | None = None
    content: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class Annotation(_Object, frozen=True, gc=False):
    """`index` is left over from a stream."""

    type: Keyword
    index: int | None = None
    url_citation: UrlCitation | None = None


class AssistantMessage(_Object, frozen=True, gc=False, tag_field="role", tag="assistant"):
    """`content` may be absent beside tool calls. `reasoning_content` (DeepSeek, vLLM) and `reasoning` (OpenRouter, Ollama) are the same thing."""

    content: AssistantContent | None = None
    refusal: str | None = None
    name: Identifier | None = None
    audio: SpokenAnswer | None = None
    tool_calls: list[FunctionCall | CustomCall] | None = None
    function_call: CalledFunction | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    annotations: list[Annotation] | None = None


class ToolMessage(_Object, frozen=True, gc=False, tag_field="role", tag="tool"):
    content: TextContent
    tool_call_id: Identifier
    name: Identifier | None = None


class FunctionMessage(_Object, frozen=True, gc=False, tag_field="role", tag="function"):
    content: str | None
    name: FunctionName


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


# --- the rest --------------------------------------------------------------------------------------------------------


class TextFormat(_Object, frozen=True, gc=False, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(_Object, frozen=True, gc=False, tag_field="type", tag="json_object"):
    pass


class JsonSchema(_Object, frozen=True, gc=False):
    name: FunctionName
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(_Object, frozen=True, gc=False, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


class StreamOptions(_Object, frozen=True, gc=False):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Prediction(_Object, frozen=True, gc=False, tag_field="type", tag="content"):
    content: TextContent


class AudioOutput(_Object, frozen=True, gc=False):
    """`voice` is a name, or an object with the id of a custom one."""

    format: Keyword
    voice: Keyword | dict[str, Any]


class ChatBody(_Object, frozen=True, gc=False):
    """The whole body. Field order is the vendor's, with what is always there first."""

    model: ModelName
    messages: Annotated[list[Message], Meta(min_length=1)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[FunctionTool | CustomTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOP_SEQUENCES)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_LOGIT_BIASES)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    prompt_cache_key: Identifier | None = None
    prompt_cache_retention: Keyword | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: Keyword | None = None
    reasoning_effort: Keyword | None = None
    verbosity: Keyword | None = None
    modalities: Annotated[list[Keyword], Meta(max_length=8)] | None = None
    audio: AudioOutput | None = None
    prediction: Prediction | None = None
    web_search_options: dict[str, Any] | None = None
    functions: Annotated[list[FunctionDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    function_call: Literal["none", "auto"] | Named | None = None


KNOWN_FIELDS = frozenset(ChatBody.__struct_fields__)
