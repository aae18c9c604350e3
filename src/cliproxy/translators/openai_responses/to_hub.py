"""A Responses request in the hub's words.

What always holds: items keep their order, neighbours of one side become one `Message`; instructions are `instructions` and the system and developer messages
before the first turn; what the hub has no place for is refused with its path. Left out without a word are only fields that change nothing once the
provider's own tools are gone (`max_tool_calls`, most of `include`), and those that say how bytes travel or how long a cache lives (`stream_options`,
`prompt_cache_retention`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cliproxy.dialects import Dialect
from cliproxy.errors import SchemaError
from cliproxy.translators.conversation import (
    Audio,
    Citation,
    ConversationRequest,
    Document,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cliproxy.translators.openai_responses.request import ResponsesRequest
from cliproxy.translators.openai_responses.signatures import Kind, Tagged, untag
from cliproxy.translators.openai_responses.wire import (
    KNOWN_FIELDS,
    AllowedToolsChoice,
    Annotation,
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionChoice,
    FunctionTool,
    ImageGenerationCallItem,
    InputAudio,
    InputFile,
    InputImage,
    InputText,
    JsonObjectFormat,
    JsonSchemaFormat,
    MessageItem,
    OutputRefusal,
    OutputText,
    ReasoningItem,
    ResponsesBody,
)
from cliproxy.translators.policy_clients import FromResponses, ResponsesField

FIELD_NAMES: dict[str, str] = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "system": "instructions",
    "logprobs": "top_logprobs",
    "output": "text.format",
    "output.kind": "text.format.type",
    "thinking": "reasoning",
    "verbosity": "text.verbosity",
    "cache_key": "prompt_cache_key",
    "cache": "prompt_cache_breakpoint",
}

LOGPROBS = "message.output_text.logprobs"
_INCLUDES_OF_ANSWERS = frozenset({"reasoning.encrypted_content"})  # signatures are always given
_INCLUDES_OF_HOSTED_TOOLS = (
    "file_search_call.",
    "web_search_call.",
    "code_interpreter_call.",
    "computer_call_output.",
    "message.input_image.",
)  # they add to what such tools left, and here are none
PARAGRAPH = "\n\n"  # between two parts of a summary, of which the hub has one


def conversation_of(request: ResponsesRequest) -> ConversationRequest:
    """Return `request` in the hub's words. Raises `UnsupportedFeature` with the path of what the hub has no place for."""
    wire = request.wire
    losses = FromResponses()
    if request.state:
        raise losses.refusal(ResponsesField.STATE, request.state)
    _lose_settings(request, losses)
    history = _History(wire, losses)
    text = wire.text
    return ConversationRequest(
        dialect=Dialect.OPENAI_RESPONSES,
        model=request.model,
        stream=request.stream,
        max_tokens=request.max_tokens,
        messages=tuple(history.messages),
        system=tuple(history.system),
        tools=tuple(_tool(tool, index, losses) for index, tool in enumerate(wire.tools or ())),
        tool_choice=_tool_choice(wire.tool_choice),
        parallel_tool_calls=wire.parallel_tool_calls,
        temperature=wire.temperature,
        top_p=wire.top_p,
        logprobs=_logprobs(wire),
        output=_output(text.format) if text is not None else None,
        thinking=_thinking(wire),
        verbosity=(text.verbosity or "") if text is not None else "",
        user=wire.safety_identifier or wire.user or "",
        metadata=wire.metadata or None,
        service_tier=wire.service_tier or "",
        store=wire.store,
        cache_key=wire.prompt_cache_key or "",
        left_out=losses,
    )


def _lose_settings(request: ResponsesRequest, losses: FromResponses) -> None:
    """Say which settings have no place in the hub and may change the answer."""
    wire = request.wire
    if wire.truncation not in (None, "disabled"):
        losses.lose(ResponsesField.TRUNCATION)
    if wire.prompt_cache_options is not None:
        losses.lose(ResponsesField.CACHE_OPTIONS)
    for index, name in enumerate(wire.include or ()):
        if name != LOGPROBS and name not in _INCLUDES_OF_ANSWERS and not name.startswith(_INCLUDES_OF_HOSTED_TOOLS):
            losses.lose(ResponsesField.INCLUDE, f"include[{index}]")
    if wire.reasoning is not None:
        if wire.reasoning.context not in (None, "auto"):
            losses.lose(ResponsesField.REASONING_CONTEXT)
        if wire.reasoning.mode not in (None, "standard"):
            losses.lose(ResponsesField.REASONING_MODE)
    for name, value in request.rest.items():
        if name not in KNOWN_FIELDS and value is not None:
            losses.lose(ResponsesField.UNKNOWN, name)


def _logprobs(wire: ResponsesBody) -> int | None:
    if wire.top_logprobs:
        return wire.top_logprobs
    return 0 if LOGPROBS in (wire.include or ()) else None


