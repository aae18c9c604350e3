"""Pictures, speech and transcripts through a running gateway, with OpenAI's own SDK, to a provider that reads forms with the standard library."""

from __future__ import annotations

import email
import email.policy
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import openai
import pytest

from fakes.gateway import Gateway

SECRET = "sk-media-0123456789abcdef0123456789"
SOUND = bytes(range(256)) * 1200  # more than a frame
PICTURE = "aGVsbG8="


class Vendor(BaseHTTPRequestHandler):
    """The provider. `received` is what came, by path."""

    protocol_version = "HTTP/1.1"
    received: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {SECRET}":
            return self._say(401, "application/json", b'{"error":{"message":"no"}}')
        asked = self._form(body) if self.path.endswith(("/transcriptions", "/translations")) else json.loads(body)
        self.received.append({"path": self.path, "asked": asked, "accept": self.headers["Accept"]})
        if "fault-html" in str(asked["model"]):
            return self._say(200, "text/html", b"<html>")
        if "fault-status" in str(asked["model"]):
            return self._say(400, "application/json", b'{"error":{"message":"the vendor says no"}}')
        if self.path == "/v1/images/generations":
            usage = {"input_tokens": 7, "output_tokens": 1056, "total_tokens": 1063}
            return self._say(200, "application/json", json.dumps({"created": 1, "data": [{"b64_json": PICTURE}] * asked.get("n", 1), "usage": usage}).encode())
        if self.path == "/v1/audio/speech":
            return self._say(200, "audio/mpeg", SOUND)
        if asked.get("response_format") == "srt":
            return self._say(200, "text/plain; charset=utf-8", b"1\n00:00:00,000 --> 00:00:01,000\nhello\n")
        text = f"{asked['file'][0]} {hashlib.sha256(asked['file'][1]).hexdigest()}"
        return self._say(200, "application/json", json.dumps({"text": text, "usage": {"type": "tokens", "input_tokens": 3, "output_tokens": 4}}).encode())

    def _form(self, body: bytes) -> dict[str, Any]:
        message = email.message_from_bytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP)
        fields: dict[str, Any] = {}
        for part in message.iter_parts():
            name = part.get_param("name", header="content-disposition")
            filename = part.get_filename()
            value = part.get_payload(decode=True)
            assert isinstance(value, bytes) and name not in fields
            fields[str(name)] = (filename, value) if filename else value.decode()
        return fields

    def _say(self, status: int, media: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vendor)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    models = {name: {"provider": "media", "model": f"vendor-{name}"} for name in ("picture", "voice", "ears", "fault-html", "fault-status")}
    models |= {"chatter": {"provider": "echo", "model": "echo"}}
    settings = {"providers": {"media": {"kind": "openai", "base_url": base_url}, "echo": {"kind": "echo"}}, "models": models}
    with Gateway(settings, credentials={"media": SECRET}) as running:
        yield running
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    Vendor.received.clear()
    return openai.OpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key=gateway.key, max_retries=0)


def test_pictures_arrive_and_what_they_cost_is_in_the_log(client: openai.OpenAI, gateway: Gateway) -> None:
    pictures = client.images.generate(model="picture", prompt="a fox", n=2, size="1024x1024")
    assert pictures.data is not None and [picture.b64_json for picture in pictures.data] == [PICTURE, PICTURE]
    (received,) = Vendor.received
    assert received["asked"] == {"model": "vendor-picture", "prompt": "a fox", "n": 2, "size": "1024x1024"}
    until = time.monotonic() + 10
    while not any(line["event"] == "provider_outcome" and (line["input_tokens"], line["output_tokens"]) == (7, 1056) for line in gateway.audit_lines()):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_speech_arrives_byte_for_byte_as_what_it_is(client: openai.OpenAI) -> None:
    answer = client.audio.speech.with_raw_response.create(model="voice", input="Hello", voice="alloy")
    assert answer.headers["content-type"] == "audio/mpeg" and answer.headers["x-cliproxy-provider"] == "media"
    assert answer.content == SOUND
    assert Vendor.received[0]["asked"] == {"model": "vendor-voice", "input": "Hello", "voice": "alloy"}


def test_a_recording_arrives_unaltered_in_a_form_of_our_own(client: openai.OpenAI) -> None:
    answer = client.audio.transcriptions.create(model="ears", file=("talk.mp3", SOUND), language="en", timestamp_granularities=["word"])
    assert answer.text == f"talk.mp3 {hashlib.sha256(SOUND).hexdigest()}"
    asked = Vendor.received[0]["asked"]
    assert {name: value for name, value in asked.items() if name != "file"} == {"model": "vendor-ears", "language": "en", "timestamp_granularities[]": "word"}


def test_subtitles_are_text(client: openai.OpenAI) -> None:
    answer = client.audio.translations.with_raw_response.create(model="ears", file=("talk.mp3", b"ID3"), response_format="srt")
    assert answer.headers["content-type"].startswith("text/plain") and answer.text.startswith("1\n00:00")


def test_a_refusal_reads_as_one(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the vendor says no"):
        client.images.generate(model="fault-status", prompt="x")


@pytest.mark.parametrize("path", ["images", "speech", "transcriptions"])
def test_an_answer_of_another_type_never_arrives(client: openai.OpenAI, path: str) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        if path == "images":
            client.images.generate(model="fault-html", prompt="x")
        elif path == "speech":
            client.audio.speech.create(model="fault-html", input="x", voice="alloy")
        else:
            client.audio.transcriptions.create(model="fault-html", file=("a.mp3", b"x"))
    assert raised.value.status_code == 502 and "<html>" not in str(raised.value)


def test_a_provider_without_the_endpoint_is_named_as_such(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.generate(model="chatter", prompt="x")
    assert raised.value.code == "endpoint_not_supported"
    with pytest.raises(openai.NotFoundError):
        client.audio.speech.create(model="nobody", input="x", voice="alloy")
    assert Vendor.received == []


def test_what_is_no_form_names_the_cure(client: openai.OpenAI, gateway: Gateway) -> None:
    status, _, body = gateway.post("/v1/audio/transcriptions", {"model": "ears"})
    assert status == 400 and "multipart/form-data" in json.loads(body)["error"]["message"]
    assert Vendor.received == []
