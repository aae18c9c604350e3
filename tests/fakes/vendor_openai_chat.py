"""OpenAI's chat completions, as strict as the vendor."""

from __future__ import annotations

import json
from typing import Any

from fakes.vendor_plan import SOURCE_TITLE, Answer, Asked, Item, Plan, Tokens, Turn, pieces
from fakes.vendor_schema import (
    Check,
    Refused,
    array,
    base64_text,
    boolean,
    data_url,
    decoded,
    either,
    fields,
    integer,
    mapping,
    nullable,
    number,
    pattern,
    some_text,
    strict_schema,
    tagged,
    text,
    words,
)

NAME = pattern(r"[a-zA-Z0-9_-]{1,64}")
TEXT_PART = fields({"text": text})
IMAGE = fields({"image_url": fields({"url": some_text}, {"detail": words("auto", "low", "high")})})
AUDIO = fields({"input_audio": fields({"data": base64_text, "format": words("wav", "mp3")})})
FILE = fields({"file": fields({}, {"file_data": some_text, "file_id": some_text, "filename": some_text})})
CALL = fields({"id": some_text, "type": words("function"), "function": fields({"name": NAME, "arguments": text})})
TEXTS = either(of_text=text, of_list=array(tagged("type", {"text": TEXT_PART}), least=1))
ASSISTANT = either(of_text=text, of_list=array(tagged("type", {"text": TEXT_PART, "refusal": fields({"refusal": text})}), least=1))
USER = either(of_text=text, of_list=array(tagged("type", {"text": TEXT_PART, "image_url": IMAGE, "input_audio": AUDIO, "file": FILE}), least=1))
MESSAGE = tagged(
    "role",
    {
        "system": fields({"content": TEXTS}, {"name": NAME}),
        "developer": fields({"content": TEXTS}, {"name": NAME}),
        "user": fields({"content": USER}, {"name": NAME}),
        "assistant": fields({}, {"content": nullable(ASSISTANT), "tool_calls": array(CALL, least=1), "refusal": nullable(text), "name": NAME}),
        "tool": fields({"content": TEXTS, "tool_call_id": some_text}),
    },
)
FUNCTION = fields({"name": NAME}, {"description": text, "parameters": mapping, "strict": nullable(boolean)})
TOOL = fields({"type": words("function"), "function": FUNCTION})
JSON_SCHEMA = fields({"name": NAME, "schema": mapping}, {"description": text, "strict": nullable(boolean)})
ALLOWED = fields({"mode": words("auto", "required"), "tools": array(fields({"type": words("function"), "function": fields({"name": NAME})}), least=1)})


def choice(value: Any, path: str) -> None:
    """`tool_choice`."""
    if isinstance(value, str):
        words("auto", "none", "required")(value, path)
    else:
        tagged("type", {"function": fields({"function": fields({"name": NAME})}), "allowed_tools": fields({"allowed_tools": ALLOWED})})(value, path)


BODY: Check = fields(
    {"model": some_text, "messages": array(MESSAGE, least=1)},
    {
        "stream": nullable(boolean),
        "stream_options": nullable(fields({}, {"include_usage": boolean, "include_obfuscation": boolean})),
        "max_tokens": nullable(integer(1)),
        "max_completion_tokens": nullable(integer(1)),
        "temperature": nullable(number(0, 2)),
        "top_p": nullable(number(0, 1)),
        "n": nullable(integer(1, 128)),
        "stop": nullable(either(of_text=text, of_list=array(some_text, most=4))),
        "seed": nullable(integer(-(1 << 63), 1 << 63)),
        "presence_penalty": nullable(number(-2, 2)),
        "frequency_penalty": nullable(number(-2, 2)),
        "logit_bias": nullable(mapping),
        "logprobs": nullable(boolean),
        "top_logprobs": nullable(integer(0, 20)),
        "tools": array(TOOL, least=1, most=128),
        "tool_choice": choice,
        "parallel_tool_calls": boolean,
        "response_format": tagged("type", {"text": fields({}), "json_object": fields({}), "json_schema": fields({"json_schema": JSON_SCHEMA})}),
        "reasoning_effort": nullable(words("none", "minimal", "low", "medium", "high", "xhigh")),
        "verbosity": nullable(words("low", "medium", "high")),
        "user": text,
        "metadata": nullable(mapping),
        "service_tier": nullable(words("auto", "default", "flex", "priority")),
        "store": nullable(boolean),
        "prompt_cache_key": text,
        "safety_identifier": text,
    },
)