def _thinking(wire: ResponsesBody) -> Thinking | None:
    reasoning = wire.reasoning
    if reasoning is None:
        return None
    show = True if reasoning.summary or reasoning.generate_summary else None
    return Thinking(effort=reasoning.effort or "", show=show) if reasoning.effort or show else None


def _output(form: Any) -> OutputFormat | None:
    if isinstance(form, JsonObjectFormat):
        return OutputFormat("object")
    if isinstance(form, JsonSchemaFormat):
        return OutputFormat("schema", form.name, form.description or "", form.schema, form.strict)
    return None


def _tool(tool: Any, index: int, losses: FromResponses) -> Tool:
    if not isinstance(tool, FunctionTool):
        raise losses.refusal(ResponsesField.HOSTED_TOOL, f"tools[{index}]")
    if tool.defer_loading:
        losses.lose(ResponsesField.DEFER_LOADING, f"tools[{index}].defer_loading")
    if tool.allowed_callers is not None and "direct" not in tool.allowed_callers:
        losses.lose(ResponsesField.ALLOWED_CALLERS, f"tools[{index}].allowed_callers")
    return Tool(tool.name, tool.description or "", tool.parameters, tool.strict)


def _tool_choice(choice: Any) -> ToolChoice | None:
    if choice is None or isinstance(choice, str):
        return ToolChoice(choice) if choice is not None else None  # type: ignore[arg-type]  # the wire knows three words
    if isinstance(choice, FunctionChoice):
        return ToolChoice("named", (choice.name,))
    if isinstance(choice, AllowedToolsChoice):
        return ToolChoice(choice.mode, tuple(_allowed(tool, index) for index, tool in enumerate(choice.tools)))
    raise FromResponses.refusal(ResponsesField.TOOL_CHOICE)


def _allowed(tool: Mapping[str, Any], index: int) -> str:
    name = tool.get("name")
    if tool.get("type") != "function" or not isinstance(name, str):
        raise FromResponses.refusal(ResponsesField.ALLOWED_TOOL, f"tool_choice.tools[{index}]")
    return name


class _History:
    """Reads the items in order."""

    __slots__ = ("_losses", "_parts", "_role", "_tool_names", "messages", "system")

    def __init__(self, wire: ResponsesBody, losses: FromResponses) -> None:
        self._losses = losses
        self.system: list[Text] = [Text(wire.instructions)] if wire.instructions else []
        self.messages: list[Message] = []
        self._tool_names: dict[str, str] = {}
        self._role: Any = ""
        self._parts: list[Part] = []
        if isinstance(wire.input, str):
            self._add("user", Text(wire.input))
        else:
            for index, item in enumerate(wire.input or ()):
                self._item(item, f"input[{index}]")
        self._end_message()

    def _add(self, role: str, part: Part) -> None:
        if role != self._role:
            self._end_message()
            self._role = role
        self._parts.append(part)

    def _end_message(self) -> None:
        if self._parts:
            self.messages.append(Message(self._role, tuple(self._parts)))
            self._parts = []

    def _item(self, item: Any, at: str) -> None:
        if isinstance(item, MessageItem):
            self._message(item, at)
        elif isinstance(item, FunctionCallItem):
            if item.namespace or (item.caller is not None and item.caller.get("type") != "direct"):
                raise self._losses.refusal(ResponsesField.CALLED_BY_CODE, at)
            self._tool_names[item.call_id] = item.name
            self._add("assistant", ToolCall(item.call_id, item.name, item.arguments, at=at))
        elif isinstance(item, FunctionCallOutputItem):
            content = tuple(part for part in _input_parts(item.output, f"{at}.output") if not isinstance(part, Audio))  # the wire has none there
            self._add("user", ToolResult(item.call_id, self._tool_names.get(item.call_id, ""), content, at=at))
        elif isinstance(item, ReasoningItem):
            self._reasoning(item, at)
        elif isinstance(item, ImageGenerationCallItem) and item.result:
            self._add("assistant", Image("image/png", item.result, at=at))  # the tool's default; the item does not have to say
        else:
            raise self._losses.refusal(ResponsesField.ITEM, at)

    def _message(self, item: MessageItem, at: str) -> None:
        if item.role == "assistant":
            if isinstance(item.content, str):
                self._add("assistant", Text(item.content))
            else:
                for index, part in enumerate(item.content):
                    self._add("assistant", _said(part, f"{at}.content[{index}]"))
        elif item.role == "user":
            for heard in _input_parts(item.content, f"{at}.content"):
                self._add("user", heard)
        else:
            if self._role:
                raise self._losses.refusal(ResponsesField.INSTRUCTIONS_BETWEEN, at)
            for told in _input_parts(item.content, f"{at}.content"):
                if not isinstance(told, Text):
                    raise self._losses.refusal(ResponsesField.INSTRUCTION_PART, told.at)
                self.system.append(told)

    def _reasoning(self, item: ReasoningItem, at: str) -> None:
        text = PARAGRAPH.join(part.text for parts in (item.summary, item.content) for part in parts or ())
        tagged = None
        if item.encrypted_content:
            tagged = untag(item.encrypted_content)
            if tagged is None:
                raise SchemaError("This is not what the answer said.", param=f"{at}.encrypted_content", code="invalid_value")
        if tagged is not None and tagged.kind is Kind.CALL:
            self._sign_call(tagged, at)
        else:
            self._add("assistant", reasoning_of(text, tagged, item.id or ""))

    def _sign_call(self, tagged: Tagged, at: str) -> None:
        call = self._parts[-1] if self._parts else None
        if not isinstance(call, ToolCall):
            raise SchemaError("This belongs behind the tool call that it followed in the answer.", param=at, code="invalid_value")
        self._parts[-1] = ToolCall(call.id, call.name, call.arguments, tagged.text, call.at)


