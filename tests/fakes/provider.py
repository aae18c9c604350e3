"""A provider of ours for tests: OpenAI chat (whole, streamed) and embeddings in its own process, with faults on demand.

Which fault is asked for by the model's name: `fault-stall`, `fault-status-429`, `fault-reflect-cut-13` and so on (`FAULTS`, `FAULT_FAMILIES`). Any other
model gets an ordinary answer. What was received can be read back at `/__record`, so that tests see what really left the gateway.

    with FakeProvider() as provider: provider.base_url, provider.record()
    python tests/fakes/provider.py [--cert FILE --key FILE]      prints one JSON line with port and pid
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import httptools

TEXT = "Hello from the fake provider."
EVENTS = 10


def chat_body(model: str, text: str = TEXT) -> bytes:
    """Return an ordinary chat answer."""
    return json.dumps(
        {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 1730000000,
            "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 19, "completion_tokens": 24, "total_tokens": 43},
        }
    ).encode()


def chat_events(model: str, texts: list[str]) -> list[bytes]:
    """Return a streamed chat answer, event by event, with usage and `[DONE]`."""

    def event(delta: dict[str, str], finish: str | None = None, usage: dict[str, int] | None = None) -> bytes:
        chunk: dict[str, Any] = {
            "id": "chatcmpl-fake",
            "object": "chat.completion.chunk",
            "created": 1730000000,
            "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        if usage is not None:
            chunk["usage"] = usage
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    usage = {"prompt_tokens": 19, "completion_tokens": len(texts), "total_tokens": 19 + len(texts)}
    return [event({"role": "assistant", "content": ""}), *(event({"content": text}) for text in texts), event({}, "stop", usage), b"data: [DONE]\n\n"]


def embeddings_body(model: str, inputs: int) -> bytes:
    """Return an ordinary embeddings answer of three dimensions."""
    data = [{"object": "embedding", "index": index, "embedding": [0.25, -0.5, 1.0]} for index in range(inputs)]
    return json.dumps({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 8, "total_tokens": 8}}).encode()


def wide_embeddings_body(model: str, inputs: int, width: int) -> bytes:
    """Return an embeddings answer of `width` dimensions, the same bytes each time."""
    vector = [number / 65536 for number in range(width)]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(inputs)]
    return json.dumps({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 8, "total_tokens": 8}}).encode()


def long_stream(kib: int) -> list[bytes]:
    """Return the events of a stream of about `kib` KiB, no two of them the same, the same bytes each time."""
    return chat_events("fault", [f" {number:08d} {'x' * 840}" for number in range(kib)])


def answer(body: bytes, *, status: str = "200 OK", content_type: str = "application/json", extra: str = "") -> bytes:
    """Return a whole answer with its length."""
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode("latin-1") + body


def chunk(data: bytes) -> bytes:
    """Return `data` as one HTTP chunk."""
    return b"%x\r\n" % len(data) + data + b"\r\n"


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\nX-Request-Id: req-fake\r\n\r\n"
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LAST_CHUNK = b"0\r\n\r\n"

# Answers that are the same bytes whatever was asked, then the connection stays open.
RAW: dict[str, bytes] = {
    "malformed-json": answer(b'{"id":"chatcmpl-fake","choices":[{"index":0,'),
    "wrong-type": answer(b"<html>hello</html>", content_type="text/html"),
    "no-type": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "gzip": answer(b"\x1f\x8b\x08\x00", extra="Content-Encoding: gzip\r\n"),
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/meta-data/\r\nContent-Length: 0\r\n\r\n",
    "redirect-307": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://attacker.example/v1/chat/completions\r\nContent-Length: 0\r\n\r\n",
    "huge-head": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + b"X-Pad: " + b"a" * 300_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    "endless-head": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + b"X-Pad: aaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 20_000,
    "many-headers": JSON_HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(200)) + b"Content-Length: 2\r\n\r\n{}",
    "both-lengths": JSON_HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "both-lengths-reversed": JSON_HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two-lengths": JSON_HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "length-list": JSON_HEAD + b"Content-Length: 2, 2\r\n\r\n{}",
    "signed-length": JSON_HEAD + b"Content-Length: +2\r\n\r\n{}",
    "negative-length": JSON_HEAD + b"Content-Length: -2\r\n\r\n{}",
    "two-codings": JSON_HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "identity-then-chunked": JSON_HEAD + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "unknown-coding": JSON_HEAD + b"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "misspelt-coding": JSON_HEAD + b"Transfer_Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
    "space-before-colon": JSON_HEAD + b"Content-Length : 2\r\n\r\n{}",
    "folded-header": JSON_HEAD + b"X-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "control-in-header": JSON_HEAD + b"X-Control: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Type: application/json\nContent-Length: 2\n\n{}",
    "bad-chunk-size": JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "chunked-in-1.0": b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "http-2.0": b"HTTP/2.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    "switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "switch-silently": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "upgrade-header": JSON_HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
    "interim-flood": b"HTTP/1.1 102 Processing\r\n\r\n" * 50,
    "status-999": answer(b"{}", status="999 Odd"),
    "status-099": answer(b"{}", status="099 Odd"),
    "not-http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "two-answers": answer(b"{}") + answer(b'{"smuggled":true}'),
    "trailer-length": JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nContent-Length: 7\r\n\r\n",
    "trailer-flood": JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(100)) + b"\r\n",
}
FAULTS = (
    *RAW,
    *("stall", "stall-mid", "reset", "reset-mid", "cut-length", "cut-chunked", "endless", "slow", "unsolicited", "unsolicited-idle", "interim", "close"),
    *("until-close", "http-1.0", "trailer", "big", "reflect-body", "reflect-header", "reflect-stream", "reflect-base64", "early", "large-error"),
    *("usage-event", "ends-early", "unknown-fields", "pause"),
)
# `fault-status-NNN`: that status, with the secret and control characters in its message; `fault-reflect-cut-N`: the secret in the body, written in two
# pieces that are cut after its first N bytes; `fault-trickle-MS`: events that many milliseconds apart; `fault-long-N`: a stream of N KiB, as fast as it is
# taken; `fault-wide-N`: embeddings of N dimensions; `fault-moved-NNN-PORT`: a redirect with that status to another server of this machine
FAULT_FAMILIES = ("status", "reflect-cut", "trickle", "long", "wide", "moved")


class Server:
    """What the process has received, and how it answers."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.broken_off = 0  # connections that the client closed before its answer was complete

    def record(self) -> bytes:
        return json.dumps({"requests": self.requests, "connections": self.connections, "broken_off": self.broken_off}).encode()


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.headers: list[tuple[str, str]] = []
        self.body: list[bytes] = []
        self.number = 0
        self.answering = False
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.raw = b""

    def data_received(self, data: bytes) -> None:
        if not self.number and not data.startswith((b"GET /__", b"POST /__")):
            self.server.connections += 1
            self.number = self.server.connections
        if len(self.raw) < 65536:
            self.raw += data
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answering and not self.transport_closed_by_us:
            self.server.broken_off += 1
        if self.task is not None:
            self.task.cancel()

    transport_closed_by_us = False

    def on_message_begin(self) -> None:
        self.url, self.headers, self.body = b"", [], []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        pass

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        if self.url.startswith(b"/__"):
            if self.url == b"/__reset":
                self.server.reset()
            self.transport.write(answer(self.server.record()))
            return
        body = b"".join(self.body)
        line, self.raw = self.raw.partition(b"\r\n")[0].decode("latin-1"), b""
        self.server.requests.append({"connection": self.number, "line": line, "headers": self.headers, "body": body.decode("latin-1")})
        self.answering = True
        self.task = asyncio.get_running_loop().create_task(self.respond(json.loads(body or b"{}")))

    async def respond(self, request: dict[str, Any]) -> None:
        model = str(request.get("model", ""))
        if model.startswith("fault-"):
            await self.misbehave(model.removeprefix("fault-"), stream=bool(request.get("stream")), inputs=request.get("input"))
        elif self.url.endswith(b"/embeddings"):
            inputs = request.get("input", "")
            self.transport.write(answer(embeddings_body(model, len(inputs) if isinstance(inputs, list) else 1)))
        elif not self.url.endswith(b"/chat/completions"):
            self.transport.write(answer(b'{"error":{"message":"no such path"}}', status="404 Not Found"))
        elif request.get("stream"):
            events = chat_events(model, [f" token{number}" for number in range(EVENTS)])
            self.transport.write(STREAM_HEAD + b"".join(map(chunk, events)) + LAST_CHUNK)
        else:
            self.transport.write(answer(chat_body(model), extra="X-Request-Id: req-fake\r\nSet-Cookie: session=1\r\nServer: fake\r\n"))
        self.answering = False

    async def misbehave(self, fault: str, *, stream: bool, inputs: Any = None) -> None:
        write = self.transport.write
        authorization = dict(self.headers).get("Authorization", "none")
        secret = authorization.removeprefix("Bearer ")
        events = chat_events("fault", [f" token{number}" for number in range(EVENTS)])
        if fault in RAW:
            write(RAW[fault])
        elif fault == "stall":
            await asyncio.sleep(3600)
        elif fault == "stall-mid":
            write(STREAM_HEAD + chunk(events[0]) + chunk(events[1]) if stream else answer(b" " * 100)[:-50])
            await asyncio.sleep(3600)
        elif fault in ("reset", "reset-mid"):
            if fault == "reset-mid":
                write(STREAM_HEAD + chunk(events[0]) + chunk(events[1]))
                await asyncio.sleep(0.05)
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.leave()
        elif fault in ("cut-length", "cut-chunked"):
            write(answer(chat_body("fault"))[:-10] if fault == "cut-length" else STREAM_HEAD + chunk(events[0]))
            await asyncio.sleep(0.05)
            self.leave()
        elif fault == "endless":
            write(STREAM_HEAD)
            piece = chunk(events[1] * 200)
            while not self.transport.is_closing():
                full = self.transport.get_write_buffer_size() >= 1 << 20
                if not full:
                    write(piece)
                await asyncio.sleep(0.002 if full else 0)
            await asyncio.sleep(3600)  # until `connection_lost`, which counts it
        elif fault == "slow":
            whole = STREAM_HEAD + b"".join(map(chunk, events)) + LAST_CHUNK if stream else answer(chat_body("fault"))
            for position in range(0, len(whole), 16):
                write(whole[position : position + 16])
                await asyncio.sleep(0.005)
        elif fault in ("unsolicited", "unsolicited-idle"):
            write(answer(chat_body("fault")))
            await asyncio.sleep(0.05)
            write(answer(b'{"smuggled":true}'))
        elif fault == "interim":
            write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n" + answer(chat_body("fault")))
        elif fault == "close":
            write(answer(chat_body("fault"), extra="Connection: close\r\n"))
            self.leave()
        elif fault in ("until-close", "http-1.0"):
            version = b"HTTP/1.0" if fault == "http-1.0" else b"HTTP/1.1"
            write(version + b" 200 OK\r\nContent-Type: application/json\r\n\r\n" + chat_body("fault"))
            self.leave()
        elif fault == "trailer":
            write(STREAM_HEAD + b"".join(map(chunk, events)) + b"0\r\nX-Checksum: 1\r\n\r\n")
        elif fault == "big":
            write(answer(b'"' + b"a" * (3 << 20) + b'"'))
        elif fault == "early":
            # An answer before the request was read to its end looks like this to a client that writes slowly; here it is a close at once.
            write(answer(b'{"error":{"message":"too large"}}', status="413 Content Too Large", extra="Connection: close\r\n"))
            self.leave()
        elif fault == "large-error":
            write(answer(b'{"error":{"message":"' + b"e" * (1 << 20) + b'"}}', status="400 Bad Request"))
        elif fault == "reflect-body":
            write(answer(chat_body("fault", f"you sent {authorization}")))
        elif fault == "reflect-base64":
            write(answer(chat_body("fault", base64.b64encode(b"x: " + authorization.encode()).decode())))
        elif fault == "reflect-header":
            write(answer(chat_body("fault"), extra=f"X-Request-Id: {authorization}\r\nX-Echo: {authorization}\r\n"))
        elif fault == "reflect-stream":
            reflecting = chat_events("fault", ["you sent ", authorization, "!"])
            write(STREAM_HEAD + b"".join(map(chunk, reflecting)) + LAST_CHUNK)
        elif fault.startswith("reflect-cut-"):
            whole = chat_body("fault", f"you sent {secret} there")
            cut = whole.index(secret.encode()) + int(fault.removeprefix("reflect-cut-"))
            write(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(whole[:cut]))
            await asyncio.sleep(0.02)
            write(chunk(whole[cut:]) + LAST_CHUNK)
        elif fault.startswith("status-"):
            status = int(fault.removeprefix("status-"))
            message = f"Not with this key: {secret}.\x1b[31m\u0000 <script>alert(1)</script> {'pad ' * 200}"
            error = {"error": {"message": message, "type": "invalid_request_error", "code": secret}}
            write(answer(json.dumps(error).encode(), status=f"{status} Whatever", extra="Retry-After: 7\r\n" if status in (429, 503) else ""))
        elif fault == "usage-event":
            usage_event = b'data: {"id":"chatcmpl-fake","object":"chat.completion.chunk","created":1730000000,"model":"fault","choices":[],'
            usage_event += b'"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29}}\n\n'
            plain = chat_events("fault", [f" token{number}" for number in range(EVENTS)])[: EVENTS + 1]
            write(STREAM_HEAD + b"".join(map(chunk, [*plain, usage_event, events[-1]])) + LAST_CHUNK)
        elif fault == "unknown-fields":
            write(answer(chat_body("fault")[:-1] + b', "brand_new": {"deep": [1, 2.5, "\\u00fc"]}}'))
        elif fault == "pause":  # in the middle of an event
            whole = b"".join(events)
            write(STREAM_HEAD + chunk(whole[:600]))
            await asyncio.sleep(2.2)
            write(chunk(whole[600:]) + LAST_CHUNK)
        elif fault == "ends-early":
            write(STREAM_HEAD + chunk(events[0]) + chunk(events[1]) + LAST_CHUNK)
        elif fault.startswith("long-"):
            write(STREAM_HEAD)
            for event in long_stream(int(fault.removeprefix("long-"))):
                while self.transport.get_write_buffer_size() > 1 << 16:
                    await asyncio.sleep(0.001)
                write(chunk(event))
            write(LAST_CHUNK)
        elif fault.startswith("wide-"):
            write(answer(wide_embeddings_body("fault", len(inputs) if isinstance(inputs, list) else 1, int(fault.removeprefix("wide-")))))
        elif fault.startswith("moved-"):
            _, code, port = fault.split("-")
            write(answer(b"", status=f"{code} Moved", extra=f"Location: http://127.0.0.1:{port}/v1/chat/completions\r\n"))
        elif fault.startswith("trickle-"):
            pause = int(fault.removeprefix("trickle-")) / 1000
            write(STREAM_HEAD)
            for event in events:
                write(chunk(event))
                await asyncio.sleep(pause)
            write(LAST_CHUNK)
        else:
            write(answer(b'{"error":{"message":"no such fault"}}', status="500 Internal Server Error"))

    def leave(self) -> None:
        self.transport_closed_by_us = True
        self.transport.close()


