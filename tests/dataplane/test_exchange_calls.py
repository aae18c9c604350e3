"""A call between its client and egress: who writes what for whom, what becomes of answers, streams, reroutes, cancellations and credit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cliproxy.bounds import MAX_REROUTES, MAX_WHOLE_ANSWER_BYTES
from cliproxy.config.schema import ModelRoute, PoolMember, Requests
from cliproxy.dataplane.answers import MAX_WARNINGS
from cliproxy.dataplane.calls import STREAM_GRANT_BYTES
from cliproxy.dataplane.exchange import MAX_COLLECTED_BYTES
from cliproxy.dialects import Dialect, Endpoint, Quirks
from cliproxy.ipc.mux import Kind
from dataplane.worker_rig import Client, Rig, provider
from fakes.provider import chat_body, chat_events, embeddings_body

PROVIDERS = {
    "chat": provider(),
    "other": provider(),
    "claude": provider("anthropic", base_url="http://127.0.0.1:9"),
    "openai": provider("openai", base_url="http://127.0.0.1:9/v1"),
    "gemini": provider("gemini", base_url="http://127.0.0.1:9/v1beta"),
}
MODELS = {
    "chat": ModelRoute(provider="chat", model="m"),
    "claude": ModelRoute(provider="claude", model="claude-m"),
    "responses": ModelRoute(provider="openai", model="o1-pro"),
    "media": ModelRoute(provider="openai", model="media-m"),
    "gemini": ModelRoute(provider="gemini", model="gemini-m"),
    "pool": ModelRoute(pool=(PoolMember(provider="claude", model="claude-m"), PoolMember(provider="chat", model="m")), strategy="fill_first"),
    "sticky": ModelRoute(provider="chat", model="m", affinity=True),
}
USER = [{"role": "user", "content": "Hi."}]
MESSAGES = {"model": "chat", "max_tokens": 16, "messages": USER}
CHAT = {"model": "chat", "messages": USER}
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "Hi."}]}]}
TEXT = "Hello from the fake provider."
WORDS = [" one", " two", " grüße 🌍"]


def rig(**more: Any) -> Rig:
    return Rig(MODELS, PROVIDERS, **more)


def message_body(text: str = TEXT) -> bytes:
    """Return an ordinary answer of Anthropic's."""
    return json.dumps(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-m",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 19, "output_tokens": 24},
        }
    ).encode()


def text_of(shape: str, document: Any) -> str:
    if shape == "chat":
        return str(document["choices"][0]["message"]["content"])
    if shape == "messages":
        return "".join(block["text"] for block in document["content"])
    return "".join(part["text"] for part in document["candidates"][0]["content"]["parts"])


ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "messages": ("/v1/messages", MESSAGES),
    "gemini": ("/v1beta/models/chat:generateContent", CONTENTS),
}


# --- whole answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ASKED)
def test_a_whole_answer_of_a_chat_provider_is_said_in_the_clients_dialect(shape: str) -> None:
    worker = rig()
    path, body = ASKED[shape]
    client = worker.post(path, body)
    (call,) = worker.calls
    assert (call.endpoint, call.model, call.stream, call.n) == (Endpoint.CHAT_COMPLETIONS, "chat", False, 1)
    assert call.client == {"chat": Dialect.OPENAI_CHAT, "messages": Dialect.ANTHROPIC_MESSAGES, "gemini": Dialect.GEMINI_GENERATE}[shape]
    sent = json.loads(call.body[: call.model_offset] + b'"m"' + call.body[call.model_offset :])
    assert sent["messages"][-1]["content"] == "Hi." and sent["max_tokens"] == call.max_tokens
    worker.answer(client, chat_body("m"), provider="chat", model="m", attempts=2)
    assert (client.status, client.headers["content-type"]) == (200, "application/json")
    assert text_of(shape, client.json) == TEXT
    assert {name[11:]: value for name, value in client.headers.items() if name.startswith("x-cliproxy-")} == {"provider": "chat", "model": "m", "attempts": "2"}
    assert ("request-id" in client.headers) is (shape == "messages")
    assert client.call is None and worker.link.open_calls == 0


@pytest.mark.parametrize("shape", ["chat", "gemini"])
def test_a_whole_answer_of_anthropics_is_said_in_the_clients_dialect(shape: str) -> None:
    worker = rig()
    path, body = ASKED[shape]
    client = worker.post(path.replace("chat:", "claude:"), body | {"model": "claude"} if shape == "chat" else body)
    (call,) = worker.calls
    assert call.endpoint == Endpoint.MESSAGES
    worker.answer(client, message_body())
    assert text_of(shape, client.json) == TEXT


def test_a_same_dialect_answer_passes_byte_by_byte() -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES | {"model": "claude"})
    worker.answer(client, message_body() + b" ")
    assert client.body == message_body() + b" "


@pytest.mark.parametrize("body", [message_body(), b"", b"{}", b"[]", b'{"choices":[]}', b"\xff", b"[" * 5000, chat_body("m")[:-2]])
def test_what_is_no_answer_of_the_providers_dialect_is_a_clean_502(body: bytes) -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES)
    worker.answer(client, body)
    assert (client.status, client.json["type"], client.json["error"]["type"]) == (502, "error", "api_error")
    assert client.json["request_id"] == client.headers["request-id"] == client.headers["x-request-id"]
    assert worker.faults == []


def test_a_large_answer_is_collected_credit_comes_back_and_it_is_said_at_its_end() -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES)
    body = chat_body("m", "x" * 300_000)
    worker.answer(client, body[:60_000], final=False)
    assert client.status == 0
    for start in range(60_000, len(body), 60_000):
        worker.data(client, body[start : start + 60_000])
    assert worker.credit(client.number) >= len(body) - STREAM_GRANT_BYTES
    assert worker.exchange.collected.taken == len(body)
    worker.end(client)
    assert text_of("messages", client.json) == "x" * 300_000
    assert worker.exchange.collected.taken == 0


