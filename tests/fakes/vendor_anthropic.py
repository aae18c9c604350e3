"""Anthropic's messages, as strict as the vendor."""

from __future__ import annotations

import json
from typing import Any

from fakes.vendor_plan import SOURCE_TITLE, Answer, Asked, Item, Plan, Tokens, Turn, pieces, verify_signature
from fakes.vendor_schema import (
    Check,
    Refused,
    anything,
    array,
    base64_text,
    boolean,
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

CACHE = {"cache_control": nullable(fields({"type": words("ephemeral")}, {"ttl": words("5m", "1h")}))}
ID = pattern(r"[a-zA-Z0-9_-]{1,128}")
URL = fields({"url": pattern(r"https?://.+")})
TEXT = fields({"text": some_text}, {**CACHE, "citations": nullable(array(mapping))})
IMAGE_SOURCES = {"base64": fields({"media_type": words("image/png", "image/jpeg", "image/gif", "image/webp"), "data": base64_text}), "url": URL}
DOCUMENT_SOURCES = {
    "base64": fields({"media_type": words("application/pdf"), "data": base64_text}),
    "text": fields({"media_type": words("text/plain"), "data": text}),
    "url": URL,
}
IMAGE = fields({"source": tagged("type", IMAGE_SOURCES)}, CACHE)
DOCUMENT = fields(
    {"source": tagged("type", DOCUMENT_SOURCES)},
    {**CACHE, "title": nullable(text), "context": nullable(text), "citations": nullable(fields({}, {"enabled": boolean}))},
)
RESULT = either(of_text=text, of_list=array(tagged("type", {"text": TEXT, "image": IMAGE, "document": DOCUMENT})))
USER = {
    "text": TEXT,
    "image": IMAGE,
    "document": DOCUMENT,
    "tool_result": fields({"tool_use_id": ID}, {**CACHE, "content": RESULT, "is_error": nullable(boolean)}),
}
ASSISTANT = {
    "text": TEXT,
    "tool_use": fields({"id": ID, "name": ID, "input": mapping}, CACHE),
    "thinking": fields({"thinking": text, "signature": some_text}),
    "redacted_thinking": fields({"data": some_text}),
}
MESSAGE = tagged(
    "role",
    {
        "user": fields({"content": either(of_text=some_text, of_list=array(tagged("type", USER), least=1))}),
        "assistant": fields({"content": either(of_text=some_text, of_list=array(tagged("type", ASSISTANT), least=1))}),
    },
)
TOOL = fields({"name": ID, "input_schema": mapping}, {**CACHE, "description": text, "type": nullable(words("custom")), "strict": boolean})
PARALLEL = {"disable_parallel_tool_use": boolean}
CHOICE = tagged("type", {"auto": fields({}, PARALLEL), "any": fields({}, PARALLEL), "tool": fields({"name": ID}, PARALLEL), "none": fields({})})
DISPLAY = {"display": nullable(words("summarized", "omitted"))}
THINKING = tagged("type", {"enabled": fields({"budget_tokens": integer(1024)}, DISPLAY), "disabled": fields({}), "adaptive": fields({}, DISPLAY)})
OUTPUT = fields(
    {}, {"effort": nullable(words("low", "medium", "high", "xhigh", "max")), "format": nullable(fields({"type": words("json_schema"), "schema": mapping}))}
)
COMMON: dict[str, Check] = {
    "system": either(of_text=text, of_list=array(tagged("type", {"text": TEXT}))),
    "tools": array(TOOL),
    "tool_choice": CHOICE,
    "thinking": THINKING,
    "output_config": OUTPUT,
    "cache_control": anything,
}
OPTIONAL: dict[str, Check] = {
    **COMMON,
    "stream": boolean,
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "top_k": integer(0),
    "stop_sequences": array(pattern(r"(?s).*\S.*")),
    "metadata": fields({}, {"user_id": nullable(text)}),
    "service_tier": words("auto", "standard_only"),
}
BODY = fields({"model": some_text, "messages": array(MESSAGE, least=1), "max_tokens": integer(1)}, OPTIONAL)
VERTEX_BODY = fields({"anthropic_version": words("vertex-2023-10-16", "2026-10-21"), "messages": array(MESSAGE, least=1), "max_tokens": integer(1)}, OPTIONAL)
COUNT_BODY = fields({"model": some_text, "messages": array(MESSAGE, least=1)}, COMMON)


def read(body: Any, *, model: str | None = None, stream: bool | None = None) -> Asked:
    """Return what the request says, or refuse it. With `model` it is Vertex, where path and verb say what the body else says."""
    (BODY if model is None else VERTEX_BODY)(body, "")
    thinking = body.get("thinking", {"type": "disabled"})
    if thinking["type"] == "enabled" and thinking["budget_tokens"] >= body["max_tokens"]:
        raise Refused("`max_tokens` must be greater than `thinking.budget_tokens`.", path="max_tokens")
    if thinking["type"] != "disabled":
        if body.get("temperature", 1) != 1:
            raise Refused("`temperature` may only be set to 1 when thinking is enabled.", path="temperature")
        if "top_k" in body:
            raise Refused("`top_k` must be unset when thinking is enabled.", path="top_k")
        if body.get("tool_choice", {"type": "auto"})["type"] in ("any", "tool"):
            raise Refused("Thinking may not be enabled when tool_choice forces tool use.", path="tool_choice")
    tools = tuple({"name": one["name"], "description": one.get("description", ""), "schema": one["input_schema"]} for one in body.get("tools", ()))
    for index, one in enumerate(body.get("tools", ())):
        if one["input_schema"].get("type") != "object":
            raise Refused("Input should be 'object'.", path=f"tools.{index}.custom.input_schema.type")
        if one.get("strict"):
            strict_schema(one["input_schema"], f"tools.{index}.custom.input_schema", all_required=False)
    if not tools and "tool_choice" in body:
        raise Refused("`tool_choice` may only be specified while providing `tools`.", path="tool_choice")
    form = (body.get("output_config") or {}).get("format")
    if form:
        strict_schema(form["schema"], "output_config.format.schema", all_required=False)
    turns = conversation(body["messages"], thinking=thinking["type"] == "enabled", tools=bool(tools))
    system = body.get("system", ())
    settings = {name: body[name] for name in ("temperature", "top_p", "top_k") if name in body}
    chosen = body.get("tool_choice", {"type": "auto"})
    parallel = not chosen["disable_parallel_tool_use"] if "disable_parallel_tool_use" in chosen else None
    if chosen["type"] == "tool" and chosen["name"] not in [tool["name"] for tool in tools]:
        raise Refused(f"Tool '{chosen['name']}' not found in provided tools.", path="tool_choice")
    return Asked(
        vendor="anthropic",
        model=model or body["model"],
        stream=bool(body.get("stream")) if stream is None else stream,
        turns=turns,
        system=(system,) if isinstance(system, str) else tuple(one["text"] for one in system),
        tools=tools,
        choice={"any": "required", "tool": f"named:{chosen.get('name')}"}.get(chosen["type"], chosen["type"]),
        stop=tuple(body.get("stop_sequences", ())),
        settings={
            **settings,
            "max_tokens": body["max_tokens"],
            "parallel": parallel,
            "thinking": thinking,
            "effort": (body.get("output_config") or {}).get("effort") or "",
        },
        schema=form["schema"] if form else None,
        thinking=thinking["type"] != "disabled",
    )


def conversation(messages: list[dict[str, Any]], *, thinking: bool, tools: bool) -> tuple[Turn, ...]:
    """Return the turns, neighbours of one role joined. Each call is answered in the very next turn, results first; thoughts must be ours."""
    turns: list[tuple[str, list[tuple[dict[str, Any], str]]]] = []
    for index, message in enumerate(messages):
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        placed = [(block, f"messages.{index}.content.{number}") for number, block in enumerate(blocks)]
        if turns and turns[-1][0] == message["role"]:
            turns[-1][1].extend(placed)
        else:
            turns.append((message["role"], placed))
    if turns[0][0] != "user":
        raise Refused('first message must use the "user" role', path="messages.0.role")
    last, path = turns[-1][1][-1]
    if turns[-1][0] == "assistant" and last.get("text", "").rstrip() != last.get("text", ""):
        raise Refused("final assistant content cannot end with trailing whitespace", path=path)
    result: list[Turn] = []
    waiting: dict[str, str] = {}
    seen: set[str] = set()
    for role, placed in turns:
        answers = [block["tool_use_id"] for block, _ in placed if block["type"] == "tool_result"]
        if set(answers) != set(waiting) or len(answers) != len(set(answers)):
            raise Refused(
                f"`tool_use` ids were found without `tool_result` blocks immediately after, or the other way round: {sorted(waiting)} {answers}.",
                path=placed[0][1],
            )
        kinds = [block["type"] == "tool_result" for block, _ in placed]
        if kinds != sorted(kinds, reverse=True):
            raise Refused("`tool_result` blocks must come first in the content.", path=placed[0][1])
        if (
            placed
            and thinking
            and role == "assistant"
            and any(block["type"] == "tool_use" for block, _ in placed)
            and not placed[0][0]["type"].endswith("thinking")
        ):
            raise Refused(
                "Expected `thinking` or `redacted_thinking`, but found `tool_use`: a turn with tool use must start with a thinking block.",
                path=placed[0][1],
            )
        result.append(Turn(role, tuple(item_of(block, path, waiting) for block, path in placed)))
        waiting = {}
        for block, path in placed:
            if block["type"] == "tool_use":
                if block["id"] in seen:
                    raise Refused("`tool_use` ids must be unique.", path=path)
                if not tools:
                    raise Refused("Requests which include `tool_use` blocks must define tools.", path="tools")
                seen.add(block["id"])
                waiting[block["id"]] = block["name"]
    if waiting:
        raise Refused("`tool_use` ids were found without `tool_result` blocks immediately after.", path="messages")
    return tuple(result)


def item_of(block: dict[str, Any], path: str, waiting: dict[str, str]) -> Item:
    """Return what a block says."""
    match block["type"]:
        case "text":
            return Item("text", text=block["text"])
        case "image" | "document":
            source = block["source"]
            name = block.get("title") or ""
            if source["type"] == "url":
                return Item(block["type"], url=source["url"], name=name)
            if source["type"] == "text":
                return Item(block["type"], media=source["media_type"], text=source["data"], name=name)
            return Item(block["type"], media=source["media_type"], data=decoded(source["data"], path), name=name)
        case "tool_use":
            return Item("call", id=block["id"], name=block["name"], arguments=json.dumps(block["input"]))
        case "tool_result":
            content = block.get("content", [])
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            items = tuple(item_of(part, path, {}) for part in parts)
            return Item("result", id=block["tool_use_id"], name=waiting[block["tool_use_id"]], error=bool(block.get("is_error")), items=items)
        case "thinking":
            verify_signature("anthropic", block["thinking"], block["signature"], path)
            return Item("thought", text=block["thinking"])
        case _:
            return Item("thought")


def count(body: Any) -> dict[str, int]:
    """Return the count of a prompt: its characters, so that a test can tell."""
    COUNT_BODY(body, "")
    return {"input_tokens": len(json.dumps(body["messages"], ensure_ascii=False))}


# --- answers -------------------------------------------------------------------------------------------------------------

STOPS = {"end": "end_turn", "length": "max_tokens", "sequence": "stop_sequence", "tools": "tool_use", "filter": "refusal", "refusal": "refusal"}


def usage(tokens: Tokens) -> dict[str, Any]:
    """Return the counts: `input_tokens` without what was cached."""
    details = {"output_tokens_details": {"thinking_tokens": tokens.reasoning}} if tokens.reasoning else {}
    return {
        "input_tokens": tokens.prompt - tokens.cached - tokens.written,
        "cache_creation_input_tokens": tokens.written,
        "cache_read_input_tokens": tokens.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": tokens.written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": tokens.completion,
        "service_tier": "standard",
        **details,
    }


def block_of(item: Item) -> dict[str, Any]:
    """Return a block of an answer."""
    if item.kind == "thought":
        return {"type": "thinking", "thinking": item.text, "signature": item.signature}
    if item.kind == "call":
        return {"type": "tool_use", "id": item.id, "name": item.name, "input": json.loads(item.arguments)}
    return {"type": "text", "text": item.text, "citations": [citation(item)] if item.source else None}


def citation(item: Item) -> dict[str, Any]:
    """Return where a text is from."""
    return {"type": "web_search_result_location", "url": item.source, "title": SOURCE_TITLE, "cited_text": "Wien ist", "encrypted_index": "Eo8BCioIAhgBIiQyYj"}


def message_of(asked: Asked, answer: Answer, tokens: Tokens, content: list[dict[str, Any]], *, over: bool) -> dict[str, Any]:
    """Return the message object."""
    return {
        "id": "msg_01Fake",
        "type": "message",
        "role": "assistant",
        "model": f"{asked.model}-20260101",
        "content": content,
        "stop_reason": STOPS[answer.stop] if over else None,
        "stop_sequence": (answer.stop_sequence or None) if over else None,
        "usage": usage(tokens),
    }


def whole(asked: Asked, plan: Plan) -> dict[str, Any]:
    """Return a whole answer."""
    (answer,) = plan.choices
    return message_of(asked, answer, plan.tokens, [block_of(item) for item in answer.items], over=True)


def events(asked: Asked, plan: Plan) -> list[bytes]:
    """Return a streamed answer, with a ping as the vendor sends."""
    result: list[bytes] = []

    def event(kind: str, **rest: Any) -> None:
        result.append(f"event: {kind}\ndata: {json.dumps({'type': kind, **rest}, ensure_ascii=False)}\n\n".encode())

    (answer,) = plan.choices
    first = Tokens(plan.tokens.prompt, plan.tokens.cached, plan.tokens.written, 1)
    event("message_start", message=message_of(asked, answer, first, [], over=False))
    event("ping")
    for index, item in enumerate(answer.items):
        if item.kind == "thought":
            event("content_block_start", index=index, content_block={"type": "thinking", "thinking": "", "signature": ""})
            for piece in pieces(item.text, 5):
                event("content_block_delta", index=index, delta={"type": "thinking_delta", "thinking": piece})
            event("content_block_delta", index=index, delta={"type": "signature_delta", "signature": item.signature})
        elif item.kind == "call":
            event("content_block_start", index=index, content_block={"type": "tool_use", "id": item.id, "name": item.name, "input": {}})
            for piece in ["", *pieces("" if item.arguments == "{}" else item.arguments, 3)]:  # no arguments are no text, and the first delta is empty
                event("content_block_delta", index=index, delta={"type": "input_json_delta", "partial_json": piece})
        else:
            event("content_block_start", index=index, content_block={"type": "text", "text": ""})
            for piece in pieces(item.text, 4):
                event("content_block_delta", index=index, delta={"type": "text_delta", "text": piece})
            if item.source:
                event("content_block_delta", index=index, delta={"type": "citations_delta", "citation": citation(item)})
        event("content_block_stop", index=index)
    details = {"output_tokens_details": {"thinking_tokens": plan.tokens.reasoning}} if plan.tokens.reasoning else {}
    delta = {"stop_reason": STOPS[answer.stop], "stop_sequence": answer.stop_sequence or None}
    event("message_delta", delta=delta, usage={"output_tokens": plan.tokens.completion, **details})
    event("message_stop")
    return result


# --- errors --------------------------------------------------------------------------------------------------------------

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def error(refused: Refused) -> dict[str, Any]:
    """Return an error's body."""
    message = f"{refused.path}: {refused.message}" if refused.path else refused.message
    return {"type": "error", "error": {"type": KINDS.get(refused.status, "api_error"), "message": message}, "request_id": "req_fake"}


def error_event(message: str) -> bytes:
    """Return how a stream breaks."""
    value = {"type": "error", "error": {"type": "overloaded_error", "message": message}}
    return f"event: error\ndata: {json.dumps(value)}\n\n".encode()
