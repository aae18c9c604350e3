"""Responses requests as bytes, with a place where egress puts the upstream's name of the model: a client's own, or one from the hub.

A body from the hub asks the provider to store nothing: the gateway's clients share its account (ADR 0096), and the whole history comes along.
"""

from __future__ import annotations

from binascii import b2a_base64
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
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cliproxy.translators.openai_responses.provider_state import ENCRYPTED_REASONING
from cliproxy.translators.openai_responses.request import ResponsesRequest
from cliproxy.translators.policy_clients import FromResponses, ResponsesField
from cliproxy.translators.policy_targets import HubField, ToResponses

PREFIX = b'{"model":'
MAX_USER_CHARS = 64  # OpenAI: `user`, `prompt_cache_key`; longer ones are refused
MAX_METADATA = (16, 64, 512)  # OpenAI: entries, characters of a key and of a value
_OPENAI = frozenset({Dialect.OPENAI_RESPONSES, Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS})
_LOW_BUDGET, _MEDIUM_BUDGET = 4096, 16384  # tokens up to which a budget counts as that effort


def encode_same(request: ResponsesRequest, quirks: Quirks) -> Encoded:
    """Return a request for an upstream of its own dialect. Changes nothing, so it can be called again.

    Raises `UnsupportedFeature` if the request names something kept and the upstream keeps nothing, `SchemaError` if it is nested more deeply than the encoder
    goes.
    """
    if request.state and quirks & Quirks.STATELESS:
        raise FromResponses.refusal(ResponsesField.STATE, request.state)
    return Encoded(PREFIX, b"," + encode_json(request.rest)[1:], request.dropped)  # `rest` is never empty: it holds the cap


def encode_conversation(request: ConversationRequest, quirks: Quirks) -> Encoded:
    """Return `request` for an upstream of this dialect. Raises `UnsupportedFeature` with the hub's field, or the part's `at`, that it cannot say."""
    encoder = _Encoder(request, quirks)
    return Encoded(PREFIX, b"," + encode_json(encoder.body)[1:], tuple(encoder.losses))


def _lose_settings(request: ConversationRequest, losses: ToResponses) -> None:
    """Say which settings that change answers Responses does not have."""
    for field, said in (
        (HubField.N, request.n != 1),
        (HubField.STOP, bool(request.stop)),
        (HubField.TOP_K, request.top_k is not None),
        (HubField.PRESENCE_PENALTY, bool(request.presence_penalty)),
        (HubField.FREQUENCY_PENALTY, bool(request.frequency_penalty)),
        (HubField.LOGIT_BIAS, bool(request.logit_bias)),
        (HubField.LOGPROBS, request.logprobs is not None),
    ):
        if said:
            losses.lose(field)


