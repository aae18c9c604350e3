"""Requests as Gemini's bytes: a checked one of the same dialect, and the hub's. The model is in the path, so `Encoded.prefix` is all."""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.bounds import MAX_GEMINI_STOP_SEQUENCES
from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import UnsupportedFeature
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
from cliproxy.translators.gemini_generate.media import blob_of
from cliproxy.translators.gemini_generate.request import GeminiRequest
from cliproxy.translators.gemini_generate.signatures import is_marked

# What Google documents to put where a call has no signature because another model made it ("Thought signatures", FAQ): models since Gemini 3 refuse the first
# call of a turn without one.
FOREIGN_SIGNATURE = "skip_thought_signature_validator"
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576}  # `to_hub` says where they come from
_DROPPED = ("user", "metadata", "store", "service_tier", "cache_key", "verbosity")  # hints: no answer means anything else without them
_REFUSED = ("logit_bias", "logprobs")


def encode_same(request: GeminiRequest, quirks: Quirks) -> Encoded:
    """Return the body of `request` for an upstream of the same dialect. Changes nothing, so it can be called again.

    Raises `SchemaError` if the request is nested more deeply than the encoder goes.
    """
    if not request.marked:
        return Encoded(encode_json(request.rest), b"")
    contents = without_marks(request.rest["contents"])
    return Encoded(encode_json({**request.rest, "contents": contents}), b"", () if contents == request.rest["contents"] else ("thinking",))


