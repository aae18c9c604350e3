"""What every reader of a provider's stream has from its base, in each dialect."""

from __future__ import annotations

import json

import pytest

from cliproxy.bounds import MAX_TOOL_ARGUMENTS_BYTES
from cliproxy.dialects import Endpoint
from cliproxy.errors import UpstreamError
from cliproxy.translators.conversation import Ended
from cliproxy.translators.stream_reader import data_of
from cliproxy.translators.table import TARGETS


def event(name: str, value: object) -> bytes:
    """Return one server-sent event."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(value).encode() + b"\n\n"


CHUNK = {"id": "a", "model": "m", "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
STOPPED = {"candidates": [{"content": {"parts": [{"text": "hi"}]}, "finishReason": "STOP"}], "responseId": "a"}
WHOLE = {
    Endpoint.CHAT_COMPLETIONS: [event("", CHUNK), b"data: [DONE]\n\n"],
    Endpoint.MESSAGES: [
        event("message_start", {"type": "message_start", "message": {"id": "a", "model": "m"}}),
        event("message_delta", {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
        event("message_stop", {"type": "message_stop"}),
    ],
    Endpoint.RESPONSES: [
        event("response.created", {"type": "response.created", "response": {"id": "a"}}),
        event("response.completed", {"type": "response.completed", "response": {"id": "a"}}),
    ],
    Endpoint.GENERATE_CONTENT: [event("", STOPPED), event("", STOPPED)],
    Endpoint.CONVERSE: [
        event("messageStart", {"role": "assistant"}),
        event("messageStop", {"stopReason": "end_turn"}),
        event("metadata", {}),
    ],
}
# A tool call that is under way: what begins it, and more of its JSON.
CALLS = {
    Endpoint.CHAT_COMPLETIONS: (
        [event("", {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}]}}]})],
        lambda piece: event("", {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}}]}),
    ),
    Endpoint.MESSAGES: (
        [
            event("message_start", {"type": "message_start", "message": {}}),
            event(
                "content_block_start", {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "c", "name": "f", "input": {}}}
            ),
        ],
        lambda piece: event("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": piece}}),
    ),
    Endpoint.RESPONSES: (
        [
            event("response.created", {"type": "response.created", "response": {}}),
            event("", {"type": "response.output_item.added", "output_index": 0, "item": {"type": "function_call", "call_id": "c", "name": "f"}}),
        ],
        lambda piece: event("", {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": piece}),
    ),
    Endpoint.CONVERSE: (
        [
            event("messageStart", {"role": "assistant"}),
            event("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "c", "name": "f"}}}),
        ],
        lambda piece: event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"toolUse": {"input": piece}}}),
    ),
}
NO_EVENT = b"data: {\n\n"


def reader_of(endpoint: Endpoint):
    make = TARGETS[endpoint].reader
    assert make is not None
    return make()


@pytest.mark.parametrize("endpoint", WHOLE, ids=lambda endpoint: endpoint.name)
def test_a_whole_stream_ends_and_what_follows_is_not_looked_at(endpoint: Endpoint) -> None:
    reader = reader_of(endpoint)
    events = [read for piece in WHOLE[endpoint] for read in reader.feed(piece)] + list(reader.finish())
    assert isinstance(events[-1], Ended) and sum(isinstance(one, Ended) for one in events) == 1
    assert reader.feed(NO_EVENT) == []
    assert reader.finish() == []


@pytest.mark.parametrize("endpoint", WHOLE, ids=lambda endpoint: endpoint.name)
def test_a_body_that_ends_before_its_answer_broke_off(endpoint: Endpoint) -> None:
    reader = reader_of(endpoint)
    piece = WHOLE[endpoint][0]
    reader.feed(piece if endpoint is not Endpoint.GENERATE_CONTENT else piece + b"data: {")
    with pytest.raises(UpstreamError) as caught:
        reader.finish()
    assert caught.value.code == "upstream_broke_off"


@pytest.mark.parametrize("endpoint", WHOLE, ids=lambda endpoint: endpoint.name)
def test_a_fault_comes_after_the_events_before_it_and_then_always(endpoint: Endpoint) -> None:
    reader = reader_of(endpoint)
    fault = NO_EVENT if endpoint is not Endpoint.CONVERSE else b"event: contentBlockDelta\n" + NO_EVENT
    assert reader.feed(WHOLE[endpoint][0] + fault) != []
    for ask in (lambda: reader.feed(b""), reader.finish):
        with pytest.raises(UpstreamError):
            ask()


@pytest.mark.parametrize("endpoint", CALLS, ids=lambda endpoint: endpoint.name)
def test_a_tool_call_without_an_end_is_bounded(endpoint: Endpoint) -> None:
    """It is kept until it ends: a provider that never ends it would fill the worker. The Responses reader had no such bound."""
    begin, more = CALLS[endpoint]
    reader = reader_of(endpoint)
    for piece in begin:
        reader.feed(piece)
    pieces = 3 * MAX_TOOL_ARGUMENTS_BYTES // (256 * 1024)
    with pytest.raises(UpstreamError) as caught:
        for _ in range(pieces):
            reader.feed(more("x" * (256 * 1024)))
    assert caught.value.code == "upstream_too_large"


@pytest.mark.parametrize(
    ("said", "data"),
    [
        (b"data: a", b"a"),
        (b"data:a", b"a"),
        (b"event: e\ndata: a\nid: 1", b"a"),
        (b"data: a\ndata: b", b"a\nb"),
        (b"event: e\ndata: a\ndata:b", b"a\nb"),
        (b": comment", b""),
        (b"event: e", b""),
    ],
)
def test_the_data_of_an_event(said: bytes, data: bytes) -> None:
    assert data_of(said) == data
