"""A chat completion request as bytes, with a place where egress puts the upstream's name of the model: the client's own, or one of the hub's.

What always holds: what leaves has a cap on output tokens, in the field that the target knows, and a stream asks for usage unless the target must not be asked.
"""

from __future__ import annotations

from typing import Any

from cliproxy.dialects import Dialect, Quirks
from cliproxy.formats.json_bounds import encode_json
from cliproxy.translators.conversation import (
    Audio,
    ConversationRequest,
    Document,
    Encoded,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Refusal,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cliproxy.translators.openai_chat.media import url_of
from cliproxy.translators.openai_chat.request import ChatRequest
from cliproxy.translators.policy_targets import HubField, ToChat

PREFIX = b'{"model":'
_NO_QUIRKS = Quirks.NONE

_AUDIO_FORMATS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}
_EFFORTS = ((4096, "low"), (16384, "medium"))  # tokens of a budget up to which it counts as that effort; more is `high`
# Fields that change no answer: of the hub, of chat, and what becomes of them elsewhere.
_HINTS = (
    ("metadata", "metadata", HubField.METADATA),
    ("service_tier", "service_tier", HubField.SERVICE_TIER),
    ("store", "store", HubField.STORE),
    ("verbosity", "verbosity", HubField.VERBOSITY),
    ("cache_key", "prompt_cache_key", HubField.CACHE_KEY),
)
_OPENAI = (Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES, Dialect.OPENAI_COMPLETIONS)


# --- the client's own --------------------------------------------------------------------------------------------------


def encode_same(request: ChatRequest, quirks: Quirks) -> Encoded:
    """Return `request` for an upstream of its own dialect. Changes nothing, so it can be called again.

    Raises `SchemaError` if the request is nested more deeply than the encoder goes.
    """
    rest = request.rest if quirks is _NO_QUIRKS else _bent(request.rest, quirks)
    return Encoded(PREFIX, b"," + encode_json(rest)[1:])  # `rest` is never empty: it holds the messages


def _bent(rest: dict[str, Any], quirks: Quirks) -> dict[str, Any]:
    """Return `rest` in the way of a target with `quirks`. A cap in both fields, which is the same, leaves as the one that the target knows."""
    rest = dict(rest)
    wanted, other = ("max_completion_tokens", "max_tokens") if quirks & Quirks.NEW_TOKEN_CAP else ("max_tokens", "max_completion_tokens")
    if quirks & (Quirks.NEW_TOKEN_CAP | Quirks.OLD_TOKEN_CAP):
        cap = rest.pop(other, None)
        if rest.get(wanted) is None:
            rest[wanted] = cap
    if quirks & Quirks.NO_STREAM_OPTIONS:
        rest.pop("stream_options", None)
    if quirks & Quirks.NO_DEVELOPER_ROLE:
        rest["messages"] = [{**message, "role": "system"} if message["role"] == "developer" else message for message in rest["messages"]]
    return rest


# --- the hub's ---------------------------------------------------------------------------------------------------------


