"""Every vendor in one process: each dialect on its own real path, as strict as the vendor, with its own errors.

What is answered is `vendor_plan.answer_to`. The model's name asks for a fault (`fault-NAME`, with anything before it, or after two dashes): a stream that
is cut in the middle of an event, of a character or of a number, arguments that never become JSON, another dialect's answer, an error event, a status.
`/__record` gives what was received.

    with FakeVendors() as vendors: vendors.origin, vendors.record(), SECRETS["anthropic"]
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httptools

from fakes import vendor_anthropic, vendor_bedrock, vendor_gemini, vendor_openai_chat, vendor_openai_responses
from fakes.provider import LAST_CHUNK, answer, chunk
from fakes.vendor_plan import Asked, Plan, answer_to
from fakes.vendor_schema import Refused

SECRETS = {
    "openai": "sk-fake-openai-0123456789abcdef",
    "anthropic": "sk-ant-fake-0123456789abcdef",
    "gemini": "AIzaFake0123456789abcdefghijklmnopqrstu",
    "vertex": "ya29.fake-0123456789abcdef",
    "azure": "azurefake0123456789abcdef01234567",
    "bedrock": f"{vendor_bedrock.ACCESS_KEY}:{vendor_bedrock.SECRET_KEY}",
}
PROJECT, LOCATION, API_VERSION = "fake-project", "europe-west4", "2024-10-21"
FAULTS = ("cut-event", "cut-utf8", "cut-number", "cut-ending", "bad-arguments", "other-dialect", "error-event", "not-json", "in-pieces", "html")

# which header carries the secret, and how; Anthropic's newer SDKs show their key as a bearer token
SCHEMES = {
    "openai": {"authorization": "Bearer "},
    "vertex": {"authorization": "Bearer "},
    "anthropic": {"x-api-key": "", "authorization": "Bearer "},
    "gemini": {"x-goog-api-key": ""},
    "azure": {"api-key": ""},
}
ALL_SCHEMES = {header for schemes in SCHEMES.values() for header in schemes}
VERTEX = rf"/v1/projects/{PROJECT}/locations/{LOCATION}/publishers"
# path, whose secret, dialect, what is done
PATHS: tuple[tuple[str, str, ModuleType, str], ...] = (
    (r"/v1/chat/completions", "openai", vendor_openai_chat, "generate"),
    (r"/v1/responses", "openai", vendor_openai_responses, "generate"),
    (r"/v1/messages", "anthropic", vendor_anthropic, "generate"),
    (r"/v1/messages/count_tokens", "anthropic", vendor_anthropic, "count"),
    (r"/v1(?:beta)?/models/(?P<model>[^/:]+):generateContent", "gemini", vendor_gemini, "whole"),
    (r"/v1(?:beta)?/models/(?P<model>[^/:]+):streamGenerateContent", "gemini", vendor_gemini, "stream"),
    (r"/v1(?:beta)?/models/(?P<model>[^/:]+):countTokens", "gemini", vendor_gemini, "count"),
    (r"/v1(?:beta)?/models/(?P<model>[^/:]+):embedContent", "gemini", vendor_gemini, "embed"),
    (r"/v1(?:beta)?/models/(?P<model>[^/:]+):batchEmbedContents", "gemini", vendor_gemini, "batch_embed"),
    (rf"{VERTEX}/google/models/(?P<model>[^/:]+):generateContent", "vertex", vendor_gemini, "whole"),
    (rf"{VERTEX}/google/models/(?P<model>[^/:]+):streamGenerateContent", "vertex", vendor_gemini, "stream"),
    (rf"{VERTEX}/google/models/(?P<model>[^/:]+):countTokens", "vertex", vendor_gemini, "count"),
    (rf"{VERTEX}/anthropic/models/(?P<model>[^/:]+):rawPredict", "vertex", vendor_anthropic, "whole"),
    (rf"{VERTEX}/anthropic/models/(?P<model>[^/:]+):streamRawPredict", "vertex", vendor_anthropic, "stream"),
    (r"/openai/deployments/(?P<deployment>[^/:]+)/chat/completions", "azure", vendor_openai_chat, "generate"),
    (r"/openai/(?:v1/)?responses", "azure", vendor_openai_responses, "generate"),
    (r"/model/(?P<model>[^/]+)/converse", "bedrock", vendor_bedrock, "whole"),
    (r"/model/(?P<model>[^/]+)/converse-stream", "bedrock", vendor_bedrock, "stream"),
)


class State:
    """What the process has received."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.broken_off = 0


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers: list[tuple[str, str]] = []
        self.body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        target, body = self.url.decode("latin-1"), b"".join(self.body)
        if target.startswith("/__"):
            if target == "/__reset":
                self.state.requests.clear()
            self.transport.write(answer(json.dumps({"requests": self.state.requests}).encode()))
            return
        method = self.parser.get_method().decode()
        entry: dict[str, Any] = {"target": target, "headers": self.headers, "body": body.decode("latin-1"), "refused": ""}
        self.state.requests.append(entry)
        for piece in respond(method, target, self.headers, body, entry):
            self.transport.write(piece)


