"""The Google GenAI SDK as a client."""

from __future__ import annotations

import json
from typing import Any

from google import genai
from google.genai import errors, types

from e2e.sdk_matrix.prompts import Prompt, Result
from fakes.vendor_plan import Item

BUDGETS = {"low": 1024, "medium": 1500, "high": 2000}


class GeminiClient:
    """`client.models`."""

    name = "gemini_generate"
    caps = frozenset({"choices", "document", "audio", "thinking", "top_k", "seed", "result_error", "system"})
    errors = errors

    def __init__(self, origin: str, key: str, *, version: str | None = "v1beta") -> None:
        options = types.HttpOptions(base_url=origin, timeout=30_000, api_version=version)
        self.sdk = genai.Client(api_key=key, vertexai=False, http_options=options)

    def send(self, model: str, prompt: Prompt, *, stream: bool) -> Result:
        """Ask and return what came back."""
        contents, config = self.contents(prompt), self.config(prompt)
        if not stream:
            return self.result([self.sdk.models.generate_content(model=model, contents=contents, config=config)])
        return self.result(list(self.sdk.models.generate_content_stream(model=model, contents=contents, config=config)))

    def contents(self, prompt: Prompt) -> list[Any]:
        """Return the turns."""
        return [types.Content(role="model" if turn.role == "assistant" else "user", parts=[self.part(item) for item in turn.items]) for turn in prompt.turns]

    def part(self, one: Item) -> types.Part:
        """Return a part."""
        if one.signature.startswith("native:"):
            return types.Part.model_validate_json(one.signature[7:])
        if one.kind == "text":
            return types.Part(text=one.text)
        if one.kind == "thought":
            return types.Part(text=one.text, thought=True)
        if one.kind == "call":
            return types.Part(function_call=types.FunctionCall(id=one.id or None, name=one.name, args=json.loads(one.arguments)))
        if one.kind == "result":
            said = "".join(part.text for part in one.items if part.kind == "text")
            response = {"error": said} if one.error else {"output": said}
            return types.Part(function_response=types.FunctionResponse(id=one.id or None, name=one.name, response=response))
        if one.url:
            return types.Part(file_data=types.FileData(file_uri=one.url, mime_type=one.media or "image/png"))
        return types.Part(inline_data=types.Blob(data=one.data, mime_type=one.media))

    def config(self, prompt: Prompt) -> types.GenerateContentConfig:
        """Return the settings."""
        kind, _, name = prompt.choice.partition(":")
        tools: list[Any] = []
        tool_config = None
        if prompt.tools:
            declarations = [
                types.FunctionDeclaration(name=one["name"], description=one["description"], parameters_json_schema=one["schema"]) for one in prompt.tools
            ]
            tools = [types.Tool(function_declarations=declarations)]
            mode = {"required": "ANY", "named": "ANY", "none": "NONE"}.get(kind)
            if mode:
                calling = types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode(mode), allowed_function_names=[name] if name else None)
                tool_config = types.ToolConfig(function_calling_config=calling)
        thinks = bool(prompt.effort) and prompt.effort != "none"
        return types.GenerateContentConfig(
            system_instruction=prompt.system or None,
            tools=tools or None,
            tool_config=tool_config,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            response_mime_type="application/json" if prompt.schema or prompt.json_object else None,
            response_json_schema=prompt.schema,
            stop_sequences=list(prompt.stop) or None,
            max_output_tokens=prompt.max_tokens,
            temperature=prompt.temperature,
            top_p=prompt.top_p,
            top_k=prompt.top_k,
            candidate_count=prompt.n if prompt.n > 1 else None,
            thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=BUDGETS[prompt.effort]) if thinks else None,
            **prompt.extra,
        )

    def result(self, answers: list[Any]) -> Result:
        """Return what the answer, or the events of one, say."""
        items: list[Item] = []
        texts: dict[int, str] = {}
        stop = ""
        usage = None
        sources: list[tuple[str, str]] = []
        for answer in answers:
            usage = answer.usage_metadata or usage
            if answer.prompt_feedback is not None and answer.prompt_feedback.block_reason is not None:
                stop = answer.prompt_feedback.block_reason.value
            for candidate in answer.candidates or ():
                index = candidate.index or 0
                if index == 0 and candidate.finish_reason is not None:
                    assert stop == "", "two ends"
                    stop = candidate.finish_reason.value
                grounding = candidate.grounding_metadata
                sources += [(one.web.uri, one.web.title) for one in (grounding and grounding.grounding_chunks) or ()]
                sources += [(one.uri, one.title) for one in (candidate.citation_metadata and candidate.citation_metadata.citations) or ()]
                for part in (candidate.content and candidate.content.parts) or ():
                    if part.text is not None and not part.thought:
                        texts[index] = texts.get(index, "") + part.text
                    if index == 0:
                        self.add(items, part)
        assert usage is not None
        assert usage.total_token_count == usage.prompt_token_count + (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
        counts = {
            "prompt": usage.prompt_token_count,
            "completion": (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
            "cached": usage.cached_content_token_count or 0,
            "reasoning": usage.thoughts_token_count or 0,
        }
        return Result(tuple(items), stop, counts, tuple(texts[index] for index in sorted(texts)), model=answers[0].model_version or "", sources=tuple(sources))

    def add(self, items: list[Item], part: Any) -> None:
        """Add a part; neighbouring pieces of one text are one."""
        native = "native:" + part.model_dump_json(exclude_none=True)
        if part.function_call is not None:
            call = part.function_call
            items.append(Item("call", id=call.id or "", name=call.name, arguments=json.dumps(call.args or {}), signature=native))
        elif part.text is not None:
            kind = "thought" if part.thought else "text"
            signed = native if part.thought_signature else ""
            if items and items[-1].kind == kind and not items[-1].signature and not signed:
                items[-1] = Item(kind, text=items[-1].text + part.text)
            elif part.text or signed:
                items.append(Item(kind, text=part.text, signature=signed))
        else:
            raise AssertionError(f"unexpected part {part}")
