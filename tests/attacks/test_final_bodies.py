"""A fallen worker's bodies: whatever a provider could read otherwise than egress did is refused, and what an honest worker writes passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.dialects import ENDPOINTS, Dialect, Endpoint, Operation, Quirks
from cliproxy.errors import ChannelError, ClientError, SchemaError
from cliproxy.metering.names import OUTPUT_CAPS_ELSEWHERE, REFUSED_FIELDS, REFUSED_PREFIXES, plain_name
from cliproxy.metering.table import METERS
from cliproxy.translators.table import CLIENTS, TARGETS, DecodeOptions

VECTORS = Path(__file__).parents[1] / "vectors"
MESSAGES = '"messages":[{"role":"user","content":"x"}]'
CHAT = f'{{"model":"m",{MESSAGES},"max_tokens":16'
asked_of_chat = METERS[Endpoint.CHAT_COMPLETIONS].asked_for

# What is put behind the members of a chat that is otherwise in order.
MORE = [
    '"max_tokens":99999',
    '"model":"expensive"',
    '"MODEL":"expensive"',
    '"Max_Tokens":99999',
    '"MAX_TOKENS":99999',
    '"max-tokens":99999',
    '"max_to\u212aens":99999',  # Kelvin sign
    '"\u017ftream":true',  # long s
    '"max_complet\u0131on_tokens":99999',  # dotless i
    '"m\\u0061x_tokens":99999',
    '"Max_Completion_Tokens":99999',
    '"N":100',
    '"user":"a","User":"b"',
    '"user":"a","user":"b"',
    '"extra_body":{"max_tokens":99999}',
    '"Extra-Body":{"model":"expensive"}',
    '"api_base":"http://attacker.example"',
    '"litellm_params":{}',
    '"num_predict":99999',
    '"temperature":1e99999',
    '"seed":-1e400',
    '"metadata":{"a":[1e999]}',
    '"seed":' + "9" * 309,
    '"logit_bias":{"1":[2,' + "1" * 400 + "]}",
    '"stream":true,"stream_options":{"include_usage":true,"include_usage":false}',
    '"stream":true,"stream_options":{"include_usage":true,"Include_Usage":false}',
    '"stream":true,"stream_options":{"include_usage": true}',
    ' "seed":1',
    '"seed" :1',
    '"seed":1\n',
]


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("room", ["", ',"tools":[]', ',"unknown_field":1'])
def test_a_body_of_a_fallen_worker_that_a_provider_could_read_otherwise_is_refused(more: str, room: str) -> None:
    asked_of_chat(f"{CHAT}{room}}}".encode())
    for body in (f"{CHAT}{room},{more}}}", f'{{{more},"model":"m",{MESSAGES},"max_tokens":16{room}}}'):
        with pytest.raises(ChannelError):
            asked_of_chat(body.encode())


@pytest.mark.parametrize(
    "place", ['{"model":"m","messages":[{"role":"user","content":"%s"}],"max_tokens":16}', CHAT + ',"user":"%s"}', CHAT + ',"x":{"%s":1}}']
)
@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\x80", b"\xc0\xaf"])
def test_bytes_that_are_no_utf8_are_refused_wherever_they_stand(place: str, text: bytes) -> None:
    with pytest.raises(ChannelError):
        asked_of_chat(place.encode().replace(b"%s", text))


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (Endpoint.GENERATE_CONTENT, '{"contents":[],"generationConfig":{"maxOutputTokens":5,"maxOutputTokens":99}}'),
        (Endpoint.GENERATE_CONTENT, '{"contents":[],"generationConfig":{"maxOutputTokens":5,"MaxOutputTokens":99}}'),
        (Endpoint.GENERATE_CONTENT, '{"contents":[],"generationConfig":{"maxOutputTokens":5},"GenerationConfig":{"maxOutputTokens":99}}'),
        (Endpoint.GENERATE_CONTENT, '{"contents":[],"generationConfig":{"maxOutputTokens":5},"generationConfig":{"maxOutputTokens":5}}'),
        (Endpoint.CONVERSE, '{"messages":[],"inferenceConfig":{"maxTokens":5,"maxTokens":99}}'),
        (Endpoint.CONVERSE, '{"messages":[],"inferenceConfig":{"maxTokens":5,"MaxTokens":99}}'),
        (Endpoint.MESSAGES, '{"model":"m","messages":[],"max_tokens":5,"Max_Tokens":99}'),
        (Endpoint.MESSAGES, '{"model":"m","messages":[],"max_tokens":5,"max_tokens":99}'),
        (Endpoint.RESPONSES, '{"model":"m","input":"x","max_output_tokens":5,"MAX_OUTPUT_TOKENS":99}'),
        (Endpoint.EMBEDDINGS, '{"model":"m","input":"x","Model":"n"}'),
        (Endpoint.IMAGES, '{"model":"m","prompt":"x","n":1,"N":10}'),
    ],
)
def test_so_it_is_in_every_dialect(endpoint: Endpoint, body: str) -> None:
    with pytest.raises(ChannelError):
        METERS[endpoint].asked_for(body.encode())


NAMES = [
    "model",
    "MODEL",
    "max_tokens",
    "Max_Tokens",
    "max-tokens",
    "n",
    "N",
    "user",
    "User",
    "u\\u0073er",
    "seed",
    "extra_body",
    "messages",
    "temperature",
    "stream",
]
VALUES = ["1", "16", '"m"', "null", "true", "[]", '[{"role":"user","content":"x"}]', "1e999", "0.5", "1e15", '"\\u0061"', '{"a":1}']


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=5),
    st.sampled_from(["", " "]),
    st.permutations(['"model":"m"', MESSAGES, '"max_tokens":16']),
)
def test_what_passes_is_read_alike_by_a_reader_that_takes_the_first_the_last_or_any_case(more: list[tuple[str, str]], gap: str, base: list[str]) -> None:
    body = "{" + ",".join([*base, *(f'"{name}":{gap}{value}' for name, value in more)]) + "}"
    try:
        asked = asked_of_chat(body.encode())
    except (SchemaError, ChannelError):
        return
    pairs: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=lambda pairs: pairs)
    first: dict[str, Any] = {}
    for name, value in pairs:
        plain = plain_name(name)
        assert plain not in REFUSED_FIELDS and plain not in OUTPUT_CAPS_ELSEWHERE and not plain.startswith(REFUSED_PREFIXES)
        first.setdefault(plain, value)
    last = {plain_name(name): value for name, value in pairs}
    for read in (first, last):
        assert (asked.model, asked.max_tokens, asked.n, asked.stream) == (read["model"], read["max_tokens"], read.get("n") or 1, read.get("stream") is True)
    assert "1e999" not in body and not gap * bool(more)


ORDINARY = {
    Endpoint.CHAT_COMPLETIONS: ['"model":"m"', MESSAGES, '"max_tokens":16', '"temperature":1e9', '"stream_options":{"include_usage":true}'],
    Endpoint.MESSAGES: ['"model":"m"', MESSAGES, '"max_tokens":16', '"system":"x"', '"temperature":1e9'],
    Endpoint.RESPONSES: ['"model":"m"', '"input":"x"', '"max_output_tokens":16', '"instructions":"x"', '"temperature":1e9'],
    Endpoint.GENERATE_CONTENT: [
        '"contents":[{"parts":[{"text":"x"}],"role":"user"}]',
        '"generationConfig":{"temperature":1e9,"maxOutputTokens":16}',
        '"systemInstruction":{"parts":[{"text":"x"}]}',
    ],
}
_INJECTED = """
    model max_tokens max_output_tokens maxOutputTokens maxoutputtokens n N stream Stream stream_options include_usage temperature Temperature system input Input
    instructions generationConfig GenerationConfig candidateCount text parts role content
