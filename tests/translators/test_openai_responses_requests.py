"""Responses requests that stay in their dialect: what is taken, what is refused, what leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import Quirks
from cliproxy.errors import ClientError, SchemaError, UnsupportedFeature
from cliproxy.metering.openai_responses import AskedFor, reread
from cliproxy.translators.openai_responses.decode import decode_responses
from cliproxy.translators.openai_responses.encode import encode_same
from cliproxy.translators.openai_responses.request import ResponsesRequest

VECTORS = Path(__file__).parents[1] / "vectors" / "openai_responses"
REQUESTS = {path.stem: json.loads(path.read_text())["body"] for path in sorted(VECTORS.glob("request_*.json"))}
CANARY = "a prompt nobody may quote"
CAP = 4096
ENCRYPTED = "reasoning.encrypted_content"


def decode(body: bytes, *, cap: int = CAP, on_excess: Any = "reject", state: bool = False) -> ResponsesRequest:
    return decode_responses(body, max_tokens_cap=cap, on_excess=on_excess, allow_provider_state=state)


def body_of(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "Hello.", **fields}).encode()


def left_of(request: ResponsesRequest, quirks: Quirks = Quirks.NONE) -> dict[str, Any]:
    encoded = encode_same(request, quirks)
    left: dict[str, Any] = json.loads(encoded.prefix + b'"upstream-model"' + encoded.suffix)
    return left


def test_there_are_vectors() -> None:
    assert len(REQUESTS) >= 24


@pytest.mark.parametrize("name", REQUESTS)
def test_what_leaves_is_the_request_with_the_upstreams_model_a_cap_and_nothing_stored(name: str) -> None:
    sent = REQUESTS[name]
    left = left_of(decode(json.dumps(sent).encode()))
    expected = {**sent, "model": "upstream-model", "max_output_tokens": sent.get("max_output_tokens", CAP), "store": False}
    if sent.get("reasoning"):
        expected["include"] = [ENCRYPTED]
    assert left == expected


@pytest.mark.parametrize("name", REQUESTS)
def test_with_provider_state_only_the_cap_is_put_in(name: str) -> None:
    sent = REQUESTS[name]
    left = left_of(decode(json.dumps(sent).encode(), state=True))
    assert left == {**sent, "model": "upstream-model", "max_output_tokens": sent.get("max_output_tokens", CAP)}


@pytest.mark.parametrize("name", REQUESTS)
def test_encoding_changes_nothing_so_a_fallback_can_encode_again(name: str) -> None:
    request = decode(json.dumps(REQUESTS[name]).encode())
    assert encode_same(request, Quirks.NONE) == encode_same(request, Quirks.NONE)
    again = decode(json.dumps(left_of(request)).encode())
    assert (again.rest, again.stream, again.max_tokens) == (request.rest, request.stream, request.max_tokens)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_cut_anywhere_or_with_trailing_garbage_is_refused(name: str) -> None:
    body = json.dumps(REQUESTS[name], ensure_ascii=False).encode()
    for cut in range(len(body)):
        with pytest.raises(SchemaError):
            decode(body[:cut])
    for tail in (b"x", b"{}", b",", b"\x00", body):
        with pytest.raises(SchemaError):
            decode(body + tail)


@pytest.mark.parametrize("name", REQUESTS)
def test_egress_reads_again_what_was_decided(name: str) -> None:
    request = decode(json.dumps(REQUESTS[name]).encode())
    encoded = encode_same(request, Quirks.NONE)
    assert reread(encoded.prefix + b'"x"' + encoded.suffix) == AskedFor("x", request.max_tokens, 1, request.stream)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"model":"m"}', b'{"model":"m","max_output_tokens":0}', b'{"model":"m","max_output_tokens":-1}', b'{"model":"m","max_output_tokens":"5"}'],
)
def test_a_final_body_without_a_cap_is_refused(body: bytes) -> None:
    with pytest.raises(SchemaError):
        reread(body)


# --- the cap ---


def test_more_than_the_cap_is_refused_or_lowered() -> None:
    with pytest.raises(SchemaError) as caught:
        decode(body_of(max_output_tokens=CAP + 1))
    assert (caught.value.param, caught.value.code) == ("max_output_tokens", "max_tokens_exceeded")
    lowered = decode(body_of(max_output_tokens=CAP + 1), on_excess="clamp")
    assert lowered.max_tokens == left_of(lowered)["max_output_tokens"] == CAP
    assert left_of(decode(body_of(max_output_tokens=None)))["max_output_tokens"] == CAP


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n", "messages", "Max-Tokens", "max_new_tokens", "n_predict", "Max_Output_Tokens"])
def test_another_name_for_the_cap_or_for_several_choices_is_refused(name: str) -> None:
    with pytest.raises(SchemaError) as caught:
        decode(body_of(**{name: 5}))
    assert caught.value.code in {"forbidden_field", "ambiguous_field"}


def test_an_unknown_field_is_kept() -> None:
    assert left_of(decode(body_of(new_thing={"a": [1]})))["new_thing"] == {"a": [1]}


@pytest.mark.parametrize("name", ["api_key", "base_url", "extra_headers", "Model", "aws_region_name"])
def test_a_field_that_routes_or_carries_credentials_is_refused(name: str) -> None:
    with pytest.raises(SchemaError):
        decode(body_of(**{name: "x"}))


# --- what the provider keeps ---

FILE = {"type": "input_file", "file_id": "file-1"}
STATEFUL: list[tuple[str, dict[str, Any]]] = [
    ("previous_response_id", {"previous_response_id": "resp_1"}),
    ("conversation", {"conversation": "conv_1"}),
    ("conversation", {"conversation": {"id": "conv_1"}}),
    ("prompt", {"prompt": {"id": "pmpt_1"}}),
    ("background_options", {"background_options": {"continuation_id": "x"}}),
    ("prompt_cache_options.comparison_response_id", {"prompt_cache_options": {"comparison_response_id": "resp_1"}}),
    ("input[1]", {"input": [{"role": "user", "content": "x"}, {"type": "item_reference", "id": "msg_1"}]}),
    ("input[0]", {"input": [{"id": "msg_1"}]}),
    ("input[0]", {"input": [{"type": None, "id": "msg_1"}]}),
    ("input[0].content[1].file_id", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}, FILE]}]}),
    ("input[0].content[0].file_id", {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]}),
    ("input[0].output[0].file_id", {"input": [{"type": "function_call_output", "call_id": "c", "output": [FILE]}]}),
    ("input[0].output[0].file_id", {"input": [{"type": "custom_tool_call_output", "call_id": "c", "output": [FILE]}]}),
    ("input[0]", {"input": [{"type": "code_interpreter_call", "id": "ci_1", "container_id": "cntr_1"}]}),
    ("input[0]", {"input": [{"type": "file_search_call", "id": "fs_1"}]}),
    ("input[0].result", {"input": [{"type": "image_generation_call", "id": "ig_1"}]}),
    ("tools[0]", {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}),
    ("tools[0].container", {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}),
    ("tools[0].container", {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}]}),
    ("tools[0].input_image_mask.file_id", {"tools": [{"type": "image_generation", "input_image_mask": {"file_id": "file-1"}}]}),
    ("tool_choice", {"tool_choice": {"type": "file_search"}}),
]


@pytest.mark.parametrize(("param", "fields"), STATEFUL)
def test_what_names_something_stored_in_the_shared_account_needs_the_operators_leave(param: str, fields: dict[str, Any]) -> None:
    body = body_of(**fields)
    with pytest.raises(SchemaError) as caught:
        decode(body)
    assert (caught.value.param, caught.value.code) == (param, "forbidden_field")
    assert "store: false" in caught.value.message
    allowed = decode(body, state=True)
    assert allowed.state == param
    left = left_of(allowed)
    assert left == {**json.loads(body), "model": "upstream-model", "max_output_tokens": CAP}
    with pytest.raises(UnsupportedFeature) as unsupported:
        encode_same(allowed, Quirks.STATELESS)
    assert unsupported.value.param == param


def test_without_input_there_must_be_something_stored() -> None:
    with pytest.raises(SchemaError) as caught:
        decode(b'{"model":"m"}', state=True)
    assert (caught.value.param, caught.value.code) == ("input", "missing_field")
    assert "input" not in left_of(decode(b'{"model":"m","prompt":{"id":"pmpt_1"}}', state=True))


def test_a_request_to_store_is_not_granted_without_the_operators_leave() -> None:
    assert left_of(decode(body_of(store=True)))["store"] is False
    assert left_of(decode(body_of(store=True), state=True))["store"] is True
    assert "store" not in left_of(decode(body_of(), state=True))


def test_a_model_that_does_not_reason_is_not_asked_for_encrypted_thoughts() -> None:
    assert "include" not in left_of(decode(body_of()))
    assert "include" not in left_of(decode(body_of(reasoning={"effort": "none"})))
    assert left_of(decode(body_of(reasoning={"summary": "auto"}, include=["x.y"])))["include"] == ["x.y", ENCRYPTED]


@pytest.mark.parametrize(
    ("item", "kept", "kept_with_state"),
    [
        ({"type": "reasoning", "id": "rs_1", "summary": []}, False, True),
        ({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "x"}]}, False, True),
        ({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}, True, True),
        ({"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]}, True, True),
        ({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "cliproxy:anthropic_messages:signature:abc"}, False, False),
    ],
)
def test_thoughts_that_would_be_looked_up_or_are_another_vendors_are_left_out_and_told(item: dict[str, Any], kept: bool, kept_with_state: bool) -> None:
    body = body_of(input=[{"role": "user", "content": "x"}, item])
    for state, stays in ((False, kept), (True, kept_with_state)):
        request = decode(body, state=state)
        assert (item in left_of(request)["input"]) is stays
        assert encode_same(request, Quirks.NONE).dropped == (() if stays else ("thinking",))


# --- never ---


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("tools[0]", {"tools": [{"type": "mcp", "server_label": "x", "server_url": "https://x.example", "headers": {"authorization": "x"}}]}),
        ("tools[1]", {"tools": [{"type": "web_search"}, {"type": "mcp", "server_label": "x", "connector_id": "connector_gmail", "authorization": "x"}]}),
        (
            "tools[0].container.network_policy",
            {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "network_policy": {"type": "allowlist"}}}]},
        ),
        ("background", {"background": True}),
        ("tools[0].type", {"tools": [{"type": "computer_use_preview", "display_width": 1}]}),
        ("tools[0].type", {"tools": [{"type": "shell", "environment": {}}]}),
        ("tools[0].type", {"tools": [{"type": "namespace", "tools": [{"type": "mcp"}]}]}),
        ("tools[0].type", {"tools": [{"type": "brand_new"}]}),
        ("input[0].type", {"input": [{"type": "additional_tools", "role": "developer", "tools": [{"type": "mcp"}]}]}),
        ("input[0].type", {"input": [{"type": "tool_search_output", "tools": []}]}),
        ("input[0].type", {"input": [{"type": "mcp_approval_response", "approval_request_id": "x", "approve": True}]}),
        ("tool_choice.type", {"tool_choice": {"type": "mcp", "server_label": "x"}}),
    ],
)
def test_what_no_configuration_allows(param: str, fields: dict[str, Any]) -> None:
    for state in (False, True):
        with pytest.raises(SchemaError) as caught:
            decode(body_of(**fields), state=state)
        assert caught.value.param == param


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search", "search_context_size": "low"},
        {"type": "web_search_preview"},
        {"type": "code_interpreter", "container": {"type": "auto", "network_policy": {"type": "disabled"}}},
        {"type": "image_generation", "quality": "low"},
        {"type": "custom", "name": "patch", "format": {"type": "text"}},
        {"type": "local_shell"},
        {"type": "apply_patch"},
    ],
)
def test_tools_without_credentials_are_kept(tool: dict[str, Any]) -> None:
    assert left_of(decode(body_of(tools=[tool])))["tools"] == [tool]


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("input", {"input": []}),
        ("input", {"input": 5}),
        ("input[0]", {"input": ["x"]}),
        ("input[0].role", {"input": [{"role": "tool", "content": CANARY}]}),
        ("input[0].content", {"input": [{"role": "user", "content": 5}]}),
        ("input[0].content[0].type", {"input": [{"role": "user", "content": [{"type": CANARY, "text": CANARY}]}]}),
        ("input[0].content[0].text", {"input": [{"role": "user", "content": [{"type": "input_text"}]}]}),
        ("input[0].arguments", {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {"a": CANARY}}]}),
        ("input[0].call_id", {"input": [{"type": "function_call_output", "output": CANARY}]}),
        ("instructions", {"instructions": [CANARY]}),
        ("temperature", {"temperature": 2.1}),
        ("top_p", {"top_p": -0.1}),
        ("top_logprobs", {"top_logprobs": 21}),
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("max_output_tokens", {"max_output_tokens": 1.5}),
        ("stream", {"stream": "yes"}),
        ("stream_options", {"stream_options": {"include_obfuscation": False}}),
        ("text.format.type", {"text": {"format": {"type": CANARY}}}),
        ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "x"}}}),
        ("tools[0].name", {"tools": [{"type": "function"}]}),
        ("tools[0].vector_store_ids", {"tools": [{"type": "file_search"}]}),
        ("tool_choice", {"tool_choice": CANARY}),
        ("metadata", {"metadata": {str(n): "x" for n in range(17)}}),
        ("reasoning.effort", {"reasoning": {"effort": 5}}),
    ],
)
def test_a_refusal_names_the_field_and_never_quotes_the_client(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(SchemaError) as caught:
        decode(body_of(**fields))
    assert caught.value.param == param
    assert CANARY not in str(caught.value)


def test_pictures_and_files_are_not_counted_as_text() -> None:
    small = decode(body_of(input=[{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,"}]}])).estimate
    large = decode(body_of(input=[{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}]}])).estimate
    assert abs(large - small) <= 1
    text = decode(body_of(input="A" * 100_000)).estimate
    assert text > 24_000


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner)
)


@given(st.binary(max_size=200) | json_texts.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_a_client_error_and_nothing_else(body: bytes) -> None:
    try:
        decode(body)
    except ClientError:
        return
    raise AssertionError("garbage was taken")


@given(st.sampled_from(sorted(REQUESTS)), st.data())
def test_a_damaged_request_is_taken_or_a_client_error(name: str, data: st.DataObject) -> None:
    """Any value of a good request replaced by any other."""
    body = json.loads(json.dumps(REQUESTS[name]))
    holder, key = data.draw(st.sampled_from(list(_places(body))))
    holder[key] = data.draw(json_texts)
    try:
        encode_same(decode(json.dumps(body).encode(), state=data.draw(st.booleans())), Quirks.NONE)
    except ClientError:
        pass


def _places(value: Any) -> Any:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _places(inner)