@pytest.mark.parametrize(("most", "status"), [("MAX_WHOLE_ANSWER_BYTES", 502), ("MAX_COLLECTED_BYTES", 503)])
def test_what_is_collected_is_bounded(monkeypatch: pytest.MonkeyPatch, most: str, status: int) -> None:
    assert MAX_WHOLE_ANSWER_BYTES <= MAX_COLLECTED_BYTES
    worker = rig()
    if most == "MAX_COLLECTED_BYTES":
        worker.exchange.collected.most = 1000
    else:
        monkeypatch.setattr(f"cliproxy.dataplane.calls.{most}", 1000)
    first, client = worker.post("/v1/messages", MESSAGES), worker.post("/v1/messages", MESSAGES)
    worker.answer(first, b"{" * 600, final=False)
    worker.answer(client, b"{" * 600, final=False)
    if not client.status:
        worker.data(client, b"{" * 600)
    assert client.status == status
    assert Kind.CANCEL in worker.kinds(client.number)
    assert first.status == 0 and worker.exchange.collected.taken == 600


def test_a_large_answer_is_refused_when_too_much_waits_for_slow_clients() -> None:
    for text, status in ((TEXT, 200), ("x" * 70_000, 503)):
        worker = rig()
        client = worker.post("/v1/messages", MESSAGES)
        client.crowded = True
        worker.answer(client, chat_body("m", text), final=False)
        worker.end(client)
        assert client.status == status and worker.exchange.collected.taken == 0 and worker.faults == []


def test_an_answer_that_the_client_does_not_wait_for_is_let_go() -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES)
    worker.answer(client, b"{" * 600, final=False)
    worker.exchange.on_client_gone(client)
    assert worker.exchange.collected.taken == 0 and Kind.CANCEL in worker.kinds(client.number)
    worker.data(client, b"x")
    worker.end(client)
    assert (client.status, worker.faults) == (0, [])


EMBEDDINGS: dict[tuple[str, str], tuple[Endpoint, dict[str, Any]]] = {
    ("/v1/embeddings", "chat"): (Endpoint.EMBEDDINGS, {"model": "chat", "input": ["a", "b"]}),
    ("/v1/embeddings", "gemini"): (Endpoint.EMBED_CONTENT, {"model": "gemini", "input": "a"}),
    ("/v1beta/models/chat:embedContent", "chat"): (Endpoint.EMBEDDINGS, {"content": {"parts": [{"text": "a"}]}}),
    ("/v1beta/models/gemini:embedContent", "gemini"): (Endpoint.EMBED_CONTENT, {"content": {"parts": [{"text": "a"}]}}),
    ("/v1beta/models/chat:batchEmbedContents", "chat"): (Endpoint.EMBEDDINGS, {"requests": [{"content": {"parts": [{"text": text}]}} for text in "ab"]}),
    ("/v1beta/models/gemini:batchEmbedContents", "gemini"): (Endpoint.EMBED_CONTENT, {"requests": [{"content": {"parts": [{"text": "a"}]}}]}),
}


@pytest.mark.parametrize("case", EMBEDDINGS)
def test_embeddings_go_between_openai_and_gemini(case: tuple[str, str]) -> None:
    worker = rig()
    endpoint, body = EMBEDDINGS[case]
    client = worker.post(case[0], body)
    (call,) = worker.calls
    assert (call.endpoint, call.stream, call.max_tokens, call.n) == (endpoint, False, 0, 1)
    count = 2 if ("requests" in body and len(body["requests"]) == 2) or body.get("input") == ["a", "b"] else 1
    worker.answer(client, embeddings_body("m", count) if endpoint is Endpoint.EMBEDDINGS else b'{"embedding":{"values":[0.25,-0.5,1.0]}}')
    if case[0] == "/v1/embeddings":
        vectors = [item["embedding"] for item in client.json["data"]]
    elif "batch" in case[0]:
        vectors = [item["values"] for item in client.json["embeddings"]]
    else:
        vectors = [client.json["embedding"]["values"]]
    assert vectors == [[0.25, -0.5, 1.0]] * count


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nmedia\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--x--\r\n'
)
MEDIA: dict[str, tuple[Any, Endpoint, bytes, str, str]] = {
    "/v1/images/generations": (
        {"model": "media", "prompt": "a cat", "n": 2},
        Endpoint.IMAGES,
        b'{"created":1,"data":[{"b64_json":"aa"}]}',
        "",
        "application/json",
    ),
    "/v1/audio/speech": ({"model": "media", "input": "hello", "voice": "alloy"}, Endpoint.SPEECH, b"ID3", "audio/mpeg", "audio/mpeg"),
    "/v1/audio/transcriptions": (FORM, Endpoint.TRANSCRIPTIONS, b"hello", "text/plain; charset=utf-8", "text/plain; charset=utf-8"),
    "/v1/audio/translations": (FORM, Endpoint.TRANSLATIONS, b'{"text":"hello"}', "application/json", "application/json"),
}


@pytest.mark.parametrize("path", MEDIA)
def test_media_pass_with_their_own_type_whole_and_in_pieces(path: str) -> None:
    worker = rig()
    body, endpoint, answer, media, told = MEDIA[path]
    headers = ("Content-Type: multipart/form-data; boundary=x",) if body is FORM else ()
    whole, pieces = worker.post(path, body, *headers), worker.post(path, body, *headers)
    call = worker.calls[0]
    assert (call.endpoint, call.model, call.max_tokens, call.n, call.stream) == (endpoint, "media", 0, 2 if "images" in path else 1, False)
    worker.answer(whole, answer, media=media)
    worker.answer(pieces, answer[:2], media=media, final=False)
    worker.data(pieces, answer[2:])
    worker.end(pieces)
    for client in (whole, pieces):
        assert (client.status, client.headers["content-type"], client.body) == (200, told, answer)


