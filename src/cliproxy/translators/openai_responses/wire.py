"""The body of a Responses request as OpenAI documents it (API reference, "Create a model response").

Types and ranges are the vendor's. Items, content parts and tools of unknown kinds are refused: some of them carry tools of their own (`additional_tools`,
`tool_search_output`) or secrets (`shell`), which `provider_state` would then have to look into. Enumerations that grow (`effort`, `service_tier`, `include`)
are short strings. `null` stands for an absent field. Unknown fields are not looked at here: `decode` says which may pass.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_FUNCTION_NAME_CHARS, MAX_IDENTIFIER_CHARS, MAX_KEYWORD_CHARS, MAX_METADATA_ENTRIES, MAX_MODEL_NAME_CHARS, MAX_TOOLS

MAX_RESPONSES_INCLUDES = 32  # OpenAI responses: `include`, of which the vendor documents eight

ModelName = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_NAME_CHARS)]
FunctionName = Annotated[str, Meta(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]
Identifier = Annotated[str, Meta(max_length=MAX_IDENTIFIER_CHARS)]
Keyword = Annotated[str, Meta(max_length=MAX_KEYWORD_CHARS)]
Positive = Annotated[int, Meta(ge=1)]
MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=MAX_METADATA_ENTRIES)]


class _Object(msgspec.Struct, frozen=True, gc=False):
    """A JSON object. Not tracked by the collector: decoded JSON has no cycles."""


class _Typed(_Object, frozen=True, gc=False, tag_field="type"):
    """A JSON object whose `type` says what it is."""


# --- content parts ---------------------------------------------------------------------------------------------------


class InputText(_Typed, frozen=True, gc=False, tag="input_text"):
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class InputImage(_Typed, frozen=True, gc=False, tag="input_image"):
    """`image_url` may hold the image itself as a `data:` URL."""

    image_url: str | None = None
    file_id: Identifier | None = None
    detail: Keyword | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class InputFile(_Typed, frozen=True, gc=False, tag="input_file"):
    """`file_data` is a `data:` URL."""

    file_data: str | None = None
    file_url: str | None = None
    file_id: Identifier | None = None
    filename: Identifier | None = None
    detail: Keyword | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class Sound(_Object, frozen=True, gc=False):
    """`data` is base64."""

    data: str
    format: Keyword


class InputAudio(_Typed, frozen=True, gc=False, tag="input_audio"):
    input_audio: Sound


class Annotation(_Object, frozen=True, gc=False):
    """Where a text comes from; which fields there are depends on `type`, and a new type has others."""

    type: Keyword
    url: str | None = None
    title: str | None = None
    filename: str | None = None
    index: int | None = None
    start_index: int | None = None
    end_index: int | None = None


class OutputText(_Typed, frozen=True, gc=False, tag="output_text"):
    text: str
    annotations: list[Annotation] | None = None


class OutputRefusal(_Typed, frozen=True, gc=False, tag="refusal"):
    refusal: str


class SummaryText(_Typed, frozen=True, gc=False, tag="summary_text"):
    text: str


class ReasoningText(_Typed, frozen=True, gc=False, tag="reasoning_text"):
    text: str


InputPart = InputText | InputImage | InputFile
Content = InputPart | InputAudio | OutputText | OutputRefusal


# --- items -----------------------------------------------------------------------------------------------------------


class MessageItem(_Typed, frozen=True, gc=False, tag="message"):
    """`type` may be left out. Which parts a role may have is the provider's to judge, and `to_hub`'s when it is translated."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Content]


class FunctionCallItem(_Typed, frozen=True, gc=False, tag="function_call"):
    """`arguments` is JSON that a model wrote: a string, valid or not."""

    call_id: Identifier
    name: FunctionName
    arguments: str
    namespace: Identifier | None = None
    caller: dict[str, Any] | None = None


class FunctionCallOutputItem(_Typed, frozen=True, gc=False, tag="function_call_output"):
    call_id: Identifier
    output: str | list[InputPart]
    caller: dict[str, Any] | None = None


class CustomCallItem(_Typed, frozen=True, gc=False, tag="custom_tool_call"):
    call_id: Identifier
    name: FunctionName
    input: str


class CustomCallOutputItem(_Typed, frozen=True, gc=False, tag="custom_tool_call_output"):
    call_id: Identifier
    output: str | list[InputPart]


