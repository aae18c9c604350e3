"""Google's own SDK against the translators, without a network: its bodies are taken, and it understands what we write."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import pytest
from google import genai
from google.genai import errors, types

from cliproxy.dialects import Dialect
from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import (
    ArgumentsDelta,
    Choice,
    Citation,
    ConversationAnswer,
    Counted,
    Ended,
    Finished,
    PartEnded,
    PartStarted,
    Reasoning,
    SignatureDelta,
    Started,
    StopReason,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
)
from cliproxy.translators.embedding import EmbedAnswer
from cliproxy.translators.gemini_embed.answer import encode_embed_answer
from cliproxy.translators.gemini_embed.decode import decode_embed
from cliproxy.translators.gemini_generate.answer import encode_answer
from cliproxy.translators.gemini_generate.count import decode_count, encode_count_answer
from cliproxy.translators.gemini_generate.decode import decode_gemini
from cliproxy.translators.gemini_generate.request import GeminiRequest
from cliproxy.translators.gemini_generate.to_hub import conversation_of
from cliproxy.translators.gemini_generate.write_stream import KEEP_ALIVE, Writer
from cliproxy.translators.openai_embeddings.answer import decode_embed_answer

G = Dialect.GEMINI_GENERATE
MODEL = "gemini-3-flash-preview"


class Gateway:
    """Answers with `answer` whatever is asked, and keeps the last body."""

    def __init__(self, answer: bytes, media: str = "application/json") -> None:
        self.answer, self.media = answer, media
        self.path = ""
        self.body = b""
        self._client = genai.Client(api_key="key", http_options=types.HttpOptions(client_args={"transport": httpx.MockTransport(self)}))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.path, self.body = request.url.raw_path.decode(), request.read()
        return httpx.Response(200, headers={"content-type": self.media}, content=self.answer)

    @property
    def models(self) -> Any:
        return self._client.models  # a client that nobody holds is closed

    def asked(self) -> GeminiRequest:
        return decode_gemini(self.body, model=MODEL, stream=False, max_tokens_cap=10_000, on_excess="reject")


EVENTS: list[StreamEvent] = [
    Started("id-1", "provider-model"),
    PartStarted(0, 0, Reasoning(signer=G)),
    TextDelta(0, 0, "Hm."),
    PartEnded(0, 0),
    PartStarted(0, 1, Text("")),
    TextDelta(0, 1, "Hello "),
    TextDelta(0, 1, "Oslo\u2028!"),
    PartEnded(0, 1),
    PartStarted(0, 2, ToolCall("c1", "get_weather", "")),
    ArgumentsDelta(0, 2, '{"place":'),
    ArgumentsDelta(0, 2, '\n"Oslo"}'),
    SignatureDelta(0, 2, "c2ln", G),
    PartEnded(0, 2),
    Finished(0, StopReason.TOOL_CALLS),
    Counted(Usage(8, 9, 2, 4)),
    Ended(),
]


def test_a_whole_answer_and_what_the_sdk_sends() -> None:
    parts = (Reasoning("Hm.", "c2ln", signer=G), Text("Hello", (Citation("https://a.example", "A", start=0, end=5),)), ToolCall("c1", "f", '{"x": 1}', "c2ln"))
    answer = ConversationAnswer("id-1", "provider-model", (Choice(0, parts, StopReason.TOOL_CALLS),), Usage(8, 9, 2, 4))
    gateway = Gateway(encode_answer(answer, request=None, id="", model="", created=0))
    schema = types.Schema(type=types.Type.OBJECT, properties={"x": types.Schema(type=types.Type.INTEGER, nullable=True)})
    tool = types.Tool(function_declarations=[types.FunctionDeclaration(name="f", parameters=schema)])
    config = types.GenerateContentConfig(
        system_instruction="Be brief.",
        max_output_tokens=50,
        top_k=40,
        thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=100),
        tools=[tool],
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )
    picture = types.Part.from_bytes(data=b"\xff\xef\xff", mime_type="image/png")
    reply = gateway.models.generate_content(model=MODEL, contents=["What?", picture], config=config)
    assert gateway.path == f"/v1/models/{MODEL}:generateContent"
    asked = conversation_of(gateway.asked())
    assert asked.max_tokens == 50 and asked.top_k == 40 and asked.system == (Text("Be brief."),)
    assert asked.tools[0].parameters == {"type": "object", "properties": {"x": {"type": ["integer", "null"]}}}
    assert asked.messages[0].parts[1].data == "/+//"  # type: ignore[union-attr]
    assert reply.text == "Hello" and reply.response_id == "id-1" and reply.model_version == "provider-model"
    (call,) = reply.function_calls or []
    assert (call.id, call.name, call.args) == ("c1", "f", {"x": 1})
    assert reply.usage_metadata is not None and reply.usage_metadata.thoughts_token_count == 4
    (candidate,) = reply.candidates or []
    assert candidate.finish_reason is types.FinishReason.STOP
    # The history goes back as the SDK writes it.
    history: list[Any] = [types.Content(role="user", parts=[types.Part(text="?")]), candidate.content]
    history.append(types.Content(role="user", parts=[types.Part.from_function_response(name="f", response={"result": 4})]))
    gateway.models.generate_content(model=MODEL, contents=history, config=config)
    again = conversation_of(gateway.asked())
    assert again.messages[1].parts[0] == Reasoning("Hm.", "c2ln", signer=G)
    assert [getattr(part, "signature", None) for part in again.messages[1].parts] == ["c2ln", None, "c2ln"]
    assert again.messages[2].parts[0].call_id == "c1"  # type: ignore[union-attr]


@pytest.mark.parametrize("keep_alive", [b"", KEEP_ALIVE * 3])
def test_a_stream(keep_alive: bytes) -> None:
    writer = Writer(request=None, id="", model="", created=0)
    body = keep_alive + b"".join(writer.write([event]) + keep_alive for event in EVENTS)
    gateway = Gateway(body, "text/event-stream")
    chunks = list(gateway.models.generate_content_stream(model=MODEL, contents="Hi"))
    assert gateway.path == f"/v1/models/{MODEL}:streamGenerateContent?alt=sse"
    parts = [part for chunk in chunks for part in (chunk.candidates[0].content.parts or [])]
    assert "".join(part.text for part in parts if part.text and not part.thought) == "Hello Oslo\u2028!"
    assert [part.text for part in parts if part.thought] == ["Hm."]
    (call,) = [part.function_call for part in parts if part.function_call]
    assert call.args == {"place": "Oslo"}
    assert chunks[-1].candidates[0].finish_reason is types.FinishReason.STOP
    assert chunks[-1].usage_metadata.candidates_token_count == 5


def test_a_broken_stream_raises_in_the_sdk() -> None:
    writer = Writer(request=None, id="", model="", created=0)
    body = writer.write(EVENTS[:6]) + writer.error_event("It broke.", kind="upstream_error", code="x", status=502)
    gateway = Gateway(body, "text/event-stream")
    seen = []
    with pytest.raises(errors.ServerError) as caught:
        for chunk in gateway.models.generate_content_stream(model=MODEL, contents="Hi"):
            seen.append(chunk)
    assert len(seen) == 2
    assert (caught.value.code, caught.value.message, caught.value.status) == (502, "It broke.", "UNAVAILABLE")


def test_counting_and_embeddings() -> None:
    gateway = Gateway(encode_count_answer(31))
    assert gateway.models.count_tokens(model=MODEL, contents="Hi").total_tokens == 31
    assert conversation_of_count(gateway.body) == "Hi"
    vector = decode_embed_answer(json.dumps({"data": [{"index": 0, "embedding": [0.5, 1]}]}).encode())
    request = decode_embed(b'{"requests":[{"content":{"parts":[{"text":"Hi"}]}}]}', model="m", batch=True)
    made = EmbedAnswer(vector.vectors, Usage(3, 0))
    gateway = Gateway(encode_embed_answer(made, request=request, id="", model="", created=0))
    reply = gateway.models.embed_content(model="gemini-embedding-001", contents="Hi", config=types.EmbedContentConfig(output_dimensionality=2))
    assert gateway.path.endswith(":batchEmbedContents")
    assert [embedding.values for embedding in reply.embeddings or []] == [[0.5, 1]]
    asked = decode_embed(gateway.body, model="gemini-embedding-001", batch=True)
    assert asked.wire[0].output_dimensionality == 2


def conversation_of_count(body: bytes) -> str:
    return decode_count(body, model=MODEL).wire.contents[0].parts[0].text or ""
