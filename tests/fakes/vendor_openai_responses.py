"""OpenAI's responses, as strict as the vendor."""

from __future__ import annotations

import json
from typing import Any

from fakes.vendor_openai_chat import NAME, chosen, verify_json
from fakes.vendor_openai_chat import error as error
from fakes.vendor_plan import SOURCE_TITLE, Answer, Asked, Item, Plan, Tokens, Turn, pieces, verify_signature
from fakes.vendor_schema import (
    Check,
    Refused,
    array,
    boolean,
    data_url,
    either,
    fields,
    integer,
    mapping,
    nullable,
    number,
    some_text,
    strict_schema,
    tagged,
    text,
    words,
)

TEXT_PART = fields({"text": text})
IMAGE = fields({}, {"detail": words("low", "high", "auto"), "image_url": nullable(some_text), "file_id": nullable(some_text)})
FILE = fields({}, {"file_data": some_text, "file_id": nullable(some_text), "file_url": some_text, "filename": some_text})
INPUT = {"input_text": TEXT_PART, "input_image": IMAGE, "input_file": FILE}
OUTPUT = {"output_text": fields({"text": text}, {"annotations": array(mapping), "logprobs": array(mapping)}), "refusal": fields({"refusal": text})}
STATUS = words("in_progress", "completed", "incomplete")
SUMMARY = array(fields({"type": words("summary_text"), "text": text}))
CONTENT = array(fields({"type": words("reasoning_text"), "text": text}))


def message(value: Any, path: str) -> None:
    """An item that is somebody's message: the parts depend on the role."""
    role = value.get("role")
    parts = OUTPUT if role == "assistant" else INPUT
    content = either(of_text=text, of_list=array(tagged("type", parts), least=1))
    fields({"role": words("user", "assistant", "system", "developer"), "content": content}, {"status": STATUS, "id": some_text})(value, path)


ITEMS = {
    "message": message,
    "function_call": fields({"call_id": some_text, "name": NAME, "arguments": text}, {"id": some_text, "status": STATUS}),
    "function_call_output": fields(
        {"call_id": some_text, "output": either(of_text=text, of_list=array(tagged("type", INPUT), least=1))}, {"id": some_text, "status": STATUS}
    ),
    "reasoning": fields({"id": some_text, "summary": SUMMARY}, {"content": CONTENT, "encrypted_content": nullable(text), "status": STATUS}),
}


def item(value: Any, path: str) -> None:
    """An item of `input`; a message may leave its type out."""
    mapping(value, path)
    tagged("type", ITEMS)({"type": "message", **value}, path)


def choice(value: Any, path: str) -> None:
    """`tool_choice`."""
    named = fields({"type": words("function"), "name": NAME})
    if isinstance(value, str):
        words("auto", "none", "required")(value, path)
    else:
        allowed = fields({"mode": words("auto", "required"), "tools": array(named, least=1)})
        tagged("type", {"function": fields({"name": NAME}), "allowed_tools": allowed})(value, path)


FORMATS = {
    "text": fields({}),
    "json_object": fields({}),
    "json_schema": fields({"name": NAME, "schema": mapping}, {"description": text, "strict": nullable(boolean)}),
}
BODY: Check = fields(
    {"model": some_text, "input": either(of_text=some_text, of_list=array(item, least=1))},
    {
        "instructions": nullable(text),
        "stream": nullable(boolean),
        "stream_options": nullable(fields({}, {"include_obfuscation": boolean})),
        "max_output_tokens": nullable(integer(16)),
        "temperature": nullable(number(0, 2)),
        "top_p": nullable(number(0, 1)),
        "top_logprobs": nullable(integer(0, 20)),
        "tools": array(
            fields({"type": words("function"), "name": NAME, "parameters": nullable(mapping), "strict": nullable(boolean)}, {"description": nullable(text)}),
            least=1,
        ),
        "tool_choice": choice,
        "parallel_tool_calls": nullable(boolean),
        "text": fields({}, {"format": tagged("type", FORMATS), "verbosity": nullable(words("low", "medium", "high"))}),
        "reasoning": nullable(
            fields(
                {}, {"effort": nullable(words("none", "minimal", "low", "medium", "high", "xhigh")), "summary": nullable(words("auto", "concise", "detailed"))}
            )
        ),
        "include": nullable(array(words("reasoning.encrypted_content", "message.output_text.logprobs"))),
        "store": nullable(boolean),
        "user": text,
        "metadata": nullable(mapping),
        "service_tier": nullable(words("auto", "default", "flex", "priority")),
        "prompt_cache_key": nullable(text),
        "safety_identifier": nullable(text),
        "truncation": nullable(words("auto", "disabled")),
        "previous_response_id": nullable(some_text),
    },
)


