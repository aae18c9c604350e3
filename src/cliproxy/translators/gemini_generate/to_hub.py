"""A checked `generateContent` request in the hub's types.

What always holds: whatever has no place in the hub is refused by its path, unknown fields included (`_verify_said`). Two things are left out without a word,
since they ask other vendors for nothing: safety settings that switch a filter off, and a part's `thought: false`.

Thinking, both ways. Going to Gemini an effort becomes a budget, since models before Gemini 3 refuse levels while Gemini 3 takes both; the numbers are those of
Google's own OpenAI-compatible endpoint.

| hub's effort | `thinkingBudget` | coming from `thinkingLevel` |
|---|---|---|
| none | 0 | |
| minimal | 1024 | MINIMAL |
| low | 1024 | LOW |
| medium | 8192 | MEDIUM |
| high | 24576 | HIGH |
| xhigh | 24576 | XHIGH |

A `thinkingBudget` is the hub's `budget`; -1 (as the model likes) is the same as none given. `includeThoughts` is `show`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.dialects import Dialect
from cliproxy.errors import SchemaError
from cliproxy.translators.conversation import (
    ConversationRequest,
    Document,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cliproxy.translators.gemini_generate import wire
from cliproxy.translators.gemini_generate.media import media_of_blob, media_of_file
from cliproxy.translators.gemini_generate.request import GeminiRequest
from cliproxy.translators.gemini_generate.schemas import json_schema_of
from cliproxy.translators.gemini_generate.signatures import is_tagged, thought_in
from cliproxy.translators.policy_clients import FromGemini, GeminiField

# A field of `ConversationRequest` and what a client of this dialect calls it.
FIELD_NAMES: dict[str, str] = {
    "model": "model",
    "stream": "stream",
    "max_tokens": "generationConfig.maxOutputTokens",
    "messages": "contents",
    "system": "systemInstruction",
    "tools": "tools",
    "tool_choice": "toolConfig.functionCallingConfig",
    "parallel_tool_calls": "toolConfig.functionCallingConfig",
    "n": "generationConfig.candidateCount",
    "temperature": "generationConfig.temperature",
    "top_p": "generationConfig.topP",
    "top_k": "generationConfig.topK",
    "stop": "generationConfig.stopSequences",
    "seed": "generationConfig.seed",
    "presence_penalty": "generationConfig.presencePenalty",
    "frequency_penalty": "generationConfig.frequencyPenalty",
    "logprobs": "generationConfig.responseLogprobs",
    "output": "generationConfig.responseJsonSchema",
    "output.kind": "generationConfig.responseMimeType",
    "thinking": "generationConfig.thinkingConfig",
    "metadata": "labels",
    "service_tier": "serviceTier",
    "store": "store",
}

# What is understood of each object. The rest of its fields is refused.
_BODY = frozenset({"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "safetySettings", "labels", "serviceTier", "store"})
_CONTENT = frozenset({"role", "parts"})
_PART = frozenset({"text", "inlineData", "fileData", "functionCall", "functionResponse", "thought", "thoughtSignature"})
_BLOB = frozenset({"mimeType", "data"})
_FILE = frozenset({"mimeType", "fileUri"})
_CALL = frozenset({"id", "name", "args"})
_RESPONSE = frozenset({"id", "name", "response", "parts"})
_RESPONSE_PART = frozenset({"inlineData", "fileData"})
_TOOL = frozenset({"functionDeclarations"})
_FUNCTION = frozenset({"name", "description", "parameters", "parametersJsonSchema"})
_TOOL_CONFIG = frozenset({"functionCallingConfig"})
_CALLING = frozenset({"mode", "allowedFunctionNames"})
_THINKING = frozenset({"includeThoughts", "thinkingBudget", "thinkingLevel"})
_SAMPLING = frozenset({"temperature", "topP", "topK", "candidateCount", "maxOutputTokens", "stopSequences", "presencePenalty", "frequencyPenalty", "seed"})
_CONFIG = _SAMPLING | {"responseMimeType", "responseSchema", "responseJsonSchema", "responseLogprobs", "logprobs", "thinkingConfig", "responseModalities"}
_NO_FILTER = frozenset({"OFF", "BLOCK_NONE"})
_EFFORTS = frozenset({"minimal", "low", "medium", "high", "xhigh"})


def conversation_of(request: GeminiRequest) -> ConversationRequest:
    """Return `request` in the hub's types. Raises `UnsupportedFeature` with the path of what has no place there, `SchemaError` for what makes no sense."""
    rest, body = request.rest, request.wire
    losses = FromGemini()
    _verify_said(rest, _BODY, "", losses)
    config = body.generation_config or wire.GenerationConfig()
    _verify_config(rest["generationConfig"], config, losses)
    for index, setting in enumerate(body.safety_settings or ()):
        if setting.threshold.upper() not in _NO_FILTER:
            losses.lose(GeminiField.SAFETY, f"safetySettings[{index}]")
    try:
        tools = tools_of(rest, body.tools, losses)
        output = _output(config)
    except RecursionError:
        raise SchemaError("The body is nested too deeply.", code="nested_too_deeply") from None
    return ConversationRequest(
        dialect=Dialect.GEMINI_GENERATE,
        model=request.model,
        stream=request.stream,
        max_tokens=request.max_tokens,
        messages=messages_of(rest["contents"], body.contents, losses),
        system=system_of(rest, body.system_instruction, losses),
        tools=tools,
        tool_choice=_tool_choice(rest, body.tool_config, losses),
        n=request.n,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=_whole(config.top_k),
        stop=tuple(config.stop_sequences or ()),
        seed=config.seed,
        presence_penalty=config.presence_penalty,
        frequency_penalty=config.frequency_penalty,
        logprobs=(config.logprobs or 0) if config.response_logprobs is True else None,
        output=output,
        thinking=_thinking(config.thinking_config, losses),
        metadata=body.labels,
        service_tier=body.service_tier or "",
        store=body.store,
        left_out=losses,
    )


