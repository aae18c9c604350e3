"""What a review with an attacker's eyes found in the dialects: each case as it was found, a client that is one of many, a fallen worker, a provider."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cliproxy.bounds import MAX_ANSWER_OBJECTS, MAX_EVENT_BYTES
from cliproxy.dialects import ENDPOINTS, Endpoint, Quirks
from cliproxy.egress.answers import refusal_of
from cliproxy.egress.cooldowns import Rule, fault_of
from cliproxy.egress.reflection import NO_SECRET
from cliproxy.errors import ClientError, SchemaError, UpstreamError
from cliproxy.formats.form import BOUNDARY, Part, encode_form
from cliproxy.metering.openai_media import reread_form
from cliproxy.metering.table import METERS
from cliproxy.translators.table import CLIENTS, DecodeOptions

JSON_BODIES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT_COMPLETIONS: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    Endpoint.RESPONSES: {"model": "m", "input": "x"},
    Endpoint.MESSAGES: {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
    Endpoint.COUNT_MESSAGE_TOKENS: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    Endpoint.GENERATE_CONTENT: {"contents": [{"parts": [{"text": "x"}]}]},
    Endpoint.COUNT_CONTENT_TOKENS: {"contents": [{"parts": [{"text": "x"}]}]},
    Endpoint.EMBEDDINGS: {"model": "m", "input": "x"},
    Endpoint.EMBED_CONTENT: {"content": {"parts": [{"text": "x"}]}},
    Endpoint.IMAGES: {"model": "m", "prompt": "x"},
    Endpoint.SPEECH: {"model": "m", "input": "x", "voice": "v"},
}
COUNTED: dict[str, tuple[Any, ...]] = {
    "n": (1, 2, 10),
    "stream": (True, False, None),
    "max_tokens": (1, 5, None),
    "max_completion_tokens": (2, 5, None),
    "max_output_tokens": (3, None),
    "partial_images": (0, 2),
    "generationConfig": ({}, {"maxOutputTokens": 3}, {"candidateCount": 2}, {"max_output_tokens": 3}),
}
PUBLIC = DecodeOptions(4096, "reject", False, "m", False)


def decoded(endpoint: Endpoint, body: dict[str, Any], given: DecodeOptions = PUBLIC) -> Any:
    operation, dialect = ENDPOINTS[endpoint]
    return CLIENTS[dialect, operation].decode(json.dumps(body).encode(), given, None)


def final(endpoint: Endpoint, request: Any, quirks: Quirks = Quirks.NONE) -> bytes:
    operation, dialect = ENDPOINTS[endpoint]
    row = CLIENTS[dialect, operation]
    assert row.same is not None
    encoded = row.same(request, quirks)
    return encoded.prefix + (b'"up"' if encoded.suffix else b"") + encoded.suffix


# --- a client that ends everybody's calls ------------------------------------------------------------------------------


@pytest.mark.parametrize("quirks", [Quirks.NONE, Quirks.OLD_TOKEN_CAP, Quirks.NEW_TOKEN_CAP, Quirks.NO_STREAM_OPTIONS | Quirks.OLD_TOKEN_CAP])
@pytest.mark.parametrize("endpoint", JSON_BODIES)
def test_no_field_of_a_clients_makes_a_body_that_egress_reads_otherwise_than_its_worker(endpoint: Endpoint, quirks: Quirks) -> None:
    """Egress takes that for a fallen worker and closes its channel. `n` or `stream` in a request for speech did it, and two different caps in a chat."""
    fields = [{name: value} for name, values in COUNTED.items() for value in values]
    operation, dialect = ENDPOINTS[endpoint]
    facts_of = CLIENTS[dialect, operation].facts_of
    meter = METERS[endpoint]
    for more in [first | second for first in fields for second in fields]:
        try:
            request = decoded(endpoint, JSON_BODIES[endpoint] | more)
            body = final(endpoint, request, quirks)
        except ClientError:
            continue
        asked = meter.asked_for(body)
        facts = facts_of(request) if facts_of is not None else request
        assert (asked.max_tokens, asked.n) == (facts.max_tokens, facts.n), more
        assert asked.stream == facts.stream or (asked.stream is None and not meter.says_stream), more


# --- a client that reads what others stored ----------------------------------------------------------------------------

_FILE = {"source": {"type": "file", "file_id": "file_1"}}
KEPT: dict[str, tuple[Endpoint, dict[str, Any], str]] = {
    "chat: a file": (
        Endpoint.CHAT_COMPLETIONS,
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
        "messages[0].content[0].file.file_id",
    ),
    "chat: an answer in sound": (Endpoint.CHAT_COMPLETIONS, {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "messages[0].audio"),
    "messages: a document": (Endpoint.MESSAGES, {"messages": [{"role": "user", "content": [{"type": "document", **_FILE}]}]}, "messages[0].content[0]"),
    "messages: a picture": (Endpoint.MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", **_FILE}]}]}, "messages[0].content[0]"),
    "messages: a picture in a result": (
        Endpoint.MESSAGES,
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", **_FILE}]}]}]},
        "messages[0].content[0]",
    ),
    "messages: a picture in a document": (
        Endpoint.MESSAGES,
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "content", "content": [{"type": "image", **_FILE}]}}]}]},
        "messages[0].content[0]",
    ),
    "messages: an upload": (
        Endpoint.MESSAGES,
        {"messages": [{"role": "assistant", "content": [{"type": "container_upload", "file_id": "file_1"}]}]},
        "messages[0].content[0]",
    ),
    "count: a document": (
        Endpoint.COUNT_MESSAGE_TOKENS,
        {"messages": [{"role": "user", "content": [{"type": "document", **_FILE}]}]},
        "messages[0].content[0]",
    ),
    "gemini: a cached prompt": (Endpoint.GENERATE_CONTENT, {"cachedContent": "cachedContents/1"}, "cachedContent"),
    "gemini: a cached prompt in snake case": (Endpoint.GENERATE_CONTENT, {"cached_content": "cachedContents/1"}, "cachedContent"),
    "gemini: a store of documents": (Endpoint.GENERATE_CONTENT, {"tools": [{"fileSearch": {"fileSearchStoreNames": ["x"]}}]}, "tools[0].fileSearch"),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_a_provider_keeps_for_the_account_that_all_share_is_named_in_no_dialect(case: str) -> None:
    """Only Responses looked: a `file_id` of chat, a file of Gemini's or a cached prompt reached what other clients had stored."""
    endpoint, change, param = KEPT[case]
    with pytest.raises(SchemaError) as raised:
        decoded(endpoint, JSON_BODIES[endpoint] | change)
    assert (raised.value.param, raised.value.code) == (param, "forbidden_field")
    decoded(endpoint, JSON_BODIES[endpoint] | change, DecodeOptions(4096, "reject", True, "m", False))  # `requests.provider_state`


