"""A load generator that counts whole answers, closed-loop or paced: load.py URL CONNECTIONS SECONDS [--rate PER_SECOND] [--stream] [--key K] [--header 'N: V']... [--dialect chat|messages] [--model M]

Prints one JSON line: requests, rps, errors (status != 200, broken, or a stream without its end), p50/p99 ms, SSE events seen.
"""

import argparse
import asyncio
import ctypes
import json
import os
import time
from urllib.parse import urlsplit

import httptools
import uvloop

p = argparse.ArgumentParser()
p.add_argument("url")
p.add_argument("connections", type=int)
p.add_argument("seconds", type=float)
p.add_argument("--rate", type=float, default=0)
p.add_argument("--stream", action="store_true")
p.add_argument("--key", default="sk-test-0123456789abcdef0123456789abcdef")
p.add_argument("--header", action="append", default=[])
p.add_argument("--dialect", default="chat")
p.add_argument("--model", default="gpt-4o-mini")
a = p.parse_args()
u = urlsplit(a.url)
body = {
    "model": a.model,
    "messages": [{"role": "user", "content": "Hello, please tell me something about gateways and how they work, in some two or three sentences."}],
    "max_tokens": 256,
    "temperature": 0.7,
}
if a.dialect == "chat":
    body["messages"].insert(0, {"role": "system", "content": "You are a helpful assistant."})
else:
    body["system"] = "You are a helpful assistant."
if a.stream:
    body["stream"] = True
payload = json.dumps(body).encode()
head = f"POST {u.path} HTTP/1.1\r\nHost: {u.netloc}\r\nContent-Type: application/json\r\nAuthorization: Bearer {a.key}\r\n"
if a.dialect == "messages":
    head += f"x-api-key: {a.key}\r\nanthropic-version: 2023-06-01\r\n"
for h in a.header:
    head += h + "\r\n"
request = (head + f"Content-Length: {len(payload)}\r\n\r\n").encode() + payload
END = b"[DONE]" if a.dialect == "chat" else b"message_stop"  # a stream without it is broken, whatever its status
times: list[float] = []
errors, events = 0, 0
idle: list["Client"] = []  # paced: connections that wait for their turn; late counts turns that found none
late = 0
stop_at = 0.0


class Client(asyncio.Protocol):
    def __init__(self):
        self.parser = httptools.HttpResponseParser(self)
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, t):
        self.t = t
        if a.rate:
            idle.append(self)
        else:
            self.send()

    def send(self):
        self.tail = b""
        self.began = time.perf_counter()
        self.t.write(request)

    def data_received(self, d):
        self.parser.feed_data(d)

    def on_body(self, b):
        global events
        if a.stream:
            events += b.count(b"\n\n")
            self.tail = b[-64:] if len(b) >= 64 else self.tail[-64:] + b

    def on_message_complete(self):
        global errors
        now = time.perf_counter()
        if self.parser.get_status_code() == 200 and (not a.stream or END in self.tail):
            times.append(now - self.began)
        else:
            errors += 1
        if now < stop_at and a.rate:
            idle.append(self)
        elif now < stop_at:
            asyncio.get_running_loop().call_soon(self.send)
        else:
            self.t.close()

    def connection_lost(self, e):
        global errors
        if time.perf_counter() < stop_at:
            errors += 1
        if not self.done.done():
            self.done.set_result(None)


async def pace():
    """Send at a.rate from a timerfd, so that the generator neither spins nor bunches."""
    global late
    ticks = asyncio.Event()
    loop = asyncio.get_running_loop()
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.timerfd_create(1, 0o4000)
    nanos = int(1e9 / a.rate)
    libc.timerfd_settime(fd, 0, ctypes.byref((ctypes.c_long * 4)(0, nanos, 0, nanos)), None)
    due = 0

    def tick():
        nonlocal due
        due += int.from_bytes(os.read(fd, 8), "little")
        ticks.set()

    loop.add_reader(fd, tick)
    while time.perf_counter() < stop_at:
        await ticks.wait()
        ticks.clear()
        while due:
            due -= 1
            if idle:
                idle.pop().send()
            else:
                late += 1
    loop.remove_reader(fd)


async def main():
    global stop_at
    loop = asyncio.get_running_loop()
    stop_at = time.perf_counter() + a.seconds
    began = time.perf_counter()
    clients = [(await loop.create_connection(Client, u.hostname, u.port))[1] for _ in range(a.connections)]
    if a.rate:
        await pace()
        for c in idle:
            c.t.close()
    await asyncio.wait([c.done for c in clients], timeout=a.seconds + 20)
    took = time.perf_counter() - began
    s = sorted(times) or [0]
    print(
        json.dumps(
            {
                "requests": len(times),
                "rps": round(len(times) / took, 1),
                "errors": errors,
                "events_per_s": round(events / took),
                "p50_ms": round(s[len(s) // 2] * 1e3, 2),
                "p99_ms": round(s[int(len(s) * 0.99)] * 1e3, 2),
                "late": late,
            }
        )
    )


uvloop.run(main())