def read(body: Any) -> Asked:
    """Return what the request says, or refuse it."""
    BODY(body, "")
    model = body["model"]
    reasons = model.startswith(("o1", "o3", "o4", "gpt-5"))
    reasoning = body.get("reasoning") or {}
    if reasoning.get("effort") not in (None, "none") and not reasons:
        raise Refused("Unsupported parameter: 'reasoning.effort' is not supported with this model.", path="reasoning.effort")
    if reasons and body.get("temperature") not in (None, 1):
        raise Refused("Unsupported parameter: 'temperature' is not supported with this model.", path="temperature")
    if body.get("previous_response_id"):
        raise Refused("Previous response not found.", path="previous_response_id")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise Refused("The 'stream_options' parameter is only allowed when 'stream' is enabled.", path="stream_options")
    tools = tuple({"name": one["name"], "description": one.get("description") or "", "schema": one["parameters"]} for one in body.get("tools", ()))
    for index, one in enumerate(body.get("tools", ())):
        if one["strict"]:
            strict_schema(one["parameters"], f"tools[{index}].parameters", all_required=True)
    form = body.get("text", {}).get("format", {"type": "text"})
    if form["type"] == "json_schema" and form.get("strict"):
        strict_schema(form["schema"], "text.format.schema", all_required=True)
    if form["type"] == "json_object" and "json" not in json.dumps([body["input"], body.get("instructions")]).lower():
        raise Refused("Response input messages must contain the word 'json' in some form to use 'text.format' of type 'json_object'.", path="input")
    system, turns = conversation(body["input"])
    encrypted = "reasoning.encrypted_content" in (body.get("include") or ())
    settings = {name: body[name] for name in ("temperature", "top_p") if body.get(name) is not None}
    return Asked(
        vendor="openai",
        model=model,
        stream=bool(body.get("stream")),
        turns=turns,
        system=(*((body["instructions"],) if body.get("instructions") else ()), *system),
        tools=tools,
        choice=chosen(body.get("tool_choice", "auto"), tools),
        settings={
            **settings,
            "max_tokens": body.get("max_output_tokens"),
            "parallel": body.get("parallel_tool_calls"),
            "effort": reasoning.get("effort") or "",
            "_encrypted": encrypted,
            "_summary": bool(reasoning.get("summary")),
        },
        schema=form["schema"] if form["type"] == "json_schema" else None,
        json_object=form["type"] == "json_object",
        thinking=reasons and reasoning.get("effort") not in (None, "none"),
    )