"""
INJECTED = st.builds('"{}":{}'.format, st.sampled_from(_INJECTED.split()), st.sampled_from([*VALUES, '"x"', "false", "1e5", '{"include_usage":false}']))


NESTED = {(Endpoint.CHAT_COMPLETIONS, "stream_options"), (Endpoint.GENERATE_CONTENT, "generationConfig")}


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = {plain_name(name): value for name, value in pairs}
    assert len(read) == len(pairs), pairs
    return read


@pytest.mark.parametrize("endpoint", ORDINARY)
@given(st.data())
def test_what_passes_in_one_go_or_member_by_member_names_nothing_twice(endpoint: Endpoint, data: st.DataObject) -> None:
    """The fast path judges by length: a fraction that we write longer, a null or an escape must make no room for a second member, wherever it stands."""
    members = ORDINARY[endpoint]
    body = "{" + ",".join(data.draw(st.permutations(members))) + "}"
    METERS[endpoint].asked_for(body.encode())
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.sampled_from([index + 1 for index, char in enumerate(body) if char == "{"]))
        body = body[:at] + data.draw(INJECTED) + "," + body[at:]
    try:
        METERS[endpoint].asked_for(body.encode())
    except (SchemaError, ChannelError):
        return
    read = json.loads(body, object_pairs_hook=list)
    once(read)
    for name, value in read:
        if (endpoint, name) in NESTED and value is not None:
            once(value)


def requests_of(dialect: str) -> list[Any]:
    found = [json.loads(file.read_text()) for file in sorted((VECTORS / dialect).glob("*.json"))]
    return [one["body"] for one in found if one.get("kind") == "request"]


CLIENTS_OF_VECTORS = [dialect for dialect in Dialect if (VECTORS / dialect.value).exists() and (dialect, Operation.GENERATE) in CLIENTS]


@pytest.mark.parametrize("dialect", CLIENTS_OF_VECTORS)
@pytest.mark.parametrize("quirks", [Quirks.NONE, Quirks.OLD_TOKEN_CAP, Quirks.CLAUDE])
def test_what_an_honest_worker_writes_for_any_target_passes(dialect: Dialect, quirks: Quirks) -> None:
    row = CLIENTS[dialect, Operation.GENERATE]
    passed = 0
    for vector in requests_of(dialect.value):
        for stream in (False, True):
            body = vector if dialect is Dialect.GEMINI_GENERATE else vector | {"stream": stream}
            try:
                request = row.decode(msgspec.json.encode(body), DecodeOptions(4096, "clamp", stream, "m", False), None)
            except ClientError:
                continue
            bodies = []
            if row.same is not None:
                bodies.append((next(end for end, kind in ENDPOINTS.items() if kind == (Operation.GENERATE, dialect)), row.same(request, quirks)))
            for endpoint, target in TARGETS.items():
                if ENDPOINTS[endpoint][0] is Operation.GENERATE and row.hub_of is not None:
                    try:
                        bodies.append((endpoint, target.encode(row.hub_of(request), quirks)))
                    except ClientError:
                        continue
            for endpoint, encoded in bodies:
                final = encoded.prefix + (b'"up"' if encoded.suffix else b"") + encoded.suffix
                METERS[endpoint].asked_for(final)
                passed += 1
    assert passed


# --- a client that ends everybody's calls ------------------------------------------------------------------------------

BODIES: dict[Endpoint, dict[str, Any]] = {
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
_COUNTED = """
    model models fallbacks messages n best_of stream stream_options include_usage max_tokens max_completion_tokens max_output_tokens partial_images requests
    generation_config generationConfig maxOutputTokens candidateCount candidate_count routingConfig routing_config modelSelectionConfig
    generateContentRequest contents content input user seed temperature x