@pytest.mark.parametrize("media", ["text/html\r\nSet-Cookie: a=b", "audio", 'audio/mpeg; x="y"', "Audio/MPEG", "a" * 200 + "/b", "audio/ö"])
def test_a_media_type_that_is_none_is_502(media: str) -> None:
    worker = rig()
    client = worker.post("/v1/audio/speech", MEDIA["/v1/audio/speech"][0])
    worker.answer(client, b"ID3", media=media)
    assert client.status == 502 and "set-cookie" not in client.headers


def test_a_form_without_its_type_is_400_and_a_model_without_media_too() -> None:
    worker = rig()
    assert worker.post("/v1/audio/transcriptions", FORM).status == 400
    refused = worker.post("/v1/audio/speech", MEDIA["/v1/audio/speech"][0] | {"model": "claude"})
    assert (refused.status, refused.json["error"]["code"]) == (400, "endpoint_not_supported")


def test_legacy_completions_are_answered_by_a_chat_provider() -> None:
    worker = rig()
    client = worker.post("/v1/completions", {"model": "chat", "prompt": "Say it.", "max_tokens": 9})
    worker.answer(client, chat_body("m"))
    assert (client.json["object"], client.json["choices"][0]["text"]) == ("text_completion", TEXT)
    streamed = worker.post("/v1/completions", {"model": "chat", "prompt": "Say it.", "stream": True})
    worker.answer(streamed, b"".join(chat_events("m", WORDS)), sse=True, final=False)
    worker.end(streamed)
    assert streamed.body.endswith(b"data: [DONE]\n\n") and streamed.body.count(b'"text":" ') == len(WORDS)


def test_responses_are_answered_by_a_chat_provider() -> None:
    worker = rig()
    client = worker.post("/v1/responses", {"model": "chat", "input": "Say it."})
    worker.answer(client, chat_body("m"))
    assert client.json["object"] == "response" and client.json["output"][-1]["content"][0]["text"] == TEXT
    refused = worker.post("/v1/responses", {"model": "chat", "input": "And now?", "previous_response_id": "resp_1"})
    assert (refused.status, refused.json["error"]["param"]) == (400, "previous_response_id")


# --- streams -----------------------------------------------------------------------------------------------------------

STREAMED = {
    "chat": ("/v1/chat/completions", CHAT | {"stream": True}),
    "messages": ("/v1/messages", MESSAGES | {"stream": True}),
    "gemini": ("/v1beta/models/chat:streamGenerateContent?alt=sse", CONTENTS),
    "array": ("/v1beta/models/chat:streamGenerateContent", CONTENTS),
}


def streamed_text(shape: str, body: bytes) -> str:
    """Return the text of a stream in the client's dialect, and check that it has its dialect's ending."""
    if shape == "array":
        return "".join(text_of("gemini", element) for element in json.loads(body) if element["candidates"][0]["content"].get("parts"))
    events = [event for event in body.decode().split("\n\n") if event]
    documents = [json.loads(line[6:]) for event in events for line in event.split("\n") if line.startswith("data: ") and line != "data: [DONE]"]
    if shape == "messages":
        assert documents[0]["type"] == "message_start" and documents[-1]["type"] == "message_stop"
        return "".join(item["delta"].get("text", "") for item in documents if item["type"] == "content_block_delta")
    if shape == "gemini":
        return "".join(text_of("gemini", item) for item in documents if item["candidates"][0].get("content", {}).get("parts"))
    assert events[-1] == "data: [DONE]"
    return "".join(item["choices"][0]["delta"].get("content") or "" for item in documents)


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
@pytest.mark.parametrize("shape", STREAMED)
def test_a_stream_is_said_in_the_clients_dialect_however_it_was_cut(shape: str, size: int) -> None:
    worker = rig()
    path, body = STREAMED[shape]
    client = worker.post(path, body)
    assert worker.calls[0].stream is True
    whole = b"".join(chat_events("m", WORDS))
    worker.answer(client, whole[:size], sse=True, final=False)
    worker.data(client, *(whole[start : start + size] for start in range(size, len(whole), size)))
    worker.end(client)
    assert (client.status, client.ending) == (200, "ended")
    assert client.headers["content-type"].startswith("application/json" if shape == "array" else "text/event-stream")
    assert streamed_text(shape, client.body) == "".join(WORDS)


NATIVE = {
    "messages": ("/v1/messages", MESSAGES | {"model": "claude", "stream": True}),
    "gemini": ("/v1beta/models/gemini:streamGenerateContent?alt=sse", CONTENTS),
    "array": ("/v1beta/models/gemini:streamGenerateContent", CONTENTS),
}
OWN = {
    "messages": [b'event: message_start\ndata: {"type":"message_start","n":1}\n\n', b'event: ping\ndata: {"type":"ping"}\n\n'],
    "gemini": [b'data: {"candidates":[{"index":0}]}\n\n', b'data: {"candidates":[{"index":1}]}\n\n'],
    "array": [b'data: {"candidates":[{"index":0}]}\n\n', b'data: {"candidates":[{"index":1}]}\n\n'],
}


@pytest.mark.parametrize("size", [1, 9, 1000])
@pytest.mark.parametrize("shape", NATIVE)
def test_a_stream_of_the_same_dialect_passes_in_whole_events_however_frames_cut_it(shape: str, size: int) -> None:
    worker = rig()
    client = worker.post(*NATIVE[shape])
    whole = b": a comment first, on data: of nobody\n\n" + b"".join(OWN[shape])
    worker.answer(client, b"", sse=True, final=False)
    for start in range(0, len(whole), size):
        worker.data(client, whole[start : start + size])
        assert shape == "array" or client.body.endswith(b"\n\n") or not client.body
    worker.end(client)
    if shape == "array":
        assert json.loads(client.body) == [{"candidates": [{"index": number}]} for number in (0, 1)]
    else:  # Google's SDK takes a comment for JSON
        assert client.body == (b"".join(OWN[shape]) if shape == "gemini" else whole)