def conversation(value: Any) -> tuple[tuple[str, ...], tuple[Turn, ...]]:
    """Return instructions and turns. Calls and outputs must belong together; a thought must be ours."""
    if isinstance(value, str):
        return (), (Turn("user", (Item("text", text=value),)),)
    system: list[str] = []
    turns: list[Turn] = []
    calls: dict[str, str] = {}
    answered: set[str] = set()

    def add(role: str, *items: Item) -> None:
        if turns and turns[-1].role == role and (role == "assistant" or (items[0].kind == "result" and turns[-1].items[-1].kind == "result")):
            turns[-1] = Turn(role, (*turns[-1].items, *items))
        else:
            turns.append(Turn(role, items))

    for index, one in enumerate(value):
        at = f"input[{index}]"
        match one.get("type", "message"):
            case "function_call":
                verify_json(one["arguments"], f"{at}.arguments")
                calls[one["call_id"]] = one["name"]
                add("assistant", Item("call", id=one["call_id"], name=one["name"], arguments=one["arguments"]))
            case "function_call_output":
                if one["call_id"] not in calls or one["call_id"] in answered:
                    raise Refused(f"No tool call found for function call output with call_id {one['call_id']}.", path=at)
                answered.add(one["call_id"])
                output = one["output"]
                parts = [{"type": "input_text", "text": output}] if isinstance(output, str) else output
                items = tuple(part_of(part, f"{at}.output") for part in parts)
                add("user", Item("result", id=one["call_id"], name=calls[one["call_id"]], items=items))
            case "reasoning":
                thought = "".join(part["text"] for part in one["summary"])
                if not one.get("encrypted_content"):
                    raise Refused(f"Item with id '{one['id']}' not found. Items are not persisted when `store` is set to false.", path=at)
                secret, _, thoughts = one["encrypted_content"].partition("|")
                verify_signature("openai", thoughts, secret, f"{at}.encrypted_content")
                add("assistant", Item("thought", text=thought))
            case _:
                content = one["content"]
                kind = "output_text" if one["role"] == "assistant" else "input_text"
                parts = [{"type": kind, "text": content}] if isinstance(content, str) else content
                items = tuple(part_of(part, f"{at}.content[{number}]") for number, part in enumerate(parts))
                if one["role"] in ("system", "developer"):
                    system += [part.text for part in items]
                else:
                    add(one["role"], *items)
    missing = set(calls) - answered
    if missing:
        raise Refused(f"No tool output found for function call {sorted(missing)[0]}.", path="input")
    if not turns:
        raise Refused("There must be an input.", path="input")
    return tuple(system), tuple(turns)


def part_of(part: dict[str, Any], path: str) -> Item:
    """Return what a part says."""
    match part["type"]:
        case "input_text" | "output_text":
            return Item("text", text=part["text"])
        case "refusal":
            return Item("refusal", text=part["refusal"])
        case "input_image":
            url = part.get("image_url")
            if not url:
                raise Refused("Missing required parameter: 'image_url'.", path=f"{path}.image_url")
            if url.startswith("data:"):
                media, data = data_url(url, f"{path}.image_url")
                return Item("image", media=media, data=data)
            return Item("image", url=url)
        case _:
            if part.get("file_url"):
                return Item("document", url=part["file_url"])
            if "file_data" not in part or "filename" not in part:
                raise Refused("Missing required parameter: 'file_data' and 'filename'.", path=path)
            media, data = data_url(part["file_data"], f"{path}.file_data")
            return Item("document", media=media, data=data, name=part["filename"])


# --- answers -------------------------------------------------------------------------------------------------------------


def usage(tokens: Tokens) -> dict[str, Any]:
    """Return the counts."""
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": tokens.written},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.prompt + tokens.completion,
    }


def annotation(one: Item) -> dict[str, Any]:
    """Return where a text is from."""
    return {"type": "url_citation", "url": one.source, "title": SOURCE_TITLE, "start_index": 0, "end_index": len(one.text)}


def output_of(asked: Asked, answer: Answer) -> list[dict[str, Any]]:
    """Return the items of an answer."""
    status = "incomplete" if answer.stop in ("length", "filter") else "completed"
    result: list[dict[str, Any]] = []
    for place, one in enumerate(answer.items):
        if one.kind == "thought":
            summary = [{"type": "summary_text", "text": one.text}] if asked.settings["_summary"] else []
            secret = {"encrypted_content": f"{one.signature}|{one.text}"} if asked.settings["_encrypted"] else {}
            result.append({"id": one.id, "type": "reasoning", "summary": summary, **secret})
        elif one.kind == "call":
            result.append(
                {"id": f"fc_fake{place}", "type": "function_call", "status": "completed", "call_id": one.id, "name": one.name, "arguments": one.arguments}
            )
        else:
            part = (
                {"type": "refusal", "refusal": one.text}
                if one.kind == "refusal"
                else {"type": "output_text", "text": one.text, "annotations": [annotation(one)] if one.source else [], "logprobs": []}
            )
            result.append({"id": f"msg_fake{place}", "type": "message", "status": status, "role": "assistant", "content": [part]})
    return result