def encode_conversation(request: ConversationRequest, quirks: Quirks) -> Encoded:
    """Return `request` as a chat completion. Raises `UnsupportedFeature` for what chat cannot say.

    What becomes of what it cannot say: `policy_targets.ToChat`. Hints that change no answer are said only to targets of OpenAI's own kind.
    """
    losses = ToChat(request.left_out)
    body: dict[str, Any] = {"messages": _messages(request, losses)}
    body["max_completion_tokens" if quirks & Quirks.NEW_TOKEN_CAP else "max_tokens"] = request.max_tokens
    if request.stream:
        body["stream"] = True
        if not quirks & Quirks.NO_STREAM_OPTIONS:
            body["stream_options"] = {"include_usage": True}
    if request.top_k is not None:
        losses.lose(HubField.TOP_K)
    if request.logprobs is not None:  # they could be asked for, but their way back is through the hub
        losses.lose(HubField.LOGPROBS)
    if request.tools:
        body["tools"] = [_tool(tool, losses) for tool in request.tools]
    if request.tool_choice is not None:
        body["tool_choice"] = _tool_choice(request.tool_choice)
    if request.n > 1:
        body["n"] = request.n
    if request.stop:
        body["stop"] = list(request.stop)
    for name in ("parallel_tool_calls", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias"):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    if request.output is not None:
        body["response_format"] = _response_format(request.output)
    if request.thinking is not None:
        _think(request, body, losses)
    if request.user:
        body["user"] = request.user
    _hint(request, body, losses, quirks)
    return Encoded(PREFIX, b"," + encode_json(body)[1:], tuple(losses))


def _hint(request: ConversationRequest, body: dict[str, Any], losses: ToChat, quirks: Quirks) -> None:
    """Imitations refuse fields that they do not know, and other vendors' words mean nothing to OpenAI."""
    takes_hints = request.dialect in _OPENAI and bool(quirks & Quirks.NEW_TOKEN_CAP)
    for name, field, hub in _HINTS:
        value = getattr(request, name)
        if value is None or value == "":
            continue
        if takes_hints:
            body[field] = value
        else:
            losses.lose(hub)


def _think(request: ConversationRequest, body: dict[str, Any], losses: ToChat) -> None:
    """A budget is said as the nearest effort; that there is to be none is left out, since models that never think refuse the field."""
    thinking = request.thinking
    if thinking is None:
        return
    if thinking.show is not None or (thinking.budget is not None and not thinking.effort):
        losses.lose(HubField.BUDGET)
    if thinking.effort:
        body["reasoning_effort"] = thinking.effort
    elif thinking.budget:
        body["reasoning_effort"] = next((effort for most, effort in _EFFORTS if thinking.budget <= most), "high")


def _tool(tool: Tool, losses: ToChat) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    if tool.cache:
        losses.lose(HubField.CACHE)
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> Any:
    named = [{"type": "function", "function": {"name": name}} for name in choice.names]
    if choice.mode == "named":
        if len(named) != 1:
            raise ToChat.refusal(HubField.TOOL_CHOICE)
        return named[0]
    if named:
        if choice.mode == "none":
            raise ToChat.refusal(HubField.TOOL_CHOICE)
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": named}}
    return choice.mode


def _response_format(output: OutputFormat) -> dict[str, Any]:
    if output.kind == "object":
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": output.name or "answer"}  # OpenAI wants one
    if output.description:
        schema["description"] = output.description
    if output.schema is not None:
        schema["schema"] = output.schema
    if output.strict is not None:
        schema["strict"] = output.strict
    return {"type": "json_schema", "json_schema": schema}


# --- messages ----------------------------------------------------------------------------------------------------------


def _messages(request: ConversationRequest, losses: ToChat) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": _text_content(request.system, losses)})
    for message in request.messages:
        if message.role == "assistant":
            messages.append(_assistant(message, losses))
        else:
            _user(message, messages, losses)
    return messages


def _text_content(texts: tuple[Text, ...], losses: ToChat) -> Any:
    if any(text.cache for text in texts):
        losses.lose(HubField.CACHE)
    return texts[0].text if len(texts) == 1 else [{"type": "text", "text": text.text} for text in texts]


def _user(message: Message, messages: list[dict[str, Any]], losses: ToChat) -> None:
    """Results come first: they must follow their calls at once."""
    said: list[Part] = []
    for part in message.parts:
        if isinstance(part, ToolResult):
            messages.append(_tool_message(part, losses))
        else:
            said.append(part)
    if not said:
        return
    if len(said) == 1 and isinstance(said[0], Text):
        messages.append({"role": "user", "content": _text_content((said[0],), losses)})
    else:
        messages.append({"role": "user", "content": [_user_part(part, losses) for part in said]})


def _tool_message(result: ToolResult, losses: ToChat) -> dict[str, Any]:
    texts: list[Text] = []
    for part in result.content:
        if isinstance(part, Text):
            texts.append(part)
        else:
            losses.lose(HubField.RESULT_MEDIA, part.at or result.at)
    if result.is_error:
        losses.lose(HubField.RESULT_ERROR, result.at)
    if result.cache:
        losses.lose(HubField.CACHE)
    return {"role": "tool", "tool_call_id": result.call_id, "content": _text_content(tuple(texts), losses) if texts else ""}


def _user_part(part: Part, losses: ToChat) -> dict[str, Any]:
    if isinstance(part, Text | Image | Document) and part.cache:
        losses.lose(HubField.CACHE)
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        image = {"url": url_of(part)}
        if part.detail:
            image["detail"] = part.detail
        return {"type": "image_url", "image_url": image}
    if isinstance(part, Audio):
        form = _AUDIO_FORMATS.get(part.media_type)
        if form is None:
            raise losses.refusal(HubField.AUDIO, part.at)
        return {"type": "input_audio", "input_audio": {"data": part.data, "format": form}}
    if isinstance(part, Document):
        if not part.data:
            raise losses.refusal(HubField.DOCUMENT, part.at)
        if part.citations:
            losses.lose(HubField.DOCUMENT_CITATIONS, part.at)
        return {"type": "file", "file": {"file_data": f"data:{part.media_type};base64,{part.data}", "filename": part.title or "document.pdf"}}
    raise losses.refusal(HubField.UNKNOWN_PART, getattr(part, "at", ""))


def _assistant(message: Message, losses: ToChat) -> dict[str, Any]:
    said: list[Text | Refusal] = []
    calls: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, ToolCall):
            if part.signature:
                losses.lose(HubField.CALL_SIGNATURE)
            calls.append({"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}})
        elif isinstance(part, Reasoning):
            losses.lose(HubField.THOUGHTS)
        elif isinstance(part, Text | Refusal):
            if isinstance(part, Text) and part.citations:
                losses.lose(HubField.CITATIONS)
            said.append(part)
        elif isinstance(part, Image):
            losses.lose(HubField.ASSISTANT_IMAGE, part.at)
        else:
            raise losses.refusal(HubField.UNKNOWN_PART, part.at)
    encoded: dict[str, Any] = {"role": "assistant", "content": _assistant_content(said, losses)}
    if len(said) == 1 and isinstance(said[0], Refusal):
        encoded["refusal"] = said[0].text
    if calls:
        encoded["tool_calls"] = calls
    elif not said:
        encoded["content"] = ""  # null is for calls only
    return encoded


def _assistant_content(said: list[Text | Refusal], losses: ToChat) -> Any:
    if not said or (len(said) == 1 and isinstance(said[0], Refusal)):
        return None
    texts = tuple(part for part in said if isinstance(part, Text))
    if len(texts) == len(said):
        return _text_content(texts, losses)
    return [{"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "refusal", "refusal": part.text} for part in said]