@pytest.mark.parametrize("shape", [*NATIVE, "chat"])
def test_a_stream_of_the_same_dialect_that_begins_as_anothers_is_502(shape: str) -> None:
    worker = rig()
    client = worker.post(*(STREAMED | NATIVE)[shape])
    other = OWN["gemini" if shape in ("chat", "messages") else "messages"]
    worker.answer(client, other[0], sse=True, final=False)
    assert client.status == 502 and Kind.CANCEL in worker.kinds(client.number)


def broken(shape: str, body: bytes) -> Any:
    """Return the error that ends a stream of `shape`."""
    if shape == "array":
        return json.loads(body)[-1]["error"]
    assert b"[DONE]" not in body and b"message_stop" not in body
    last = body.decode().strip().split("\n\n")[-1]
    return json.loads(last.split("data: ", 1)[1])["error"]


ENDS = {
    "egress says so": lambda worker, client: worker.abort(client, message="The provider broke off."),
    "another dialect's event": lambda worker, client: worker.data(client, b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'),
    "no JSON": lambda worker, client: worker.data(client, b"data: {\n\n"),
    "it ends early": lambda worker, client: worker.end(client),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("shape", [shape for shape in STREAMED if shape != "chat"])  # in the same dialect egress judges the ending
def test_a_stream_that_breaks_ends_with_the_dialects_error_and_no_ending(shape: str, how: str) -> None:
    worker = rig()
    path, body = STREAMED[shape]
    client = worker.post(path, body)
    events = chat_events("m", WORDS)
    worker.answer(client, b"".join(events[:2]), sse=True, final=False)
    assert b"one" in client.body
    ENDS[how](worker, client)
    assert broken(shape, client.body)["message"]
    assert client.ending == "ended" and client.call is None
    assert worker.link.open_calls == 0 and worker.faults == []
    assert worker.cancelled(client.number) == (["bad_upstream_answer"] if how in ("another dialect's event", "no JSON") else [])


@pytest.mark.parametrize("shape", [shape for shape in STREAMED if shape != "chat"])
def test_a_stream_that_is_none_from_its_first_byte_is_told_by_the_status(shape: str) -> None:
    worker = rig()
    path, body = STREAMED[shape]
    client = worker.post(path, body)
    worker.answer(client, b"data: <html>\n\n", sse=True, final=False)
    assert client.status == 502 and client.chunks == []
    assert Kind.CANCEL in worker.kinds(client.number)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("shape", ["chat", "messages"])
def test_a_stream_that_was_not_asked_for_or_did_not_come_is_502(shape: str, stream: bool) -> None:
    worker = rig()
    path, body = (STREAMED if stream else ASKED)[shape]
    client = worker.post(path, body)
    worker.answer(client, b"{}", sse=not stream, final=False)
    assert client.status == 502 and Kind.CANCEL in worker.kinds(client.number)


def test_media_that_nobody_asked_for_is_502() -> None:
    worker = rig()
    client = worker.post("/v1/chat/completions", CHAT)
    worker.answer(client, b"ID3", media="audio/mpeg")
    assert client.status == 502


@pytest.mark.parametrize(("shape", "comment"), [("chat", b": keep-alive\n\n"), ("messages", b"event: ping"), ("array", b"\n")])
def test_a_silent_stream_is_kept_alive_in_its_dialect(shape: str, comment: bytes) -> None:
    worker = rig()
    path, body = STREAMED[shape]
    client = worker.post(path, body)
    events = chat_events("m", WORDS)
    worker.answer(client, b"".join(events[:2]), sse=True, final=False)
    before = len(client.body)
    worker.exchange.sweep(worker.exchange.clock + 3600)
    assert client.body[before:].startswith(comment)
    worker.data(client, *events[2:])
    worker.end(client)
    if shape == "array":
        assert streamed_text(shape, client.body) == "".join(WORDS)
    worker.exchange.sweep(worker.exchange.clock + 7200)  # not after its end
    assert client.ending == "ended"


@pytest.mark.parametrize("hears", ["a provider's comments", "arguments that are told whole"])
def test_what_the_client_hears_nothing_of_does_not_stop_its_comments(hears: str) -> None:
    worker = rig()
    client = worker.post(*STREAMED["gemini"])
    events = chat_events("m", WORDS)
    call = json.loads(events[1].removeprefix(b"data: "))
    call["choices"][0]["delta"] = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": "'}}]}
    worker.answer(client, b"".join(events[:2]), sse=True, final=False)
    if hears == "arguments that are told whole":
        worker.data(client, b"data: %b\n\n" % json.dumps(call).encode())
    call["choices"][0]["delta"] = {"tool_calls": [{"index": 0, "function": {"arguments": "x"}}]}
    silent = b": the provider thinks\n\n" if hears == "a provider's comments" else b"data: %b\n\n" % json.dumps(call).encode()
    before = len(client.body)
    for _ in range(40):
        worker.exchange.sweep(worker.exchange.clock + 1)
        worker.data(client, silent)
    assert client.body[before:] == b"\n\n"  # one each 15 seconds


@pytest.mark.parametrize("shape", ["messages", "array", "gemini"])
def test_nothing_follows_the_end_of_a_translated_stream(shape: str) -> None:
    worker = rig()
    client = worker.post(*STREAMED[shape])
    worker.answer(client, b"".join(chat_events("m", WORDS)), sse=True, final=False)
    worker.abort(client, message="The provider broke off.")
    assert streamed_text(shape, client.body) == "".join(WORDS) and client.ending == "ended"


@pytest.mark.parametrize("path", [STREAMED["chat"], *NATIVE.values()])
def test_a_stream_that_ends_without_one_event_is_no_answer(path: tuple[str, Any]) -> None:
    worker = rig()
    client = worker.post(*path)
    worker.answer(client, b": only this\n\n", sse=True, final=False)
    worker.end(client)
    assert b"error" in client.body and client.ending == "ended"


# --- a client that does not read ---------------------------------------------------------------------------------------


def resume(worker: Rig, client: Client) -> None:
    client.paused = False
    worker.exchange.on_writable(client)


@pytest.mark.parametrize("shape", STREAMED)
def test_a_client_that_does_not_read_gets_no_more_credit_until_it_does(shape: str) -> None:
    worker = rig()
    path, body = STREAMED[shape]
    client = worker.post(path, body)
    events = chat_events("m", [f" {'x' * 1000}"] * 100)
    worker.answer(client, events[0], sse=True, final=False)
    client.paused = True
    worker.data(client, *events[1:-1])
    assert worker.credit(client.number) == 0
    written = len(client.body)
    if shape != "chat":
        assert written < 5000  # it waits as it came
    worker.data(client, events[-1])
    worker.end(client)
    assert client.ending == ("ended" if shape == "chat" else "")
    resume(worker, client)
    assert client.ending == "ended"
    assert streamed_text(shape, client.body) == f" {'x' * 1000}" * 100


def test_what_waited_for_a_client_is_followed_by_what_came_after_it() -> None:
    worker = rig()
    client = worker.post(*STREAMED["messages"])
    events = chat_events("m", ["a", "b", "c", "d"])
    worker.answer(client, events[0], sse=True, final=False)
    client.paused = True
    worker.data(client, events[1], events[2])
    resume(worker, client)
    worker.data(client, events[3])
    client.paused = True
    worker.data(client, events[4])
    worker.exchange.on_writable(client)
    client.paused = False
    worker.data(client, *events[5:])
    worker.end(client)
    assert streamed_text("messages", client.body) == "abcd"


def test_what_waits_and_is_broken_ends_once_the_client_reads() -> None:
    worker = rig()
    client = worker.post(*STREAMED["messages"])
    events = chat_events("m", WORDS)
    worker.answer(client, events[0], sse=True, final=False)
    client.paused = True
    worker.data(client, events[1], b"data: {\n\n", events[2])
    resume(worker, client)
    assert broken("messages", client.body)["message"] and client.ending == "ended"
    assert b"one" in client.body and b"two" not in client.body
    assert worker.faults == []


def test_the_end_of_a_translated_stream_waits_for_a_client_that_does_not_read() -> None:
    """It repeats the whole text, four times for `/v1/responses`, and a client that is sent so much while it does not read is dropped."""
    worker = rig()
    client = worker.post("/v1/responses", {"model": "gemini", "input": "Hi.", "stream": True})
    event = (
        b'data: {"candidates":[{"content":{"parts":[{"text":"Hi"}],"role":"model"},"index":0,"finishReason":"STOP"}],"modelVersion":"m","responseId":"r"}\n\n'
    )
    worker.answer(client, event, sse=True, final=False)
    client.paused = True
    written = len(client.body)
    worker.end(client)
    assert len(client.body) == written and client.ending == ""
    resume(worker, client)
    assert b"response.completed" in client.body and client.ending == "ended" and client.call is None


def test_a_client_that_goes_while_pieces_wait_for_it_cancels_the_call() -> None:
    worker = rig()
    client = worker.post(*STREAMED["messages"])
    worker.answer(client, chat_events("m", WORDS)[0], sse=True, final=False)
    client.paused = True
    worker.data(client, chat_events("m", WORDS)[1])
    call = client.call
    worker.exchange.on_client_gone(client)
    assert worker.cancelled(client.number) == ["client_gone"] and worker.exchange._streams == set()
    call.resume()  # type: ignore[attr-defined]
    assert client.ending == ""


# --- what a target cannot say ------------------------------------------------------------------------------------------


def test_what_the_target_cannot_say_is_400_with_the_clients_own_path() -> None:
    worker = rig()
    config = {"seed": 7, "presencePenalty": 1.5}
    client = worker.post("/v1beta/models/claude:generateContent", CONTENTS | {"generationConfig": config})
    assert client.status == 400
    assert client.json["error"]["status"] == "INVALID_ARGUMENT"
    assert "generationConfig.presencePenalty" in client.json["error"]["message"]
    assert {"field": "generationConfig.presencePenalty"}.items() <= client.json["error"]["details"][1]["fieldViolations"][0].items()
    assert worker.calls == []


def test_what_was_left_out_is_told_in_warnings_by_the_clients_own_names() -> None:
    worker = rig()
    client = worker.post("/v1beta/models/claude:generateContent", CONTENTS | {"generationConfig": {"seed": 7}, "labels": {"a": "b"}})
    worker.answer(client, message_body())
    named = [warning for name in ("generationConfig.seed", "labels") for warning in client.warnings if f'"field {name} ' in warning]
    assert len(named) == len(client.warnings) > 0
    assert all(warning.startswith('299 cliproxy "field ') and warning.endswith(' is not supported by the provider and was left out"') for warning in named)


def test_warnings_are_bounded_and_hold_nothing_that_ends_a_header() -> None:
    from cliproxy.dataplane.answers import warning_headers

    hostile = 'a"b\\c\r\nSet-Cookie: x=1\u2028é'
    headers = warning_headers([hostile, hostile, *(f"f{number}" for number in range(100))])
    assert headers.count(b"\r\n") == MAX_WARNINGS == headers.count(b"Warning: 299 cliproxy ")
    assert headers.startswith(b'Warning: 299 cliproxy "field a?b?c??Set-Cookie: x=1?? is not')


def test_a_later_profile_is_used_when_the_first_cannot_say_the_request() -> None:
    worker = rig()
    worker.post("/v1/chat/completions", {"model": "pool", "messages": USER})
    worker.post("/v1/chat/completions", {"model": "pool", "messages": USER, "n": 2, "presence_penalty": 1.0})
    client = worker.post("/v1/chat/completions", {"model": "claude", "messages": USER, "n": 2})
    assert [call.endpoint for call in worker.calls] == [Endpoint.MESSAGES, Endpoint.CHAT_COMPLETIONS]
    assert (client.status, client.json["error"]["param"], client.json["error"]["code"]) == (400, "n", "unsupported_feature")


TURNS = [{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}, {"role": "user", "content": "And?"}]
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {  # path, body, the field that is named, what the message says besides
    "JSON without a schema": (
        "/v1beta/models/claude:generateContent",
        CONTENTS | {"generationConfig": {"responseMimeType": "application/json"}},
        "generationConfig.responseMimeType",
        "",
    ),
    "JSON without a schema, from chat": (
        "/v1/chat/completions",
        {"model": "claude", "messages": USER, "response_format": {"type": "json_object"}},
        "response_format.type",
        "",
    ),
    "JSON without a schema, from responses": (
        "/v1/responses",
        {"model": "claude", "input": "Hi", "text": {"format": {"type": "json_object"}}},
        "text.format.type",
        "",
    ),
    "instructions between turns": ("/v1/chat/completions", {"model": "claude", "messages": TURNS}, "messages[1].role", "into a message of the user"),
    "instructions between items": ("/v1/responses", {"model": "claude", "input": TURNS}, "input[1]", "into a message of the user"),
    "instructions between messages": (
        "/v1/messages",
        {"model": "chat", "max_tokens": 9, "messages": TURNS},
        "messages[1].role",
        "into a message of the user",
    ),
    "a speaker's name": (
        "/v1/chat/completions",
        {"model": "claude", "messages": [{"role": "user", "content": "Hi", "name": "Ada"}]},
        "messages[0].name",
        "write the name into the text",
    ),
    "several choices": ("/v1/chat/completions", {"model": "claude", "messages": USER, "n": 2}, "n", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_provider_cannot_be_asked_is_told_by_the_clients_own_path_in_the_message_too(name: str) -> None:
    path, body, field, advice = REFUSED[name]
    worker = rig()
    client = worker.post(path, body)
    assert client.status == 400 and worker.calls == []
    message = client.json["error"]["message"]
    assert f"({field})" in message and advice in message and "output" not in message
    if "v1beta" in path:
        assert client.json["error"]["details"][1]["fieldViolations"][0]["field"] == field
    elif path != "/v1/messages":
        assert client.json["error"]["param"] == field


MISTAKES: dict[str, tuple[str, Any, int, str]] = {
    "no /v1": ("/chat/completions", {"model": "chat"}, 404, "base URL for OpenAI's SDKs ends in /v1"),
    "/v1 twice": ("/v1/v1/messages", {"model": "chat"}, 404, "for Anthropic's and Google's it has no path"),
    "a verb that there is not": ("/v1beta/models/chat:tuneModel", {}, 405, "generateContent, streamGenerateContent, countTokens"),
    "too many tokens": ("/v1/chat/completions", CHAT | {"max_tokens": 1 << 20}, 400, "raise requests.max_tokens"),
    "too many output tokens": ("/v1/responses", {"model": "chat", "input": "x", "max_output_tokens": 1 << 20}, 400, "max_output_tokens is above"),
    "too many tokens of Anthropic's": ("/v1/messages", MESSAGES | {"max_tokens": 1 << 20}, 400, "raise requests.max_tokens"),
    "too many tokens of Gemini's": (
        "/v1beta/models/chat:generateContent",
        CONTENTS | {"generationConfig": {"maxOutputTokens": 1 << 20}},
        400,
        "generationConfig.maxOutputTokens is above",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_common_mistake_is_told_with_what_to_do(name: str) -> None:
    path, body, status, advice = MISTAKES[name]
    client = rig().post(path, body)
    assert client.status == status and advice in client.json["error"]["message"]


@pytest.mark.parametrize(("thinking", "shown"), [({}, True), ({"display": "summarized"}, True), ({"display": "omitted"}, False)])
def test_a_messages_client_with_a_budget_sees_thoughts_of_other_dialects(thinking: dict[str, Any], shown: bool) -> None:
    """Anthropic shows them where nothing is said: so is what the provider is asked, and what the client gets."""
    worker = rig()
    asked = {"thinking": {"type": "enabled", "budget_tokens": 1024} | thinking, "max_tokens": 2048, "messages": USER}
    worker.post("/v1/messages", asked | {"model": "gemini"})
    worker.post("/v1/messages", asked | {"model": "responses"})
    gemini, responses = (
        json.loads(call.body[: call.model_offset] + (b"" if call.model_offset == len(call.body) else b'"m"') + call.body[call.model_offset :])
        for call in worker.calls
    )
    assert gemini["generationConfig"]["thinkingConfig"] == {"includeThoughts": shown, "thinkingBudget": 1024}
    assert ("summary" in responses["reasoning"]) is shown


# --- reroutes ----------------------------------------------------------------------------------------------------------


def test_a_reroute_writes_the_same_request_for_another_profile_and_sends_it_with_what_was_tried() -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES | {"model": "pool"})
    first = client.number
    worker.reroute(client, Endpoint.CHAT_COMPLETIONS, "claude/claude-m", quirks=chat_quirks(worker))
    one, two = worker.calls
    assert (one.endpoint, two.endpoint) == (Endpoint.MESSAGES, Endpoint.CHAT_COMPLETIONS)
    assert (two.tried, two.request_id, two.session, client.status) == (("claude/claude-m",), one.request_id, one.session, 0)
    assert client.number != first
    worker.answer(client, chat_body("m"), provider="chat", model="m", attempts=2)
    assert text_of("messages", client.json) == TEXT


def test_a_client_that_leaves_between_two_tries_cancels_the_second() -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES | {"model": "pool"})
    worker.reroute(client, Endpoint.CHAT_COMPLETIONS, "claude/claude-m", quirks=chat_quirks(worker))
    worker.exchange.on_client_gone(client)
    assert worker.kinds(client.number) == [Kind.CALL, Kind.CANCEL]


def chat_quirks(worker: Rig) -> int:
    return int(worker.exchange._table.find("pool").by_id["chat/m"].endpoints[Endpoint.CHAT_COMPLETIONS].quirks)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("endpoint", "quirks"), [(Endpoint.GENERATE_CONTENT, 0), (Endpoint.CHAT_COMPLETIONS, int(Quirks.VERTEX)), (99, 0), (Endpoint.CHAT_COMPLETIONS, 1 << 30)]
)
def test_a_reroute_to_what_the_route_does_not_have_is_502(endpoint: int, quirks: int) -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES | {"model": "pool"})
    worker.reroute(client, endpoint, quirks=quirks)
    assert (client.status, len(worker.calls)) == (502, 1)
    assert worker.faults == [] and client.call is None


def test_a_route_of_one_profile_cannot_be_rerouted_and_its_request_is_not_kept() -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES)
    assert client.call.kept is None  # type: ignore[attr-defined]
    worker.reroute(client, Endpoint.CHAT_COMPLETIONS, quirks=chat_quirks(worker))
    assert (client.status, len(worker.calls)) == (502, 1)


def test_a_request_is_not_kept_once_its_answer_has_begun() -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES | {"model": "pool", "stream": True})
    assert client.call.kept is not None  # type: ignore[attr-defined]
    worker.answer(client, b"", sse=True, final=False)
    assert client.call.kept is None  # type: ignore[attr-defined]
    worker.reroute(client, Endpoint.CHAT_COMPLETIONS, quirks=chat_quirks(worker))
    assert len(worker.calls) == 1 and broken("messages", client.body)["message"]