def _verify_said(said: dict[str, Any], understood: frozenset[str], path: str, losses: FromGemini) -> None:
    """Say which fields of `said` are not understood. `null` says nothing."""
    if understood.issuperset(said):
        return
    for name, value in said.items():
        if name not in understood and value is not None:
            losses.lose(GeminiField.UNKNOWN, path + name)


# --- contents --------------------------------------------------------------------------------------------------------


class _History:
    """Which calls wait for their results, in order: Gemini's calls need no ids, so results find them by name."""

    def __init__(self) -> None:
        self._waiting: list[ToolCall] = []

    def add(self, call: ToolCall) -> None:
        self._waiting.append(call)

    def answered(self, name: str, id: str, at: str) -> ToolCall:
        """Return the call that the result of `name` answers: the one of `id`, or else the oldest of that name. Raises `SchemaError` if there is none."""
        by_id = (index for index, call in enumerate(self._waiting) if id and call.id == id and call.name == name)
        by_name = (index for index, call in enumerate(self._waiting) if call.name == name)
        found = next(by_id, next(by_name, None))
        if found is None:
            raise SchemaError("This function response answers no function call.", param=at, code="invalid_value")
        return self._waiting.pop(found)


def messages_of(said: list[dict[str, Any]], contents: list[wire.Content], losses: FromGemini) -> tuple[Message, ...]:
    """Return the turns. Raises `UnsupportedFeature`, `SchemaError`."""
    history = _History()
    messages = []
    for index, content in enumerate(contents):
        path = f"contents[{index}]"
        _verify_said(said[index], _CONTENT, path + ".", losses)
        assistant = content.role == "model"
        parts: list[Part] = []
        for number, part in enumerate(content.parts):
            if is_tagged(part.thought_signature):  # it repeats the words of the thoughts before it
                while parts and isinstance(parts[-1], Reasoning) and parts[-1].signer is Dialect.GEMINI_GENERATE and not parts[-1].signature:
                    parts.pop()
            parts += _parts(said[index]["parts"][number], part, f"{path}.parts[{number}]", f"{index}_{number}", assistant, history, losses)
        messages.append(Message("assistant" if assistant else "user", tuple(parts)))
    return tuple(messages)


