"""Requests as Gemini's bytes: a checked one of the same dialect, and the hub's. The model is in the path, so `Encoded.prefix` is all."""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.bounds import MAX_CHAT_VALUES, MAX_GEMINI_STOP_SEQUENCES
from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import decode_json, encode_json
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
from cliproxy.translators.gemini_generate.signatures import is_tagged
from cliproxy.translators.policy_targets import HubField, ToGemini

# What Google documents to put where a call has no signature because another model made it ("Thought signatures", FAQ): models since Gemini 3 refuse the first
# call of a turn without one.
FOREIGN_SIGNATURE = "skip_thought_signature_validator"
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576}  # `to_hub` says where they come from
_ABSENT = tuple(  # what Gemini has nothing like, with its name in the hub
    (field, field.param)
    for field in (
        HubField.LOGIT_BIAS,
        HubField.LOGPROBS,
        HubField.USER,
        HubField.METADATA,
        HubField.STORE,
        HubField.SERVICE_TIER,
        HubField.CACHE_KEY,
        HubField.VERBOSITY,
    )
)


def encode_same(request: GeminiRequest, quirks: Quirks) -> Encoded:
    """Return the body of `request` for an upstream of the same dialect. Changes nothing, so it can be called again.

    Raises `SchemaError` if the request is nested more deeply than the encoder goes.
    """
    if not request.tagged:
        return Encoded(encode_json(request.rest), b"")
    contents = without_foreign_thoughts(request.rest["contents"])
    return Encoded(encode_json({**request.rest, "contents": contents}), b"", () if contents == request.rest["contents"] else tuple(_lost_thoughts()))


def _lost_thoughts() -> ToGemini:
    losses = ToGemini()
    losses.lose(HubField.THOUGHTS)
    return losses