def test_reroutes_are_bounded() -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES | {"model": "pool"})
    for number in range(MAX_REROUTES + 2):
        endpoint, quirks = (Endpoint.MESSAGES, 0) if number % 2 else (Endpoint.CHAT_COMPLETIONS, chat_quirks(worker))
        if not client.status:
            worker.reroute(client, endpoint, quirks=quirks)
    assert (client.status, len(worker.calls)) == (502, MAX_REROUTES + 1)


def test_a_profile_that_cannot_say_the_request_counts_as_tried() -> None:
    worker = rig()
    body = {"model": "pool", "messages": USER, "n": 2}
    client = worker.post("/v1/chat/completions", body)
    assert worker.calls[0].endpoint == Endpoint.CHAT_COMPLETIONS
    worker.reroute(client, Endpoint.MESSAGES, "chat/m")
    assert (client.status, client.json["error"]["code"], len(worker.calls)) == (503, "no_target", 1)


def test_a_reroute_without_a_channel_is_503() -> None:
    worker = rig()
    client = worker.post("/v1/messages", MESSAGES | {"model": "pool"})
    worker.link._channel = worker.link._taking = None
    worker.reroute(client, Endpoint.CHAT_COMPLETIONS, quirks=chat_quirks(worker))
    assert (client.status, client.json["error"]["type"]) == (503, "overloaded_error")