class ReasoningItem(_Typed, frozen=True, gc=False, tag="reasoning"):
    id: Identifier | None = None
    summary: list[SummaryText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


class ItemReference(_Typed, frozen=True, gc=False, tag="item_reference"):
    id: Identifier


class WebSearchCallItem(_Typed, frozen=True, gc=False, tag="web_search_call"):
    id: Identifier | None = None


class FileSearchCallItem(_Typed, frozen=True, gc=False, tag="file_search_call"):
    id: Identifier | None = None


class CodeInterpreterCallItem(_Typed, frozen=True, gc=False, tag="code_interpreter_call"):
    id: Identifier | None = None
    container_id: Identifier | None = None


class ImageGenerationCallItem(_Typed, frozen=True, gc=False, tag="image_generation_call"):
    """`result` is base64. Without it, `id` names an image that the provider keeps."""

    id: Identifier | None = None
    result: str | None = None


class LocalShellCallItem(_Typed, frozen=True, gc=False, tag="local_shell_call"):
    call_id: Identifier | None = None


class LocalShellCallOutputItem(_Typed, frozen=True, gc=False, tag="local_shell_call_output"):
    id: Identifier | None = None


class ApplyPatchCallItem(_Typed, frozen=True, gc=False, tag="apply_patch_call"):
    call_id: Identifier


class ApplyPatchCallOutputItem(_Typed, frozen=True, gc=False, tag="apply_patch_call_output"):
    call_id: Identifier


class CompactionItem(_Typed, frozen=True, gc=False, tag="compaction"):
    """A conversation that the vendor made short, as text that only it can read."""

    encrypted_content: str


Item = (
    MessageItem
    | FunctionCallItem
    | FunctionCallOutputItem
    | CustomCallItem
    | CustomCallOutputItem
    | ReasoningItem
    | ItemReference
    | WebSearchCallItem
    | FileSearchCallItem
    | CodeInterpreterCallItem
    | ImageGenerationCallItem
    | LocalShellCallItem
    | LocalShellCallOutputItem
    | ApplyPatchCallItem
    | ApplyPatchCallOutputItem
    | CompactionItem
)


# --- tools -----------------------------------------------------------------------------------------------------------


class FunctionTool(_Typed, frozen=True, gc=False, tag="function"):
    """`parameters` is a JSON Schema, which is the provider's to judge."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[Keyword] | None = None
    output_schema: dict[str, Any] | None = None


class CustomTool(_Typed, frozen=True, gc=False, tag="custom"):
    name: FunctionName
    description: str | None = None
    format: dict[str, Any] | None = None


class WebSearch(_Typed, frozen=True, gc=False, tag="web_search"):
    pass


class WebSearch2025(_Typed, frozen=True, gc=False, tag="web_search_2025_08_26"):
    pass


class WebSearchPreview(_Typed, frozen=True, gc=False, tag="web_search_preview"):
    pass


class WebSearchPreview2025(_Typed, frozen=True, gc=False, tag="web_search_preview_2025_03_11"):
    pass


class CodeInterpreter(_Typed, frozen=True, gc=False, tag="code_interpreter"):
    """`container` is the name of one that the provider keeps, or what a new one shall have."""

    container: str | dict[str, Any] | None = None


class ImageGeneration(_Typed, frozen=True, gc=False, tag="image_generation"):
    """`model`, another one than the request's, is refused."""

    input_image_mask: dict[str, Any] | None = None
    model: Any = None


class LocalShell(_Typed, frozen=True, gc=False, tag="local_shell"):
    pass


class ApplyPatch(_Typed, frozen=True, gc=False, tag="apply_patch"):
    pass


class FileSearch(_Typed, frozen=True, gc=False, tag="file_search"):
    vector_store_ids: list[Identifier]


class FileSearchChoice(_Typed, frozen=True, gc=False, tag="file_search"):
    pass


class Mcp(_Typed, frozen=True, gc=False, tag="mcp"):
    """Refused, always: it names a server and carries credentials for it."""


Tool = (
    FunctionTool
    | CustomTool
    | WebSearch
    | WebSearch2025
    | WebSearchPreview
    | WebSearchPreview2025
    | CodeInterpreter
    | ImageGeneration
    | LocalShell
    | ApplyPatch
    | FileSearch
    | Mcp
)


class FunctionChoice(_Typed, frozen=True, gc=False, tag="function"):
    name: FunctionName


class CustomChoice(_Typed, frozen=True, gc=False, tag="custom"):
    name: FunctionName


class AllowedToolsChoice(_Typed, frozen=True, gc=False, tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)]


ToolChoice = (
    Literal["none", "auto", "required"]
    | FunctionChoice
    | CustomChoice
    | AllowedToolsChoice
    | WebSearch
    | WebSearch2025
    | WebSearchPreview
    | WebSearchPreview2025
    | CodeInterpreter
    | ImageGeneration
    | ApplyPatch
    | FileSearchChoice
)


# --- the rest --------------------------------------------------------------------------------------------------------


class TextFormat(_Typed, frozen=True, gc=False, tag="text"):
    pass


class JsonObjectFormat(_Typed, frozen=True, gc=False, tag="json_object"):
    pass


class JsonSchemaFormat(_Typed, frozen=True, gc=False, tag="json_schema"):
    name: FunctionName
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(_Object, frozen=True, gc=False):
    format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    verbosity: Keyword | None = None


class ReasoningConfig(_Object, frozen=True, gc=False):
    """`generate_summary` is the old name of `summary`."""

    effort: Keyword | None = None
    summary: Keyword | None = None
    generate_summary: Keyword | None = None
    context: Keyword | None = None
    mode: Keyword | None = None


class StreamOptions(_Object, frozen=True, gc=False):
    include_obfuscation: bool | None = None


class CacheOptions(_Object, frozen=True, gc=False):
    comparison_response_id: Identifier | None = None


class ResponsesBody(_Object, frozen=True, gc=False):
    """The whole body, with what is always there first. Only beside a stored `prompt` or an earlier response may `input` be absent."""

    model: ModelName
    input: Annotated[list[Item], Meta(min_length=1)] | str | None = None
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Positive | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: Annotated[list[Keyword], Meta(max_length=MAX_RESPONSES_INCLUDES)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: Keyword | None = None
    store: bool | None = None
    background: bool | None = None
    background_options: dict[str, Any] | None = None
    previous_response_id: Identifier | None = None
    conversation: Identifier | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    metadata: Metadata | None = None
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    prompt_cache_key: Identifier | None = None
    prompt_cache_retention: Keyword | None = None
    prompt_cache_options: CacheOptions | None = None
    service_tier: Keyword | None = None


KNOWN_FIELDS = frozenset(ResponsesBody.__struct_fields__)
