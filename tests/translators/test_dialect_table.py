"""Every row of the dialects' table: it has what its operation needs, and nothing that a client or a provider sends gets out of the error tree."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cliproxy.dialects import ENDPOINTS, Dialect, Endpoint, Operation, Quirks
from cliproxy.errors import ClientError, UpstreamError
from cliproxy.translators.table import CLIENTS, TARGETS, DecodeOptions

ROOT = Path(__file__).parents[2]
TRANSLATORS = ROOT / "src" / "cliproxy" / "translators"
ANATOMY = ROOT / "docs" / "adr" / "0139-every-dialect-has-the-same-files.md"
GIVEN = DecodeOptions(max_tokens=4096, on_excess="reject", model="m", stream=True)
ROWS = sorted(CLIENTS, key=str)
_NAMES = """
    model messages content role user assistant tool system text type input output contents parts candidates choices message delta index id object usage error
    data tools function name arguments parameters tool_calls stream max_tokens stop n generationConfig maxOutputTokens functionCall args inlineData mimeType
    image_url url source base64 media_type thinking signature input_json_delta partial_json content_block message_start message_delta stop_reason
    finish_reason finishReason usageMetadata promptTokenCount response status completed item part annotations logprobs reasoning summary requests embedding
    values prompt
"""
WORDS = _NAMES.split()
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.sampled_from(WORDS) | st.text(max_size=5)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=5), max_leaves=25
)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["", "event: message_start\n", "event: content_block_delta\n", "event: response.created\n", "event: error\n", ": comment\n"]),
        JSON.map(json.dumps)
        | st.sampled_from(["[DONE]", "{", "", '{"choices":[]}', '{"type":"ping"}', '{"candidates":[]}', "\ud800".encode("utf-8", "replace").decode()]),
    ).map(lambda event: (event[0] + "data: " + event[1] + "\n\n").encode()),
    max_size=6,
)
MANY = settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("key", ROWS, ids=str)
def test_a_row_has_what_its_operation_needs(key: tuple[Dialect, Operation]) -> None:
    row = CLIENTS[key]
    assert (row.dialect, row.operation) == key
    targets = {endpoint for endpoint, spoken in ENDPOINTS.items() if spoken[0] is row.operation}
    spoken = {endpoint for endpoint in targets if ENDPOINTS[endpoint][1] is row.dialect}
    assert (row.same is not None) is bool(spoken)
    if targets - spoken and row.hub_of is not None:
        assert row.encode_answer is not None and (targets - spoken) <= set(TARGETS)
        assert all((TARGETS[endpoint].reader is not None) is (row.writer is not None) for endpoint in targets - spoken)
    if row.operation is Operation.GENERATE:
        assert row.writer is not None and row.error_event is not None
        assert (row.passthrough is not None) is bool(row.first_event_has) is (row.same is not None)
    if row.operation is Operation.COUNT_TOKENS:
        assert row.encode_answer is not None  # for the worker's own guess


def test_a_dialects_folder_has_only_the_files_that_the_decision_names() -> None:
    named = set(re.findall(r"^\| `(\w+\.py)` \|", ANATOMY.read_text(encoding="utf-8"), re.MULTILINE))
    assert {"wire.py", "to_hub.py", "read_stream.py", "write_stream.py"} <= named
    found = {str(file.relative_to(TRANSLATORS)) for file in TRANSLATORS.glob("*/*.py") if file.name not in named | {"__init__.py"}}
    assert found == set()


def test_no_dialects_file_passes_on_what_another_defines() -> None:
    """What `table.py` and tests import is imported where it is defined: the way to a thing is one."""
    assert [str(file.relative_to(TRANSLATORS)) for file in TRANSLATORS.glob("*/*.py") if "__all__" in file.read_text()] == []


@pytest.mark.parametrize("endpoint", Endpoint)
def test_every_endpoint_is_a_target_or_passed_through(endpoint: Endpoint) -> None:
    operation, dialect = ENDPOINTS[endpoint]
    assert endpoint in TARGETS or (dialect, operation) in CLIENTS


@pytest.mark.parametrize("key", ROWS, ids=str)
@MANY
@given(body=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30))
def test_a_body_is_a_request_or_a_client_error(key: tuple[Dialect, Operation], body: bytes) -> None:
    row = CLIENTS[key]
    try:
        request = row.decode(body, GIVEN, b"multipart/form-data; boundary=x")
        if row.same is not None:
            row.same(request, Quirks.NONE)
        if row.hub_of is not None:
            hub = row.hub_of(request)
            for endpoint, target in TARGETS.items():
                if ENDPOINTS[endpoint][0] is row.operation:
                    target.encode(hub, Quirks.NONE)
    except ClientError:
        pass


@pytest.mark.parametrize("endpoint", TARGETS, ids=lambda endpoint: endpoint.name)
@MANY
@given(body=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30))
def test_an_answer_is_one_or_an_upstream_error(endpoint: Endpoint, body: bytes) -> None:
    try:
        TARGETS[endpoint].decode_answer(body)
    except UpstreamError:
        pass


@pytest.mark.parametrize("endpoint", [endpoint for endpoint, row in TARGETS.items() if row.reader is not None], ids=lambda endpoint: endpoint.name)
@MANY
@given(events=EVENTS, cut=st.integers(1, 400))
def test_a_stream_is_events_or_an_upstream_error_for_every_client(endpoint: Endpoint, events: list[bytes], cut: int) -> None:
    target = TARGETS[endpoint]
    assert target.reader is not None
    reader = target.reader()
    told: list[Any] = []
    data = b"".join(events)
    try:
        for start in range(0, len(data), cut):
            told += reader.feed(data[start : start + cut])
        told += reader.finish()
    except UpstreamError:
        pass
    for row in CLIENTS.values():
        if row.writer is None:
            continue
        request = minimal(row.dialect)
        for writer in (row.writer, row.array_writer):
            if writer is None:
                continue
            made = writer(request=request, id="req_1", model="m", created=1)
            try:
                made.write(told)
            except UpstreamError:
                continue


# --- what the vectors say, with one value changed -----------------------------------------------------------------------

VECTORS = Path(__file__).parent.parent / "vectors"
ANSWERED = {
    "openai_chat": Endpoint.CHAT_COMPLETIONS,
    "openai_responses": Endpoint.RESPONSES,
    "anthropic_messages": Endpoint.MESSAGES,
    "gemini_generate": Endpoint.GENERATE_CONTENT,
    "bedrock_converse": Endpoint.CONVERSE,
}


@cache
def vectors(kind: str) -> list[tuple[str, Any]]:
    """Return dialect and body of every vector of `kind` whose dialect has a row."""
    found = []
    for file in sorted(VECTORS.glob("*/*.json")):
        vector = json.loads(file.read_bytes())
        if file.parent.name in ANSWERED and isinstance(vector, dict) and vector.get("kind") == kind and "body" in vector:
            found.append((file.parent.name, vector["body"]))
    return found


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, item in inner for path in [(*at, key), *places(item, (*at, key))]]


@st.composite
def changed(draw: st.DrawFn, kind: str) -> tuple[str, bytes]:
    """A vector's body with one value replaced, or taken out."""
    dialect, body = draw(st.sampled_from(vectors(kind)))
    body = json.loads(json.dumps(body))
    *way, last = draw(st.sampled_from(places(body)))
    holder = body
    for key in way:
        holder = holder[key]
    if draw(st.booleans()) or isinstance(holder, list):
        holder[last] = draw(JSON)
    else:
        del holder[last]
    return dialect, json.dumps(body).encode()