# --- what is kept ------------------------------------------------------------------------------------------------------

KEPT: dict[str, tuple[str, Any]] = {
    "translated": ("/v1/messages", MESSAGES),
    "translated stream": ("/v1/messages", MESSAGES | {"stream": True}),
    "of two profiles": ("/v1/messages", MESSAGES | {"model": "pool"}),
    "of two profiles, streamed": ("/v1/messages", MESSAGES | {"model": "pool", "stream": True}),
    "batch": ("/v1beta/models/gemini:batchEmbedContents", {"requests": [{"content": {"parts": [{"text": "a"}]}}]}),
}


@pytest.mark.parametrize("how", ["answered", "broken", "left", "nonsense", "bad reroute"])
@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_of_a_request_is_counted_and_let_go_at_its_end(name: str, how: str) -> None:
    worker = rig()
    path, body = KEPT[name]
    stream = "stream" in name
    client = worker.post(path, body)
    assert worker.exchange.kept.taken == len(json.dumps(body))
    if how == "answered":
        own = "two profiles" in name
        worker.answer(
            client, OWN["messages"][0] if own and stream else b"" if stream else message_body() if own else chat_body("m"), sse=stream, final=not stream
        )
        if stream and not own:
            worker.data(client, *chat_events("m", WORDS))
            assert worker.exchange.kept.taken == len(json.dumps(body))
        if stream:
            worker.end(client)
    elif how == "broken":
        worker.abort(client)
    elif how == "left":
        worker.exchange.on_client_gone(client)
    elif how == "nonsense":
        worker.answer(client, b"{}", sse=not stream, final=False)
    else:
        worker.reroute(client, 99)
    assert worker.exchange.kept.taken == 0 and worker.faults == []


