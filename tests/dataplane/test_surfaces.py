"""Each vendor's surface: one module, one row. An error says the same whole and inside a stream."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import cliproxy.dataplane
from cliproxy.config.schema import ModelRoute
from cliproxy.dataplane.errors import encode_error
from cliproxy.dataplane.keys import token_of
from cliproxy.dataplane.routes import EXACT, route_of, surface_of
from cliproxy.dataplane.surfaces.surface import Page, Surface
from cliproxy.dataplane.surfaces.table import DEFAULT, SURFACES
from cliproxy.errors import ClientError
from cliproxy.ingress.framing import Framer, RawRequest
from cliproxy.ingress.head import PartialHead
from dataplane.worker_rig import Rig, provider

# --- whole and in a stream ----------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "Hi."}]
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "Hi."}]}]}
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"H"}}]}\n\n'

# Every form in which a stream can end with an error.
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai chat": ("/v1/chat/completions", {"model": "m", "messages": MESSAGES, "stream": True}),
    "openai completions": ("/v1/completions", {"model": "m", "prompt": "Hi.", "stream": True}),
    "openai responses": ("/v1/responses", {"model": "m", "input": "Hi.", "stream": True}),
    "anthropic messages": ("/v1/messages", {"model": "m", "messages": MESSAGES, "max_tokens": 9, "stream": True}),
    "gemini events": ("/v1beta/models/m:streamGenerateContent?alt=sse", CONTENTS),
    "gemini array": ("/v1beta/models/m:streamGenerateContent", CONTENTS),
}


def last_said(chunk: bytes) -> dict[str, Any]:
    """The JSON object at the end of a stream, whatever frames it."""
    document: dict[str, Any] = json.loads(chunk[chunk.index(b"{") :].strip().rstrip(b"]"))
    return document


@pytest.mark.parametrize("name", STREAMS)
def test_every_status_says_the_same_whole_and_inside_a_stream(name: str) -> None:
    """Anthropic's 408 was `invalid_request_error` whole and `timeout_error` in a stream; Gemini's 402, 405 and 529 had two names; OpenAI's 429 two types."""
    path, body = STREAMS[name]
    rig = Rig({"m": ModelRoute(provider="p", model="m")}, {"p": provider()})
    for status in range(400, 600):
        whole = rig.post(path, body)
        rig.abort(whole, status)
        streamed = rig.post(path, body)
        rig.answer(streamed, CHUNK, sse=True, final=False)
        rig.abort(streamed, status)
        assert whole.status == status and streamed.ending == "ended", status
        expected, found = whole.json["error"], last_said(streamed.chunks[-1])["error"]
        assert {key: value for key, value in expected.items() if key != "details"} == found, status


def test_every_dialect_that_streams_is_among_the_forms() -> None:
    paths = {path.partition("?")[0].encode() for path, _ in STREAMS.values()}
    assert {path for path, route in EXACT.items() if route.row is not None and route.row.writer is not None} <= paths


# --- the table is the only place -----------------------------------------------------------------------------------------


def raw(target: str, *lines: str) -> RawRequest:
    framer = Framer(max_head_bytes=16384, max_headers=100, max_body_bytes=1024)
    framer.feed("\r\n".join([f"GET {target} HTTP/1.1", "Host: h", *lines, "", ""]).encode("latin-1"))
    request = framer.next_request()
    assert request is not None
    return request


HEADERS = {"api_key": "x-api-key", "goog_api_key": "x-goog-api-key", "anthropic_version": "anthropic-version"}


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
def test_every_row_has_its_paths_keys_errors_and_models(surface: Surface) -> None:
    for path in surface.calls:
        assert EXACT[path].surface is surface and EXACT[path].row is not None
        if surface is not DEFAULT:
            assert surface_of(PartialHead(path + b"/nowhere")) is surface
    for path, page in surface.pages.items():
        assert (EXACT[path].surface, EXACT[path].page) == (surface, page)
    if surface.hint:
        asked = raw("/v1/models", f"{HEADERS[surface.hint]}: k1")
        route = route_of(asked)
        assert route is not None and route.page is Page.MODELS and route.surface is surface
    if surface.key_header:
        assert token_of(raw("/v1/chat/completions", f"{HEADERS[surface.key_header]}: k1")) == b"k1"
    status, headers, body = encode_error(ClientError("No.", status=418), "req_1", surface)
    assert (status, json.loads(body)["error"]["message"]) == (418, "No.")
    assert (surface.id_header in headers) and b"x-request-id: req_1" in headers


