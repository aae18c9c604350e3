"""The body of a `generateContent` request as Google documents it (Gemini API reference, "GenerateContentRequest").

Types and ranges are the vendor's. Unknown parts, roles and tools are refused, other unknown fields are not looked at: `decode` says which may pass.
Enumerations are short strings in any case of letters. `null` stands for an absent field. Numbers are JSON numbers: protobuf's JSON mapping would also take
them as strings, which no SDK of Google's sends, and a second way to write the cap is a way around it.

Field names are camelCase here; `spelling` has turned protobuf's own snake_case names into them before. What clients make up (`args`, `response`, schemas) is
plain JSON whose names mean nothing to us.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_CHOICES, MAX_FUNCTION_NAME_CHARS, MAX_GEMINI_STOP_SEQUENCES, MAX_IDENTIFIER_CHARS, MAX_KEYWORD_CHARS, MAX_METADATA_ENTRIES

MAX_GEMINI_FUNCTIONS = 512  # Gemini: `functionDeclarations` of one request

FunctionName = Annotated[str, Meta(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]
Identifier = Annotated[str, Meta(max_length=MAX_IDENTIFIER_CHARS)]
Keyword = Annotated[str, Meta(max_length=MAX_KEYWORD_CHARS)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
JsonObject = dict[str, Any]


class _Object(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """A JSON object. Not tracked by the collector: decoded JSON has no cycles."""


# --- contents --------------------------------------------------------------------------------------------------------


class Blob(_Object, frozen=True, gc=False):
    """`data` is base64, of either alphabet and padded or not."""

    data: str
    mime_type: Identifier
    display_name: Identifier | None = None


class FileData(_Object, frozen=True, gc=False):
    file_uri: Annotated[str, Meta(min_length=1, max_length=8192)]
    mime_type: Identifier | None = None
    display_name: Identifier | None = None


class FunctionCall(_Object, frozen=True, gc=False):
    name: FunctionName
    args: JsonObject | None = None
    id: Identifier | None = None


class ResponsePart(_Object, frozen=True, gc=False):
    """A picture or file in a tool's result."""

    inline_data: Blob | None = None
    file_data: FileData | None = None


class FunctionResponse(_Object, frozen=True, gc=False):
    name: FunctionName
    response: JsonObject | None = None
    id: Identifier | None = None
    parts: list[ResponsePart] | None = None


class Part(_Object, frozen=True, gc=False):
    """Exactly one of `PART_KINDS`; none only beside a `thoughtSignature`, which streams send at their end."""

    text: str | None = None
    inline_data: Blob | None = None
    file_data: FileData | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None
    executable_code: JsonObject | None = None
    code_execution_result: JsonObject | None = None
    tool_call: JsonObject | None = None
    tool_response: JsonObject | None = None
    thought: bool | None = None
    thought_signature: str | None = None


PART_KINDS = (
    "text",
    "inlineData",
    "fileData",
    "functionCall",
    "functionResponse",
    "executableCode",
    "codeExecutionResult",
    "toolCall",
    "toolResponse",
)


class Content(_Object, frozen=True, gc=False):
    """A turn. Without a role it is the user's; `function` is an older name for the turn with tool results."""

    parts: Annotated[list[Part], Meta(min_length=1)]
    role: Literal["user", "model", "function"] | None = None


class Instruction(_Object, frozen=True, gc=False):
    """The vendor ignores its role."""

    parts: Annotated[list[Part], Meta(min_length=1)]
    role: Keyword | None = None


# --- tools -----------------------------------------------------------------------------------------------------------


class FunctionDeclaration(_Object, frozen=True, gc=False):
    """`parameters` is a subset of OpenAPI's schema, `parametersJsonSchema` JSON Schema; either is the provider's to judge."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    parameters_json_schema: JsonObject | None = None
    response: JsonObject | None = None
    response_json_schema: Any = None
    behavior: Keyword | None = None


class Tool(_Object, frozen=True, gc=False):
    """Functions of the client's, and tools that Google runs. Those that carry credentials or addresses for third parties (`mcpServers`, `retrieval`) are not
    here, so they are refused."""

    function_declarations: Annotated[list[FunctionDeclaration], Meta(max_length=MAX_GEMINI_FUNCTIONS)] | None = None
    google_search: JsonObject | None = None
    google_search_retrieval: JsonObject | None = None
    google_maps: JsonObject | None = None
    code_execution: JsonObject | None = None
    url_context: JsonObject | None = None
    file_search: JsonObject | None = None
    computer_use: JsonObject | None = None
    enterprise_web_search: JsonObject | None = None


class FunctionCallingConfig(_Object, frozen=True, gc=False):
    mode: Keyword | None = None
    allowed_function_names: Annotated[list[FunctionName], Meta(max_length=MAX_GEMINI_FUNCTIONS)] | None = None
    stream_function_call_arguments: bool | None = None


class ToolConfig(_Object, frozen=True, gc=False):
    function_calling_config: FunctionCallingConfig | None = None
    retrieval_config: JsonObject | None = None
    include_server_side_tool_invocations: bool | None = None


# --- the rest --------------------------------------------------------------------------------------------------------


class ThinkingConfig(_Object, frozen=True, gc=False):
    """`thinkingBudget`: tokens, 0 for none, -1 for as many as the model likes."""

    include_thoughts: bool | None = None
    thinking_budget: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    thinking_level: Keyword | None = None


class SafetySetting(_Object, frozen=True, gc=False):
    category: Keyword
    threshold: Keyword
    method: Keyword | None = None


class GenerationConfig(_Object, frozen=True, gc=False):
    """`topK` is a whole number that Google's Python SDK sends with a decimal point. The last two choose another model than the path, so they must be absent."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[float, Meta(ge=0, le=2**31 - 1)] | None = None
    candidate_count: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_output_tokens: Positive | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_GEMINI_STOP_SEQUENCES)] | None = None
    response_mime_type: Identifier | None = None
    response_schema: JsonObject | None = None
    response_json_schema: JsonObject | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    response_logprobs: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    thinking_config: ThinkingConfig | None = None
    response_modalities: Annotated[list[Keyword], Meta(max_length=8)] | None = None
    media_resolution: Keyword | None = None
    speech_config: JsonObject | None = None
    image_config: JsonObject | None = None
    audio_timestamp: bool | None = None
    routing_config: None = None
    model_selection_config: None = None


class GenerateBody(_Object, frozen=True, gc=False):
    """The whole body. The model is the path's; a body may repeat it."""

    contents: Annotated[list[Content], Meta(min_length=1)]
    generation_config: GenerationConfig | None = None
    system_instruction: Instruction | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_GEMINI_FUNCTIONS)] | None = None
    tool_config: ToolConfig | None = None
    safety_settings: Annotated[list[SafetySetting], Meta(max_length=32)] | None = None
    cached_content: Identifier | None = None
    labels: Annotated[dict[Identifier, Identifier], Meta(max_length=4 * MAX_METADATA_ENTRIES)] | None = None
    service_tier: Keyword | None = None
    store: bool | None = None
    model: Identifier | None = None


class CountBody(_Object, frozen=True, gc=False):
    """What `countTokens` takes: contents, or a whole request. Vertex AI also takes the three others beside contents."""

    contents: Annotated[list[Content], Meta(min_length=1)] | None = None
    generate_content_request: GenerateBody | None = None
    system_instruction: Instruction | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_GEMINI_FUNCTIONS)] | None = None
    generation_config: GenerationConfig | None = None
    model: Identifier | None = None