def system_of(body: dict[str, Any], instruction: wire.Instruction | None, losses: FromGemini) -> tuple[Text, ...]:
    """Return the texts of the instruction. Raises `UnsupportedFeature` for anything else in it."""
    if instruction is None:
        return ()
    said = body["systemInstruction"]
    _verify_said(said, _CONTENT, "systemInstruction.", losses)
    for index, part in enumerate(instruction.parts):
        if part.text is None or part.thought_signature is not None or not _PART.issuperset(said["parts"][index]):
            raise losses.refusal(GeminiField.INSTRUCTION_PART, f"systemInstruction.parts[{index}]")
    return tuple(Text(part.text or "") for part in instruction.parts)


def _parts(said: dict[str, Any], part: wire.Part, at: str, place: str, assistant: bool, history: _History, losses: FromGemini) -> list[Part]:
    """Return the hub's parts for one of Gemini's: two where a text carries a signature, which in the hub only thoughts and calls have."""
    _verify_said(said, _PART, at + ".", losses)
    signature = part.thought_signature or ""
    if assistant:
        return _model_parts(said, part, at, place, signature, history, losses)
    if signature or part.thought or part.function_call is not None:
        raise SchemaError("Only the model thinks and calls functions.", param=at, code="invalid_value")
    if part.text is not None:
        return [Text(part.text)]
    if part.function_response is not None:
        return [_tool_result(said["functionResponse"], part.function_response, at, history, losses)]
    return [_media(said, part, at, losses)]


def _model_parts(said: dict[str, Any], part: wire.Part, at: str, place: str, signature: str, history: _History, losses: FromGemini) -> list[Part]:
    tagged = thought_in(signature, at) if is_tagged(signature) else None
    if part.function_call is not None:
        if tagged is not None:
            raise SchemaError("This signature is not of a function call.", param=f"{at}.thoughtSignature", code="invalid_value")
        call = part.function_call
        _verify_said(said["functionCall"], _CALL, at + ".functionCall.", losses)
        arguments = msgspec.json.encode(call.args or {}).decode()
        made = ToolCall(call.id or f"call_{place}", call.name, arguments, signature, at)
        history.add(made)
        return [made]
    if part.thought:
        if part.text is None:
            losses.lose(GeminiField.WORDLESS_THOUGHT, at)
            return []
        return [tagged or Reasoning(part.text, signature, signer=Dialect.GEMINI_GENERATE)]
    proof: list[Part] = [tagged or Reasoning(signature=signature, signer=Dialect.GEMINI_GENERATE)] if signature else []
    if part.text is not None or proof:
        return [Text(part.text), *proof] if part.text else proof or [Text("")]
    if part.function_response is not None:
        raise SchemaError("Function responses are the user's.", param=at, code="invalid_value")
    media = _media(said, part, at, losses)
    if not isinstance(media, Image):
        raise losses.refusal(GeminiField.MODELS_MEDIA, at)
    return [media, *proof]


def _media(said: dict[str, Any], part: wire.Part | wire.ResponsePart, at: str, losses: FromGemini) -> Any:
    if part.inline_data is not None:
        _verify_said(said["inlineData"], _BLOB if part.inline_data.mime_type.startswith("image/") else _BLOB | {"displayName"}, at + ".inlineData.", losses)
        return media_of_blob(part.inline_data, at)
    if part.file_data is not None:
        _verify_said(said["fileData"], _FILE | {"displayName"}, at + ".fileData.", losses)
        return media_of_file(part.file_data, at)
    raise losses.refusal(GeminiField.PART, at)


def _tool_result(said: dict[str, Any], result: wire.FunctionResponse, at: str, history: _History, losses: FromGemini) -> ToolResult:
    """Return the result. `{"output": TEXT}` and `{"error": TEXT}` are what Google documents for texts; any other object stays JSON."""
    _verify_said(said, _RESPONSE, at + ".functionResponse.", losses)
    call = history.answered(result.name, result.id or "", at)
    response = result.response or {}
    is_error = response.keys() == {"error"}
    only = next(iter(response.values())) if is_error or response.keys() == {"output"} else None
    content: list[Text | Image | Document] = [Text(only if isinstance(only, str) else msgspec.json.encode(response).decode())]
    for index, part in enumerate(result.parts or ()):
        where = f"{at}.functionResponse.parts[{index}]"
        _verify_said(said["parts"][index], _RESPONSE_PART, where + ".", losses)
        media = _media(said["parts"][index], part, where, losses)
        if isinstance(media, Image | Document):
            content.append(media)
        else:
            losses.lose(GeminiField.RESULT_MEDIA, where)
    return ToolResult(call.id, result.name, tuple(content), is_error=is_error, at=at)


