"""Errors as clients see them."""

from __future__ import annotations

import json

import pytest

from cliproxy.dataplane.errors import encode_error
from cliproxy.dataplane.surfaces.anthropic import ANTHROPIC
from cliproxy.dataplane.surfaces.gemini import GEMINI
from cliproxy.dataplane.surfaces.openai import OPENAI
from cliproxy.dataplane.surfaces.surface import Surface
from cliproxy.dataplane.surfaces.table import SURFACES
from cliproxy.errors import (
    ClientError,
    CliproxyError,
    ConfigError,
    CorruptLog,
    FramingError,
    NotAuthenticated,
    NotPermitted,
    RateLimited,
    SchemaError,
    Unavailable,
    UpstreamError,
    VaultError,
)
from cliproxy.translators.anthropic_messages.errors import error_type
from cliproxy.translators.gemini_generate.errors import rpc_name

CASES: dict[str, tuple[CliproxyError, int, str, str]] = {
    "framing": (FramingError("Broken.", status=431), 431, "invalid_request_error", "bad_http"),
    "schema": (SchemaError("No.", param="messages[0].content"), 400, "invalid_request_error", "invalid_request"),
    "key": (NotAuthenticated(), 401, "authentication_error", "invalid_api_key"),
    "permission": (NotPermitted("No."), 403, "permission_error", "not_permitted"),
    "rate": (RateLimited("Wait.", retry_after=0.2), 429, "rate_limit_error", "rate_limit_exceeded"),
    "upstream": (UpstreamError("It broke.", status=504, code="timeout"), 504, "upstream_error", "timeout"),
    "ours": (Unavailable("Draining.", code="draining", retry_after=4.2), 503, "unavailable_error", "draining"),
    "method": (ClientError("POST only.", code="method_not_allowed", status=405), 405, "invalid_request_error", "method_not_allowed"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_words_are_openais(name: str) -> None:
    error, expected, kind, code = CASES[name]
    status, headers, body = encode_error(error, "req_0123", OPENAI)
    assert status == expected
    assert json.loads(body) == {"error": {"message": str(error), "type": kind, "param": getattr(error, "param", None), "code": code}}
    assert b"\r\nx-request-id: req_0123\r\n" in b"\r\n" + headers
    assert headers.startswith(b"Content-Type: application/json\r\n") and headers.endswith(b"\r\n")


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(RateLimited("Wait.", retry_after=0.2), b"1"), (RateLimited("Wait.", retry_after=2.0), b"2"), (Unavailable("No.", retry_after=4.2), b"5")],
)
def test_retry_after_is_rounded_up_so_that_obeying_it_succeeds(error: CliproxyError, seconds: bytes) -> None:
    assert b"\r\nRetry-After: " + seconds + b"\r\n" in encode_error(error, "req_1", OPENAI)[1]


def test_who_cannot_succeed_by_waiting_is_not_told_to_wait() -> None:
    for error in (SchemaError("No."), UpstreamError("No."), RateLimited("Never.", retry_after=float("inf"))):
        assert b"Retry-After" not in encode_error(error, "req_1", OPENAI)[1]


def test_a_401_names_the_scheme() -> None:
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in encode_error(NotAuthenticated(), "req_1", OPENAI)[1]


@pytest.mark.parametrize(
    "error", [VaultError("row 7 of /auths/vault.db"), ConfigError("bad", cure="mend it", file="/etc/x"), CorruptLog("bad", index=3), CliproxyError("inside")]
)
def test_what_is_not_meant_for_a_client_tells_it_nothing(error: CliproxyError) -> None:
    status, _, body = encode_error(error, "req_1", OPENAI)
    assert status == 500
    assert json.loads(body)["error"] == {"message": "The gateway failed to answer.", "type": "internal_error", "param": None, "code": "internal_error"}


# --- Anthropic's and Google's words -----------------------------------------------------------------------------------

