"""A fast stand-in for a provider: answers OpenAI chat, Anthropic messages and Gemini calls, whole or streamed.

Usage: upstream.py PORT [CHUNKS [INTERVAL_MS]]. Raw asyncio protocol on httptools, so that it never is the bottleneck.
A request whose body has "stream":true (or whose path has :streamGenerateContent) gets CHUNKS events: at once, or one every
INTERVAL_MS milliseconds, as real providers do.
"""

import asyncio
import sys

import httptools
import uvloop

PORT = int(sys.argv[1])
CHUNKS = int(sys.argv[2]) if len(sys.argv) > 2 else 100
INTERVAL = float(sys.argv[3]) / 1000 if len(sys.argv) > 3 else 0.0
TEXT = "Hello! How can I assist you today? This is a mock answer of ordinary length for a benchmark of a gateway."

CHAT = (
    b'{"id":"chatcmpl-9x","object":"chat.completion","created":1730000000,"model":"gpt-4o-mini","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"' + TEXT.encode() + b'","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":19,"completion_tokens":24,"total_tokens":43},"system_fingerprint":"fp_44709d6fcb"}'
)
MESSAGES = (
    b'{"id":"msg_01","type":"message","role":"assistant","model":"claude-sonnet-4-5","content":[{"type":"text","text":"'
    + TEXT.encode()
    + b'"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":19,"output_tokens":24}}'
)
GEMINI = (
    b'{"candidates":[{"content":{"role":"model","parts":[{"text":"' + TEXT.encode() + b'"}]},"finishReason":"STOP","index":0}],'
    b'"usageMetadata":{"promptTokenCount":19,"candidatesTokenCount":24,"totalTokenCount":43},"modelVersion":"gemini-2.5-flash"}'
)


def sse_chat() -> list[bytes]:
    head = b'data: {"id":"chatcmpl-9x","object":"chat.completion.chunk","created":1730000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":'
    parts = [head + b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n']
    parts += [head + b'{"content":" token%d"},"logprobs":null,"finish_reason":null}]}\n\n' % i for i in range(CHUNKS)]
    parts.append(head + b'{},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":19,"completion_tokens":24,"total_tokens":43}}\n\n')
    parts.append(b"data: [DONE]\n\n")
    return parts


def sse_messages() -> list[bytes]:
    parts = [
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_01","type":"message","role":"assistant","model":"claude-sonnet-4-5","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":19,"output_tokens":1}}}\n\n',
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n',
    ]
    parts += [
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" token%d"}}\n\n' % i
        for i in range(CHUNKS)
    ]
    parts += [
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":24}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ]
    return parts


def chunked(parts) -> bytes:
    return b"".join(b"%x\r\n" % len(p) + p + b"\r\n" for p in parts) + b"0\r\n\r\n"


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {"chat": whole(CHAT), "messages": whole(MESSAGES), "gemini": whole(GEMINI)}
PARTS = {"chat": sse_chat(), "messages": sse_messages(), "gemini": sse_chat()}
STREAMS = {"chat": STREAM_HEAD + chunked(sse_chat()), "messages": STREAM_HEAD + chunked(sse_messages()), "gemini": STREAM_HEAD + chunked(sse_chat())}


class Upstream(asyncio.Protocol):
    def __init__(self):
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_message_begin(self):
        self.url = b""
        self.body = []

    def on_url(self, url):
        self.url += url

    def on_body(self, body):
        self.body.append(body)

    def on_message_complete(self):
        kind = "messages" if b"/messages" in self.url else "gemini" if b":generate" in self.url or b":stream" in self.url else "chat"
        body = b"".join(self.body)
        streams = b'"stream":true' in body or b'"stream": true' in body or b":streamGenerateContent" in self.url
        if streams and INTERVAL:
            self.transport.write(STREAM_HEAD)
            self.trickle(iter(PARTS[kind]))
        else:
            self.transport.write((STREAMS if streams else ANSWERS)[kind])

    def trickle(self, parts):
        part = next(parts, None)
        if self.transport.is_closing():
            return
        if part is None:
            self.transport.write(b"0\r\n\r\n")
            return
        self.transport.write(b"%x\r\n" % len(part) + part + b"\r\n")
        asyncio.get_running_loop().call_later(INTERVAL, self.trickle, parts)


async def main():
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", PORT, backlog=4096)
    await server.serve_forever()


uvloop.run(main())
