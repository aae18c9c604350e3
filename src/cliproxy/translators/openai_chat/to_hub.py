"""A checked chat completion request in the words of the hub.

What always holds: whatever is in the body and has no place in the hub is refused with its path: fields that are not known here too, at every depth.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.dialects import Dialect
from cliproxy.translators.conversation import (
    AssistantPart,
    Audio,
    ConversationRequest,
    Document,
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
from cliproxy.translators.openai_chat import wire
from cliproxy.translators.openai_chat.answer_parts import citations_of, thoughts_of
from cliproxy.translators.openai_chat.media import MEDIA_TYPE_OF_AUDIO, data_of, image_of, is_on_the_web
from cliproxy.translators.openai_chat.request import ChatRequest
from cliproxy.translators.policy_clients import ChatField, FromChat

_OWN_NAMES = """
    model stream max_tokens messages tools tool_choice parallel_tool_calls n temperature top_p top_k stop seed presence_penalty frequency_penalty
    logit_bias logprobs verbosity user metadata service_tier store
"""
FIELD_NAMES = {name: name for name in _OWN_NAMES.split()} | {
    "system": "messages",
    "output": "response_format",
    "output.kind": "response_format.type",
    "thinking": "reasoning_effort",
    "cache_key": "prompt_cache_key",
    "cache": "messages",
}

_UNTRANSLATED = {field.param: field for field in (ChatField.AUDIO, ChatField.PREDICTION, ChatField.CACHE_RETENTION, ChatField.WEB_SEARCH)}


def conversation_of(request: ChatRequest) -> ConversationRequest:
    """Return what `request` asks for. Raises `UnsupportedFeature` naming the first thing that has no place in the hub."""
    body = request.wire
    losses = FromChat()
    _verify_known(body, request.rest, "", losses)
    if not _UNTRANSLATED.keys().isdisjoint(request.rest):
        for name, field in _UNTRANSLATED.items():
            if getattr(body, name) is not None:
                losses.lose(field)
    if body.logprobs or body.top_logprobs:
        losses.lose(ChatField.LOGPROBS)
    if body.modalities is not None and body.modalities != ["text"]:
        losses.lose(ChatField.MODALITIES)
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        losses.lose(ChatField.OBFUSCATION)
    system, messages = _History(losses).read(body.messages)
    # Positional, in the order of the fields: keywords cost as much as everything else here.
    return ConversationRequest(
        Dialect.OPENAI_CHAT,
        request.model,
        request.stream,
        request.max_tokens,
        messages,
        system,
        _tools(body, losses),
        _tool_choice(body),
        body.parallel_tool_calls,
        request.n,
        body.temperature,
        body.top_p,
        None,  # top_k: nothing of chat's
        (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        body.seed,
        body.presence_penalty,
        body.frequency_penalty,
        body.logit_bias,
        None,  # logprobs: refused above
        _output(body),
        Thinking(body.reasoning_effort) if body.reasoning_effort else None,
        body.verbosity or "",
        body.user or body.safety_identifier or "",
        body.metadata,
        body.service_tier or "",
        body.store,
        body.prompt_cache_key or "",
        losses,
    )


# --- what is not known -------------------------------------------------------------------------------------------------


def _verify_known(typed: Any, raw: Any, path: str, losses: FromChat) -> None:
    """Lose what `raw` says and `typed` does not know. Objects that are not typed any further (JSON Schemas) are taken as they are."""
    if isinstance(typed, list):
        for index, (item, plain) in enumerate(zip(typed, raw, strict=True)):
            if type(plain) is dict and len(plain) == 2 and type(plain.get("content")) is str and "role" in plain:
                continue  # most messages: a role and a text
            if isinstance(item, msgspec.Struct):
                _verify_known(item, plain, f"{path}[{index}]", losses)
        return
    kind = type(typed)
    names = _KNOWN.get(kind) or _names_of(kind)
    if not names.issuperset(raw):
        for name, value in raw.items():
            if name not in names and value is not None:
                losses.lose(ChatField.UNKNOWN, f"{path}.{name}" if path else name)
    for name, value in raw.items():
        if type(value) in _DEEP and name in names:
            known = getattr(typed, name)
            if isinstance(known, list | msgspec.Struct):
                _verify_known(known, value, f"{path}.{name}" if path else name, losses)


_DEEP = frozenset({dict, list})  # values that hold names
_KNOWN: dict[type, frozenset[str]] = {}


def _names_of(kind: type[msgspec.Struct]) -> frozenset[str]:
    tag = kind.__struct_config__.tag_field
    names = _KNOWN[kind] = frozenset((*kind.__struct_fields__, tag) if tag is not None else kind.__struct_fields__)
    return names


# --- messages ----------------------------------------------------------------------------------------------------------


_INSTRUCTIONS = (wire.SystemMessage, wire.DeveloperMessage)
_NAMED_BY_THE_VENDOR = frozenset({wire.ToolMessage, wire.FunctionMessage})


class _History:
    """Turns as they are read, and what later ones refer to."""

    def __init__(self, losses: FromChat) -> None:
        self._losses = losses
        self._messages: list[Message] = []
        self._names: dict[str, str] = {}  # of tools, by the id of the call
        self._called: list[tuple[str, str]] = []  # deprecated function calls that have no result yet: name, id
        self._results: list[Part] = []  # of the turn's calls, until the user says something

    def read(self, messages: list[wire.Message]) -> tuple[tuple[Text, ...], tuple[Message, ...]]:
        system: list[Text] = []
        for index, message in enumerate(messages):
            kind = type(message)
            if type(message.content) is str and not message.name and not self._results:  # the plain ones, which are most
                if kind is wire.UserMessage:
                    self._messages.append(Message("user", (Text(message.content),)))
                    continue
                if kind is wire.SystemMessage and not self._messages:
                    system.append(Text(message.content))
                    continue
            at = f"messages[{index}]"
            if message.name and kind not in _NAMED_BY_THE_VENDOR:
                self._losses.lose(ChatField.SPEAKER, f"{at}.name")
            if isinstance(message, _INSTRUCTIONS):
                if self._messages or self._results:
                    raise self._losses.refusal(ChatField.INSTRUCTIONS_BETWEEN, f"{at}.role")
                system += _texts(message.content, at, self._losses)
            elif isinstance(message, wire.ToolMessage):
                name = self._names.get(message.tool_call_id) or message.name or ""
                self._results.append(ToolResult(message.tool_call_id, name, _result(message.content, at, self._losses), at=at))
            elif isinstance(message, wire.FunctionMessage):
                self._results.append(self._function_result(message, at))
            elif isinstance(message, wire.UserMessage):
                self._messages.append(Message("user", (*self._results, *_user_parts(message.content, f"{at}.content", self._losses))))
                self._results = []
            else:
                self._flush()
                self._messages.append(Message("assistant", tuple(self._assistant_parts(message, at))))
        self._flush()
        return tuple(system), tuple(self._messages)

    def _flush(self) -> None:
        if self._results:
            self._messages.append(Message("user", tuple(self._results)))
            self._results = []

    def _function_result(self, message: wire.FunctionMessage, at: str) -> ToolResult:
        for index, (name, id) in enumerate(self._called):
            if name == message.name:
                del self._called[index]
                return ToolResult(id, name, _result(message.content or "", at, self._losses), at=at)
        raise self._losses.refusal(ChatField.FUNCTION_RESULT, f"{at}.name")

    def _assistant_parts(self, message: wire.AssistantMessage, at: str) -> list[AssistantPart]:
        if message.audio is not None:
            raise self._losses.refusal(ChatField.SPOKEN_ANSWER, f"{at}.audio")
        parts: list[AssistantPart] = []
        parts += thoughts_of(message.reasoning_details or ())
        thought = message.reasoning_content or message.reasoning
        if thought and not any(isinstance(part, Reasoning) and part.text for part in parts):
            parts.insert(0, Reasoning(thought))
        calls = self._calls(message, at)
        if isinstance(message.content, str):
            if message.content or not (parts or calls or message.refusal):
                parts.append(Text(message.content, tuple(citations_of(message.annotations))))
        else:
            for part in message.content or ():
                parts.append(
                    Refusal(part.refusal) if isinstance(part, wire.RefusalPart) else Text(part.text, cache=_cached(part.cache_control, at, self._losses))
                )
        if message.refusal:
            parts.append(Refusal(message.refusal))
        return parts + calls

    def _calls(self, message: wire.AssistantMessage, at: str) -> list[AssistantPart]:
        calls: list[AssistantPart] = []
        for index, call in enumerate(message.tool_calls or ()):
            where = f"{at}.tool_calls[{index}]"
            if isinstance(call, wire.CustomCall):
                raise self._losses.refusal(ChatField.CUSTOM_CALL, where)
            self._names[call.id] = call.function.name
            google = call.extra_content.google if call.extra_content is not None else None
            signature = google.thought_signature if google is not None else None
            calls.append(ToolCall(call.id, call.function.name, call.function.arguments or "{}", signature or "", at=where))
        called = message.function_call
        if called is not None:
            id = f"call_{at[9:-1]}"  # the index of the message: the deprecated form has no ids
            self._called.append((called.name, id))
            calls.append(ToolCall(id, called.name, called.arguments or "{}", at=f"{at}.function_call"))
        return calls


def _cached(control: wire.CacheControl | None, at: str, losses: FromChat) -> bool:
    if control is None:
        return False
    if control.ttl not in (None, "5m"):  # what a marker without a time means
        losses.lose(ChatField.CACHE_TTL, f"{at}.cache_control.ttl")
    return True


def _texts(content: wire.TextContent, at: str, losses: FromChat) -> list[Text]:
    if isinstance(content, str):
        return [Text(content)]
    return [Text(part.text, cache=_cached(part.cache_control, at, losses)) for part in content]


def _result(content: wire.TextContent, at: str, losses: FromChat) -> tuple[Text, ...]:
    return tuple(_texts(content, at, losses)) if content else ()


def _user_parts(content: wire.UserContent, path: str, losses: FromChat) -> list[Part]:
    if isinstance(content, str):
        return [Text(content)]
    parts: list[Part] = []
    for index, part in enumerate(content):
        at = f"{path}[{index}]"
        if isinstance(part, wire.TextPart):
            parts.append(Text(part.text, cache=_cached(part.cache_control, at, losses)))
        elif isinstance(part, wire.ImagePart):
            image = image_of(part.image_url.url, detail=part.image_url.detail or "", at=at, cache=_cached(part.cache_control, at, losses))
            if image is None:
                raise losses.refusal(ChatField.IMAGE_URL, f"{at}.image_url.url")
            parts.append(image)
        elif isinstance(part, wire.AudioPart):
            media_type = MEDIA_TYPE_OF_AUDIO.get(part.input_audio.format)
            if media_type is None:
                raise losses.refusal(ChatField.AUDIO_FORMAT, f"{at}.input_audio.format")
            parts.append(Audio(media_type, part.input_audio.data, at))
        else:
            parts.append(_document(part, at, losses))
    return parts


def _document(part: wire.FilePart, at: str, losses: FromChat) -> Document:
    """OpenAI takes base64 with and without the head of a `data:` URL; OpenRouter an address in its place."""
    file, cache = part.file, _cached(part.cache_control, at, losses)
    if file.file_id is not None:
        raise losses.refusal(ChatField.FILE_ID, f"{at}.file.file_id")
    if not file.file_data:
        raise losses.refusal(ChatField.FILE, f"{at}.file")
    title = file.filename or ""
    if is_on_the_web(file.file_data):
        return Document(url=file.file_data, title=title, at=at, cache=cache)
    if file.file_data.startswith("data:"):
        media_type, data = data_of(file.file_data)
    else:
        is_pdf = file.file_data.startswith("JVBERi") or title.lower().endswith(".pdf")  # `%PDF-` in base64
        media_type, data = ("application/pdf", file.file_data) if is_pdf else ("", "")
    if not data:
        raise losses.refusal(ChatField.FILE_TYPE, f"{at}.file.file_data")
    return Document(media_type, data, title=title, at=at, cache=cache)


# --- tools and settings ------------------------------------------------------------------------------------------------


def _tools(body: wire.ChatBody, losses: FromChat) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, tool in enumerate(body.tools or ()):
        if isinstance(tool, wire.CustomTool):
            raise losses.refusal(ChatField.CUSTOM_TOOL, f"tools[{index}]")
        tools.append(_tool(tool.function, cache=_cached(tool.cache_control, f"tools[{index}]", losses)))
    tools += [_tool(function) for function in body.functions or ()]
    return tuple(tools)


def _tool(function: wire.FunctionDefinition, *, cache: bool = False) -> Tool:
    return Tool(function.name, function.description or "", function.parameters, function.strict, cache)


def _tool_choice(body: wire.ChatBody) -> ToolChoice | None:
    choice = body.tool_choice
    if isinstance(choice, wire.CustomChoice):
        raise FromChat.refusal(ChatField.CUSTOM_CHOICE)
    if isinstance(choice, wire.FunctionChoice):
        return ToolChoice("named", (choice.function.name,))
    if isinstance(choice, wire.AllowedToolsChoice):
        return ToolChoice(choice.allowed_tools.mode, _allowed(choice.allowed_tools.tools))
    if choice is not None:
        return ToolChoice(choice)
    if isinstance(body.function_call, wire.Named):
        return ToolChoice("named", (body.function_call.name,))
    return ToolChoice(body.function_call) if body.function_call is not None else None


def _allowed(tools: list[dict[str, Any]]) -> tuple[str, ...]:
    names = []
    for index, tool in enumerate(tools):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) and tool.get("type") == "function" else None
        if not isinstance(name, str) or not name:
            raise FromChat.refusal(ChatField.ALLOWED_TOOL, f"tool_choice.allowed_tools.tools[{index}]")
        names.append(name)
    return tuple(names)


def _output(body: wire.ChatBody) -> OutputFormat | None:
    wanted = body.response_format
    if wanted is None or isinstance(wanted, wire.TextFormat):
        return None
    if isinstance(wanted, wire.JsonObjectFormat):
        return OutputFormat("object")
    schema = wanted.json_schema
    return OutputFormat("schema", schema.name, schema.description or "", schema.schema, schema.strict)