def respond(method: str, target: str, headers: list[tuple[str, str]], body: bytes, entry: dict[str, Any]) -> list[bytes]:
    """Return the answer in the pieces in which it is written."""
    path, _, query = target.partition("?")
    for expression, owner, dialect, verb in PATHS:
        found = re.fullmatch(expression, path)
        if not found:
            continue
        entry["vendor"], entry["dialect"] = owner, dialect.__name__.partition("vendor_")[2]
        try:
            model = urllib.parse.unquote(found.groupdict().get("model") or "")
            return serve(method, target, query, headers, body, owner, dialect, verb, model, found.groupdict())
        except Refused as refused:
            entry["refused"] = f"{refused.path}: {refused.message}"
            extra = "Retry-After: 7\r\n" if refused.status == 429 else ""
            if dialect is vendor_bedrock:
                extra += f"x-amzn-ErrorType: {vendor_bedrock.error_type(refused)}:http://internal.amazon.com/coral/\r\n"
            return [answer(json.dumps(dialect.error(refused)).encode(), status=f"{refused.status} Refused", extra=extra)]
    entry["refused"] = "no such path"
    return [answer(b'{"error":{"message":"no such path"}}', status="404 Not Found")]


def serve(
    method: str,
    target: str,
    query: str,
    headers: list[tuple[str, str]],
    body: bytes,
    owner: str,
    dialect: ModuleType,
    verb: str,
    model: str,
    named: dict[str, str],
) -> list[bytes]:
    """Check who asks and how, and answer. Raises `Refused`."""
    if method != "POST":
        raise Refused("Only POST is allowed here.", status=405)
    verify_secret(owner, target, headers, body)
    values = {name.lower(): value for name, value in headers}
    if values.get("content-type", "").partition(";")[0] != "application/json":
        raise Refused("Content-Type must be application/json.", status=415)
    if owner == "anthropic" and values.get("anthropic-version") not in ("2023-06-01", "2026-10-21"):
        raise Refused("anthropic-version: header is required", status=400)
    asked_for = dict(urllib.parse.parse_qsl(query))
    if owner == "azure" and "deployment" in named and asked_for != {"api-version": API_VERSION}:
        raise Refused("Resource not found: api-version", status=404)
    if verb == "stream" and dialect is vendor_gemini and asked_for != {"alt": "sse"}:
        raise Refused("This fake streams server-sent events only (alt=sse).", path="alt")
    if query and owner in ("openai", "anthropic", "bedrock"):
        raise Refused("Unknown query.", path=query)
    try:
        value = json.loads(body)
    except ValueError:
        raise Refused("The body is not JSON.") from None
    if verb in ("count", "embed", "batch_embed"):
        return [answer(json.dumps(getattr(dialect, verb)(value)).encode())]
    name = model or named.get("deployment") or (value.get("model") if isinstance(value, dict) else "") or ""
    found = re.search(r"fault-([a-z0-9-]+?)(?:--.*)?$", name) if isinstance(name, str) else None
    fault = found[1] if found else ""
    if fault.startswith("status-"):
        raise Refused("Something is wrong at the vendor's.", status=int(fault.removeprefix("status-")))
    asked = read(dialect, value, verb, model, named)
    if "no-such" in asked.model:
        raise Refused(f"The model `{asked.model}` does not exist.", status=404)
    plan = answer_to(asked)
    head = "x-request-id: req-fake\r\n" if owner != "bedrock" else "x-amzn-RequestId: req-fake\r\n"
    return broken(fault, dialect, asked, plan, head) if fault else answered(dialect, asked, plan, head)