def reasoning_of(text: str, tagged: Tagged | None, id: str) -> Reasoning:
    """Return a thought. One without a text of its own, or without a summary, is `redacted`."""
    if tagged is None:
        return Reasoning(text, id=id)
    if tagged.kind is Kind.REDACTED or not text:
        return Reasoning(redacted=tagged.text, signer=tagged.signer, id=id)
    return Reasoning(text, tagged.text, signer=tagged.signer, id=id)


def _said(part: Any, at: str) -> Text | Refusal:
    if isinstance(part, OutputText):
        return Text(part.text, tuple(citation for raw in part.annotations or () if (citation := citation_of(raw)) is not None))
    if isinstance(part, OutputRefusal):
        return Refusal(part.refusal)
    if isinstance(part, InputText):
        return Text(part.text, cache=part.prompt_cache_breakpoint is not None)
    raise FromResponses.refusal(ResponsesField.PART, at)


def citation_of(annotation: Annotation) -> Citation | None:
    """Return what `annotation` says; `None` if it is one that names no source (`file_path`)."""
    if annotation.type == "url_citation":
        return Citation(annotation.url or "", annotation.title or "", start=_index(annotation.start_index), end=_index(annotation.end_index))
    if annotation.type == "file_citation":
        return Citation(title=annotation.filename or "", document=_index(annotation.index))
    return None


def _index(value: int | None) -> int:
    return value if value is not None and 0 <= value < 2**53 else -1


def _input_parts(content: Any, at: str) -> tuple[Text | Image | Document | Audio, ...]:
    if isinstance(content, str):
        return (Text(content),)
    return tuple(_heard(part, f"{at}[{index}]") for index, part in enumerate(content))


_AUDIO_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg"}


def _heard(part: Any, at: str) -> Text | Image | Document | Audio:
    if isinstance(part, InputText):
        return Text(part.text, cache=part.prompt_cache_breakpoint is not None)
    if isinstance(part, InputImage):
        return _image(part, at)
    if isinstance(part, InputFile):
        return _document(part, at)
    if isinstance(part, InputAudio) and part.input_audio.format in _AUDIO_TYPES:
        return Audio(_AUDIO_TYPES[part.input_audio.format], part.input_audio.data, at)
    raise FromResponses.refusal(ResponsesField.PART, at)


def _image(part: InputImage, at: str) -> Image:
    cache = part.prompt_cache_breakpoint is not None
    detail = part.detail if part.detail and part.detail != "auto" else ""
    if not part.image_url:
        raise FromResponses.refusal(ResponsesField.NO_DATA, at)
    if part.image_url[:5].lower() != "data:":
        return Image(url=part.image_url, detail=detail, at=at, cache=cache)
    media_type, data = _inline(part.image_url, f"{at}.image_url")
    return Image(media_type, data, detail=detail, at=at, cache=cache)


def _document(part: InputFile, at: str) -> Document:
    cache, title = part.prompt_cache_breakpoint is not None, part.filename or ""
    if part.file_url:
        return Document(url=part.file_url, title=title, at=at, cache=cache)
    if not part.file_data:
        raise FromResponses.refusal(ResponsesField.NO_DATA, at)
    media_type, data = _inline(part.file_data, f"{at}.file_data")
    return Document(media_type, data, title=title, at=at, cache=cache)


def _inline(url: str, at: str) -> tuple[str, str]:
    """Return media type and base64 text of a `data:` URL (RFC 2397)."""
    head, comma, data = url.partition(",")
    if comma and head[:5].lower() == "data:" and head.endswith(";base64"):
        media_type = head[5:].partition(";")[0].lower()
        if media_type:
            return media_type, data
    raise FromResponses.refusal(ResponsesField.DATA_URL, at)