# By status: what Anthropic's SDK has a class for (`anthropic.types.shared`), and google.rpc.Code's name.
TYPES = {
    400: ("invalid_request_error", "INVALID_ARGUMENT"),
    401: ("authentication_error", "UNAUTHENTICATED"),
    402: ("billing_error", "FAILED_PRECONDITION"),
    403: ("permission_error", "PERMISSION_DENIED"),
    404: ("not_found_error", "NOT_FOUND"),
    405: ("invalid_request_error", "INVALID_ARGUMENT"),
    408: ("timeout_error", "DEADLINE_EXCEEDED"),
    409: ("invalid_request_error", "ABORTED"),
    413: ("request_too_large", "INVALID_ARGUMENT"),
    415: ("invalid_request_error", "INVALID_ARGUMENT"),
    429: ("rate_limit_error", "RESOURCE_EXHAUSTED"),
    431: ("invalid_request_error", "INVALID_ARGUMENT"),
    500: ("api_error", "INTERNAL"),
    502: ("api_error", "UNAVAILABLE"),
    503: ("overloaded_error", "UNAVAILABLE"),
    504: ("timeout_error", "DEADLINE_EXCEEDED"),
    529: ("overloaded_error", "UNAVAILABLE"),
    599: ("api_error", "INTERNAL"),
}


@pytest.mark.parametrize("status", TYPES)
def test_the_kind_of_an_error_follows_from_its_status(status: int) -> None:
    assert (error_type(status), rpc_name(status)) == TYPES[status]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("surface", SURFACES)
def test_status_wait_and_challenge_are_the_same_in_every_surface(name: str, surface: Surface) -> None:
    error, expected, _, _ = CASES[name]
    status, headers, _ = encode_error(error, "req_1", surface)
    _, openai, _ = encode_error(error, "req_1", OPENAI)
    assert status == expected
    assert headers.replace(b"request-id: req_1\r\nrequest-id: req_1\r\n", b"request-id: req_1\r\n") == openai


@pytest.mark.parametrize("name", CASES)
def test_anthropics_error_has_the_request_id_in_body_and_header(name: str) -> None:
    error, status, _, _ = CASES[name]
    _, headers, body = encode_error(error, "req_1", ANTHROPIC)
    message = str(error) if name != "schema" else f"messages[0].content: {error}"
    assert json.loads(body) == {"type": "error", "error": {"type": TYPES[status][0], "message": message}, "request_id": "req_1"}
    assert b"\r\nrequest-id: req_1\r\n" in headers


@pytest.mark.parametrize("name", CASES)
def test_geminis_error_is_a_google_rpc_status(name: str) -> None:
    error, status, _, code = CASES[name]
    document = json.loads(encode_error(error, "req_1", GEMINI)[2])["error"]
    assert (document["code"], document["status"]) == (status, TYPES[status][1])
    kinds = {detail["@type"].rpartition(".")[2]: detail for detail in document["details"]}
    assert kinds["ErrorInfo"]["reason"] == code.upper() and kinds["ErrorInfo"]["domain"] == "cliproxy"
    assert ("RetryInfo" in kinds) is (name in ("rate", "ours"))
    if name == "schema":
        assert kinds["BadRequest"]["fieldViolations"] == [{"field": "messages[0].content", "description": str(error)}]
        assert document["message"] == f"messages[0].content: {error}"
    else:
        assert "BadRequest" not in kinds


def test_a_message_that_names_its_field_does_not_name_it_twice() -> None:
    error = SchemaError("Expected a text (messages[0].content).", param="messages[0].content")
    assert json.loads(encode_error(error, "req_1", ANTHROPIC)[2])["error"]["message"] == error.message


@pytest.mark.parametrize("surface", SURFACES)
def test_what_is_not_meant_for_a_client_tells_it_nothing_in_any_surface(surface: Surface) -> None:
    status, _, body = encode_error(VaultError("row 7 of /auths/vault.db"), "req_1", surface)
    assert status == 500 and b"auths" not in body and b"The gateway failed to answer." in body