def response(asked: Asked, output: list[dict[str, Any]], *, status: str, counts: Tokens | None, why: str = "") -> dict[str, Any]:
    """Return the response object."""
    return {
        "id": "resp_fake",
        "object": "response",
        "created_at": 1730000000,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": why} if why else None,
        "instructions": None,
        "max_output_tokens": asked.settings["max_tokens"],
        "model": f"{asked.model}-2026-01-01",
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": asked.settings["effort"] or None, "summary": None},
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage(counts) if counts else None,
        "user": None,
        "metadata": {},
    }


WHY = {"length": "max_output_tokens", "filter": "content_filter"}


def whole(asked: Asked, plan: Plan) -> dict[str, Any]:
    """Return a whole answer."""
    (answer,) = plan.choices
    why = WHY.get(answer.stop, "")
    return response(asked, output_of(asked, answer), status="incomplete" if why else "completed", counts=plan.tokens, why=why)


def events(asked: Asked, plan: Plan) -> list[bytes]:
    """Return a streamed answer, with every event that the vendor sends."""
    result: list[bytes] = []

    def event(kind: str, **rest: Any) -> None:
        value = {"type": kind, "sequence_number": len(result), **rest}
        result.append(f"event: {kind}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n".encode())

    done = whole(asked, plan)
    begun = response(asked, [], status="in_progress", counts=None)
    event("response.created", response=begun)
    event("response.in_progress", response=begun)
    for index, one in enumerate(done["output"]):
        where = {"item_id": one["id"], "output_index": index}
        if one["type"] == "reasoning":
            event("response.output_item.added", output_index=index, item={**one, "summary": []})
            for number, part in enumerate(one["summary"]):
                event("response.reasoning_summary_part.added", **where, summary_index=number, part={**part, "text": ""})
                for piece in pieces(part["text"], 5):
                    event("response.reasoning_summary_text.delta", **where, summary_index=number, delta=piece, obfuscation="x")
                event("response.reasoning_summary_text.done", **where, summary_index=number, text=part["text"])
                event("response.reasoning_summary_part.done", **where, summary_index=number, part=part)
        elif one["type"] == "function_call":
            event("response.output_item.added", output_index=index, item={**one, "status": "in_progress", "arguments": ""})
            for piece in pieces(one["arguments"], 3):
                event("response.function_call_arguments.delta", **where, delta=piece, obfuscation="x")
            event("response.function_call_arguments.done", **where, arguments=one["arguments"])
        else:
            event("response.output_item.added", output_index=index, item={**one, "status": "in_progress", "content": []})
            for number, part in enumerate(one["content"]):
                word = "text" if part["type"] == "output_text" else "refusal"
                kind = "response.output_text" if word == "text" else "response.refusal"
                more: dict[str, Any] = {"logprobs": []} if word == "text" else {}
                begun_part = {**part, word: "", **({"annotations": []} if word == "text" else {})}
                event("response.content_part.added", **where, content_index=number, part=begun_part)
                for piece in pieces(part[word], 4):
                    event(f"{kind}.delta", **where, content_index=number, delta=piece, **more)
                for place, source in enumerate(part.get("annotations", ())):
                    event("response.output_text.annotation.added", **where, content_index=number, annotation_index=place, annotation=source)
                event(f"{kind}.done", **where, content_index=number, **{word: part[word]}, **more)
                event("response.content_part.done", **where, content_index=number, part=part)
        event("response.output_item.done", output_index=index, item=one)
    event(f"response.{done['status']}", response=done)
    return result


def error_event(message_text: str) -> bytes:
    """Return how a stream breaks, after its first four events."""
    value = {"type": "error", "sequence_number": 4, "code": "server_error", "message": message_text, "param": None}
    return f"event: error\ndata: {json.dumps(value)}\n\n".encode()
