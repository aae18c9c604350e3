"""A request for every row of the tables of what is left out, emulated or refused: in the hub's types towards providers, in bytes from clients."""

from __future__ import annotations

import json
from typing import Any

from cliproxy.dialects import Dialect, Quirks
from cliproxy.translators.conversation import (
    Audio,
    Citation,
    ConversationRequest,
    Document,
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
from cliproxy.translators.embedding import EmbedRequest
from cliproxy.translators.policy import Field
from cliproxy.translators.policy_clients import ChatField, CompletionField, EmbedField, GeminiField, MessagesField, ResponsesField
from cliproxy.translators.policy_targets import HubField

# --- towards providers -------------------------------------------------------------------------------------------------


def ask(*messages: Message, **settings: Any) -> ConversationRequest:
    """Return a request of a client whose hints no vendor of OpenAI's kind takes."""
    said = messages or (Message("user", (Text("hello"),)),)
    return ConversationRequest(Dialect.ANTHROPIC_MESSAGES, "m", False, 4096, said, **settings)


def heard(*parts: Part) -> ConversationRequest:
    return ask(Message("user", (Text("look"), *parts)))


def said(*parts: Part) -> ConversationRequest:
    return ask(Message("user", (Text("hello"),)), Message("assistant", parts), Message("user", (Text("go on"),)))


def called(call: ToolCall, *, content: tuple[Any, ...] = (Text("found"),), is_error: bool = False) -> ConversationRequest:
    result = ToolResult(call.id, call.name, content, is_error=is_error)
    return ask(Message("user", (Text("hello"),)), Message("assistant", (call,)), Message("user", (result,)), tools=(Tool(call.name),))


def nested() -> dict[str, Any]:
    """Return a schema of more levels than an encoder goes."""
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"properties": {"a": schema}}
    return {"type": "object", **schema}