def test_a_bug_on_the_way_to_egress_leaves_nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = rig()

    def broken(*_: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(worker.link, "send", broken)
    for path, body in KEPT.values():
        with pytest.raises(RuntimeError):
            worker.post(path, body)
    assert worker.exchange.kept.taken == 0


def test_a_same_dialect_call_of_one_profile_keeps_nothing() -> None:
    worker = rig()
    worker.post("/v1/chat/completions", CHAT)
    worker.post("/v1/chat/completions", CHAT | {"stream": True})
    assert worker.exchange.kept.taken == 0


def test_what_is_kept_of_all_requests_is_bounded() -> None:
    worker = rig()
    worker.exchange.kept.most = 2 * len(json.dumps(MESSAGES))
    clients = [worker.post("/v1/messages", MESSAGES) for _ in range(3)]
    assert [client.status for client in clients] == [0, 0, 503]
    assert worker.post("/v1/chat/completions", CHAT).status == 0
    worker.answer(clients[0], chat_body("m"))
    assert worker.post("/v1/messages", MESSAGES).status == 0
    assert len(worker.calls) == 4


# --- sessions ----------------------------------------------------------------------------------------------------------


def session(worker: Rig, path: str, body: Any, *headers: str) -> str:
    worker.post(path, body, *headers)
    return worker.calls[-1].session


def test_a_session_is_told_only_where_the_route_cares_and_tells_nothing() -> None:
    worker = rig()
    chat, sticky = CHAT, CHAT | {"model": "sticky"}
    path = "/v1/chat/completions"
    assert session(worker, path, chat | {"user": "alice"}) == ""
    assert session(worker, path, sticky) == ""
    named = session(worker, path, sticky | {"user": "alice"})
    assert len(named) == 32 and "alice" not in named
    assert session(worker, path, sticky | {"user": "alice"}) == named
    assert session(worker, path, sticky | {"user": "bob"}) != named
    assert session(worker, path, sticky | {"user": "bob"}, "x-session-id: alice") == named  # the header comes first
    assert session(worker, path, sticky | {"user": "bob", "prompt_cache_key": "alice"}) == named
    assert session(worker, "/v1/messages", MESSAGES | {"model": "sticky", "metadata": {"user_id": "alice"}}) == named
    assert session(worker, path, sticky, f"x-session-id: {'a' * 257}") == ""
    assert session(worker, path, sticky | {"user": "alice"}, "x-session-id:") == named


# --- counting and models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [("/v1/messages/count_tokens", {"model": "chat", "messages": USER}, "input_tokens"), ("/v1beta/models/chat:countTokens", CONTENTS, "totalTokens")],
)
def test_tokens_are_guessed_where_no_provider_counts_and_the_answer_says_so(path: str, body: Any, field: str) -> None:
    worker = rig()
    client = worker.post(path, body)
    assert (client.status, worker.calls) == (200, [])
    assert client.json[field] > 0 and client.headers["x-cliproxy-token-count"] == "estimate"


