"""The body of a Messages request as Anthropic documents it (API reference, "Create a Message", and the types of its SDK).

Types and ranges are the vendor's. Unknown roles and content blocks are refused, unknown fields are not looked at: `decode` says which may pass. What the
vendor runs itself (web search, code execution, …) has its own tools and blocks, of which only the form is checked: they are kept for an upstream that knows
them and nothing here reads them. Enumerations that grow with each model are short strings. `null` stands for an absent field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_FUNCTION_NAME_CHARS, MAX_IDENTIFIER_CHARS, MAX_KEYWORD_CHARS, MAX_MODEL_NAME_CHARS

MAX_ANTHROPIC_TOOLS = 1024  # Anthropic names no bound; clients that connect tool servers send some hundreds
MAX_ANTHROPIC_STOP_SEQUENCES = 8191  # Bedrock's bound for Anthropic's models

ModelName = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_NAME_CHARS)]
ToolName = Annotated[str, Meta(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]
ToolType = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Identifier = Annotated[str, Meta(max_length=MAX_IDENTIFIER_CHARS)]
Keyword = Annotated[str, Meta(max_length=MAX_KEYWORD_CHARS)]
Count = Annotated[int, Meta(ge=0)]


class _Object(msgspec.Struct, frozen=True, gc=False):
    """A JSON object. Not tracked by the collector: decoded JSON has no cycles."""


class CacheControl(_Object, frozen=True, gc=False):
    type: Literal["ephemeral"]
    ttl: Keyword | None = None


# --- content blocks --------------------------------------------------------------------------------------------------


class TextCitation(_Object, frozen=True, gc=False):
    """Where a text comes from. Which of the fields are there hangs on `type`; places within the source have no use here."""

    type: Keyword
    cited_text: str | None = None
    document_index: Count | None = None
    document_title: str | None = None
    title: str | None = None
    url: str | None = None
    source: str | None = None


class TextBlock(_Object, frozen=True, gc=False, tag_field="type", tag="text"):
    text: str
    cache_control: CacheControl | None = None
    citations: list[TextCitation] | None = None


class Base64Source(_Object, frozen=True, gc=False, tag_field="type", tag="base64"):
    media_type: Keyword
    data: str


class UrlSource(_Object, frozen=True, gc=False, tag_field="type", tag="url"):
    url: str


class FileSource(_Object, frozen=True, gc=False, tag_field="type", tag="file"):
    """A file that was sent to the provider before."""

    file_id: Identifier


class TextSource(_Object, frozen=True, gc=False, tag_field="type", tag="text"):
    media_type: Keyword
    data: str


class ImageBlock(_Object, frozen=True, gc=False, tag_field="type", tag="image"):
    source: Base64Source | UrlSource | FileSource
    cache_control: CacheControl | None = None


class ContentSource(_Object, frozen=True, gc=False, tag_field="type", tag="content"):
    """A document in pieces, so that citations can name the piece."""

    content: str | list[TextBlock | ImageBlock]


class CitationsConfig(_Object, frozen=True, gc=False):
    enabled: bool | None = None


class DocumentBlock(_Object, frozen=True, gc=False, tag_field="type", tag="document"):
    source: Base64Source | TextSource | UrlSource | ContentSource | FileSource
    title: str | None = None
    context: str | None = None
    citations: CitationsConfig | None = None
    cache_control: CacheControl | None = None


class SearchResultBlock(_Object, frozen=True, gc=False, tag_field="type", tag="search_result"):
    """What the client's own search found, to be cited."""

    content: list[TextBlock]
    source: str
    title: str


class ToolReferenceBlock(_Object, frozen=True, gc=False, tag_field="type", tag="tool_reference"):
    tool_name: ToolName


class BrowserStateBlock(_Object, frozen=True, gc=False, tag_field="type", tag="browser_state"):
    tabs: list[dict[str, Any]]


ResultContent = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock | BrowserStateBlock


class ToolResultBlock(_Object, frozen=True, gc=False, tag_field="type", tag="tool_result"):
    tool_use_id: Identifier
    content: str | list[ResultContent] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: Identifier | None = None


class ToolUseBlock(_Object, frozen=True, gc=False, tag_field="type", tag="tool_use"):
    """`caller` names the vendor's code execution where that made the call."""

    id: Identifier
    name: ToolName
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: dict[str, Any] | None = None
    toolset_name: Identifier | None = None