@pytest.mark.parametrize(
    "uri",
    [
        "gs://bucket/object",
        "files/abc",
        " gs://bucket/object",
        "https://generativelanguage.googleapis.com/v1beta/files/abc",
        "HTTPS://GenerativeLanguage.googleapis.com/v1beta/files/abc",
        "https://generativelanguage.googleapis.com./v1beta/files/abc",
        "https://generativelanguage.googleapis.com:443/v1beta/files/abc",
        "https://me@generativelanguage.googleapis.com/v1beta/files/abc",
        "https://generativelanguage%2egoogleapis.com/v1beta/files/abc",
        "https://example.com\\@generativelanguage.googleapis.com/v1beta/files/abc",
        "https://storage.cloud.google.com/bucket/object",
        "https://googleapis.com/x",
    ],
)
@pytest.mark.parametrize("where", ["contents", "systemInstruction", "result", "embedding", "counting"])
def test_gemini_is_sent_to_no_file_but_what_anybody_can_fetch(where: str, uri: str) -> None:
    """With `gs://` Vertex AI reads any bucket that the gateway's own account may read."""
    part = {"fileData": {"fileUri": uri, "mimeType": "text/plain"}}
    bodies: dict[str, tuple[Endpoint, dict[str, Any]]] = {
        "contents": (Endpoint.GENERATE_CONTENT, {"contents": [{"parts": [part]}]}),
        "systemInstruction": (Endpoint.GENERATE_CONTENT, {"systemInstruction": {"parts": [part]}}),
        "result": (Endpoint.GENERATE_CONTENT, {"contents": [{"parts": [{"functionResponse": {"name": "f", "parts": [part]}}]}]}),
        "embedding": (Endpoint.EMBED_CONTENT, {"content": {"parts": [part]}}),
        "counting": (Endpoint.COUNT_CONTENT_TOKENS, {"contents": [{"parts": [part]}]}),
    }
    endpoint, change = bodies[where]
    with pytest.raises(SchemaError) as raised:
        decoded(endpoint, JSON_BODIES[endpoint] | change)
    assert raised.value.code == "forbidden_field"


