"""JSON that two readers read in two ways: refused, or what leaves is exactly what was checked.

Sources: Bishop Fox, "An Exploration of JSON Interoperability Vulnerabilities" (2021); JSONTestSuite; LiteLLM CVE-2024-6587; Portkey CVE-2025-66405.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cliproxy.dialects import Quirks
from cliproxy.errors import SchemaError
from cliproxy.metering.names import REFUSED_FIELDS, REFUSED_PREFIXES
from cliproxy.metering.openai_chat import reread
from cliproxy.translators.openai_chat.decode import decode_chat
from cliproxy.translators.openai_chat.encode import encode_same

MESSAGES = b'"messages":[{"role":"user","content":"Hello."}]'
CAP = 100


def leaves(body: bytes) -> bytes:
    """The final bytes for the model that was checked."""
    request = decode_chat(body, max_tokens_cap=CAP, on_excess="reject")
    encoded = encode_same(request, Quirks.NONE)
    return encoded.prefix + msgspec.json.encode(request.model) + encoded.suffix


def pairs_of(body: bytes) -> list[list[str]]:
    """The names of every object in `body`, duplicates included."""
    found: list[list[str]] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        found.append([name for name, _ in pairs])

    json.loads(body, object_pairs_hook=note)
    return found


@pytest.mark.parametrize(
    ("name", "body", "gone"),
    [
        ("model", b'{"model":"expensive","model":"cheap",%s}' % MESSAGES, b"expensive"),
        ("escaped name", b'{"m\\u006fdel":"expensive","model":"cheap",%s}' % MESSAGES, b"expensive"),
        ("cap", b'{"model":"m","max_tokens":99999,"max_tokens":5,%s}' % MESSAGES, b"99999"),
        ("messages", b'{"model":"m","messages":[{"role":"user","content":"hidden"}],%s}' % MESSAGES, b"hidden"),
        ("content", b'{"model":"m","messages":[{"role":"user","content":"hidden","content":"seen"}]}', b"hidden"),
        ("role", b'{"model":"m","messages":[{"role":"system","role":"user","content":"x"}]}', b"system"),
        ("unknown field", b'{"model":"m","top_k":1234,"top_k":5,%s}' % MESSAGES, b"1234"),
        ("usage", b'{"model":"m","stream":true,"stream_options":{"include_usage":true,"include_usage":false},%s}' % MESSAGES, b"false"),
    ],
)
def test_of_duplicate_names_only_the_one_that_was_checked_leaves(name: str, body: bytes, gone: bytes) -> None:
    left = leaves(body)
    assert gone not in left
    for names in pairs_of(left):
        assert len(names) == len(set(names))


def test_a_duplicate_cannot_lead_around_the_cap_in_either_order() -> None:
    with pytest.raises(SchemaError) as caught:
        leaves(b'{"model":"m","max_tokens":5,"max_tokens":101,%s}' % MESSAGES)
    assert caught.value.param == "max_tokens"
    assert reread(leaves(b'{"model":"m","max_tokens":101,"max_tokens":5,%s}' % MESSAGES)).max_tokens == 5


@pytest.mark.parametrize(
    "variant", ["Model", "MODEL", "mOdel", "Messages", "Max_Tokens", "max-tokens", "Max-Completion-Tokens", "STREAM", "ſtream", "Stream_Options", "N"]
)
def test_a_second_spelling_of_a_checked_field_is_refused(variant: str) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], variant: 1}).encode()
    with pytest.raises(SchemaError) as caught:
        leaves(body)
    assert caught.value.code == "ambiguous_field"


@pytest.mark.parametrize(
    "number",
    [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"+1", b"01", b".5", b"1.", b"0x10", b"1_000", b"1" * 1_000_000, b"1e" + b"9" * 1_000_000],
)
@pytest.mark.parametrize("field", [b"temperature", b"an_unknown_field"])
def test_a_number_that_readers_disagree_on_is_refused(field: bytes, number: bytes) -> None:
    with pytest.raises(SchemaError):
        leaves(b'{"model":"m",%s,"%s":%s}' % (MESSAGES, field, number))


def test_a_million_digits_behind_the_point_leave_as_the_number_that_was_read() -> None:
    left = leaves(b'{"model":"m",%s,"temperature":0.%s}' % (MESSAGES, b"3" * 1_000_000))
    assert b'"temperature":0.3333333333333333,' in left


@pytest.mark.parametrize(
    "where", [b'{"model":"m",%s,"x":%%s}' % MESSAGES, b"%s", b'{"model":"m","messages":%s}', b'{"model":"m","messages":[{"role":"user","content":%s}]}']
)
@pytest.mark.parametrize("nested", [b"[" * 100_000 + b"]" * 100_000, b"[" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"[" * 1100 + b"]" * 1100])
def test_depth_ends_in_a_refusal_and_not_in_a_crash(where: bytes, nested: bytes) -> None:
    with pytest.raises(SchemaError):
        leaves(where % nested)


@pytest.mark.parametrize(
    "text",
    [
        b"\\ud800",
        b"\\udc00",
        b"\\ud800x",
        b"\\ud800\\ud800",
        b"\\udc00\\ud800",
        b"\xed\xa0\x80",
        b"\xff",
        b"\xc0\xaf",
        b"\xf5\x80\x80\x80",
        b"\\x41",
        b"\\u00",
        b"a\x00b",
        b"a\nb",
    ],
)
@pytest.mark.parametrize(
    "place", [b'{"model":"m","messages":[{"role":"user","content":"%s"}]}', b'{"model":"m",%s,"x":"%%s"}' % MESSAGES, b'{"model":"m",%s,"%%s":1}' % MESSAGES]
)
def test_a_text_that_is_no_unicode_is_refused_wherever_it_stands(place: bytes, text: bytes) -> None:
    with pytest.raises(SchemaError):
        leaves(place % text)


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + b'{"model":"m",%s}' % MESSAGES,
        (b'{"model":"m",%s}' % MESSAGES).decode().encode("utf-16"),
        (b'{"model":"m",%s}' % MESSAGES).decode().encode("utf-32"),
        b'{"model":"m",%s}{}' % MESSAGES,
        b'{"model":"m",%s}\x00' % MESSAGES,
        b'{"model":"m",%s,}' % MESSAGES,
        b'{"model":"m",%s}//' % MESSAGES,
        b'/**/{"model":"m",%s}' % MESSAGES,
        b"{'model':'m'}",
        b'{model:"m",%s}' % MESSAGES,
        b'\xa0{"model":"m",%s}' % MESSAGES,
        b'{"model":"m"%s}' % MESSAGES,
    ],
    ids=[
        "mark",
        "utf-16",
        "utf-32",
        "second value",
        "trailing zero",
        "trailing comma",
        "line comment",
        "comment",
        "single quotes",
        "bare name",
        "no-break space",
        "no comma",
    ],
)
def test_what_is_not_one_json_text_in_utf8_is_refused(body: bytes) -> None:
    with pytest.raises(SchemaError):
        leaves(body)


@pytest.mark.parametrize("field", sorted(REFUSED_FIELDS) + [f"{prefix}anything" for prefix in REFUSED_PREFIXES])
@pytest.mark.parametrize("spell", [str, str.upper, str.title, lambda name: name.replace("_", "-")], ids=["plain", "upper", "title", "dashes"])
def test_a_field_that_would_choose_the_route_or_the_credential_is_refused(field: str, spell: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], spell(field): "http://attacker.example"}
    with pytest.raises(SchemaError) as caught:
        leaves(json.dumps(body).encode())
    assert (caught.value.code, caught.value.param) == ("forbidden_field", field)


@pytest.mark.parametrize(
    "field", ["api_base", "base_url", "api_key", "custom_host", "api_version", "extra_headers", "headers", "organization", "callbacks", "guardrails"]
)
def test_the_fields_of_known_attacks_are_in_the_table(field: str) -> None:
    assert field in REFUSED_FIELDS