class ThinkingBlock(_Object, frozen=True, gc=False, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class RedactedThinkingBlock(_Object, frozen=True, gc=False, tag_field="type", tag="redacted_thinking"):
    data: str


class ContainerUploadBlock(_Object, frozen=True, gc=False, tag_field="type", tag="container_upload"):
    file_id: Identifier


class ServerToolUseBlock(_Object, frozen=True, gc=False, tag_field="type", tag="server_tool_use"):
    id: Identifier
    name: ToolName
    input: dict[str, Any]


class _ServerToolResult(_Object, frozen=True, gc=False):
    tool_use_id: Identifier
    content: dict[str, Any] | list[dict[str, Any]]


class WebSearchResultBlock(_ServerToolResult, frozen=True, gc=False, tag_field="type", tag="web_search_tool_result"):
    pass


class WebFetchResultBlock(_ServerToolResult, frozen=True, gc=False, tag_field="type", tag="web_fetch_tool_result"):
    pass


class CodeResultBlock(_ServerToolResult, frozen=True, gc=False, tag_field="type", tag="code_execution_tool_result"):
    pass


class BashResultBlock(_ServerToolResult, frozen=True, gc=False, tag_field="type", tag="bash_code_execution_tool_result"):
    pass


class EditorResultBlock(_ServerToolResult, frozen=True, gc=False, tag_field="type", tag="text_editor_code_execution_tool_result"):
    pass


class ToolSearchResultBlock(_ServerToolResult, frozen=True, gc=False, tag_field="type", tag="tool_search_tool_result"):
    pass


UserBlock = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolResultBlock | ContainerUploadBlock
ServerBlock = (
    ServerToolUseBlock
    | WebSearchResultBlock
    | WebFetchResultBlock
    | CodeResultBlock
    | BashResultBlock
    | EditorResultBlock
    | ToolSearchResultBlock
    | ContainerUploadBlock
)
AssistantBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ServerBlock


# --- messages --------------------------------------------------------------------------------------------------------


class UserMessage(_Object, frozen=True, gc=False, tag_field="role", tag="user"):
    content: str | list[UserBlock]


class AssistantMessage(_Object, frozen=True, gc=False, tag_field="role", tag="assistant"):
    """The last message may be one: the answer goes on from it, where the model can do that."""

    content: str | list[AssistantBlock]


class SystemMessage(_Object, frozen=True, gc=False, tag_field="role", tag="system"):
    content: str | list[TextBlock]


Message = UserMessage | AssistantMessage | SystemMessage


# --- tools and settings ----------------------------------------------------------------------------------------------


class Tool(_Object, frozen=True, gc=False):
    """A tool of the client's (`type` is `custom` or absent; then `name` and `input_schema` are needed, which `decode` sees to) or of the vendor's."""

    type: ToolType | None = None
    name: ToolName | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    cache_control: CacheControl | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[Keyword] | None = None
    input_examples: list[dict[str, Any]] | None = None

    @property
    def is_custom(self) -> bool:
        return self.type is None or self.type == "custom"


class AutoChoice(_Object, frozen=True, gc=False, tag_field="type", tag="auto"):
    disable_parallel_tool_use: bool | None = None


class AnyChoice(_Object, frozen=True, gc=False, tag_field="type", tag="any"):
    disable_parallel_tool_use: bool | None = None


class NamedChoice(_Object, frozen=True, gc=False, tag_field="type", tag="tool"):
    name: ToolName
    disable_parallel_tool_use: bool | None = None


class NoChoice(_Object, frozen=True, gc=False, tag_field="type", tag="none"):
    pass


class Thinking(_Object, frozen=True, gc=False):
    """`type` is `enabled` (with a budget), `adaptive`, `disabled`, or what the vendor adds."""

    type: Keyword
    budget_tokens: Count | None = None
    display: Keyword | None = None


class JsonSchemaFormat(_Object, frozen=True, gc=False, tag_field="type", tag="json_schema"):
    schema: dict[str, Any]


class OutputConfig(_Object, frozen=True, gc=False):
    effort: Keyword | None = None
    format: JsonSchemaFormat | None = None


class Metadata(_Object, frozen=True, gc=False):
    user_id: Identifier | None = None


class CountBody(_Object, frozen=True, gc=False, kw_only=True):
    """What a request and a question for its tokens have in common."""

    model: ModelName
    messages: Annotated[list[Message], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_ANTHROPIC_TOOLS)] | None = None
    tool_choice: AutoChoice | AnyChoice | NamedChoice | NoChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Keyword | None = None


class MessagesBody(CountBody, frozen=True, gc=False, kw_only=True):
    """The whole body. `max_tokens` 0 asks for nothing but the filling of the prompt cache."""

    max_tokens: Count
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Count | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_ANTHROPIC_STOP_SEQUENCES)] | None = None
    metadata: Metadata | None = None
    service_tier: Keyword | None = None


COUNT_FIELDS = frozenset(CountBody.__struct_fields__)
KNOWN_FIELDS = frozenset(MessagesBody.__struct_fields__)

# Where a request is served, what it may reach, who pays for it: the configuration's business. `anthropic_version` and `anthropic_beta` are how Vertex AI and
# Bedrock spell two headers, which are the gateway's.
_FORBIDDEN = """
    container mcp_servers inference_geo user_profile_id workspace_id thread betas anthropic_beta anthropic_version
    billing_policy fallback_credit_token
"""
FORBIDDEN_FIELDS = frozenset(_FORBIDDEN.split())