@pytest.mark.parametrize("uri", ["https://example.com/a.pdf?x=1", "https://www.youtube.com/watch?v=x", "https://notgoogleapis.com/files/abc"])
def test_gemini_is_sent_to_public_addresses(uri: str) -> None:
    decoded(Endpoint.GENERATE_CONTENT, {"contents": [{"parts": [{"fileData": {"fileUri": uri}}]}]})


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT_COMPLETIONS, Endpoint.GENERATE_CONTENT, Endpoint.RESPONSES])
def test_no_request_is_stored_in_the_account_that_all_share(endpoint: Endpoint) -> None:
    request = decoded(endpoint, JSON_BODIES[endpoint] | {"store": True})
    assert json.loads(final(endpoint, request))["store"] is False


# --- a client that sends the provider somewhere, or runs something there -----------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        "data_sources",  # Azure OpenAI: an address of a search service, called with the resource's own identity
        "dataSources",
        "kv_transfer_params",  # vLLM: host and port of another server
        "mcp_servers",
        "chat_template",  # vLLM: a Jinja template
        "mm_processor_kwargs",
        "deferred",  # xAI: an answer to be fetched later, of another form
        "maxTokens",
        "max_tokens_to_sample",
        "num_return_sequences",
    ],
)
def test_a_field_of_chats_imitators_that_routes_runs_or_caps_is_refused(field: str) -> None:
    with pytest.raises(SchemaError) as raised:
        decoded(Endpoint.CHAT_COMPLETIONS, JSON_BODIES[Endpoint.CHAT_COMPLETIONS] | {field: 1})
    assert raised.value.code == "forbidden_field"


# --- a client that has a model cooled for everybody --------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.GENERATE_CONTENT, Endpoint.CONVERSE])
def test_an_answer_that_is_as_large_as_its_client_asked_cools_nothing(endpoint: Endpoint) -> None:
    """Twenty log probabilities for each of 4,096 tokens are more objects than an answer may hold: that cooled the model, and the next target's."""
    with pytest.raises(UpstreamError) as whole:
        METERS[endpoint].usage_of(b'{"x":[' + b"{}," * MAX_ANSWER_OBJECTS + b"{}]}")
    assert fault_of(whole.value)[:2] == (False, Rule.NOTHING)
    stream = METERS[endpoint].stream
    assert stream is not None
    with pytest.raises(UpstreamError) as streamed:
        stream().feed(b"data: " + b"x" * (9 * MAX_EVENT_BYTES) + b"\n\n")
    assert fault_of(streamed.value)[:2] == (False, Rule.NOTHING)


_REQUESTS_OWN = {
    "xAI's moderation": (403, {"code": "permission-denied", "error": "Content violates usage guidelines. Failed check: X"}),
    "OpenRouter's moderation": (403, {"error": {"code": 403, "message": "Flagged", "metadata": {"reasons": ["x"], "flagged_input": "x"}}}),
    "OpenRouter's routing": (404, {"error": {"code": 404, "message": "No endpoints found that support tool use. To learn more, read"}}),
    "Gemini's cached prompts": (403, {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "CachedContent not found (or permission denied)"}}),
    "Gemini's files": (403, {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "You do not have permission to access the File x"}}),
}