def read(dialect: ModuleType, value: Any, verb: str, model: str, named: dict[str, str]) -> Asked:
    """Read the request by its dialect; where the path says model or streaming, the body may not."""
    if dialect in (vendor_gemini, vendor_bedrock):
        return replace_types(dialect.read(value, model=model, stream=verb == "stream"))
    if dialect is vendor_anthropic and verb in ("whole", "stream"):
        return replace_types(dialect.read(value, model=model, stream=verb == "stream"))
    if "deployment" in named and isinstance(value, dict):
        value = {"model": named["deployment"], **value}
    return replace_types(dialect.read(value))


def replace_types(asked: Any) -> Asked:
    """Return what the dialect understood (a seam for the type checker)."""
    assert isinstance(asked, Asked)
    return asked


def verify_secret(owner: str, target: str, headers: list[tuple[str, str]], body: bytes) -> None:
    """Refuse a request that shows no, another, or more than one secret."""
    if owner == "bedrock":
        vendor_bedrock.verify_authorization("POST", target, headers, body)
        return
    shown = [(name.lower(), value) for name, value in headers if name.lower() in ALL_SCHEMES]
    if len(shown) != 1 or shown[0] not in [(header, prefix + SECRETS[owner]) for header, prefix in SCHEMES[owner].items()]:
        raise Refused(f"Incorrect API key provided, or in the wrong header: {[name for name, _ in shown]}.", status=401)


JSON_TYPE, SSE_TYPE, AWS_TYPE = "application/json", "text/event-stream; charset=utf-8", "application/vnd.amazon.eventstream"


def stream_head(dialect: ModuleType, head: str) -> bytes:
    """Return the head of a streamed answer."""
    kind = AWS_TYPE if dialect is vendor_bedrock else SSE_TYPE
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n{head}\r\n".encode()


def answered(dialect: ModuleType, asked: Asked, plan: Plan, head: str) -> list[bytes]:
    """Return a good answer."""
    if not asked.stream:
        return [answer(json.dumps(dialect.whole(asked, plan), ensure_ascii=False).encode(), extra=head)]
    return [stream_head(dialect, head), *map(chunk, dialect.events(asked, plan)), LAST_CHUNK]


