"""A route is the raw path's, whatever Host, encodings and helpful headers say; authorisation hangs on the endpoint.

Sources: CVE-2026-49468 and Starlette CVE-2026-48710 (`Host: a/?` moved the admin check), Orange Tsai, "Breaking Parser Logic" (2018: `/..;/`), Symfony
CVE-2018-14773 (`X-Original-URL`, `X-Rewrite-URL`), Envoy CVE-2019-9901 and CVE-2021-29492 (`//`, `%2f`), Spring CVE-2023-20860, nginx alias traversal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fakes.gateway import Gateway
from fakes.wire import WireAnswer, WireClient, request_bytes

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hello."}]}
CALLS = ("/v1/chat/completions", "/v1/embeddings")
PAGES = ("/v1/models", "/healthz", "/readyz")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway() as running:
        yield running


def raw(gateway: Gateway, line: bytes, *headers: bytes, body: bytes = b"", key: bool = True) -> WireAnswer:
    """Send a request whose request line and headers are these, with a good key unless told."""
    lines = [line, *headers]
    if key:
        lines.append(b"Authorization: Bearer " + gateway.key.encode())
    if body:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    with WireClient(gateway.port) as client:
        client.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        return client.answer(without_body=line.startswith(b"HEAD "))


def get(gateway: Gateway, target: bytes, *headers: bytes, key: bool = True) -> WireAnswer:
    return raw(gateway, b"GET " + target + b" HTTP/1.1", b"Host: 127.0.0.1", *headers, key=key)


# --- paths ---------------------------------------------------------------------------------------------------------------

DISGUISES = [
    "//v1/models",
    "/v1//models",
    "///v1/models",
    "/v1/./models",
    "/./v1/models",
    "/v1/../v1/models",
    "/x/../v1/models",
    "/healthz/../v1/models",
    "/healthz/..;/v1/models",
    "/healthz;/../v1/models",
    "/healthz%2f..%2fv1%2fmodels",
    "/..%2fv1/models",
    "/%2e%2e/v1/models",
    "/%2e/v1/models",
    "/v1%2fmodels",
    "/v1%2Fmodels",
    "/v1%252fmodels",
    "/v1%5cmodels",
    "/v1/%6dodels",
    "/%761/models",
    "/v1/models%00",
    "/v1/models%00.html",
    "/v1/models%20",
    "/v1/models%0a",
    "/v1/models%3f",
    "/v1/models%23",
    "/v1/models;",
    "/v1/models;jsessionid=1",
    "/v1/models.json",
    "/v1/models:",
    "/v1/models,",
    "/v1/models&",
    "/V1/models",
    "/v1/Models",
    "/V1/MODELS",
    "/v1/model",
    "/v1/modelss",
    "/v1",
    "/v1/",
    "/",
    "/models",
    "/v2/models",
    "/api/v1/models",
    "/v1/%ef%bd%8dodels",
    "/v1/mo%cc%81dels",
    "/:@127.0.0.1/v1/models",
    "/http://127.0.0.1/v1/models",
]


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models//", "/v1/models/.", "/v1/models/..%2f", "/v1/models/echo/", "/v1/models/%2e%2e/keys"])
def test_what_stands_behind_models_is_a_name_and_never_a_path(gateway: Gateway, path: str) -> None:
    answer = get(gateway, path.encode())
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert get(gateway, path.encode(), key=False).status in (401, 404)


@pytest.mark.parametrize("path", DISGUISES)
def test_a_path_that_others_would_read_as_a_route_is_none(gateway: Gateway, path: str) -> None:
    for key in (True, False):
        answer = get(gateway, path.encode(), key=key)
        assert (answer.status, answer.error["code"]) == (404, "unknown_route")
        assert "location" not in answer.headers, "nobody is sent to the right path"


@pytest.mark.parametrize(
    "line",
    [
        b"GET http://127.0.0.1/v1/models HTTP/1.1",
        b"GET http://169.254.169.254/latest/meta-data/ HTTP/1.1",
        b"GET https://api.openai.com/v1/models HTTP/1.1",
        b"GET HTTP://127.0.0.1/v1/models HTTP/1.1",
        b"GET file:///etc/passwd HTTP/1.1",
        b"GET gopher://127.0.0.1:6379/_FLUSHALL HTTP/1.1",
        b"GET v1/models HTTP/1.1",
        b"GET ?/v1/models HTTP/1.1",
        b"GET @attacker.example/v1/models HTTP/1.1",
        b"GET \\v1\\models HTTP/1.1",
        b"GET /v1\\models HTTP/1.1",
        b"GET /v1/models#x HTTP/1.1",
        b"GET /v1/models %20 HTTP/1.1",
        b"GET /v1/models\tHTTP/1.1",
        b"GET  /v1/models HTTP/1.1",
        b"GET /v1/models  HTTP/1.1",
        b"GET /v1/models HTTP/1.1 ",
        b" GET /v1/models HTTP/1.1",
        b"GET /v1/models",
        b"GET /v1/models HTTP/0.9",
        b"GET /v1/models HTTP/1.2",
        b"GET /v1/models HTTP/2.0",
        b"GET /v1/models http/1.1",
        b"GET /v1/models\x00 HTTP/1.1",
        b"GET /v1/models\xff HTTP/1.1",
        b"GET /v1/models% HTTP/1.1",
        b"GET /v1/models%2 HTTP/1.1",
        b"GET /v1/models%zz HTTP/1.1",
        b"GET /v1/models%u002f HTTP/1.1",
        b'GET /v1/models" HTTP/1.1',
        b"GET /v1/models<> HTTP/1.1",
        b"GET /v1/models{} HTTP/1.1",
        b"GET /v1/models| HTTP/1.1",
        b"GET * HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT 127.0.0.1:22 HTTP/1.1",
        b"CONNECT /v1/models HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"get /v1/models HTTP/1.1",
        b"Get /v1/models HTTP/1.1",
        b"GETT /v1/models HTTP/1.1",
        b"G\x00ET /v1/models HTTP/1.1",
        b"PROPFIND /v1/models HTTP/1.1",
        b"JEFE /v1/models HTTP/1.1",
    ],
)
def test_a_target_that_is_no_origin_form_is_broken_http(gateway: Gateway, line: bytes) -> None:
    answer = raw(gateway, line, b"Host: 127.0.0.1")
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert b"models" not in answer.body and b"passwd" not in answer.body, "what was sent is not repeated"


@pytest.mark.parametrize("query", ["?", "?a=b", "?/../healthz", "?%00", "?path=/healthz", "??", "?a=b?c", "?url=http://169.254.169.254/", "?a%2fb"])
def test_a_query_changes_no_route(gateway: Gateway, query: str) -> None:
    """The valid sister of the tables above."""
    assert get(gateway, b"/v1/models" + query.encode()).json["object"] == "list"
    assert get(gateway, b"/v1/models" + query.encode(), key=False).status == 401
    assert get(gateway, b"/healthz" + query.encode(), key=False).json["status"] == "ok"


ELSEWHERE = """
/admin /admin/ /config /key/generate /keys /management /v0/management/config /metrics /debug/pprof/ /status /docs /redoc /openapi.json /swagger.json
/.env /.git/config /server-status /health /healthz/ /ping /reload /v1/keys /v1/files /v1/batches /v1/assistants /mcp /sse
/v1beta/files /v1beta/cachedContents /favicon.ico /robots.txt /cgi-bin/sh /run/control.sock
"""


@pytest.mark.parametrize("path", ELSEWHERE.split())
def test_there_is_nothing_else_on_the_port(gateway: Gateway, path: str) -> None:
    bodies = set()
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        for key in (True, False):
            answer = raw(gateway, f"{method} {path} HTTP/1.1".encode(), b"Host: 127.0.0.1", key=key, body=b"{}" if method == "POST" else b"")
            assert answer.status == 404
            bodies.add(answer.body)
    assert len(bodies) == 1


# --- Host ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        b"a/?",
        b"a/healthz?",
        b"127.0.0.1/healthz#",
        b"a\\",
        b"a@127.0.0.1",
        b"user:pass@127.0.0.1",
        b"127.0.0.1:80:80",
        b"127.0.0.1:port",
        b"127.0.0.1:123456",
        b"127.0.0.1:-1",
        b"http://127.0.0.1",
        b"127.0.0.1, attacker.example",
        b"127.0.0.1 attacker.example",
        b"127.0.0.1;x",
        b"127.0.0.1\x00",
        b"127.0.0.1\xff",
        b"[::1",
        b"::1",
        b"[::1]x",
        b"[::1%25eth0]",
        b"[attacker.example]",
        b"%61",
        b"",
        b"*",
        b"{{7*7}}",
        b"a?b",
        b"a#b",
    ],
)
@pytest.mark.parametrize("target", [b"/v1/models", b"/healthz"])
def test_a_host_that_could_be_read_as_more_than_a_host_is_broken_http(gateway: Gateway, host: bytes, target: bytes) -> None:
    assert raw(gateway, b"GET " + target + b" HTTP/1.1", b"Host: " + host).status == 400


@pytest.mark.parametrize(
    "headers", [(), (b"Host: 127.0.0.1", b"Host: 127.0.0.1"), (b"Host: 127.0.0.1", b"host: a"), (b"Host : 127.0.0.1",), (b" Host: 127.0.0.1",)]
)
def test_a_host_is_there_once(gateway: Gateway, headers: tuple[bytes, ...]) -> None:
    assert raw(gateway, b"GET /v1/models HTTP/1.1", *headers).status == 400


@pytest.mark.parametrize("host", [b"127.0.0.1", b"localhost:8317", b"attacker.example", b"admin.internal", b"169.254.169.254", b"[::1]:8317", b"A.B"])
def test_which_host_it_is_neither_opens_nor_closes_anything(gateway: Gateway, host: bytes) -> None:
    assert raw(gateway, b"GET /v1/models HTTP/1.1", b"Host: " + host).status == 200
    assert raw(gateway, b"GET /v1/models HTTP/1.1", b"Host: " + host, key=False).status == 401
    assert raw(gateway, b"GET /admin HTTP/1.1", b"Host: " + host).status == 404


HELPFUL = [
    b"X-Original-URL: %b",
    b"X-Rewrite-URL: %b",
    b"X-Original-URI: %b",
    b"X-Forwarded-Uri: %b",
    b"X-Forwarded-Path: %b",
    b"X-Forwarded-Prefix: %b",
    b"X-Script-Name: %b",
    b"X-Envoy-Original-Path: %b",
    b"X-Accel-Redirect: %b",
    b"X-Sendfile: %b",
    b"Forwarded: for=127.0.0.1;host=admin;proto=https",
    b"X-Forwarded-Host: admin/%b",
    b"X-HTTP-Method-Override: DELETE",
    b"X-Method-Override: GET",
    b"X-HTTP-Method: GET",
    b"Destination: %b",
    b"Referer: http://127.0.0.1%b",
]


@pytest.mark.parametrize("header", HELPFUL)
def test_a_helpful_header_moves_neither_route_nor_method_nor_check(gateway: Gateway, header: bytes) -> None:
    assert get(gateway, b"/healthz", header.replace(b"%b", b"/v1/models"), key=False).json["status"] == "ok"
    assert get(gateway, b"/v1/models", header.replace(b"%b", b"/healthz"), key=False).status == 401
    assert get(gateway, b"/admin", header.replace(b"%b", b"/v1/models")).status == 404
    answer = get(gateway, b"/v1/chat/completions", header.replace(b"%b", b"/v1/models"))
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


# --- methods -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*CALLS, *PAGES])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"])
def test_a_route_has_one_method(gateway: Gateway, method: str, path: str) -> None:
    """Before the key is asked for: what a route takes is in the documentation."""
    allowed = "POST" if path in CALLS else "GET"
    for key in (True, False):
        answer = raw(gateway, f"{method} {path} HTTP/1.1".encode(), b"Host: 127.0.0.1", b"X-Canary: trace-me", key=key, body=b"{}" if method == "POST" else b"")
        if method == allowed:
            assert answer.status in (200, 400, 401)
        else:
            assert (answer.status, answer.headers["allow"]) == (405, allowed)
        assert b"trace-me" not in answer.body


@pytest.mark.parametrize("path", [*CALLS, *PAGES, "/nowhere"])
def test_no_page_of_another_origin_may_read_an_answer(gateway: Gateway, path: str) -> None:
    preflight = raw(
        gateway,
        f"OPTIONS {path} HTTP/1.1".encode(),
        b"Host: 127.0.0.1",
        b"Origin: https://attacker.example",
        b"Access-Control-Request-Method: POST",
        b"Access-Control-Request-Headers: authorization",
    )
    plain = get(gateway, path.encode(), b"Origin: null")
    for answer in (preflight, plain):
        assert [name for name in answer.headers if name.startswith("access-control-")] == []


def test_one_connection_s_paths_are_judged_one_by_one(gateway: Gateway) -> None:
    """Pipelined: an allowed path lends nothing to the next one."""
    with WireClient(gateway.port) as client:
        client.send(
            request_bytes("GET", "/healthz")
            + request_bytes("GET", "/v1/models")
            + request_bytes("GET", "/v1/models", key=gateway.key)
            + request_bytes("GET", "/v1/models")
            + request_bytes("GET", "//v1/models", key=gateway.key)
        )
        assert [client.answer().status for _ in range(5)] == [200, 401, 200, 401, 404]


def test_every_path_pays_its_address_s_bucket() -> None:
    """An unknown path is no way to ask for ever: step 3 comes before the route."""
    with Gateway({"server": {"rate_limit": {"requests_per_second": 0.01, "burst": 60}}}) as gateway, WireClient(gateway.port) as client:
        statuses = [client.ask("GET", "/nowhere").status for _ in range(70)]
        assert set(statuses) == {404, 429}
        assert statuses == sorted(statuses)
        assert client.ask("POST", "/v1/chat/completions", body=json.dumps(CHAT).encode()).status == 429
        assert client.ask("POST", "/v1/chat/completions", key=gateway.key, body=json.dumps(CHAT).encode()).status == 200  # who has a key does not pay for them
