"""Gemini's generateContent, countTokens and embedContent, as strict as the vendor."""

from __future__ import annotations

import json
from typing import Any

from fakes.vendor_plan import SOURCE_TITLE, Answer, Asked, Item, Plan, Tokens, Turn, pieces, signature_of
from fakes.vendor_schema import (
    Check,
    Refused,
    array,
    boolean,
    decoded,
    either_base64,
    integer,
    mapping,
    number,
    pattern,
    some_text,
    text,
    words,
)
from fakes.vendor_schema import fields as exact_fields
from fakes.vendor_schema import union as exact_union


def camel(value: Any) -> None:
    """Rename the members of a message, as the vendor's JSON takes them by either name and its SDK uses both. What users name themselves is not touched."""
    if isinstance(value, dict):
        for name in [name for name in value if "_" in name]:
            first, *rest = name.split("_")
            value[first + "".join(word.capitalize() for word in rest)] = value.pop(name)


def fields(required: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    """A message with these members, by either name, and no others."""
    inner = exact_fields(required, optional)

    def check(value: Any, path: str) -> None:
        camel(value)
        inner(value, path)

    return check


def union(table: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    """A message with exactly one of the members of `table`, by either name."""
    inner = exact_union(table, optional)

    def check(value: Any, path: str) -> None:
        camel(value)
        inner(value, path)

    return check


SKIP = ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")


def signature_text(value: Any, path: str) -> None:
    """A signature, or one of the words that the vendor takes in its place."""
    if value not in SKIP:
        either_base64(value, path)


NAME = pattern(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}")
BLOB = fields({"mimeType": some_text, "data": either_base64}, {"displayName": text})
FILE = fields({"fileUri": some_text}, {"mimeType": some_text, "displayName": text})
RESPONSE_PART = fields({"inlineData": BLOB})
PART = union(
    {
        "text": text,
        "inlineData": BLOB,
        "fileData": FILE,
        "functionCall": fields({"name": NAME}, {"id": text, "args": mapping}),
        "functionResponse": fields({"name": NAME, "response": mapping}, {"id": text, "parts": array(RESPONSE_PART)}),
    },
    {"thought": boolean, "thoughtSignature": signature_text},
)
CONTENT = fields({"parts": array(PART, least=1)}, {"role": words("user", "model")})
TYPES = words("STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL", "string", "number", "integer", "boolean", "array", "object", "null")


def openapi(value: Any, path: str) -> None:
    """Gemini's own `Schema`: a part of OpenAPI's, and nothing else of JSON Schema (no `additionalProperties`, `$ref`, `const`, lists of types)."""

    def properties(inner: Any, at: str) -> None:
        mapping(inner, at)
        for name, one in inner.items():
            openapi(one, f"{at}.{name}")

    optional: dict[str, Check] = {
        "type": TYPES,
        "format": text,
        "title": text,
        "description": text,
        "nullable": boolean,
        "enum": array(text),
        "maxItems": lambda *_: None,
        "minItems": lambda *_: None,
        "properties": properties,
        "required": array(text),
        "propertyOrdering": array(text),
        "anyOf": array(openapi),
        "items": openapi,
        "minimum": number(-1e300, 1e300),
        "maximum": number(-1e300, 1e300),
        "minLength": lambda *_: None,
        "maxLength": lambda *_: None,
        "pattern": text,
        "default": lambda *_: None,
        "example": lambda *_: None,
    }
    fields({}, optional)(value, path)


FUNCTION = fields({"name": NAME}, {"description": text, "parameters": openapi, "parametersJsonSchema": mapping, "behavior": text})
CALLING = fields({}, {"mode": words("AUTO", "ANY", "NONE", "VALIDATED"), "allowedFunctionNames": array(NAME, least=1)})
THINKING = fields(
    {},
    {
        "includeThoughts": boolean,
        "thinkingBudget": integer(-1, 32768),
        "thinkingLevel": words("MINIMAL", "LOW", "MEDIUM", "HIGH", "minimal", "low", "medium", "high"),
    },
)
GENERATION = fields(
    {},
    {
        "temperature": number(0, 2),
        "topP": number(0, 1),
        "topK": number(0, 1000),
        "candidateCount": integer(1, 8),
        "maxOutputTokens": integer(1),
        "stopSequences": array(some_text, most=5),
        "seed": integer(-(1 << 31), (1 << 31) - 1),
        "presencePenalty": number(-2, 2),
        "frequencyPenalty": number(-2, 2),
        "responseMimeType": words("text/plain", "application/json"),
        "responseSchema": openapi,
        "responseJsonSchema": mapping,
        "responseLogprobs": boolean,
        "logprobs": integer(0, 20),
        "responseModalities": array(words("TEXT", "IMAGE", "AUDIO")),
        "thinkingConfig": THINKING,
        "mediaResolution": text,
    },
)
OPTIONAL: dict[str, Check] = {
    "systemInstruction": CONTENT,
    "tools": array(fields({"functionDeclarations": array(FUNCTION, least=1)})),
    "toolConfig": fields({}, {"functionCallingConfig": CALLING}),
    "generationConfig": GENERATION,
    "safetySettings": array(mapping),
    "cachedContent": text,
    "labels": mapping,
}
BODY = fields({"contents": array(CONTENT, least=1)}, OPTIONAL)


def count(body: Any) -> dict[str, Any]:
    """Return the count of a prompt: its characters, so that a test can tell."""
    inner = fields({"contents": array(CONTENT, least=1)}, {"model": some_text, **OPTIONAL})
    fields({}, {"contents": array(CONTENT, least=1), "generateContentRequest": inner})(body, "")
    contents = body["generateContentRequest"]["contents"] if "generateContentRequest" in body else body.get("contents")
    if not contents:
        raise Refused("contents is not specified", path="contents")
    return {"totalTokens": len(json.dumps(contents, ensure_ascii=False)), "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 3}]}


def embed(body: Any) -> dict[str, Any]:
    """Return an embedding of three dimensions."""
    optional = {"model": some_text, "taskType": some_text, "title": text, "outputDimensionality": integer(1, 4096)}
    fields({"content": CONTENT}, optional)(body, "")
    return {"embedding": {"values": [0.25, -0.5, float(sum(len(part["text"]) for part in body["content"]["parts"]))]}}


def batch_embed(body: Any) -> dict[str, Any]:
    """Return an embedding for each request."""
    fields({"requests": array(mapping, least=1)})(body, "")
    return {"embeddings": [embed(one)["embedding"] for one in body["requests"]]}


def read(body: Any, *, model: str, stream: bool) -> Asked:
    """Return what the request says, or refuse it."""
    BODY(body, "")
    config = body.get("generationConfig", {})
    if ("responseSchema" in config or "responseJsonSchema" in config) and config.get("responseMimeType") != "application/json":
        raise Refused("`response_mime_type` must be application/json to use a response schema.", path="generationConfig.responseMimeType")
    if "responseSchema" in config and "responseJsonSchema" in config:
        raise Refused("Only one of response_schema and response_json_schema may be set.", path="generationConfig.responseSchema")
    if "logprobs" in config and not config.get("responseLogprobs"):
        raise Refused("Logprobs should only be set if response_logprobs is true.", path="generationConfig.logprobs")
    tools = []
    for one in body.get("tools", ()):
        for function in one["functionDeclarations"]:
            if "parameters" in function and "parametersJsonSchema" in function:
                raise Refused("Only one of parameters and parameters_json_schema may be set.", path="tools")
            schema = function.get("parameters", function.get("parametersJsonSchema"))
            tools.append({"name": function["name"], "description": function.get("description", ""), "schema": schema})
    if tools and (config.get("responseMimeType") == "application/json") and not model.startswith("gemini-3"):
        raise Refused("Function calling with a response mime type: 'application/json' is unsupported", path="generationConfig.responseMimeType")
    calling = body.get("toolConfig", {}).get("functionCallingConfig", {})
    names = calling.get("allowedFunctionNames", ())
    if names and calling.get("mode") not in ("ANY", "VALIDATED"):
        raise Refused(
            "Allowed function names should only be set when the function calling mode is ANY.", path="toolConfig.functionCallingConfig.allowedFunctionNames"
        )
    for name in names:
        if name not in [tool["name"] for tool in tools]:
            raise Refused("Allowed function names must be declared.", path="toolConfig.functionCallingConfig.allowedFunctionNames")
    mode = {"ANY": "required", "NONE": "none"}.get(calling.get("mode", "AUTO"), "auto")
    thinking = config.get("thinkingConfig", {})
    named = {
        "temperature": "temperature",
        "topP": "top_p",
        "topK": "top_k",
        "seed": "seed",
        "presencePenalty": "presence_penalty",
        "frequencyPenalty": "frequency_penalty",
    }
    settings = {ours: config[theirs] for theirs, ours in named.items() if theirs in config}
    system = body.get("systemInstruction", {}).get("parts", ())
    return Asked(
        vendor="gemini",
        model=model,
        stream=stream,
        turns=conversation(body["contents"], model),
        system=tuple(part["text"] for part in system),
        tools=tuple(tools),
        choice=f"{mode}:{','.join(names)}" if names else mode,
        n=config.get("candidateCount", 1),
        stop=tuple(config.get("stopSequences", ())),
        settings={**settings, "max_tokens": config.get("maxOutputTokens"), "thinking": thinking, "_shown": bool(thinking.get("includeThoughts"))},
        schema=config.get("responseSchema", config.get("responseJsonSchema")),
        json_object=config.get("responseMimeType") == "application/json",
        thinking=bool(thinking) and thinking.get("thinkingBudget") != 0,
    )


def conversation(contents: list[dict[str, Any]], model: str) -> tuple[Turn, ...]:
    """Return the turns. The responses to a turn's calls come in the next, as many as there were calls; a signature must be ours."""
    result: list[Turn] = []
    waiting: list[str] = []
    for index, content in enumerate(contents):
        at, role = f"contents[{index}]", content.get("role", "user")
        answers = [part["functionResponse"]["name"] for part in content["parts"] if "functionResponse" in part]
        calls = [part["functionCall"]["name"] for part in content["parts"] if "functionCall" in part]
        if sorted(answers) != sorted(waiting):
            raise Refused(
                "Please ensure that the number of function response parts is equal to the number of function call parts of the function call turn.", path=at
            )
        if calls and role != "model":
            raise Refused("Function calls must be in a turn of the model.", path=at)
        if calls and (not result or result[-1].role != "user"):
            raise Refused("Please ensure that function call turn comes immediately after a user turn or after a function response turn.", path=at)
        waiting = calls
        first_call = True
        items = []
        for place, part in enumerate(content["parts"]):
            path = f"{at}.parts[{place}]"
            if "functionCall" in part:
                if model.startswith("gemini-3") and first_call and not part.get("thoughtSignature"):
                    raise Refused(f"Function call is missing a thought_signature in functionCall parts: {part['functionCall']['name']}.", path=path)
                first_call = False
            items.append(item_of(part, path, model))
        result.append(Turn("assistant" if role == "model" else "user", tuple(items)))
    if waiting:
        raise Refused("Please ensure that function response turn comes immediately after a function call turn.", path="contents")
    return tuple(result)


def item_of(part: dict[str, Any], path: str, model: str) -> Item:
    """Return what a part says."""
    signature = part.get("thoughtSignature", "").replace("-", "+").replace("_", "/") if part.get("thoughtSignature") not in SKIP else part["thoughtSignature"]
    if (
        signature
        and signature not in SKIP
        and signature not in (signature_of("gemini", "text"), *(signature_of("gemini", name) for name in ("get_weather", "other_tool")))
    ):
        raise Refused("Corrupted thought signature.", path=f"{path}.thoughtSignature")
    if part.get("thought"):
        return Item("thought", text=part.get("text", ""))
    if "inlineData" in part:
        return blob_of(part["inlineData"], path)
    if "fileData" in part:
        media = part["fileData"].get("mimeType", "")
        return Item("image" if media.startswith("image/") else "document", media=media, url=part["fileData"]["fileUri"])
    if "functionCall" in part:
        call = part["functionCall"]
        if signature and signature not in SKIP and signature != signature_of("gemini", call["name"]):
            raise Refused("Corrupted thought signature.", path=f"{path}.thoughtSignature")
        return Item("call", id=call.get("id", ""), name=call["name"], arguments=json.dumps(call.get("args", {})), signature=signature)
    if "functionResponse" in part:
        response = part["functionResponse"]
        value = response["response"]
        keys = list(value)
        error = keys == ["error"]
        said = value[keys[0]] if keys in (["output"], ["result"], ["error"]) else value
        said = said if isinstance(said, str) else json.dumps(said, sort_keys=True, ensure_ascii=False)
        more = tuple(blob_of(one["inlineData"], path) for one in response.get("parts", ()))
        return Item("result", id=response.get("id", ""), name=response["name"], error=error, items=((Item("text", text=said),) if said else ()) + more)
    return Item("text", text=part["text"])


def blob_of(blob: dict[str, Any], path: str) -> Item:
    """Return what inline data is."""
    media = blob["mimeType"]
    kind = "image" if media.startswith("image/") else "audio" if media.startswith("audio/") else "document"
    if media not in ("image/png", "image/jpeg", "image/webp", "application/pdf", "text/plain", "audio/wav", "audio/mp3", "audio/mpeg"):
        raise Refused(f"Unsupported MIME type: {media}", path=path)
    return Item(kind, media=media, data=decoded(blob["data"].replace("-", "+").replace("_", "/"), path), name=blob.get("displayName", ""))


# --- answers -------------------------------------------------------------------------------------------------------------

FINISH = {"end": "STOP", "length": "MAX_TOKENS", "sequence": "STOP", "tools": "STOP", "filter": "SAFETY", "refusal": "PROHIBITED_CONTENT"}


def usage(tokens: Tokens) -> dict[str, Any]:
    """Return the counts: thoughts are beside the candidates."""
    thoughts = {"thoughtsTokenCount": tokens.reasoning} if tokens.reasoning else {}
    return {
        "promptTokenCount": tokens.prompt,
        "candidatesTokenCount": tokens.completion - tokens.reasoning,
        "totalTokenCount": tokens.prompt + tokens.completion,
        "cachedContentTokenCount": tokens.cached,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens.prompt}],
        **thoughts,
    }


def parts_of(asked: Asked, answer: Answer) -> list[dict[str, Any]]:
    """Return the parts of an answer; thoughts only for who wants to see them. After a thought the first call, or else the text, carries the signature."""
    thought = any(item.kind == "thought" for item in answer.items)
    signed = False
    result: list[dict[str, Any]] = []
    has_call = any(item.kind == "call" for item in answer.items)
    for item in answer.items:
        if item.kind == "thought":
            result += [{"text": item.text, "thought": True}] if asked.settings["_shown"] else []
        elif item.kind == "call":
            part: dict[str, Any] = {"functionCall": {"name": item.name, "args": json.loads(item.arguments)}}
            if thought and not signed:
                part["thoughtSignature"] = signature_of("gemini", item.name)
                signed = True
            result.append(part)
        elif item.kind == "refusal":
            continue
        else:
            result.append({"text": item.text})
            if thought and not has_call:
                result[-1]["thoughtSignature"] = signature_of("gemini", "text")
    return result


def envelope(asked: Asked, candidates: list[dict[str, Any]], counts: dict[str, Any]) -> dict[str, Any]:
    """Return the response object."""
    return {"candidates": candidates, "usageMetadata": counts, "modelVersion": f"{asked.model}-001", "responseId": "resp-fake"}


def grounding(answer: Answer) -> dict[str, Any]:
    """Return where the texts of an answer are from."""
    for item in answer.items:
        if item.source:
            support = {"segment": {"startIndex": 0, "endIndex": len(item.text.encode()), "text": item.text}, "groundingChunkIndices": [0]}
            return {"groundingMetadata": {"groundingChunks": [{"web": {"uri": item.source, "title": SOURCE_TITLE}}], "groundingSupports": [support]}}
    return {}


def candidate(index: int, parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
    """Return a candidate; index 0 is left out, as the vendor does."""
    content = {"content": {"role": "model", "parts": parts}} if parts else {"content": {"role": "model"}}
    return {**content, **({"finishReason": finish} if finish else {}), **({"index": index} if index else {})}


def whole(asked: Asked, plan: Plan) -> dict[str, Any]:
    """Return a whole answer."""
    candidates = [{**candidate(index, parts_of(asked, answer), FINISH[answer.stop]), **grounding(answer)} for index, answer in enumerate(plan.choices)]
    return envelope(asked, candidates, usage(plan.tokens))


def events(asked: Asked, plan: Plan) -> list[bytes]:
    """Return a streamed answer. Calls come whole; counts grow."""
    result: list[bytes] = []
    first = usage(Tokens(plan.tokens.prompt, plan.tokens.cached, 0, 1))

    def event(candidates: list[dict[str, Any]], counts: dict[str, Any]) -> None:
        result.append(b"data: " + json.dumps(envelope(asked, candidates, counts), ensure_ascii=False).encode() + b"\r\n\r\n")

    for index, answer in enumerate(plan.choices):
        for part in parts_of(asked, answer):
            if "text" in part:
                cut = pieces(part["text"], 6)
                for place, piece in enumerate(cut):
                    more = {key: value for key, value in part.items() if key != "text" and (key != "thoughtSignature" or place == len(cut) - 1)}
                    event([candidate(index, [{"text": piece, **more}], None)], first)
            else:
                event([candidate(index, [part], None)], first)
        last = candidate(index, [{"text": ""}] if FINISH[answer.stop] == "STOP" else [], FINISH[answer.stop])
        event([{**last, **grounding(answer)}], usage(plan.tokens))
    return result


# --- errors --------------------------------------------------------------------------------------------------------------

STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


def error(refused: Refused) -> dict[str, Any]:
    """Return an error's body."""
    message = f"Invalid value at '{refused.path}': {refused.message}" if refused.path else refused.message
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}] if refused.status == 429 else []
    return {"error": {"code": refused.status, "message": message, "status": STATUSES.get(refused.status, "UNKNOWN"), "details": details}}


def error_event(message: str) -> bytes:
    """Return how a stream breaks."""
    value = {"error": {"code": 503, "message": message, "status": "UNAVAILABLE"}}
    return b"data: " + json.dumps(value).encode() + b"\r\n\r\n"