@settings(MANY, max_examples=400)
@given(vector=changed("request"))
def test_a_request_of_the_vectors_with_one_value_changed_stays_in_the_error_tree(vector: tuple[str, bytes]) -> None:
    dialect, body = vector
    row = CLIENTS.get((Dialect(dialect), Operation.GENERATE))
    if row is None:
        return  # a target only
    try:
        request = row.decode(body, GIVEN, None)
        assert row.same is not None and row.hub_of is not None
        row.same(request, Quirks.NONE)
        hub = row.hub_of(request)
    except ClientError:
        return
    for endpoint, target in TARGETS.items():
        if ENDPOINTS[endpoint][0] is Operation.GENERATE:
            try:
                encoded = target.encode(hub, Quirks.NONE)
            except ClientError as error:
                assert error.status == 400
            else:
                json.loads(encoded.prefix + (b'"m"' + encoded.suffix if encoded.suffix else b""))


@settings(MANY, max_examples=400)
@given(vector=changed("answer"))
def test_an_answer_of_the_vectors_with_one_value_changed_stays_in_the_error_tree(vector: tuple[str, bytes]) -> None:
    dialect, body = vector
    try:
        answer = TARGETS[ANSWERED[dialect]].decode_answer(body)
    except UpstreamError:
        return
    for row in CLIENTS.values():
        if row.operation is Operation.GENERATE:
            assert row.encode_answer is not None
            try:
                said = row.encode_answer(answer, request=minimal(row.dialect), id="req_1", model="m", created=1)
            except UpstreamError:
                continue
            json.loads(said)


def minimal(dialect: Dialect) -> Any:
    """Return the smallest streamed request of a dialect."""
    bodies: dict[Dialect, Any] = {
        Dialect.OPENAI_CHAT: {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]},
        Dialect.OPENAI_RESPONSES: {"model": "m", "stream": True, "input": "x"},
        Dialect.OPENAI_COMPLETIONS: {"model": "m", "stream": True, "prompt": "x"},
        Dialect.ANTHROPIC_MESSAGES: {"model": "m", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
        Dialect.GEMINI_GENERATE: {"contents": [{"parts": [{"text": "x"}]}]},
    }
    return CLIENTS[dialect, Operation.GENERATE].decode(json.dumps(bodies[dialect]).encode(), GIVEN, None)