# --- tools and settings ----------------------------------------------------------------------------------------------


def tools_of(body: dict[str, Any], tools: list[wire.Tool] | None, losses: FromGemini) -> tuple[Tool, ...]:
    """Return the functions. Raises `UnsupportedFeature` for tools that Google runs, `RecursionError` for a schema that is too deep."""
    made = []
    for index, tool in enumerate(tools or ()):
        path = f"tools[{index}]"
        said = body["tools"][index]
        _verify_said(said, _TOOL, path + ".", losses)
        for number, function in enumerate(tool.function_declarations or ()):
            _verify_said(said["functionDeclarations"][number], _FUNCTION, f"{path}.functionDeclarations[{number}].", losses)
            parameters = function.parameters_json_schema
            if parameters is None and function.parameters is not None:
                parameters = json_schema_of(function.parameters)
            made.append(Tool(function.name, function.description or "", parameters))
    return tuple(made)


def _tool_choice(body: dict[str, Any], config: wire.ToolConfig | None, losses: FromGemini) -> ToolChoice | None:
    if config is None:
        return None
    _verify_said(body["toolConfig"], _TOOL_CONFIG, "toolConfig.", losses)
    calling = config.function_calling_config
    if calling is None:
        return None
    path = "toolConfig.functionCallingConfig."
    _verify_said(body["toolConfig"]["functionCallingConfig"], _CALLING, path, losses)
    names = tuple(calling.allowed_function_names or ())
    mode = (calling.mode or "MODE_UNSPECIFIED").upper()
    if mode == "NONE":
        return ToolChoice("none")
    if mode == "ANY":
        return ToolChoice("named" if len(names) == 1 else "required", names)
    if mode == "MODE_UNSPECIFIED" and not names:
        return None
    if mode in ("AUTO", "VALIDATED", "MODE_UNSPECIFIED"):
        return ToolChoice("auto", names)
    raise losses.refusal(GeminiField.CALLING_MODE, path + "mode")


def _verify_config(said: dict[str, Any], config: wire.GenerationConfig, losses: FromGemini) -> None:
    _verify_said(said, _CONFIG, "generationConfig.", losses)
    if config.thinking_config is not None:
        _verify_said(said["thinkingConfig"], _THINKING, "generationConfig.thinkingConfig.", losses)
    if any(modality.upper() != "TEXT" for modality in config.response_modalities or ()):
        raise losses.refusal(GeminiField.MODALITIES)


def _output(config: wire.GenerationConfig) -> OutputFormat | None:
    kind = (config.response_mime_type or "text/plain").lower()
    schema = config.response_json_schema
    if schema is None and config.response_schema is not None:
        schema = json_schema_of(config.response_schema)
    if kind == "application/json":
        return OutputFormat("object") if schema is None else OutputFormat("schema", schema=schema)
    if kind != "text/plain" or schema is not None:
        raise FromGemini.refusal(GeminiField.MIME_TYPE)
    return None


def _thinking(config: wire.ThinkingConfig | None, losses: FromGemini) -> Thinking | None:
    if config is None:
        return None
    effort = (config.thinking_level or "").lower()
    budget = config.thinking_budget
    if effort == "thinking_level_unspecified":
        effort = ""
    if effort and effort not in _EFFORTS:
        losses.lose(GeminiField.LEVEL)
        effort = ""
    if effort and budget is not None:
        raise SchemaError("A level and a budget exclude each other.", param="generationConfig.thinkingConfig.thinkingBudget", code="invalid_value")
    if budget == -1:
        budget = None
    if not effort and budget is None and config.include_thoughts is None:
        return None
    return Thinking(effort, budget, config.include_thoughts)


def _whole(number: float | None) -> int | None:
    if number is None:
        return None
    if not number.is_integer():
        raise SchemaError("topK is a whole number.", param="generationConfig.topK", code="invalid_type")
    return int(number)