SEARCH = (Tool("search"),)
CALL = ToolCall("call_1", "search", "{}")
PICTURE = Image("image/png", "AAAA")
PDF = Document("application/pdf", "AAAA")
TOWARDS: dict[Field, Any] = {
    HubField.N: ask(n=2),
    HubField.STOP: ask(stop=("a", "b", "c", "d", "e", " ")),
    HubField.TEMPERATURE: ask(temperature=1.5),
    HubField.TOP_P: ask(top_p=0.5, thinking=Thinking("high")),
    HubField.TOP_K: ask(top_k=5, thinking=Thinking("high")),
    HubField.SEED: ask(seed=2**40),
    HubField.PRESENCE_PENALTY: ask(presence_penalty=0.5),
    HubField.FREQUENCY_PENALTY: ask(frequency_penalty=0.5),
    HubField.LOGIT_BIAS: ask(logit_bias={"1": 1.0}),
    HubField.LOGPROBS: ask(logprobs=1),
    HubField.TOOL_CHOICE: ask(tool_choice=ToolChoice("named", ("a", "b"))),
    HubField.PARALLEL_CALLS: ask(tools=SEARCH, parallel_tool_calls=False),
    HubField.TOOL_NAME: ask(tools=(Tool("search it"),)),
    HubField.TOOL_SCHEMA: ask(tools=(Tool("search", parameters={"type": "array"}),)),
    HubField.TOOL_NESTING: ask(tools=(Tool("search", parameters=nested()),)),
    HubField.TOOLS_OF_HISTORY: said(CALL),
    HubField.STRICT: ask(tools=(Tool("search", strict=True),)),
    HubField.OUTPUT_KIND: ask(output=OutputFormat("object")),
    HubField.OUTPUT_NAMES: ask(output=OutputFormat("schema", description="a list", schema={})),
    HubField.OUTPUT_DESCRIPTION: ask(output=OutputFormat("schema", description="a list", schema={})),
    HubField.OUTPUT_NESTING: ask(output=OutputFormat("schema", schema=nested())),
    HubField.EFFORT: ask(thinking=Thinking("galactic")),
    HubField.BUDGET: ask(thinking=Thinking(budget=5000)),
    HubField.THINKING: ask(thinking=Thinking(budget=2000), tools=SEARCH, tool_choice=ToolChoice("required")),
    HubField.THOUGHTS: said(Reasoning("hm"), Text("hello")),
    HubField.CALL_SIGNATURE: called(ToolCall("call_1", "search", "{}", signature="proof")),
    HubField.USER: ask(user="u" * 300),
    HubField.METADATA: ask(metadata={"k" * 100: "v"}),
    HubField.SERVICE_TIER: ask(service_tier="galactic"),
    HubField.STORE: ask(store=True),
    HubField.CACHE_KEY: ask(cache_key="k" * 100),
    HubField.VERBOSITY: ask(verbosity="low"),
    HubField.CACHE: ask(system=(Text("be brief", cache=True),)),
    HubField.IMAGE: heard(Image("image/tiff", "AAAA")),
    HubField.IMAGE_DETAIL: heard(Image("image/png", "AAAA", detail="high")),
    HubField.DETAIL: heard(Image("image/png", "AAAA", detail="high")),
    HubField.DOCUMENT: heard(Document("application/zip")),
    HubField.DOCUMENT_CITATIONS: heard(Document("application/pdf", "AAAA", citations=True)),
    HubField.DOCUMENT_TITLE: heard(Document("application/pdf", "AAAA", title="a_b")),
    HubField.TITLE: heard(Document("application/pdf", "AAAA", title="a_b")),
    HubField.DOCUMENTS_ALONE: ask(Message("user", (PDF,))),
    HubField.AUDIO: heard(Audio("audio/unheard", "AAAA")),
    HubField.ADDRESS: heard(Image(url="http://pictures.example/a.png")),
    HubField.ASSISTANT_IMAGE: said(PICTURE, Text("hello")),
    HubField.CITATIONS: said(Text("hello", (Citation(url="https://a.example"),))),
    HubField.ARGUMENTS: called(ToolCall("call_1", "search", "[1]")),
    HubField.CALL_NAME: said(ToolCall("call_1", "search it", "{}")),
    HubField.RESULT_MEDIA: called(CALL, content=(Text("found"), PICTURE)),
    HubField.RESULT_ERROR: called(CALL, is_error=True),
    HubField.RESULT_NAME: ask(Message("user", (ToolResult("call_9", "", (Text("found"),)),))),
    HubField.FIRST_TURN: ask(Message("assistant", (Text("hello"),))),
    HubField.NOTHING_LEFT: ask(Message("assistant", (Reasoning("hm"),))),
    HubField.UNKNOWN_PART: heard(Refusal("no")),
}
EMBEDDINGS: dict[Field, Any] = {
    HubField.TEXTS: EmbedRequest(Dialect.OPENAI_EMBEDDINGS, "m", ("a", "b")),
    HubField.USER: EmbedRequest(Dialect.OPENAI_EMBEDDINGS, "m", ("a",), user="u"),
    HubField.TASK: EmbedRequest(Dialect.GEMINI_EMBED, "m", ("a",), task="CLUSTERING"),
    HubField.TITLE: EmbedRequest(Dialect.GEMINI_EMBED, "m", ("a",), title="t"),
}
QUIRKS: dict[tuple[Dialect, Field], Quirks] = {(Dialect.BEDROCK_CONVERSE, HubField.TOP_P): Quirks.CLAUDE}


# --- from clients ------------------------------------------------------------------------------------------------------


def chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages) or [{"role": "user", "content": "hello"}], **fields}


def chat_part(part: dict[str, Any]) -> dict[str, Any]:
    return chat({"role": "user", "content": [{"type": "text", "text": "look"}, part]})


def anthropic(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 50, "messages": list(messages) or [{"role": "user", "content": "hello"}], **fields}