"""
COUNTED = _COUNTED.split()
KELVIN = str.maketrans({"k": "\u212a", "s": "\u017f", "i": "\u0131"})
RESPELT = st.sampled_from(
    [lambda name: name] * 4
    + [str.upper, str.title, lambda name: name.replace("_", "-"), lambda name: name.replace("_", ""), lambda name: name.translate(KELVIN)]
)
SPELT = st.builds(lambda name, respelt: respelt(name), st.sampled_from(COUNTED), RESPELT)
HELD: st.SearchStrategy[Any] = st.sampled_from(
    [None, None, True, False, 1, 5, "m", [], {}, 10**400, -(10**309), 10**308, "9" * 500, [{"a": 10**310}], 0.5, "\ud83d\ude00"]
)
MEMBERS = st.dictionaries(SPELT, HELD | st.dictionaries(SPELT, HELD, max_size=2), min_size=1, max_size=3)


def final_bodies(endpoint: Endpoint, body: bytes, quirks: Quirks) -> list[tuple[Endpoint, bytes]]:
    """What an honest worker writes of a client's `body`, for every target; nothing where it refuses."""
    operation, dialect = ENDPOINTS[endpoint]
    row = CLIENTS[dialect, operation]
    try:
        request = row.decode(body, DecodeOptions(4096, "clamp", False, "m", False), None)
    except ClientError:
        return []
    encoded = []
    for target, encode, source in [
        *([(endpoint, row.same, lambda of: of)] if row.same is not None else []),
        *((target, found.encode, row.hub_of) for target, found in TARGETS.items() if ENDPOINTS[target][0] is operation and row.hub_of is not None),
    ]:
        try:
            made = encode(source(request), quirks)
        except ClientError:
            continue
        encoded.append((target, made.prefix + (b'"up"' if made.suffix else b"") + made.suffix))
    return encoded