@pytest.mark.parametrize(
    ("path", "body", "endpoint", "counted", "field"),
    [
        ("/v1/messages/count_tokens", {"model": "claude", "messages": USER}, Endpoint.COUNT_MESSAGE_TOKENS, b'{"input_tokens":7}', "input_tokens"),
        ("/v1/messages/count_tokens", {"model": "gemini", "messages": USER}, Endpoint.COUNT_CONTENT_TOKENS, b'{"totalTokens":7}', "input_tokens"),
        ("/v1beta/models/gemini:countTokens", CONTENTS, Endpoint.COUNT_CONTENT_TOKENS, b'{"totalTokens":7}', "totalTokens"),
        ("/v1beta/models/claude:countTokens", CONTENTS, Endpoint.COUNT_MESSAGE_TOKENS, b'{"input_tokens":7}', "totalTokens"),
    ],
)
def test_tokens_are_counted_by_the_provider_where_it_can(path: str, body: Any, endpoint: Endpoint, counted: bytes, field: str) -> None:
    worker = rig()
    client = worker.post(path, body)
    (call,) = worker.calls
    assert (call.endpoint, call.max_tokens, call.stream) == (endpoint, 0, False)
    worker.answer(client, counted)
    assert client.json == {field: 7} and "x-cliproxy-token-count" not in client.headers


@pytest.mark.parametrize("headers", [(), ("anthropic-version: 2023-06-01",)])
def test_one_model_is_told_of_in_the_shape_of_the_list(headers: tuple[str, ...]) -> None:
    worker = rig()
    listed = worker.get("/v1/models", *headers).json["data"]
    assert [item["id"] for item in listed] == sorted(MODELS)
    for item in listed:
        assert worker.get(f"/v1/models/{item['id']}", *headers).json == item


def test_gemini_models_are_named_as_resources_and_tell_what_they_can() -> None:
    worker = rig(requests=Requests(max_tokens=99))
    listed = worker.get("/v1beta/models").json["models"]
    assert [item["name"] for item in listed] == [f"models/{name}" for name in sorted(MODELS)]
    for item in listed:
        assert {"generateContent", "streamGenerateContent", "countTokens"} <= set(item["supportedGenerationMethods"])
        assert item["outputTokenLimit"] == 99
        assert worker.get(f"/v1beta/{item['name']}").json == item


def test_models_that_a_key_may_not_use_are_not_listed_and_not_suggested() -> None:
    worker = rig(allowed=("chat",))
    assert [item["id"] for item in worker.get("/v1/models").json["data"]] == ["chat"]
    assert worker.get("/v1/models", "anthropic-version: 2023-06-01").json["last_id"] == "chat"
    assert worker.get("/v1/models/claude").status == 403
    client = worker.post("/v1/messages", MESSAGES | {"model": "claud"})
    assert client.status == 404 and "claude" not in client.json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT | {"model": "chta"}), ("/v1/messages", MESSAGES | {"model": "chta"}), ("/v1beta/models/chta:generateContent", CONTENTS)],
)
def test_an_unknown_model_is_404_in_the_dialect_with_names_like_it(path: str, body: Any) -> None:
    client = rig().post(path, body)
    error = client.json["error"]
    assert client.status == 404 and "chat" in error["message"] and "chta" not in error["message"]
    assert {error.get("code"), error.get("type"), error.get("status")} & {"model_not_found", "not_found_error", "NOT_FOUND"}


def test_what_was_collected_without_an_answer_is_let_go_of_when_the_call_is_rerouted() -> None:
    worker = rig()
    client = worker.post("/v1/chat/completions", {**CHAT, "model": "pool"})
    worker.data(client, b"x" * 1000)
    worker.reroute(client, Endpoint.CHAT_COMPLETIONS)
    assert client.status == 502
    assert worker.exchange.collected.taken == worker.exchange.kept.taken == 0