@pytest.mark.parametrize("case", _REQUESTS_OWN)
def test_a_refusal_that_hangs_on_the_request_cools_nothing_for_others(case: str) -> None:
    """By their status alone one flagged prompt took the model from everybody for half an hour, and one with tools for twelve."""
    status, body = _REQUESTS_OWN[case]
    assert fault_of(refusal_of(status, {}, json.dumps(body).encode(), guard=NO_SECRET, wall=0.0))[:2] == (False, Rule.NOTHING)


@pytest.mark.parametrize(
    ("status", "error", "rule"),
    [
        (403, {"message": "The caller does not have permission", "status": "PERMISSION_DENIED"}, Rule.CREDENTIAL),
        (403, {"message": "Access denied: Content violates usage guidelines"}, Rule.CREDENTIAL),
        (404, {"message": "No endpoints found for vendor/model."}, Rule.MODEL),
    ],
)
def test_other_refusals_of_that_status_still_cool(status: int, error: dict[str, Any], rule: Rule) -> None:
    assert fault_of(refusal_of(status, {}, json.dumps({"error": error}).encode(), guard=NO_SECRET, wall=0.0)).rule is rule


# --- a fallen worker ---------------------------------------------------------------------------------------------------

_FIELD = b'Content-Disposition: form-data; name="model"\r\n\r\nexpensive'


@pytest.mark.parametrize("between", [b"\r\n--%s \r\n", b"\n--%s\n", b"\n--%s\r\n", b"\r\n--%s\t\r\n", b"\r--%s\r\n"])
def test_a_second_model_in_a_form_hides_behind_no_delimiter_that_some_readers_take(between: bytes) -> None:
    """Go's reader takes blanks behind a boundary, and a bare line feed before it: what was read here as one value, it reads as two fields."""
    prefix, suffix = encode_form([Part("file", b"ID3", "a.mp3"), Part("prompt", b"x")], first="model")
    whole = prefix + b"cheap" + suffix
    assert reread_form(whole).model == "cheap"
    smuggled = whole.replace(b"\r\n\r\nx\r\n", b"\r\n\r\nx" + between % BOUNDARY + _FIELD + b"\r\n")
    assert smuggled != whole
    with pytest.raises(SchemaError):
        reread_form(smuggled)


def test_a_clients_file_name_that_holds_the_boundary_is_refused_in_the_worker() -> None:
    with pytest.raises(SchemaError):
        encode_form([Part("file", b"ID3", BOUNDARY.decode())], first="model")


@pytest.mark.parametrize(
    ("endpoint", "more"),
    [
        (Endpoint.CHAT_COMPLETIONS, {"models": ["expensive"]}),
        (Endpoint.CHAT_COMPLETIONS, {"max_output_tokens": 10**6}),
        (Endpoint.CHAT_COMPLETIONS, {"best_of": 20}),
        (Endpoint.RESPONSES, {"models": ["expensive"]}),
        (Endpoint.RESPONSES, {"max_tokens": 10**6}),
        (Endpoint.RESPONSES, {"max_completion_tokens": 10**6}),
        (Endpoint.RESPONSES, {"n": 20}),
        (Endpoint.MESSAGES, {"models": ["expensive"]}),
        (Endpoint.MESSAGES, {"fallbacks": ["expensive"]}),
    ],
)
def test_a_second_model_or_cap_that_some_providers_know_is_seen_by_egress(endpoint: Endpoint, more: dict[str, Any]) -> None:
    """No honest worker sends these, and egress read past them: OpenRouter takes the first of `models` that answers."""
    body = json.loads(final(endpoint, decoded(endpoint, JSON_BODIES[endpoint])))
    assert METERS[endpoint].asked_for(msgspec.json.encode(body)).model == "up"
    with pytest.raises(SchemaError):
        METERS[endpoint].asked_for(msgspec.json.encode(body | more))
