"""Errors as clients see them."""

from __future__ import annotations

import json

import pytest

from cliproxy.dataplane.errors import encode_error
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
def test_the_shape_is_openais(name: str) -> None:
    error, expected, kind, code = CASES[name]
    status, headers, body = encode_error(error, "req_0123")
    assert status == expected
    assert json.loads(body) == {"error": {"message": str(error), "type": kind, "param": getattr(error, "param", None), "code": code}}
    assert b"\r\nx-request-id: req_0123\r\n" in b"\r\n" + headers
    assert headers.startswith(b"Content-Type: application/json\r\n") and headers.endswith(b"\r\n")


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(RateLimited("Wait.", retry_after=0.2), b"1"), (RateLimited("Wait.", retry_after=2.0), b"2"), (Unavailable("No.", retry_after=4.2), b"5")],
)
def test_retry_after_is_rounded_up_so_that_obeying_it_succeeds(error: CliproxyError, seconds: bytes) -> None:
    assert b"\r\nRetry-After: " + seconds + b"\r\n" in encode_error(error, "req_1")[1]


def test_who_cannot_succeed_by_waiting_is_not_told_to_wait() -> None:
    for error in (SchemaError("No."), UpstreamError("No."), RateLimited("Never.", retry_after=float("inf"))):
        assert b"Retry-After" not in encode_error(error, "req_1")[1]


def test_a_401_names_the_scheme() -> None:
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in encode_error(NotAuthenticated(), "req_1")[1]


@pytest.mark.parametrize(
    "error", [VaultError("row 7 of /auths/vault.db"), ConfigError("bad", cure="mend it", file="/etc/x"), CorruptLog("bad", index=3), CliproxyError("inside")]
)
def test_what_is_not_meant_for_a_client_tells_it_nothing(error: CliproxyError) -> None:
    status, _, body = encode_error(error, "req_1")
    assert status == 500
    assert json.loads(body)["error"] == {"message": "The gateway failed to answer.", "type": "internal_error", "param": None, "code": "internal_error"}
