"""A provider that gives our credential back: it reaches no client, whatever it is wrapped in and wherever it is cut.

Sources: LiteLLM #31620 and #30670 (keys in error messages and logs), httpbin-like origins that echo their headers.
"""

from __future__ import annotations

import base64
import traceback
from collections.abc import Iterator

import pytest

from cliproxy.errors import UpstreamError
from fakes.provider import FakeProvider
from fakes.rig import SECRET, Recorder, Rig, raw_server, request, run

BARE = SECRET.removeprefix(b"sk-proj-")


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


def everything(recorder: Recorder) -> bytes:
    """Return all that a client, a log or an audit record could get of a call."""
    error = recorder.error
    told = "" if error is None else "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    return recorder.body + b"".join(name + value for name, value in recorder.headers.items()) + told.encode() + repr(recorder.headers).encode()


@pytest.mark.parametrize("fault", ["reflect-body", "reflect-header", "reflect-base64"])
def test_a_reflected_credential_is_replaced(provider: FakeProvider, fault: str) -> None:
    async def work() -> None:
        recorder = await Rig(provider.base_url).call(f"fault-{fault}")
        assert recorder.completed and b"redacted" in everything(recorder)
        assert BARE not in everything(recorder)
        for shift in range(3):
            assert base64.b64encode(b"x" * shift + SECRET)[4:-4] not in recorder.body

    run(work)


def test_a_credential_in_a_stream_is_replaced_and_the_stream_goes_on(provider: FakeProvider) -> None:
    async def work() -> None:
        recorder = await Rig(provider.base_url).call("fault-reflect-stream", stream=True)
        assert recorder.completed and BARE not in recorder.body and b"Bearer [redacted]" in recorder.body and recorder.body.endswith(b"data: [DONE]\n\n")

    run(work)


def test_a_credential_cut_at_any_byte_between_two_chunks_is_replaced(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        recorders = [rig.send(request(f"fault-reflect-cut-{cut}"))[0] for cut in range(len(SECRET) + 1)]
        for recorder in recorders:
            await recorder.ended.wait()
            assert recorder.completed and b"you sent [redacted] there" in recorder.body and BARE not in recorder.body

    run(work)


def test_a_credential_sent_one_byte_at_a_time_is_replaced() -> None:
    body = b'{"a":"' + SECRET + b'"}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def work() -> None:
        with raw_server(head, *(bytes([byte]) for byte in body)) as (base_url, _):
            recorder = await Rig(base_url).call()
            assert recorder.completed and recorder.body == b'{"a":"[redacted]"}'
            assert all(BARE[:8] not in piece for piece in recorder.pieces)

    run(work)


def test_an_answer_that_breaks_off_within_the_credential_shows_none_of_it() -> None:
    async def work() -> None:
        for length in (10, 20, len(SECRET) - 1):
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
            with raw_server(head + b'{"a":"' + SECRET[:length]) as (base_url, _):
                recorder = await Rig(base_url).call()
                assert isinstance(recorder.error, UpstreamError) and recorder.body == b'{"a":"'

    run(work)


@pytest.mark.parametrize("status", [300, 302, 400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504, 529])
def test_an_error_that_quotes_the_credential_does_not_pass_it_on(provider: FakeProvider, status: int) -> None:
    async def work() -> None:
        for stream in (False, True):
            recorder = await Rig(provider.base_url).call(f"fault-status-{status}", stream=stream)
            assert isinstance(recorder.error, UpstreamError) and not recorder.status
            assert BARE not in everything(recorder) and "\x1b" not in str(recorder.error) and "\x00" not in str(recorder.error)

    run(work)


@pytest.mark.parametrize("wrap", ["X-Request-Id: {}", "Retry-After: {}", "OpenAI-Model: {}", "X-Request-ID: {}; {}", "Content-Type: application/json; key={}"])
def test_no_header_brings_it_back(wrap: str) -> None:
    line = wrap.replace("{}", SECRET.decode()).encode()
    content_type = b"" if line.startswith(b"Content-Type") else b"Content-Type: application/json\r\n"

    async def work() -> None:
        with raw_server(b"HTTP/1.1 200 OK\r\n" + content_type + line + b"\r\nContent-Length: 2\r\n\r\n{}") as (base_url, _):
            recorder = await Rig(base_url).call()
            assert recorder.completed and BARE not in everything(recorder)

    run(work)


def test_a_reason_phrase_or_a_broken_answer_does_not_bring_it_back() -> None:
    answers = (
        b"HTTP/1.1 200 " + SECRET + b"\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + SECRET + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + SECRET + b" : x\r\n\r\n",
        SECRET,
    )

    async def work() -> None:
        for answer in answers:
            with raw_server(answer) as (base_url, _):
                recorder = await Rig(base_url).call()
                assert isinstance(recorder.error, UpstreamError) and BARE not in everything(recorder)

    run(work)
