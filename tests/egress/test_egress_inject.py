"""A credential goes to its sealed origin or nowhere."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import quote

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from cliproxy.config.schema import Provider
from cliproxy.dialects import Endpoint
from cliproxy.egress.inject import MAX_MODEL_HEADS, BoundCredential, Injector
from cliproxy.errors import ConfigError, ForeignOrigin, SchemaError, Unavailable, UpstreamError
from cliproxy.secret import Secret

A = "https://a.example:443"
PROVIDERS = {
    "a": Provider(base_url="https://a.example/v1"),
    "b": Provider(base_url="https://b.example:8443"),
    "open": Provider(base_url="http://127.0.0.1:1", auth="none"),
    "named": Provider(),
    "echo": Provider(),
}


def granted(secret: bytes = b"sk-secret-a") -> Injector:
    injector = Injector(PROVIDERS)
    injector.grant("c1", provider="a", origin=A, secret=Secret(secret))
    return injector


def head(bound: BoundCredential | None, *, origin: str = A, stream: bool = False) -> bytes:
    assert bound is not None
    return bound.head(Endpoint.CHAT_COMPLETIONS, origin=origin, stream=stream, body=b"x" * 12)


def test_the_head_carries_the_credential_and_the_length() -> None:
    text = head(granted().for_provider("a"))
    assert text.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer sk-secret-a\r\n")
    assert text.endswith(b"\r\nContent-Length: 12\r\n\r\n") and text.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize(
    "origin",
    [
        "https://b.example:8443",
        "http://a.example:443",
        "https://a.example:444",
        "https://a.example",
        "https://a.example:443.attacker.example",
        "https://A.example:443",
        "",
    ],
)
def test_no_head_is_made_for_another_origin(origin: str) -> None:
    with pytest.raises(ForeignOrigin):
        head(granted().for_provider("a"), origin=origin)


@pytest.mark.parametrize(("provider", "origin"), [("b", A), ("a", "https://b.example:8443"), ("unknown", A), ("named", A), ("echo", A)])
def test_a_grant_for_another_origin_is_refused_and_unused(provider: str, origin: str) -> None:
    injector = Injector(PROVIDERS)
    with pytest.raises(ForeignOrigin):
        injector.grant("c1", provider=provider, origin=origin, secret=Secret(b"sk-secret-a"))
    assert injector.for_provider(provider) is None


@pytest.mark.parametrize(
    "secret", [b"sk-1234\r\nX: y", b"sk-1234\n", b"sk 123456", b"sk-\x00123456", b"sk-\xff123456", b"sk-123\t456", b"", b"short", b"x" * 9000]
)
def test_a_secret_that_fits_no_header_is_refused_and_unused(secret: bytes) -> None:
    injector = Injector(PROVIDERS)
    with pytest.raises(UpstreamError):
        injector.grant("c1", provider="a", origin=A, secret=Secret(secret))
    assert injector.for_provider("a") is None


def test_without_a_credential_there_is_nothing_to_call_with() -> None:
    injector = Injector(PROVIDERS)
    assert injector.for_provider("a") is None
    assert injector.for_provider("named") is None


def test_a_provider_that_wants_no_credential_gets_none() -> None:
    bound = Injector(PROVIDERS).for_provider("open")
    assert bound is not None and bound.id == ""
    assert b"uthorization" not in head(bound, origin="http://127.0.0.1:1")


def test_a_credential_for_a_provider_that_wants_none_is_not_sent() -> None:
    injector = Injector(PROVIDERS)
    injector.grant("c1", provider="open", origin="http://127.0.0.1:1", secret=Secret(b"sk-secret-a"))
    assert b"sk-secret-a" not in head(injector.for_provider("open"), origin="http://127.0.0.1:1")


def test_the_newest_credential_is_used_and_the_older_one_after_its_withdrawal() -> None:
    injector = granted()
    injector.grant("c0", provider="a", origin=A, secret=Secret(b"sk-secret-new"))
    bound = injector.for_provider("a")
    assert bound is not None and bound.id == "c0"
    injector.withdraw("c0")
    assert b"sk-secret-a" in head(injector.for_provider("a"))
    injector.withdraw("c1")
    injector.withdraw("c1")
    assert injector.for_provider("a") is None


def test_what_the_vault_no_longer_grants_is_forgotten() -> None:
    injector = granted()
    injector.grant("c2", provider="b", origin="https://b.example:8443", secret=Secret(b"sk-secret-b"))
    injector.keep_only(frozenset({"c2"}))
    assert injector.for_provider("a") is None and injector.for_provider("b") is not None


def test_after_a_reload_a_moved_provider_has_no_credential_until_it_moves_back() -> None:
    injector = granted()
    assert injector.retable(PROVIDERS | {"a": Provider(base_url="https://attacker.example/v1")}) == ["c1"]
    assert injector.for_provider("a") is None
    assert injector.retable(PROVIDERS | {"a": Provider(base_url="https://a.example/v2")}) == []
    assert head(injector.for_provider("a")).startswith(b"POST /v2/chat/completions ")


def test_nothing_prints_a_secret() -> None:
    injector = granted()
    bound = injector.for_provider("a")
    assert "sk-secret-a" not in repr(bound) + str(injector) + repr(bound.guard if bound else "")


def test_the_guard_knows_the_secret() -> None:
    bound = granted().for_provider("a")
    assert bound is not None and bound.guard.clean(b"sk-secret-a") == b"[redacted]"


# --- kinds, schemes, models in paths ---------------------------------------------------------------------------------

AWS = "AKIDEXAMPLEEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = "IQoJb3JpZ2luX2VjEXAMPLETOKEN/+=="
NOW = 1_440_938_160.0  # 2015-08-30T12:36:00Z
KINDS = {
    "openai": Provider(kind="openai", base_url="https://a.example/v1"),
    "anthropic": Provider(kind="anthropic", base_url="https://a.example/v1"),
    "gemini": Provider(kind="gemini", base_url="https://a.example/v1beta"),
    "azure": Provider(kind="azure_openai", base_url="https://a.example", api_version="2024-10-21"),
    "azure v1": Provider(kind="azure_openai", base_url="https://a.example"),
    "entra": Provider(kind="azure_openai", base_url="https://a.example", auth="bearer"),
    "vertex": Provider(kind="vertex", base_url="https://a.example/v1", project="my-project-1", location="us-east5"),
    "bedrock": Provider(kind="bedrock", base_url="https://a.example", region="eu-west-1"),
    "bedrock key": Provider(kind="bedrock", base_url="https://a.example", region="eu-west-1", auth="bearer"),
}


def bound_to(name: str, secret: str = "sk-secret-a") -> BoundCredential:
    injector = Injector(KINDS, clock=lambda: NOW)
    injector.grant("c1", provider=name, origin=A, secret=Secret(secret.encode()))
    (bound,) = injector.credentials_of(name)
    return bound


def lines(bound: BoundCredential, endpoint: Endpoint, *, model: str = "m", stream: bool = False, body: bytes = b"{}") -> list[str]:
    head = bound.head(endpoint, origin=A, stream=stream, model=model, body=body)
    assert head.endswith(b"\r\n\r\n") and head.count(b"\r\n\r\n") == 1
    return head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")


@pytest.mark.parametrize(
    ("name", "endpoint", "line"),
    [
        ("openai", Endpoint.RESPONSES, "Authorization: Bearer sk-secret-a"),
        ("anthropic", Endpoint.MESSAGES, "x-api-key: sk-secret-a"),
        ("gemini", Endpoint.GENERATE_CONTENT, "x-goog-api-key: sk-secret-a"),
        ("azure", Endpoint.CHAT_COMPLETIONS, "api-key: sk-secret-a"),
        ("entra", Endpoint.CHAT_COMPLETIONS, "Authorization: Bearer sk-secret-a"),
        ("vertex", Endpoint.MESSAGES, "Authorization: Bearer sk-secret-a"),
        ("bedrock key", Endpoint.CONVERSE, "Authorization: Bearer sk-secret-a"),
    ],
)
def test_each_kind_shows_its_credential_in_its_own_way_and_once(name: str, endpoint: Endpoint, line: str) -> None:
    found = [text for text in lines(bound_to(name), endpoint) if "sk-secret-a" in text]
    assert found == [line]


def test_anthropic_is_told_the_version_of_its_api() -> None:
    assert "anthropic-version: 2023-06-01" in lines(bound_to("anthropic"), Endpoint.MESSAGES)


def test_a_model_is_in_the_path_where_the_vendor_wants_it() -> None:
    assert lines(bound_to("gemini"), Endpoint.GENERATE_CONTENT, model="gemini-2.5-pro")[0] == "POST /v1beta/models/gemini-2.5-pro:generateContent HTTP/1.1"
    stream = lines(bound_to("gemini"), Endpoint.GENERATE_CONTENT, model="a/b", stream=True)
    assert stream[0] == "POST /v1beta/models/a%2Fb:streamGenerateContent?alt=sse HTTP/1.1"
    assert lines(bound_to("azure"), Endpoint.CHAT_COMPLETIONS, model="d")[0] == "POST /openai/deployments/d/chat/completions?api-version=2024-10-21 HTTP/1.1"
    assert lines(bound_to("azure v1"), Endpoint.CHAT_COMPLETIONS, model="d")[0] == "POST /openai/v1/chat/completions HTTP/1.1"


@pytest.mark.parametrize("model", ["", ".", "..", "x" * 1000])
def test_a_model_that_fits_no_path_is_the_clients_fault(model: str) -> None:
    with pytest.raises(SchemaError):
        bound_to("bedrock", AWS).head(Endpoint.CONVERSE, origin=A, stream=False, model=model, body=b"{}")


def test_a_model_in_a_path_gets_no_head_for_another_origin() -> None:
    for name, secret, endpoint in (("gemini", "sk-secret-a", Endpoint.GENERATE_CONTENT), ("bedrock", AWS, Endpoint.CONVERSE)):
        with pytest.raises(ForeignOrigin):
            bound_to(name, secret).head(endpoint, origin="https://b.example:443", stream=False, model="m", body=b"{}")


def test_heads_of_models_are_kept_and_their_number_is_bounded() -> None:
    bound = bound_to("gemini")
    first = lines(bound, Endpoint.GENERATE_CONTENT, model="m-0")
    for number in range(3 * MAX_MODEL_HEADS):
        assert f"/m-{number}:" in lines(bound, Endpoint.GENERATE_CONTENT, model=f"m-{number}")[0]
        assert len(bound._models) <= MAX_MODEL_HEADS
    assert lines(bound, Endpoint.GENERATE_CONTENT, model="m-0") == first


def test_an_endpoint_that_a_provider_lacks_has_no_head() -> None:
    with pytest.raises(Unavailable):
        bound_to("anthropic").head(Endpoint.CHAT_COMPLETIONS, origin=A, stream=False, model="m", body=b"{}")


def test_a_form_says_its_own_boundary() -> None:
    body = b"--cliproxy-form-2a6f0c51d98e4b7fa3e1\r\nContent-Disposition: form-data; name=model\r\n\r\nwhisper-1\r\n--cliproxy-form-2a6f0c51d98e4b7fa3e1--\r\n"
    found = lines(bound_to("openai"), Endpoint.TRANSCRIPTIONS, body=body)
    assert "Content-Type: multipart/form-data; boundary=cliproxy-form-2a6f0c51d98e4b7fa3e1" in found and found[-1] == f"Content-Length: {len(body)}"
    assert lines(bound_to("azure"), Endpoint.TRANSCRIPTIONS, model="w", body=body)[0].startswith("POST /openai/deployments/w/audio/transcriptions?")


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"--short\r\n", b"--" + b"a" * 65 + b"\r\n", b"--aaaaaaaaaaaaaaaaaaaa", b'--aaaaaaaaaaaaaaaa"; x=y\r\n', b"--aaaaaaaaaaaaaaaa\nX: y\r\n"],
)
def test_a_body_that_is_no_form_does_not_leave_as_one(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        bound_to("openai").head(Endpoint.TRANSCRIPTIONS, origin=A, stream=False, model="m", body=body)


# --- AWS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_request_is_signed_as_botocore_signs_it(token: str) -> None:
    bound = bound_to("bedrock", f"{AWS}:{token}" if token else AWS)
    model, body = "us.anthropic.claude-sonnet-4-20250514-v1:0", b'{"messages":[]}'
    found = lines(bound, Endpoint.CONVERSE, model=model, stream=True, body=body)
    headers = dict(line.split(": ", 1) for line in found[1:])
    assert found[0] == "POST /model/us.anthropic.claude-sonnet-4-20250514-v1%3A0/converse-stream HTTP/1.1"
    assert headers["Accept"] == "application/vnd.amazon.eventstream" and headers["X-Amz-Date"] == "20150830T123600Z"
    assert headers.get("X-Amz-Security-Token", "") == token and headers["Content-Length"] == str(len(body))
    id, key = AWS.split(":")
    request = AWSRequest("POST", f"https://a.example/model/{quote(model, safe='')}/converse-stream", {"Content-Type": "application/json"}, body)
    moment = datetime.fromtimestamp(NOW, UTC).replace(tzinfo=None)
    with patch.object(botocore.auth, "get_current_datetime", return_value=moment):
        botocore.auth.SigV4Auth(Credentials(id, key, token or None), "bedrock", "eu-west-1").add_auth(request)
    assert headers["Authorization"] == request.headers["Authorization"]


def test_each_body_has_its_own_signature_and_the_key_never_leaves() -> None:
    bound = bound_to("bedrock", f"{AWS}:{TOKEN}")
    heads = [bound.head(Endpoint.CONVERSE, origin=A, stream=False, model="m", body=body) for body in (b"{}", b"[]", b"{}")]
    assert heads[0] == heads[2] != heads[1]
    assert all(AWS.split(":")[1].encode() not in head for head in heads)
    assert AWS.split(":")[1] not in repr(bound) + repr(bound._signer)


def test_the_guard_knows_every_secret_part_and_leaves_the_id() -> None:
    guard = bound_to("bedrock", f"{AWS}:{TOKEN}").guard
    id, key = AWS.split(":")
    assert guard.clean(f"{id} {key} {TOKEN}".encode()) == f"{id} [redacted] [redacted]".encode()
    assert guard.clean(f"{AWS}:{TOKEN}".encode()) == f"{id}:[redacted]:[redacted]".encode()


@pytest.mark.parametrize("secret", ["sk-secret-that-is-none", "AKIDEXAMPLEEXAMPLE:short", AWS + ":", AWS + ":short", AWS.replace("/", " ")])
def test_a_secret_that_is_no_aws_credential_is_refused_and_unused(secret: str) -> None:
    injector = Injector(KINDS)
    with pytest.raises(UpstreamError) as caught:
        injector.grant("c1", provider="bedrock", origin=A, secret=Secret(secret.encode()))
    assert injector.credentials_of("bedrock") == () and secret not in str(caught.value)


def test_all_usable_credentials_are_there_the_newest_first() -> None:
    injector = granted()
    injector.grant("c2", provider="a", origin=A, secret=Secret(b"sk-secret-b"))
    injector.grant("c3", provider="b", origin="https://b.example:8443", secret=Secret(b"sk-secret-c"))
    assert [bound.id for bound in injector.credentials_of("a")] == ["c2", "c1"]
    injector.grant("c1", provider="a", origin=A, secret=Secret(b"sk-secret-d"))
    assert [bound.id for bound in injector.credentials_of("a")] == ["c1", "c2"]
    assert [bound.id for bound in injector.credentials_of("open")] == [""]
    assert injector.credentials_of("named") == injector.credentials_of("echo") == injector.credentials_of("unknown") == ()


def test_a_setting_that_could_move_a_path_is_refused_by_egress_too() -> None:
    for region in ("x/../y", ""):
        provider = Provider(kind="bedrock", base_url="https://a.example", region=region)
        with pytest.raises(ConfigError):
            Injector({"bedrock": provider})