@pytest.mark.parametrize("endpoint", BODIES)
@given(MEMBERS, st.sampled_from([Quirks.NONE, Quirks.OLD_TOKEN_CAP, Quirks.NEW_TOKEN_CAP, Quirks.CLAUDE]))
def test_no_body_of_a_clients_closes_the_channel_of_all(endpoint: Endpoint, more: dict[str, Any], quirks: Quirks) -> None:
    """The worker refuses the same by the same judgement; what it lets through, egress takes."""
    for target, final in final_bodies(endpoint, json.dumps(BODIES[endpoint] | more).encode(), quirks):
        METERS[target].asked_for(final)


ARGUMENTS = ['{"a":1e999}', '{"a":' + "9" * 309 + "}", '{"a":"\\ud800"}', '{"a":1,"a":2}', '{ "a" : 1 }', '{"a":' + "9" * 308 + "}"]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_nor_do_the_arguments_of_a_tool_call_in_its_history(arguments: str) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]}
    messages = [{"role": "user", "content": "x"}, called, {"role": "tool", "tool_call_id": "c", "content": "y"}]
    written = final_bodies(Endpoint.CHAT_COMPLETIONS, json.dumps({"model": "m", "messages": messages}).encode(), Quirks.NONE)
    assert written
    for target, final in written:
        METERS[target].asked_for(final)


@pytest.mark.parametrize(("more", "param"), [({"seed": 10**309}, "seed"), ({"metadata": {"a": [-(10**400)]}}, "metadata"), ({"x": [{"y": 10**310}]}, "x")])
def test_an_integer_that_no_double_holds_is_a_400_that_names_its_field(more: dict[str, Any], param: str) -> None:
    row = CLIENTS[Dialect.OPENAI_CHAT, Operation.GENERATE]
    with pytest.raises(SchemaError) as raised:
        row.decode(json.dumps(BODIES[Endpoint.CHAT_COMPLETIONS] | more).encode(), DecodeOptions(4096, "clamp", False, "m", False), None)
    assert raised.value.param is not None and raised.value.param.startswith(param)


@pytest.mark.parametrize("more", [{}, {"unknown_field": 10**308, "tools": []}])
def test_a_text_with_many_digits_passes(more: dict[str, Any]) -> None:
    body = BODIES[Endpoint.CHAT_COMPLETIONS] | {"messages": [{"role": "user", "content": "3" * 10_000}], **more}
    written = final_bodies(Endpoint.CHAT_COMPLETIONS, json.dumps(body).encode(), Quirks.NONE)
    assert written
    for target, final in written:
        METERS[target].asked_for(final)