def test_two_surfaces_never_have_the_same_path() -> None:
    paths = [path for surface in SURFACES for path in (*surface.calls, *surface.pages)]
    assert len(paths) == len(set(paths)) == len(EXACT)
    for path in paths:
        owners = [surface for surface in SURFACES if surface.owns(path)]
        assert owners in ([], [EXACT[path].surface])


def test_no_other_module_of_the_dataplane_names_a_vendor() -> None:
    """A fourth vendor touches its module and the table: whatever else it would have to touch would name one of the three."""
    folder = Path(cliproxy.dataplane.__path__[0])
    vendors = ("openai", "anthropic", "gemini", "google", "goog_api_key", "/v1")
    for file in folder.glob("*.py"):
        tree = ast.parse(file.read_text())
        documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
        for node in ast.walk(tree):
            said = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in documented:
                said = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            elif isinstance(node, ast.Name | ast.Attribute | ast.ImportFrom):
                said = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else node.module or ""
            if said.startswith("There is no such route."):
                continue  # tells everybody about everybody's base URL
            assert not any(vendor in said.lower() for vendor in vendors), (file.name, getattr(node, "lineno", 0), said)


FOURTH = """
import json
from cliproxy.dataplane.surfaces import table
from cliproxy.dataplane.surfaces.surface import ClientRoute, Page, Surface
from cliproxy.dialects import Dialect, Operation

NEW = Surface(
    name="fourth",
    calls={b"/fourth/chat": (Dialect.OPENAI_CHAT, Operation.GENERATE)},
    pages={b"/fourth/models": Page.MODELS},
    owns=lambda path: path.startswith(b"/fourth/"),
    find=lambda path, query: ClientRoute(NEW, b"GET", Page.MODEL, model="m") if path == b"/fourth/models/m" else None,
    hint="session",
    key_header="accept",
    key_parameter=b"token",
    id_header=b"fourth-id",
    error_body=lambda problem, request_id: b"fourth %d" % problem.status,
    list_body=lambda items: {"fourth": items},
    model_item=lambda name, route, max_tokens: {"called": name},
)
table.SURFACES = (NEW, *table.SURFACES)

from cliproxy.config.schema import ModelRoute
from dataplane.worker_rig import Rig, provider

rig = Rig({"m": ModelRoute(provider="p", model="m")}, {"p": provider()})
key = rig.key.decode()
refused = rig.send(b"POST /fourth/chat HTTP/1.1")
assert (refused.status, refused.body) == (401, b"fourth 401") and b"fourth-id: req_" in refused.raw_headers
called = rig.send(b"POST /fourth/chat?token=" + rig.key + b" HTTP/1.1\\r\\nAccept: " + rig.key, json.dumps({"model": "m", "messages": MESSAGES}).encode())
assert len(rig.calls) == 1, called.body
rig.abort(called, 502)
assert (called.status, called.body) == (502, b"fourth 502")
assert rig.get("/fourth/models").json == {"fourth": [{"called": "m"}]}
assert rig.get("/fourth/models/m").json == {"called": "m"}
assert rig.get("/fourth/nowhere").body == b"fourth 404"
assert rig.get("/nowhere", "X-Session-Id: s").body == b"fourth 404"
assert rig.get("/v1/models").json["object"] == "list"
print("served")
"""


def test_a_fourth_vendor_is_one_value_and_one_row() -> None:
    program = textwrap.dedent(FOURTH).replace("MESSAGES", json.dumps(MESSAGES))
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "served\n", done.stderr