def anthropic_block(block: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return anthropic({"role": "user", "content": "hello"}, {"role": role, "content": [{"type": "text", "text": "look"}, block]})


def responses(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": list(items) or "hello", **fields}


def responses_part(part: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return responses({"type": "message", "role": role, "content": [part]})


def gemini(*contents: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"contents": list(contents) or [{"role": "user", "parts": [{"text": "hello"}]}], **fields}


def gemini_part(part: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return gemini({"role": "user", "parts": [{"text": "hello"}]}, {"role": role, "parts": [part]})


FUNCTION = {"type": "function", "function": {"name": "search"}}
CUSTOM_TOOL = {"name": "search", "input_schema": {"type": "object"}}
BETWEEN = ({"role": "user", "content": "hello"}, {"role": "system", "content": "be brief"})
GEMINI_CALL = {"role": "model", "parts": [{"functionCall": {"name": "search", "args": {}}}]}
SOUND = {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}
FROM_CLIENTS: dict[Field, dict[str, Any]] = {
    ChatField.UNKNOWN: chat({"role": "user", "content": "hello", "mood": "good"}),
    ChatField.AUDIO: chat(audio={"format": "wav", "voice": "alloy"}),
    ChatField.PREDICTION: chat(prediction={"type": "content", "content": "hello"}),
    ChatField.CACHE_RETENTION: chat(prompt_cache_retention="24h"),
    ChatField.WEB_SEARCH: chat(web_search_options={}),
    ChatField.LOGPROBS: chat(logprobs=True),
    ChatField.MODALITIES: chat(modalities=["text", "audio"]),
    ChatField.OBFUSCATION: chat(stream=True, stream_options={"include_obfuscation": True}),
    ChatField.SPEAKER: chat({"role": "user", "name": "anna", "content": "hello"}),
    ChatField.INSTRUCTIONS_BETWEEN: chat(*BETWEEN),
    ChatField.FUNCTION_RESULT: chat({"role": "user", "content": "hello"}, {"role": "function", "name": "search", "content": "found"}),
    ChatField.SPOKEN_ANSWER: chat({"role": "user", "content": "hello"}, {"role": "assistant", "audio": {"id": "audio_1"}}),
    ChatField.CUSTOM_CALL: chat(
        {"role": "user", "content": "hello"}, {"role": "assistant", "tool_calls": [{"type": "custom", "id": "c", "custom": {"name": "f", "input": "x"}}]}
    ),
    ChatField.CACHE_TTL: chat_part({"type": "text", "text": "long", "cache_control": {"type": "ephemeral", "ttl": "1h"}}),
    ChatField.IMAGE_URL: chat_part({"type": "image_url", "image_url": {"url": "ftp://pictures.example/a.png"}}),
    ChatField.AUDIO_FORMAT: chat_part({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "unheard"}}),
    ChatField.FILE_ID: chat_part({"type": "file", "file": {"file_id": "file_1"}}),
    ChatField.FILE: chat_part({"type": "file", "file": {"filename": "a.pdf"}}),
    ChatField.FILE_TYPE: chat_part({"type": "file", "file": {"file_data": "AAAA", "filename": "a.zip"}}),
    ChatField.CUSTOM_TOOL: chat(tools=[{"type": "custom", "custom": {"name": "f"}}]),
    ChatField.CUSTOM_CHOICE: chat(tools=[FUNCTION], tool_choice={"type": "custom", "custom": {"name": "f"}}),
    ChatField.ALLOWED_TOOL: chat(tools=[FUNCTION], tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "custom"}]}}),
    CompletionField.UNKNOWN: {"model": "m", "prompt": "once", "mood": "good"},
    CompletionField.SUFFIX: {"model": "m", "prompt": "once", "suffix": "the end"},
    CompletionField.ECHO: {"model": "m", "prompt": "once", "echo": True},
    CompletionField.BEST_OF: {"model": "m", "prompt": "once", "best_of": 2},
    CompletionField.LOGPROBS: {"model": "m", "prompt": "once", "logprobs": 1},
    CompletionField.OBFUSCATION: {"model": "m", "prompt": "once", "stream": True, "stream_options": {"include_obfuscation": True}},
    CompletionField.PROMPT: {"model": "m", "prompt": ["once", "twice"]},
    MessagesField.UNKNOWN: anthropic(mood="good"),
    MessagesField.SPEED: anthropic(speed="fast"),
    MessagesField.CACHE_FILLING: {**anthropic(), "max_tokens": 0},
    MessagesField.INSTRUCTIONS_BETWEEN: anthropic(*BETWEEN),
    MessagesField.BLOCK: anthropic_block({"type": "search_result", "content": [], "source": "s", "title": "t"}),
    MessagesField.TOOLSET_CALL: anthropic_block({"type": "tool_use", "id": "t", "name": "f", "input": {}, "toolset_name": "set"}, "assistant"),
    MessagesField.TOOLSET_RESULT: anthropic_block({"type": "tool_result", "tool_use_id": "t", "toolset_name": "set"}),
    MessagesField.SOURCE: anthropic_block({"type": "image", "source": {"type": "file", "file_id": "file_1"}}),
    MessagesField.CONTEXT: anthropic_block({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}, "context": "c"}),
    MessagesField.VENDORS_TOOL: anthropic(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
    MessagesField.DEFER_LOADING: anthropic(tools=[{**CUSTOM_TOOL, "defer_loading": True}]),
    MessagesField.INPUT_EXAMPLES: anthropic(tools=[{**CUSTOM_TOOL, "input_examples": [{}]}]),
    MessagesField.ALLOWED_CALLERS: anthropic(tools=[{**CUSTOM_TOOL, "allowed_callers": ["code_execution_20250825"]}]),
    MessagesField.THINKING_TYPE: anthropic(thinking={"type": "galactic"}),
    ResponsesField.UNKNOWN: responses(mood="good"),
    ResponsesField.STATE: responses(previous_response_id="resp_1"),
    ResponsesField.TRUNCATION: responses(truncation="auto"),
    ResponsesField.CACHE_OPTIONS: responses(prompt_cache_options={}),
    ResponsesField.INCLUDE: responses(include=["mood.of_the_day"]),
    ResponsesField.REASONING_CONTEXT: responses(reasoning={"context": "all"}),
    ResponsesField.REASONING_MODE: responses(reasoning={"mode": "pro"}),
    ResponsesField.HOSTED_TOOL: responses(tools=[{"type": "web_search"}]),
    ResponsesField.DEFER_LOADING: responses(tools=[{"type": "function", "name": "f", "defer_loading": True}]),
    ResponsesField.ALLOWED_CALLERS: responses(tools=[{"type": "function", "name": "f", "allowed_callers": ["code"]}]),
    ResponsesField.TOOL_CHOICE: responses(tool_choice={"type": "web_search"}),
    ResponsesField.ALLOWED_TOOL: responses(tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}),
    ResponsesField.CALLED_BY_CODE: responses({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "namespace": "n"}),
    ResponsesField.ITEM: responses({"type": "web_search_call", "id": "ws_1"}),
    ResponsesField.INSTRUCTIONS_BETWEEN: responses({"role": "user", "content": "hello"}, {"role": "developer", "content": "be brief"}),
    ResponsesField.INSTRUCTION_PART: responses_part({"type": "input_image", "image_url": "https://pictures.example/a.png"}, "developer"),
    ResponsesField.PART: responses_part({"type": "output_text", "text": "hello"}),
    ResponsesField.NO_DATA: responses_part({"type": "input_image"}),
    ResponsesField.DATA_URL: responses_part({"type": "input_image", "image_url": "data:,AAAA"}),
    GeminiField.UNKNOWN: gemini(generationConfig={"mediaResolution": "LOW"}),
    GeminiField.SAFETY: gemini(safetySettings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}]),
    GeminiField.INSTRUCTION_PART: gemini(systemInstruction={"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}),
    GeminiField.WORDLESS_THOUGHT: gemini_part({"thought": True, "inlineData": {"mimeType": "image/png", "data": "AAAA"}}, "model"),
    GeminiField.MODELS_MEDIA: gemini_part(SOUND, "model"),
    GeminiField.PART: gemini(
        {"role": "user", "parts": [{"text": "hello"}]},
        GEMINI_CALL,
        {"role": "user", "parts": [{"functionResponse": {"name": "search", "response": {"output": "found"}, "parts": [{}]}}]},
    ),
    GeminiField.MEDIA_TYPE: gemini_part({"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}}),
    GeminiField.ADDRESS: gemini_part({"fileData": {"fileUri": "https://youtu.be/a", "mimeType": "video/mp4"}}),
    GeminiField.RESULT_MEDIA: gemini(
        {"role": "user", "parts": [{"text": "hello"}]},
        GEMINI_CALL,
        {"role": "user", "parts": [{"functionResponse": {"name": "search", "response": {"output": "found"}, "parts": [SOUND]}}]},
    ),
    GeminiField.CALLING_MODE: gemini(toolConfig={"functionCallingConfig": {"mode": "GALACTIC"}}),
    GeminiField.MODALITIES: gemini(generationConfig={"responseModalities": ["AUDIO"]}),
    GeminiField.MIME_TYPE: gemini(generationConfig={"responseMimeType": "text/x.enum"}),
    GeminiField.LEVEL: gemini(generationConfig={"thinkingConfig": {"thinkingLevel": "GALACTIC"}}),
    EmbedField.TOKENS: {"model": "m", "input": [1, 2]},
    EmbedField.PARTS: {"content": {"parts": [{"text": "a"}, {"text": "b"}]}},
    EmbedField.SETTINGS: {"requests": [{"content": {"parts": [{"text": "a"}]}}, {"content": {"parts": [{"text": "b"}]}, "taskType": "CLUSTERING"}]},
}
# `EmbedField.UNKNOWN` is a row of two dialects.
UNKNOWN_EMBEDDINGS: dict[Dialect, dict[str, Any]] = {
    Dialect.OPENAI_EMBEDDINGS: {"model": "m", "input": "a", "input_type": "query"},
    Dialect.GEMINI_EMBED: {"content": {"parts": [{"text": "a"}]}, "mood": "good"},
}


def body_of(dialect: Dialect, field: Field) -> bytes:
    """Return the request of a client of `dialect` that says `field`."""
    body = UNKNOWN_EMBEDDINGS[dialect] if field is EmbedField.UNKNOWN else FROM_CLIENTS[field]
    return json.dumps(body).encode()
