"""The Anthropic SDK as a client."""

from __future__ import annotations

import base64
import json
from typing import Any

import anthropic

from e2e.sdk_matrix.openai_clients import without_none
from e2e.sdk_matrix.prompts import Prompt, Result
from fakes.vendor_plan import Item

BUDGETS = {"low": 1024, "medium": 1500, "high": 2000}


class AnthropicClient:
    """`client.messages`."""

    name = "anthropic_messages"
    caps = frozenset({"url", "document", "thinking", "top_k", "stop_sequence", "result_images", "result_error", "system"})
    errors = anthropic

    def __init__(self, origin: str, key: str) -> None:
        self.sdk = anthropic.Anthropic(base_url=origin, api_key=key, max_retries=0, timeout=30)

    def send(self, model: str, prompt: Prompt, *, stream: bool) -> Result:
        """Ask and return what came back."""
        fields = self.fields(prompt)
        if not stream:
            return self.result(self.sdk.messages.create(model=model, **fields))
        with self.sdk.messages.stream(model=model, **fields) as events:
            kinds = [event.type for event in events]
            final = events.get_final_message()
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(final.content)
        return self.result(final)

    def fields(self, prompt: Prompt) -> dict[str, Any]:
        """Return the arguments of `create`."""
        kind, _, name = prompt.choice.partition(":")
        choice: dict[str, Any] = {"type": {"required": "any", "named": "tool"}.get(kind, kind or "auto"), **({"name": name} if name else {})}
        if prompt.parallel is not None:
            choice["disable_parallel_tool_use"] = not prompt.parallel
        thinks = bool(prompt.effort) and prompt.effort != "none"
        return without_none(
            messages=[{"role": turn.role, "content": [self.block(item) for item in turn.items]} for turn in prompt.turns],
            system=prompt.system,
            tools=[{"name": one["name"], "description": one["description"], "input_schema": one["schema"]} for one in prompt.tools],
            tool_choice=choice if (prompt.tools and len(choice) > 1) or choice["type"] != "auto" else None,
            output_config={"format": {"type": "json_schema", "schema": prompt.schema}} if prompt.schema else None,
            stop_sequences=list(prompt.stop),
            max_tokens=prompt.max_tokens or 1024,
            extra_body=without_none(temperature=prompt.temperature, top_p=prompt.top_p, top_k=prompt.top_k),  # which the newer SDKs have no names for
            thinking={"type": "enabled", "budget_tokens": BUDGETS[prompt.effort], "display": "summarized"} if thinks else None,
            **prompt.extra,
        )

    def block(self, one: Item) -> Any:
        """Return a content block."""
        if one.signature.startswith("native:"):
            return json.loads(one.signature[7:])
        if one.kind == "text":
            return {"type": "text", "text": one.text}
        if one.kind == "call":
            return {"type": "tool_use", "id": one.id, "name": one.name, "input": json.loads(one.arguments)}
        if one.kind == "result":
            error = {"is_error": True} if one.error else {}
            return {"type": "tool_result", "tool_use_id": one.id, "content": [self.block(part) for part in one.items], **error}
        source = {"type": "url", "url": one.url} if one.url else {"type": "base64", "media_type": one.media, "data": base64.b64encode(one.data).decode()}
        return {"type": one.kind, "source": source, **({"title": one.name} if one.name else {})}

    def result(self, answer: Any) -> Result:
        """Return what an answer says."""
        items = []
        sources: list[tuple[str, str]] = []
        assert (answer.type, answer.role) == ("message", "assistant")
        for block in answer.content:
            native = "native:" + json.dumps(block.model_dump(exclude_unset=True, exclude={"parsed_output"}, mode="json"))
            if block.type == "text":
                items.append(Item("text", text=block.text))
                sources += [(one.url, one.title) for one in block.citations or ()]
            elif block.type == "tool_use":
                items.append(Item("call", id=block.id, name=block.name, arguments=json.dumps(block.input)))
            else:
                items.append(Item("thought", text=getattr(block, "thinking", ""), signature=native))
        usage = answer.usage
        cached, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
        details = usage.output_tokens_details
        counts = {
            "prompt": usage.input_tokens + cached + written,
            "completion": usage.output_tokens,
            "cached": cached,
            "reasoning": details.thinking_tokens if details else 0,
        }
        text = "".join(item.text for item in items if item.kind == "text")
        return Result(tuple(items), answer.stop_reason, counts, (text,), answer.stop_sequence or "", answer.model, tuple(sources))