def broken(fault: str, dialect: ModuleType, asked: Asked, plan: Plan, head: str) -> list[bytes]:
    """Return a bad one. Its HTTP framing is whole, so that only who reads the dialect can tell."""
    whole = json.dumps(dialect.whole(asked, plan), ensure_ascii=False).encode()
    stream = dialect.events(asked, plan) if asked.stream else []
    if fault == "in-pieces":  # a good one, in the smallest pieces
        everything = b"".join(stream)
        if not asked.stream:
            return [answer(whole, extra=head)]
        return [stream_head(dialect, head), *(chunk(everything[start : start + 3]) for start in range(0, len(everything), 3)), LAST_CHUNK]
    if fault == "html":
        return [answer(b"<html>Bad Gateway</html>", content_type="text/html")]
    if fault == "not-json":
        return [stream_head(dialect, head) + chunk(b"data: {not json}\n\n") + LAST_CHUNK if asked.stream else answer(b'{"id": nope}', extra=head)]
    if fault == "bad-arguments":
        if not asked.stream and dialect in (vendor_anthropic, vendor_gemini, vendor_bedrock):
            return [answer(re.sub(rb'"(input|args)": \{[^}]*\}', rb'"\1": "{\\"city\\": \\"Wi"', whole), extra=head)]
        bad = tuple(
            replace(one, items=tuple(replace(item, arguments='{"city": "Wi') if item.kind == "call" else item for item in one.items)) for one in plan.choices
        )
        if dialect is vendor_gemini:
            return [stream_head(dialect, head), *(chunk(re.sub(rb'"args": \{[^}]*\}', rb'"args": "{\\"city"', one)) for one in stream), LAST_CHUNK]
        return answered(dialect, asked, Plan(bad, plan.tokens), head)
    if fault == "other-dialect":
        other = vendor_anthropic if dialect in (vendor_openai_chat, vendor_openai_responses) else vendor_openai_chat
        if not asked.stream:
            return [answer(json.dumps(other.whole(asked, plan)).encode(), extra=head)]
        return [stream_head(dialect, head), *map(chunk, other.events(asked, plan)), LAST_CHUNK]
    if not asked.stream:
        cut = {"cut-utf8": whole.find("ü".encode()) + 1, "cut-number": re.search(rb": 1\d", whole)}.get(fault, len(whole) // 2)
        return [answer(whole[: cut if isinstance(cut, int) else cut.end() - 1 if cut else 10], extra=head)]
    everything = b"".join(stream)
    if fault == "error-event":
        return [stream_head(dialect, head), *map(chunk, stream[:4]), chunk(dialect.error_event("Overloaded, for a test.")), LAST_CHUNK]
    if fault == "cut-ending":  # every event whole, but the last ones never come
        keep = {vendor_openai_chat: -3, vendor_bedrock: -2}.get(dialect, -1)  # neither why it ended, nor the counts, nor `[DONE]`
        return [stream_head(dialect, head), *map(chunk, stream[:keep]), LAST_CHUNK]
    if fault == "cut-utf8":
        position = everything.find("ü".encode()) + 1
    elif fault == "cut-number":
        found = re.search(rb'_?[tT]okens?"?[a-zA-Z_]*"?: \d\d', everything) or re.search(rb": \d\d", everything)
        position = found.end() - 1 if found else 50
    else:
        position = sum(map(len, stream[:5])) - 9
    return [stream_head(dialect, head), chunk(everything[:position]), LAST_CHUNK]


async def main() -> None:
    """Listen on a free port of the loopback interface and say which on stdout."""
    state = State()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1], "pid": os.getpid()}), flush=True)
    async with server:
        await server.serve_forever()


class FakeVendors:
    """The process, for as long as the `with` block lasts."""

    def __enter__(self) -> FakeVendors:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        self._process = subprocess.Popen([sys.executable, "-m", "fakes.vendors"], stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        self.port = int(json.loads(self._process.stdout.readline())["port"])
        self.origin = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def requests(self) -> list[dict[str, Any]]:
        """Return what it received since the last `reset`: target, headers, body (bytes as latin-1), vendor, dialect, refused (why)."""
        received: list[dict[str, Any]] = self._control("record")["requests"]
        return received

    def last(self) -> Any:
        """Return the last request's body, decoded."""
        return json.loads(self.requests()[-1]["body"].encode("latin-1"))

    def reset(self) -> None:
        """Forget what was received."""
        self._control("reset")

    def _control(self, what: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.origin}/__{what}", timeout=10) as response:
            value: dict[str, Any] = json.load(response)
            return value


if __name__ == "__main__":
    asyncio.run(main())