async def serve(*, cert: str | None, key: str | None) -> None:
    """Listen on a free port of the loopback interface and say which on stdout."""
    context = None
    if cert is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
    state = Server()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", 0, ssl=context, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1], "pid": os.getpid()}), flush=True)
    async with server:
        await server.serve_forever()


class FakeProvider:
    """The process, for as long as the `with` block lasts. `host` is what the certificate is for when `cert` is given."""

    def __init__(self, *, cert: Path | None = None, key: Path | None = None, ca: Path | None = None) -> None:
        self._arguments = [] if cert is None else ["--cert", str(cert), "--key", str(key)]
        self._scheme = "http" if cert is None else "https"
        self._context = ssl.create_default_context(cafile=ca) if ca is not None else None

    def __enter__(self) -> FakeProvider:
        self._process = subprocess.Popen([sys.executable, __file__, *self._arguments], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(json.loads(self._process.stdout.readline())["port"])
        self.origin = f"{self._scheme}://127.0.0.1:{self.port}"
        self.base_url = f"{self.origin}/v1"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def record(self) -> dict[str, Any]:
        """Return what it received since the last `reset`: `requests` (connection, line, headers, body), `connections`, `broken_off`."""
        return self._control("record")

    def reset(self) -> None:
        """Forget what was received. Connections keep being open."""
        self._control("reset")

    def kill(self) -> None:
        """End the process at once, in the middle of whatever it does."""
        self._process.kill()
        self._process.wait(10)

    def _control(self, what: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.origin}/__{what}", timeout=10, context=self._context) as response:
            value: dict[str, Any] = json.load(response)
            return value


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cert")
    parser.add_argument("--key")
    options = parser.parse_args()
    asyncio.run(serve(cert=options.cert, key=options.key))