def without_foreign_thoughts(contents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns without what other vendors signed, and the words of their thoughts. Raises `UnsupportedFeature` if none is left."""
    left = []
    for content in contents:
        parts = []
        for part in content["parts"]:
            if not is_tagged(part.get("thoughtSignature")):
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
        raise ToGemini.refusal(HubField.NOTHING_LEFT, "contents")
    return left


def _sign_first_call(parts: list[dict[str, Any]]) -> None:
    first = next((part for part in parts if "functionCall" in part), None)
    if first is not None:
        first.setdefault("thoughtSignature", FOREIGN_SIGNATURE)


def encode_conversation(request: ConversationRequest, quirks: Quirks) -> Encoded:
    """Return `request` as a body for `generateContent`. Raises `UnsupportedFeature` for what Gemini cannot be asked."""
    losses = ToGemini(request.left_out)
    for field, name in _ABSENT:
        if getattr(request, name) not in (None, ""):
            losses.lose(field)
    if request.parallel_tool_calls is False and request.tools:
        losses.lose(HubField.PARALLEL_CALLS)
    body: dict[str, Any] = {"contents": contents_of(request.messages, losses)}
    if request.system:
        body["systemInstruction"] = {"parts": [{"text": text.text} for text in request.system]}
        _note_cache(losses, any(text.cache for text in request.system))
    if request.tools:
        body["tools"] = [{"functionDeclarations": functions_of(request.tools, losses)}]
    if request.tool_choice is not None:
        body["toolConfig"] = {"functionCallingConfig": _calling(request.tool_choice)}
    body["generationConfig"] = _config(request, losses)
    return Encoded(encode_json(body), b"", tuple(losses))


def _note_cache(losses: ToGemini, cached: bool) -> None:
    if cached:
        losses.lose(HubField.CACHE)


# --- contents --------------------------------------------------------------------------------------------------------


def contents_of(messages: tuple[Message, ...], losses: ToGemini) -> list[dict[str, Any]]:
    """Return the turns, which alternate: neighbours of one role are joined. Raises `UnsupportedFeature`, also when nothing is left to say."""
    names: dict[str, str] = {}
    contents: list[dict[str, Any]] = []
    for message in messages:
        role = "model" if message.role == "assistant" else "user"
        parts = [made for part in message.parts if (made := _part(part, names, losses)) is not None]
        if not parts:
            continue
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        else:
            contents.append({"role": role, "parts": parts})
    if not contents:
        raise losses.refusal(HubField.NOTHING_LEFT)
    for content in contents:
        _sign_first_call(content["parts"])
    return contents


def _part(part: Part, names: dict[str, str], losses: ToGemini) -> dict[str, Any] | None:
    """Return Gemini's part, `None` for thoughts of another vendor's."""
    if isinstance(part, Text):
        _note_cache(losses, part.cache)
        return {"text": part.text}
    if isinstance(part, Refusal):
        return {"text": part.text}
    if isinstance(part, Reasoning):
        return _thought(part, losses)
    if isinstance(part, ToolCall):
        names[part.id] = part.name
        call = {"id": part.id, "name": part.name, "args": _arguments(part)}
        return {"functionCall": call, "thoughtSignature": part.signature} if part.signature else {"functionCall": call}
    if isinstance(part, ToolResult):
        return {"functionResponse": _response(part, names, losses)}
    return _blob(part, losses)


def _blob(part: Image | Document | Audio, losses: ToGemini) -> dict[str, object]:
    if isinstance(part, Image) and part.detail:
        losses.lose(HubField.DETAIL)
    if isinstance(part, Document):
        if part.citations:
            losses.lose(HubField.DOCUMENT_CITATIONS, part.at)
        if part.title:
            losses.lose(HubField.TITLE)
    _note_cache(losses, not isinstance(part, Audio) and part.cache)
    return blob_of(part)


def _thought(part: Reasoning, losses: ToGemini) -> dict[str, Any] | None:
    if part.signer is not Dialect.GEMINI_GENERATE or part.redacted:
        losses.lose(HubField.THOUGHTS)
        return None
    made: dict[str, Any] = {"text": part.text}
    if part.text:
        made["thought"] = True
    if part.signature:
        made["thoughtSignature"] = part.signature
    return made


def _arguments(call: ToolCall) -> msgspec.Raw:
    """Return the arguments, encoded anew: what a client's history holds may be anything. Raises `UnsupportedFeature` unless it is an object."""
    try:
        said = decode_json((call.arguments or "{}").encode(), max_values=MAX_CHAT_VALUES)
        written = encode_json(said)
    except (SchemaError, UnicodeError):
        raise ToGemini.refusal(HubField.ARGUMENTS, call.at) from None
    if not isinstance(said, dict):
        raise ToGemini.refusal(HubField.ARGUMENTS, call.at)
    return msgspec.Raw(written)


def _response(result: ToolResult, names: dict[str, str], losses: ToGemini) -> dict[str, Any]:
    name = result.name or names.get(result.call_id, "")
    if not name:
        raise losses.refusal(HubField.RESULT_NAME, result.at)
    _note_cache(losses, result.cache)
    texts = [part.text for part in result.content if isinstance(part, Text)]
    media = [part for part in result.content if not isinstance(part, Text)]
    said: Any = texts[0] if len(texts) == 1 else texts or ""
    made: dict[str, Any] = {"id": result.call_id, "name": name, "response": {"error" if result.is_error else "output": said}}
    if media:
        made["parts"] = [_blob(part, losses) for part in media]
    return made


# --- tools and settings ----------------------------------------------------------------------------------------------


def functions_of(tools: tuple[Tool, ...], losses: ToGemini) -> list[dict[str, Any]]:
    """Return the functions' declarations. Their schemas leave as they are: `parametersJsonSchema` takes JSON Schema."""
    made = []
    for tool in tools:
        declaration: dict[str, Any] = {"name": tool.name, "description": tool.description}
        if tool.parameters is not None:
            declaration["parametersJsonSchema"] = tool.parameters
        if tool.strict:
            losses.lose(HubField.STRICT)
        _note_cache(losses, tool.cache)
        made.append(declaration)
    return made


def _calling(choice: ToolChoice) -> dict[str, Any]:
    """Return the mode. Only with ANY and VALIDATED (the model may also just speak) can the functions be limited."""
    if choice.mode == "none":
        return {"mode": "NONE"}
    if choice.mode == "auto":
        return {"mode": "VALIDATED", "allowedFunctionNames": list(choice.names)} if choice.names else {"mode": "AUTO"}
    return {"mode": "ANY", "allowedFunctionNames": list(choice.names)} if choice.names else {"mode": "ANY"}


def _config(request: ConversationRequest, losses: ToGemini) -> dict[str, Any]:
    if len(request.stop) > MAX_GEMINI_STOP_SEQUENCES:
        losses.lose(HubField.STOP)
    seed = request.seed
    if seed is not None and not -(2**31) <= seed < 2**31:
        losses.lose(HubField.SEED)
        seed = None
    said: dict[str, Any] = {
        "maxOutputTokens": request.max_tokens,
        "candidateCount": request.n if request.n > 1 else None,
        "temperature": request.temperature,
        "topP": request.top_p,
        "topK": request.top_k,
        "stopSequences": list(request.stop[:MAX_GEMINI_STOP_SEQUENCES]) or None,
        "seed": seed,
        "presencePenalty": request.presence_penalty,
        "frequencyPenalty": request.frequency_penalty,
        "thinkingConfig": _thinking(request.thinking, losses),
    }
    made = {name: value for name, value in said.items() if value is not None}
    if request.output is not None:
        made.update(_output(request.output, losses))
    return made


def _output(output: OutputFormat, losses: ToGemini) -> dict[str, Any]:
    if output.description:
        losses.lose(HubField.OUTPUT_DESCRIPTION)
    made: dict[str, Any] = {"responseMimeType": "application/json"}
    if output.kind == "schema" and output.schema is not None:
        made["responseJsonSchema"] = output.schema
    return made


def _thinking(thinking: Thinking | None, losses: ToGemini) -> dict[str, Any] | None:
    if thinking is None:
        return None
    made: dict[str, Any] = {}
    if thinking.show is not None:
        made["includeThoughts"] = thinking.show
    if thinking.budget is not None:
        made["thinkingBudget"] = thinking.budget
    elif thinking.effort:
        if thinking.effort in _BUDGETS:
            made["thinkingBudget"] = _BUDGETS[thinking.effort]
        else:
            losses.lose(HubField.EFFORT)
    return made or None