OPEN_REASONER = "open-reasoner"  # a model as the imitators serve them: it shows its thoughts as `reasoning_content`


def read(body: Any) -> Asked:
    """Return what the request says, or refuse it."""
    BODY(body, "")
    model = body["model"]
    theirs = model.startswith(("o1", "o3", "o4", "gpt-5"))
    reasons = theirs or model == OPEN_REASONER
    if theirs and body.get("max_tokens") is not None:
        raise Refused("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", path="max_tokens")
    if theirs and body.get("temperature") not in (None, 1):
        raise Refused("Unsupported value: 'temperature' does not support other values than 1 with this model.", path="temperature")
    if not reasons and body.get("reasoning_effort") is not None:
        raise Refused("Unrecognized request argument supplied: reasoning_effort", path="reasoning_effort")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise Refused("The 'stream_options' parameter is only allowed when 'stream' is enabled.", path="stream_options")
    if not body.get("tools") and ("tool_choice" in body or "parallel_tool_calls" in body):
        raise Refused("'tool_choice' and 'parallel_tool_calls' are only allowed when 'tools' are specified.", path="tool_choice")
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise Refused("'top_logprobs' is only allowed when 'logprobs' is enabled.", path="top_logprobs")
    tools = tuple(
        {"name": one["function"]["name"], "description": one["function"].get("description", ""), "schema": one["function"].get("parameters")}
        for one in body.get("tools", ())
    )
    for index, one in enumerate(body.get("tools", ())):
        if one["function"].get("strict"):
            strict_schema(one["function"].get("parameters"), f"tools[{index}].function.parameters", all_required=True)
    form = body.get("response_format", {"type": "text"})
    if form["type"] == "json_schema" and form["json_schema"].get("strict"):
        strict_schema(form["json_schema"]["schema"], "response_format.json_schema.schema", all_required=True)
    if form["type"] == "json_object" and "json" not in json.dumps(body["messages"]).lower():
        raise Refused("'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.", path="messages")
    system, turns = conversation(body["messages"])
    stop = body.get("stop") or ()
    settings = {name: body[name] for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty") if body.get(name) is not None}
    cap = body.get("max_completion_tokens") or body.get("max_tokens")
    return Asked(
        vendor="openai",
        model=model,
        stream=bool(body.get("stream")),
        turns=turns,
        system=system,
        tools=tools,
        choice=chosen(body.get("tool_choice", "auto"), tools),
        n=body.get("n") or 1,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        settings={**settings, "max_tokens": cap, "parallel": body.get("parallel_tool_calls"), "effort": body.get("reasoning_effort") or ""},
        schema=form["json_schema"]["schema"] if form["type"] == "json_schema" else None,
        json_object=form["type"] == "json_object",
        thinking=reasons and body.get("reasoning_effort") not in (None, "none"),
        usage_asked=bool((body.get("stream_options") or {}).get("include_usage")),
    )


def chosen(value: Any, tools: tuple[dict[str, Any], ...]) -> str:
    """Say the tool choice in our words, and refuse a tool that does not exist."""
    if isinstance(value, str):
        return value
    if value["type"] == "function":
        names, mode = [value["function"]["name"] if "function" in value else value["name"]], "named"
    else:
        allowed = value.get("allowed_tools", value)
        names, mode = [one["function"]["name"] if "function" in one else one["name"] for one in allowed["tools"]], allowed["mode"]
    for name in names:
        if name not in [tool["name"] for tool in tools]:
            raise Refused(f"Tool choice '{name}' not found in 'tools' parameter.", path="tool_choice")
    return f"{mode}:{','.join(names)}"


def conversation(messages: list[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[Turn, ...]]:
    """Return instructions and turns. Every call must be answered before anything else is said."""
    system: list[str] = []
    turns: list[Turn] = []
    waiting: dict[str, str] = {}
    for index, message in enumerate(messages):
        at, role, content = f"messages[{index}]", message["role"], message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        if role == "tool":
            if message["tool_call_id"] not in waiting:
                raise Refused("messages with role 'tool' must be a response to a preceeding message with 'tool_calls'.", path=f"{at}.role")
            said = tuple(Item("text", text=part["text"]) for part in parts)
            result = Item("result", id=message["tool_call_id"], name=waiting.pop(message["tool_call_id"]), items=said)
            if turns[-1].role == "user" and turns[-1].items[-1].kind == "result":
                turns[-1] = Turn("user", (*turns[-1].items, result))
            else:
                turns.append(Turn("user", (result,)))
            continue
        if waiting:
            raise Refused("An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'.", path=at)
        if role in ("system", "developer"):
            system += [part["text"] for part in parts]
            continue
        items = tuple(one_part(part, f"{at}.content[{number}]") for number, part in enumerate(parts))
        for place, call in enumerate(message.get("tool_calls", ())):
            verify_json(call["function"]["arguments"], f"{at}.tool_calls[{place}].function.arguments")
            if call["id"] in waiting:
                raise Refused("Duplicate tool call id.", path=f"{at}.tool_calls[{place}].id")
            waiting[call["id"]] = call["function"]["name"]
            items += (Item("call", id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"]),)
        if message.get("refusal"):
            items += (Item("refusal", text=message["refusal"]),)
        if not items:
            raise Refused("Expected content or tool calls.", path=f"{at}.content")
        turns.append(Turn(role, items))
    if waiting:
        raise Refused("An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'.", path="messages")
    if not turns:
        raise Refused("There must be a message.", path="messages")
    return tuple(system), tuple(turns)


def verify_json(arguments: str, path: str) -> None:
    """Refuse arguments that are no object."""
    try:
        mapping(json.loads(arguments), path)
    except json.JSONDecodeError:
        raise Refused("Invalid JSON in arguments.", path=path) from None


def one_part(part: dict[str, Any], path: str) -> Item:
    """Return what a part says."""
    match part["type"]:
        case "text":
            return Item("text", text=part["text"])
        case "refusal":
            return Item("refusal", text=part["refusal"])
        case "image_url":
            url = part["image_url"]["url"]
            if url.startswith("data:"):
                media, data = data_url(url, f"{path}.image_url.url")
                return Item("image", media=media, data=data)
            return Item("image", url=url)
        case "input_audio":
            media = {"wav": "audio/wav", "mp3": "audio/mpeg"}[part["input_audio"]["format"]]
            return Item("audio", media=media, data=decoded(part["input_audio"]["data"], path))
        case _:
            if "file_data" not in part["file"] or "filename" not in part["file"]:
                raise Refused("Missing required parameter: 'file_data' and 'filename'.", path=f"{path}.file")
            media, data = data_url(part["file"]["file_data"], f"{path}.file.file_data")
            return Item("document", media=media, data=data, name=part["file"]["filename"])


# --- answers -------------------------------------------------------------------------------------------------------------

FINISH = {"end": "stop", "length": "length", "sequence": "stop", "tools": "tool_calls", "filter": "content_filter", "refusal": "stop"}


def usage(tokens: Tokens) -> dict[str, Any]:
    """Return the counts."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
        "prompt_tokens_details": {"cached_tokens": tokens.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": tokens.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def whole(asked: Asked, plan: Plan) -> dict[str, Any]:
    """Return a whole answer. OpenAI shows no thoughts in this dialect; its imitators do."""

    def message(answer: Answer) -> dict[str, Any]:
        said = "".join(item.text for item in answer.items if item.kind == "text")
        refused = "".join(item.text for item in answer.items if item.kind == "refusal")
        sources = [annotation(item) for item in answer.items if item.source]
        result: dict[str, Any] = {"role": "assistant", "content": said or None, "refusal": refused or None, "annotations": sources}
        calls = [call(item) for item in answer.items if item.kind == "call"]
        if asked.model == OPEN_REASONER:
            result["reasoning_content"] = "".join(item.text for item in answer.items if item.kind == "thought") or None
        return {**result, "tool_calls": calls} if calls else result

    choices = [
        {"index": index, "message": message(answer), "logprobs": None, "finish_reason": FINISH[answer.stop]} for index, answer in enumerate(plan.choices)
    ]
    head = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 1730000000, "model": f"{asked.model}-2026-01-01"}
    return {**head, "choices": choices, "usage": usage(plan.tokens), "service_tier": "default", "system_fingerprint": "fp_fake"}


def annotation(item: Item) -> dict[str, Any]:
    """Return where a text is from."""
    return {"type": "url_citation", "url_citation": {"url": item.source, "title": SOURCE_TITLE, "start_index": 0, "end_index": len(item.text)}}


def call(item: Item) -> dict[str, Any]:
    """Return a tool call."""
    return {"id": item.id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}


def events(asked: Asked, plan: Plan) -> list[bytes]:
    """Return a streamed answer."""
    head = {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1730000000,
        "model": f"{asked.model}-2026-01-01",
        "system_fingerprint": "fp_fake",
    }
    more = {"usage": None} if asked.usage_asked else {}

    def event(choices: list[dict[str, Any]], **rest: Any) -> bytes:
        return b"data: " + json.dumps({**head, "choices": choices, **more, **rest}, ensure_ascii=False).encode() + b"\n\n"

    def delta(index: int, value: dict[str, Any], finish: str | None = None) -> bytes:
        return event([{"index": index, "delta": value, "logprobs": None, "finish_reason": finish}])

    result: list[bytes] = []
    for index, answer in enumerate(plan.choices):
        result.append(delta(index, {"role": "assistant", "content": "", "refusal": None}))
        calls = 0
        for item in answer.items:
            if item.kind in ("text", "refusal"):
                result += [delta(index, {"content" if item.kind == "text" else "refusal": piece}) for piece in pieces(item.text, 4)]
                result += [delta(index, {"annotations": [annotation(item)]})] if item.source else []
            elif item.kind == "thought" and asked.model == OPEN_REASONER:
                result += [delta(index, {"reasoning_content": piece}) for piece in pieces(item.text, 5)]
            elif item.kind == "call":
                first = {"index": calls, "id": item.id, "type": "function", "function": {"name": item.name, "arguments": ""}}
                result.append(delta(index, {"tool_calls": [first]}))
                result += [delta(index, {"tool_calls": [{"index": calls, "function": {"arguments": piece}}]}) for piece in pieces(item.arguments, 3)]
                calls += 1
        result.append(delta(index, {}, FINISH[answer.stop]))
    if asked.usage_asked:
        result.append(event([], usage=usage(plan.tokens)))
    return [*result, b"data: [DONE]\n\n"]


# --- errors --------------------------------------------------------------------------------------------------------------

KINDS = {401: ("invalid_request_error", "invalid_api_key"), 404: ("invalid_request_error", "model_not_found"), 429: ("requests", "rate_limit_exceeded")}


def error(refused: Refused) -> dict[str, Any]:
    """Return an error's body."""
    kind, code = KINDS.get(refused.status, ("invalid_request_error" if refused.status < 500 else "server_error", None))
    return {"error": {"message": refused.message, "type": kind, "param": refused.path or None, "code": code}}


def error_event(message: str) -> bytes:
    """Return how a stream breaks."""
    return b"data: " + json.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": None}}).encode() + b"\n\n"