def without_marks(contents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns without what other vendors signed, and the words of their thoughts. Raises `UnsupportedFeature` if none is left."""
    left = []
    for content in contents:
        parts = []
        for part in content["parts"]:
            if not is_marked(part.get("thoughtSignature")):
                parts.append(part)
                continue
            while parts and parts[-1].get("thought") is True and not parts[-1].get("thoughtSignature"):
                parts.pop()
            if part.get("thought") is not True and part.get("text") != "":
                parts.append({name: value for name, value in part.items() if name != "thoughtSignature"})
        if parts != content["parts"]:
            content = {**content, "parts": [dict(part) for part in parts]}
            _sign_first_call(content["parts"])
        if parts:
            left.append(content)
    if not left:
        raise UnsupportedFeature("Nothing of the conversation can be said to Gemini.", param="contents")
    return left


def _sign_first_call(parts: list[dict[str, Any]]) -> None:
    first = next((part for part in parts if "functionCall" in part), None)
    if first is not None:
        first.setdefault("thoughtSignature", FOREIGN_SIGNATURE)


def encode_conversation(request: ConversationRequest, quirks: Quirks) -> Encoded:
    """Return `request` as a body for `generateContent`. Raises `UnsupportedFeature` for what Gemini cannot be asked."""
    for name in _REFUSED:
        if getattr(request, name) is not None:
            raise UnsupportedFeature("Gemini has no such thing, or its answer cannot be translated.", param=name)
    if request.parallel_tool_calls is False and request.tools:
        raise UnsupportedFeature("Gemini cannot be kept from calling several tools at once.", param="parallel_tool_calls")
    dropped = [name for name in _DROPPED if getattr(request, name) not in (None, "")]
    body: dict[str, Any] = {"contents": contents_of(request.messages, dropped)}
    if request.system:
        body["systemInstruction"] = {"parts": [{"text": text.text} for text in request.system]}
        _note_cache(dropped, any(text.cache for text in request.system))
    if request.tools:
        body["tools"] = [{"functionDeclarations": functions_of(request.tools, dropped)}]
    if request.tool_choice is not None:
        body["toolConfig"] = {"functionCallingConfig": _calling(request.tool_choice)}
    body["generationConfig"] = _config(request, dropped)
    return Encoded(encode_json(body), b"", tuple(dict.fromkeys(dropped)))


def _note_cache(dropped: list[str], cached: bool) -> None:
    if cached:
        dropped.append("cache")


# --- contents --------------------------------------------------------------------------------------------------------


def contents_of(messages: tuple[Message, ...], dropped: list[str]) -> list[dict[str, Any]]:
    """Return the turns, which alternate: neighbours of one role are joined. Raises `UnsupportedFeature`, also when nothing is left to say."""
    names: dict[str, str] = {}
    contents: list[dict[str, Any]] = []
    for message in messages:
        role = "model" if message.role == "assistant" else "user"
        parts = [made for part in message.parts if (made := _part(part, names, dropped)) is not None]
        if not parts:
            continue
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        else:
            contents.append({"role": role, "parts": parts})
    if not contents:
        raise UnsupportedFeature("Nothing of the conversation can be said to Gemini.", param="messages")
    for content in contents:
        _sign_first_call(content["parts"])
    return contents


def _part(part: Part, names: dict[str, str], dropped: list[str]) -> dict[str, Any] | None:
    """Return Gemini's part, `None` for thoughts of another vendor's."""
    if isinstance(part, Text):
        _note_cache(dropped, part.cache)
        return {"text": part.text}
    if isinstance(part, Refusal):
        return {"text": part.text}
    if isinstance(part, Reasoning):
        return _thought(part, dropped)
    if isinstance(part, ToolCall):
        names[part.id] = part.name
        call = {"id": part.id, "name": part.name, "args": _arguments(part)}
        return {"functionCall": call, "thoughtSignature": part.signature} if part.signature else {"functionCall": call}
    if isinstance(part, ToolResult):
        return {"functionResponse": _response(part, names, dropped)}
    return _blob(part, dropped)


def _blob(part: Image | Document | Audio, dropped: list[str]) -> dict[str, object]:
    if isinstance(part, Image) and part.detail:
        dropped.append("detail")
    if isinstance(part, Document):
        if part.citations:
            raise UnsupportedFeature("Gemini cannot be asked to cite this document.", param=part.at or "messages")
        if part.title:
            dropped.append("title")
    _note_cache(dropped, not isinstance(part, Audio) and part.cache)
    return blob_of(part)


def _thought(part: Reasoning, dropped: list[str]) -> dict[str, Any] | None:
    if part.signer is not Dialect.GEMINI_GENERATE or part.redacted:
        dropped.append("thinking")
        return None
    made: dict[str, Any] = {"text": part.text}
    if part.text:
        made["thought"] = True
    if part.signature:
        made["thoughtSignature"] = part.signature
    return made


def _arguments(call: ToolCall) -> msgspec.Raw:
    """Return the arguments as they were written. Raises `UnsupportedFeature` if a client's history holds something else than an object."""
    arguments = call.arguments or "{}"
    try:
        _objects.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise UnsupportedFeature("Gemini takes JSON objects as arguments only.", param=call.at or "messages") from None
    return msgspec.Raw(arguments.encode())


_objects = msgspec.json.Decoder(dict[str, Any])


def _response(result: ToolResult, names: dict[str, str], dropped: list[str]) -> dict[str, Any]:
    name = result.name or names.get(result.call_id, "")
    if not name:
        raise UnsupportedFeature("The result answers no call of this conversation, and Gemini wants its name.", param=result.at or "messages")
    _note_cache(dropped, result.cache)
    texts = [part.text for part in result.content if isinstance(part, Text)]
    media = [part for part in result.content if not isinstance(part, Text)]
    said: Any = texts[0] if len(texts) == 1 else texts or ""
    made: dict[str, Any] = {"id": result.call_id, "name": name, "response": {"error" if result.is_error else "output": said}}
    if media:
        made["parts"] = [_blob(part, dropped) for part in media]
    return made


# --- tools and settings ----------------------------------------------------------------------------------------------


def functions_of(tools: tuple[Tool, ...], dropped: list[str]) -> list[dict[str, Any]]:
    """Return the functions' declarations. Their schemas leave as they are: `parametersJsonSchema` takes JSON Schema."""
    made = []
    for tool in tools:
        declaration: dict[str, Any] = {"name": tool.name, "description": tool.description}
        if tool.parameters is not None:
            declaration["parametersJsonSchema"] = tool.parameters
        if tool.strict:
            dropped.append("strict")
        _note_cache(dropped, tool.cache)
        made.append(declaration)
    return made


def _calling(choice: ToolChoice) -> dict[str, Any]:
    """Return the mode. Only with ANY and VALIDATED (the model may also just speak) can the functions be limited."""
    if choice.mode == "none":
        return {"mode": "NONE"}
    if choice.mode == "auto":
        return {"mode": "VALIDATED", "allowedFunctionNames": list(choice.names)} if choice.names else {"mode": "AUTO"}
    return {"mode": "ANY", "allowedFunctionNames": list(choice.names)} if choice.names else {"mode": "ANY"}


def _config(request: ConversationRequest, dropped: list[str]) -> dict[str, Any]:
    if len(request.stop) > MAX_GEMINI_STOP_SEQUENCES:
        raise UnsupportedFeature(f"Gemini takes {MAX_GEMINI_STOP_SEQUENCES} stop sequences.", param="stop")
    seed = request.seed
    if seed is not None and not -(2**31) <= seed < 2**31:
        dropped.append("seed")
        seed = None
    said: dict[str, Any] = {
        "maxOutputTokens": request.max_tokens,
        "candidateCount": request.n if request.n > 1 else None,
        "temperature": request.temperature,
        "topP": request.top_p,
        "topK": request.top_k,
        "stopSequences": list(request.stop) or None,
        "seed": seed,
        "presencePenalty": request.presence_penalty,
        "frequencyPenalty": request.frequency_penalty,
        "thinkingConfig": _thinking(request.thinking),
    }
    made = {name: value for name, value in said.items() if value is not None}
    if request.output is not None:
        made.update(_output(request.output, dropped))
    return made


def _output(output: OutputFormat, dropped: list[str]) -> dict[str, Any]:
    if output.description:
        dropped.append("output.description")
    made: dict[str, Any] = {"responseMimeType": "application/json"}
    if output.kind == "schema" and output.schema is not None:
        made["responseJsonSchema"] = output.schema
    return made


def _thinking(thinking: Thinking | None) -> dict[str, Any] | None:
    if thinking is None:
        return None
    made: dict[str, Any] = {}
    if thinking.show is not None:
        made["includeThoughts"] = thinking.show
    if thinking.budget is not None:
        made["thinkingBudget"] = thinking.budget
    elif thinking.effort:
        if thinking.effort not in _BUDGETS:
            raise UnsupportedFeature("Gemini has no such effort.", param="thinking")
        made["thinkingBudget"] = _BUDGETS[thinking.effort]
    return made or None
