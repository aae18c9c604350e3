"""The OpenAI SDK as a client: chat completions and responses."""

from __future__ import annotations

import base64
import json
from typing import Any

import openai

from e2e.sdk_matrix.prompts import Prompt, Result
from fakes.vendor_plan import Item


def data_url(item: Item) -> str:
    """Return the item's content as a `data:` URL."""
    return f"data:{item.media};base64,{base64.b64encode(item.data).decode()}"


def without_none(**fields: Any) -> dict[str, Any]:
    """Return the fields that were said."""
    return {name: value for name, value in fields.items() if value not in (None, "", (), [], {})}


class ChatClient:
    """`client.chat.completions`."""

    name = "openai_chat"
    caps = frozenset({"choices", "url", "document", "audio", "seed", "refusal", "system"})

    def __init__(self, origin: str, key: str) -> None:
        self.sdk = openai.OpenAI(base_url=origin + "/v1", api_key=key, max_retries=0, timeout=30)

    errors = openai

    def send(self, model: str, prompt: Prompt, *, stream: bool) -> Result:
        """Ask and return what came back."""
        fields = self.fields(prompt)
        if not stream:
            return self.whole(self.sdk.chat.completions.create(model=model, **fields))
        return self.streamed(self.sdk.chat.completions.create(model=model, stream=True, stream_options={"include_usage": True}, **fields))

    def fields(self, prompt: Prompt) -> dict[str, Any]:
        """Return the arguments of `create`."""
        messages: list[Any] = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for turn in prompt.turns:
            messages += self.messages(turn.role, turn.items)
        choice: Any = prompt.choice
        if choice.startswith("named:"):
            choice = {"type": "function", "function": {"name": choice[6:]}}
        form: dict[str, Any] | None = {"type": "json_object"} if prompt.json_object else None
        if prompt.schema is not None:
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": prompt.schema, "strict": True}}
        tools = [
            {"type": "function", "function": {"name": one["name"], "description": one["description"], "parameters": one["schema"]}} for one in prompt.tools
        ]
        return without_none(
            messages=messages,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=prompt.parallel,
            response_format=form,
            stop=list(prompt.stop),
            max_completion_tokens=prompt.max_tokens,
            temperature=prompt.temperature,
            top_p=prompt.top_p,
            n=prompt.n if prompt.n > 1 else None,
            reasoning_effort=prompt.effort,
            **prompt.extra,
        )

    def messages(self, role: str, items: tuple[Item, ...]) -> list[Any]:
        """Return the messages of a turn."""
        if role == "assistant":
            calls = [{"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}} for one in items if one.kind == "call"]
            text = "".join(one.text for one in items if one.kind == "text")
            return [{"role": "assistant", "content": text or None, **({"tool_calls": calls} if calls else {})}]
        result: list[Any] = []
        parts: list[Any] = []
        for one in items:
            if one.kind == "result":
                result.append({"role": "tool", "tool_call_id": one.id, "content": [{"type": "text", "text": part.text} for part in one.items]})
            elif one.kind == "text":
                parts.append({"type": "text", "text": one.text})
            elif one.kind == "image":
                parts.append({"type": "image_url", "image_url": {"url": one.url or data_url(one)}})
            elif one.kind == "document":
                parts.append({"type": "file", "file": {"filename": one.name, "file_data": data_url(one)}})
            else:
                parts.append({"type": "input_audio", "input_audio": {"data": base64.b64encode(one.data).decode(), "format": "wav"}})
        return [*result, {"role": "user", "content": parts}] if parts else result

    def whole(self, answer: Any) -> Result:
        """Return what a whole answer says."""
        choice = answer.choices[0]
        items = []
        if thought := (choice.message.model_extra or {}).get("reasoning_content"):
            items.append(Item("thought", text=thought))
        if choice.message.content is not None:
            items.append(Item("text", text=choice.message.content))
        if choice.message.refusal is not None:
            items.append(Item("refusal", text=choice.message.refusal))
        items += [Item("call", id=one.id, name=one.function.name, arguments=one.function.arguments) for one in choice.message.tool_calls or ()]
        assert answer.object == "chat.completion"
        assert [one.index for one in answer.choices] == list(range(len(answer.choices)))
        texts = tuple(one.message.content or "" for one in answer.choices)
        sources = tuple((one.url_citation.url, one.url_citation.title) for one in choice.message.annotations or ())
        return Result(tuple(items), choice.finish_reason, self.usage(answer.usage), texts, model=answer.model, sources=sources)

    def streamed(self, stream: Any) -> Result:
        """Return what a streamed answer says, and insist on the protocol."""
        texts: dict[int, str] = {}
        refusal = thought = ""
        sources: list[tuple[str, str]] = []
        calls: dict[int, dict[str, str]] = {}
        stops: dict[int, str] = {}
        usage = None
        ids = set()
        for chunk in stream:
            assert chunk.object == "chat.completion.chunk"
            ids.add((chunk.id, chunk.model))
            assert usage is None, "something came after the usage"
            for choice in chunk.choices:
                assert choice.index not in stops, "something came after the end of a choice"
                if choice.delta.content is not None:
                    texts[choice.index] = texts.get(choice.index, "") + choice.delta.content
                if choice.index == 0:
                    sources += [(one["url_citation"]["url"], one["url_citation"]["title"]) for one in (choice.delta.model_extra or {}).get("annotations") or ()]
                    refusal += choice.delta.refusal or ""
                    thought += (choice.delta.model_extra or {}).get("reasoning_content") or ""
                    for one in choice.delta.tool_calls or ():
                        if one.index not in calls:
                            assert one.index == len(calls)
                            assert one.id
                            assert one.function.name
                            calls[one.index] = {"id": one.id, "name": one.function.name, "arguments": ""}
                        calls[one.index]["arguments"] += one.function.arguments or ""
                if choice.finish_reason:
                    stops[choice.index] = choice.finish_reason
            usage = chunk.usage
        assert len(ids) == 1, ids
        items = [Item("thought", text=thought)] if thought else []
        items += ([Item("text", text=texts[0])] if texts.get(0) else []) + ([Item("refusal", text=refusal)] if refusal else [])
        items += [Item("call", id=one["id"], name=one["name"], arguments=one["arguments"]) for one in calls.values()]
        return Result(
            tuple(items), stops[0], self.usage(usage), tuple(texts[index] for index in sorted(texts)), model=next(iter(ids))[1], sources=tuple(sources)
        )

    def usage(self, usage: Any) -> dict[str, int]:
        """Return the counts."""
        details, more = usage.prompt_tokens_details, usage.completion_tokens_details
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        return {
            "prompt": usage.prompt_tokens,
            "completion": usage.completion_tokens,
            "cached": (details and details.cached_tokens) or 0,
            "reasoning": (more and more.reasoning_tokens) or 0,
        }


class ResponsesClient:
    """`client.responses`."""

    name = "openai_responses"
    caps = frozenset({"url", "document", "refusal", "thinking", "result_images", "system"})
    errors = openai

    def __init__(self, origin: str, key: str) -> None:
        self.sdk = openai.OpenAI(base_url=origin + "/v1", api_key=key, max_retries=0, timeout=30)

    def send(self, model: str, prompt: Prompt, *, stream: bool) -> Result:
        """Ask and return what came back."""
        fields = self.fields(prompt)
        if not stream:
            return self.whole(self.sdk.responses.create(model=model, **fields))
        return self.streamed(self.sdk.responses.create(model=model, stream=True, **fields))

    def fields(self, prompt: Prompt) -> dict[str, Any]:
        """Return the arguments of `create`."""
        items: list[Any] = []
        for turn in prompt.turns:
            items += self.items(turn.role, turn.items)
        choice: Any = prompt.choice
        if choice.startswith("named:"):
            choice = {"type": "function", "name": choice[6:]}
        form: dict[str, Any] | None = {"type": "json_object"} if prompt.json_object else None
        if prompt.schema is not None:
            form = {"type": "json_schema", "name": "answer", "schema": prompt.schema, "strict": True}
        tools = [
            {"type": "function", "name": one["name"], "description": one["description"], "parameters": one["schema"], "strict": False} for one in prompt.tools
        ]
        thinks = bool(prompt.effort) and prompt.effort != "none"
        return without_none(
            input=items,
            instructions=prompt.system,
            tools=tools,
            tool_choice=choice,
            text={"format": form} if form else None,
            max_output_tokens=prompt.max_tokens,
            temperature=prompt.temperature,
            top_p=prompt.top_p,
            reasoning={"effort": prompt.effort, "summary": "auto"} if thinks else None,
            include=["reasoning.encrypted_content"] if thinks else None,
            **prompt.extra,
        ) | {"store": False, **({"parallel_tool_calls": prompt.parallel} if prompt.parallel is not None else {})}

    def items(self, role: str, items: tuple[Item, ...]) -> list[Any]:
        """Return the items of a turn. What came in an answer goes back as the SDK gave it."""
        result: list[Any] = []
        parts: list[Any] = []
        for one in items:
            if one.signature.startswith("native:"):
                result.append(json.loads(one.signature[7:]))
            elif one.kind == "call":
                result.append({"type": "function_call", "call_id": one.id, "name": one.name, "arguments": one.arguments})
            elif one.kind == "result":
                output: Any = one.items[0].text if [part.kind for part in one.items] == ["text"] else [self.part("user", part) for part in one.items]
                result.append({"type": "function_call_output", "call_id": one.id, "output": output})
            else:
                parts.append(self.part(role, one))
        return [*result, {"role": role, "content": parts}] if parts else result

    def part(self, role: str, one: Item) -> Any:
        """Return a part of a message."""
        if one.kind == "text":
            return {"type": "output_text" if role == "assistant" else "input_text", "text": one.text}
        if one.kind == "image":
            return {"type": "input_image", "detail": "auto", "image_url": one.url or data_url(one)}
        return {"type": "input_file", "filename": one.name, "file_data": data_url(one)}

    def whole(self, answer: Any) -> Result:
        """Return what a whole answer says."""
        items: list[Item] = []
        sources: list[tuple[str, str]] = []
        assert answer.object == "response"
        for one in answer.output:
            native = "native:" + one.model_dump_json(exclude_unset=True)
            if one.type == "reasoning":
                items.append(Item("thought", text="".join(part.text for part in one.summary), signature=native))
            elif one.type == "function_call":
                items.append(Item("call", id=one.call_id, name=one.name, arguments=one.arguments, signature=native))
            else:
                first = one.content[0]
                assert len(one.content) == 1
                sources += [(source.url, source.title) for source in getattr(first, "annotations", ())]
                items.append(
                    Item(
                        "text" if first.type == "output_text" else "refusal", text=getattr(first, "text", "") or getattr(first, "refusal", ""), signature=native
                    )
                )
        stop = answer.status if answer.incomplete_details is None else answer.incomplete_details.reason
        usage = answer.usage
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        counts = {
            "prompt": usage.input_tokens,
            "completion": usage.output_tokens,
            "cached": usage.input_tokens_details.cached_tokens,
            "reasoning": usage.output_tokens_details.reasoning_tokens,
        }
        return Result(tuple(items), stop, counts, (answer.output_text,), model=answer.model, sources=tuple(sources))

    def streamed(self, stream: Any) -> Result:
        """Return what a streamed answer says; deltas, `done` events and the last event must agree, and numbers must count up."""
        deltas: dict[tuple[int, str], str] = {}
        done: dict[int, Any] = {}
        added: dict[int, str] = {}
        final = None
        names: list[str] = []
        for number, event in enumerate(stream):
            assert event.sequence_number == number, f"{event.type} is number {event.sequence_number}, not {number}"
            assert final is None, f"{event.type} came after the end"
            names.append(event.type)
            if event.type == "response.output_item.added":
                assert event.output_index == len(added)
                added[event.output_index] = event.item.id
            elif event.type == "response.output_item.done":
                done[event.output_index] = event.item
            elif event.type == "error":  # which this SDK hands on as an event
                raise openai.APIError(event.message, self.sdk._client.build_request("POST", self.sdk.base_url), body=None)
            elif event.type.endswith(".delta"):
                assert event.item_id == added[event.output_index]
                key = (event.output_index, event.type)
                deltas[key] = deltas.get(key, "") + event.delta
            elif event.type in ("response.output_text.done", "response.refusal.done", "response.function_call_arguments.done"):
                said = getattr(event, "text", None) or getattr(event, "refusal", None) or getattr(event, "arguments", None) or ""
                assert deltas.get((event.output_index, event.type.replace(".done", ".delta")), "") == said
            elif event.type in ("response.completed", "response.incomplete", "response.failed"):
                final = event.response
                assert event.type == f"response.{final.status}"
        assert final is not None, f"no end in {names}"
        assert names[:2] == ["response.created", "response.in_progress"]
        assert [done[index].model_dump(exclude_unset=True) for index in sorted(done)] == [one.model_dump(exclude_unset=True) for one in final.output]
        for index, one in enumerate(final.output):
            if one.type == "function_call":
                assert deltas.get((index, "response.function_call_arguments.delta"), "") == one.arguments
            elif one.type == "message" and one.content[0].type == "output_text":
                assert deltas.get((index, "response.output_text.delta"), "") == one.content[0].text
        return self.whole(final)