class _Encoder:
    """Builds the body, and notes what it leaves out."""

    __slots__ = ("_signed", "body", "losses")

    def __init__(self, request: ConversationRequest, quirks: Quirks) -> None:
        self.losses = ToResponses(request.left_out)
        _lose_settings(request, self.losses)
        self._signed = False
        items: list[dict[str, Any]] = []
        self.body: dict[str, Any] = {"input": items, "max_output_tokens": request.max_tokens, "store": False}
        self._system(request.system, items, quirks)
        for message in request.messages:
            self._message(message, items)
        if request.stream:
            self.body["stream"] = True
        self._tools(request)
        self._settings(request)

    def _system(self, system: tuple[Text, ...], items: list[dict[str, Any]], quirks: Quirks) -> None:
        if any(text.cache for text in system):
            self.losses.lose(HubField.CACHE)
        if len(system) == 1:
            self.body["instructions"] = system[0].text
        elif system:
            role = "system" if quirks & Quirks.NO_DEVELOPER_ROLE else "developer"
            items.append({"type": "message", "role": role, "content": [{"type": "input_text", "text": text.text} for text in system]})

    # --- messages ---

    def _message(self, message: Message, items: list[dict[str, Any]]) -> None:
        """Append the items of `message`: its texts, pictures and files together as far as no call, result or thought stands between them."""
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, ToolCall | ToolResult | Reasoning):
                item = self._item(part)
                if item is not None:
                    content = _flush(message, content, items)
                    items.append(item)
            elif message.role == "assistant":
                said = self._said(part)
                if said is not None:
                    content.append(said)
            else:
                content.append(self._heard(part))
        _flush(message, content, items)

    def _item(self, part: ToolCall | ToolResult | Reasoning) -> dict[str, Any] | None:
        if isinstance(part, ToolCall):
            if part.signature:
                self.losses.lose(HubField.CALL_SIGNATURE)
            return {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": part.arguments}
        if isinstance(part, ToolResult):
            if part.is_error:
                self.losses.lose(HubField.RESULT_ERROR, part.at)
            if part.cache:
                self.losses.lose(HubField.CACHE)
            return {"type": "function_call_output", "call_id": part.call_id, "output": self._output(part)}
        encrypted = part.signature or part.redacted
        if part.signer is not Dialect.OPENAI_RESPONSES or not encrypted:
            self.losses.lose(HubField.THOUGHTS)
            return None
        self._signed = True
        summary = [{"type": "summary_text", "text": part.text}] if part.text else []
        item: dict[str, Any] = {"type": "reasoning", "summary": summary, "encrypted_content": encrypted}
        if part.id:
            item["id"] = part.id
        return item

    def _output(self, result: ToolResult) -> str | list[dict[str, Any]]:
        if not result.content:
            return ""
        first = result.content[0]
        if len(result.content) == 1 and isinstance(first, Text):
            return first.text
        return [self._heard(part) for part in result.content]

    def _said(self, part: Part) -> dict[str, Any] | None:
        """Return a part of an assistant's turn; `None` for one that is left out."""
        if isinstance(part, Text):
            if part.cache:
                self.losses.lose(HubField.CACHE)
            if part.citations:
                self.losses.lose(HubField.CITATIONS)
            return {"type": "output_text", "text": part.text, "annotations": []}
        if isinstance(part, Refusal):
            return {"type": "refusal", "refusal": part.text}
        if isinstance(part, Image):
            self.losses.lose(HubField.ASSISTANT_IMAGE, part.at)
            return None
        raise self.losses.refusal(HubField.UNKNOWN_PART, getattr(part, "at", ""))

    def _heard(self, part: Part) -> dict[str, Any]:
        if isinstance(part, Text | Image | Document) and part.cache:
            self.losses.lose(HubField.CACHE)
        if isinstance(part, Text):
            return {"type": "input_text", "text": part.text}
        if isinstance(part, Image):
            url = part.url or f"data:{part.media_type};base64,{part.data}"
            return {"type": "input_image", "image_url": url, "detail": part.detail or "auto"}
        if isinstance(part, Document):
            if part.citations:
                self.losses.lose(HubField.DOCUMENT_CITATIONS, part.at)
            if part.url:
                return {"type": "input_file", "file_url": part.url, **({"filename": part.title} if part.title else {})}
            if part.data:
                data = f"data:{part.media_type};base64,{part.data}"
                return {"type": "input_file", "filename": part.title or _FILE_NAMES.get(part.media_type, "file"), "file_data": data}
            if part.text:  # the vendor reads the name's suffix
                name = part.title if part.title.endswith(".txt") else f"{part.title or 'document'}.txt"
                data = "data:text/plain;base64," + b2a_base64(part.text.encode(), newline=False).decode()
                return {"type": "input_file", "filename": name, "file_data": data}
            raise self.losses.refusal(HubField.DOCUMENT, part.at)
        if isinstance(part, Audio):
            raise self.losses.refusal(HubField.AUDIO, part.at)
        raise self.losses.refusal(HubField.UNKNOWN_PART, getattr(part, "at", ""))

    # --- tools and settings ---

    def _tools(self, request: ConversationRequest) -> None:
        if request.tools:
            if any(tool.cache for tool in request.tools):
                self.losses.lose(HubField.CACHE)
            self.body["tools"] = [_tool(tool) for tool in request.tools]
        if request.tool_choice is not None:
            self.body["tool_choice"] = _tool_choice(request.tool_choice)

    def _settings(self, request: ConversationRequest) -> None:
        for name, value in (
            ("parallel_tool_calls", request.parallel_tool_calls),
            ("temperature", request.temperature),
            ("top_p", request.top_p),
        ):
            if value is not None:
                self.body[name] = value
        text: dict[str, Any] = {}
        if request.output is not None:
            text["format"] = _format(request.output)
        if request.verbosity:
            text["verbosity"] = request.verbosity
        if text:
            self.body["text"] = text
        self._reasoning(request.thinking)
        self._hints(request)

    def _reasoning(self, thinking: Thinking | None) -> None:
        reasoning: dict[str, Any] = {}
        if thinking is not None:
            effort = thinking.effort or _effort(thinking.budget)
            if thinking.budget is not None and not thinking.effort:
                self.losses.lose(HubField.BUDGET)
            if effort:
                reasoning["effort"] = effort
            if thinking.show:
                reasoning["summary"] = "auto"
        if reasoning:
            self.body["reasoning"] = reasoning
        if self._signed or (reasoning and reasoning.get("effort") != "none"):  # models that do not reason refuse it: never unasked
            self.body["include"] = [ENCRYPTED_REASONING]

    def _hints(self, request: ConversationRequest) -> None:
        """What changes no answer: said where the vendor takes it, else left out."""
        for field, name, value, fits in (
            (HubField.USER, "user", request.user, len(request.user) <= MAX_USER_CHARS),
            (HubField.CACHE_KEY, "prompt_cache_key", request.cache_key, len(request.cache_key) <= MAX_USER_CHARS),
            (HubField.SERVICE_TIER, "service_tier", request.service_tier, request.dialect in _OPENAI),  # each vendor has its own words
            (HubField.METADATA, "metadata", request.metadata, _is_metadata(request.metadata)),
            (HubField.SEED, "", request.seed is not None, False),
            (HubField.STORE, "", request.store, False),
        ):
            if value and fits:
                self.body[name] = value
            elif value:
                self.losses.lose(field)


_FILE_NAMES = {"application/pdf": "document.pdf", "text/plain": "document.txt"}  # the vendor tells by the name what the file is


def _flush(message: Message, content: list[dict[str, Any]], items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if content:
        items.append({"type": "message", "role": message.role, "content": content})
    return []


def _tool(tool: Tool) -> dict[str, Any]:
    """`strict` is always said: this dialect takes its absence for true, every other for false."""
    parameters = tool.parameters if tool.parameters is not None else {"type": "object", "properties": {}}
    function: dict[str, Any] = {"type": "function", "name": tool.name, "parameters": parameters, "strict": tool.strict is True}
    if tool.description:
        function["description"] = tool.description
    return function


def _tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.mode == "named" and len(choice.names) == 1:
        return {"type": "function", "name": choice.names[0]}
    if choice.names and choice.mode != "none":
        mode = "required" if choice.mode == "named" else choice.mode
        return {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name} for name in choice.names]}
    return "required" if choice.mode == "named" else choice.mode


def _format(output: OutputFormat) -> dict[str, Any]:
    if output.kind == "object":
        return {"type": "json_object"}
    form: dict[str, Any] = {"type": "json_schema", "name": output.name or "answer", "schema": output.schema if output.schema is not None else {}}
    if output.description:
        form["description"] = output.description
    if output.strict is not None:
        form["strict"] = output.strict
    return form


def _effort(budget: int | None) -> str:
    """Return the effort nearest to `budget`; empty for none, which models that never think refuse to hear, and for -1, Gemini's "as much as it takes"."""
    if budget is None or budget <= 0:
        return ""
    return "low" if budget <= _LOW_BUDGET else "medium" if budget <= _MEDIUM_BUDGET else "high"


def _is_metadata(metadata: dict[str, str] | None) -> bool:
    entries, key, value = MAX_METADATA
    return metadata is not None and len(metadata) <= entries and all(len(k) <= key and len(v) <= value for k, v in metadata.items())
