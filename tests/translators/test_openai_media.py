"""Media requests: what passes, what leaves, what is refused; forms from hostile bytes; what egress reads again."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_FORM_PARTS
from cliproxy.errors import ClientError, SchemaError, UpstreamError
from cliproxy.formats.form import BOUNDARY, Part, encode_form, parse_form
from cliproxy.metering.openai_media import reread, reread_form, usage_of_images, usage_of_transcript
from cliproxy.metering.usage import Usage
from cliproxy.translators.openai_media.decode import MAX_FORM_VALUE_BYTES, decode_image_request, decode_speech_request, decode_transcription_request
from cliproxy.translators.openai_media.request import MediaRequest

TYPE = b"multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg\r\n\r\nID3\r\n--c\r\n'
MODEL = b'\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1'
END = b"\r\n--b--\r\n"


def spliced(request: MediaRequest, model: bytes) -> bytes:
    return request.encoded.prefix + model + request.encoded.suffix


def transcription(body: bytes, content_type: bytes = TYPE, *, translate: bool = False) -> MediaRequest:
    return decode_transcription_request(body, content_type=content_type, translate=translate)


def with_field(name: str, value: bytes = b"x", *, filename: str | None = None) -> bytes:
    more = f'; filename="{filename}"' if filename is not None else ""
    return FILE + MODEL + b'\r\n--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s' % (name.encode(), more.encode(), value) + END


# --- pictures and speech -----------------------------------------------------------------------------------------------


def test_a_request_for_pictures_keeps_unknown_fields_and_gets_another_model() -> None:
    request = decode_image_request(b'{"model":"mine","prompt":"a fox","n":2,"model":"mine2","new_knob":{"a":[1]}}')
    assert (request.model, request.n) == ("mine2", 2)
    assert request.estimate >= 2 * 1056
    final = spliced(request, b'"gpt-image-1"')
    assert json.loads(final) == {"model": "gpt-image-1", "prompt": "a fox", "n": 2, "new_knob": {"a": [1]}}
    assert (reread(final).model, reread(final).n, reread(final).stream) == ("gpt-image-1", 2, False)


def test_a_request_for_speech_is_passed_on() -> None:
    request = decode_speech_request(b'{"model":"mine","input":"Hi","voice":"alloy","stream_format":"audio"}')
    assert json.loads(spliced(request, b'"tts-1"')) == {"model": "tts-1", "input": "Hi", "voice": "alloy", "stream_format": "audio"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"n": 11}, "n"),
        ({"n": "2"}, "n"),
        ({"model": 1}, "model"),
        ({"stream": True}, "stream"),
        ({"partial_images": 2}, "partial_images"),
        ({"response_format": "tiff"}, "response_format"),
        ({"api_base": "http://evil"}, "api_base"),
        ({"Model": "other"}, "model"),
    ],
)
def test_a_wrong_request_for_pictures_names_the_field(change: dict[str, Any], param: str) -> None:
    with pytest.raises(SchemaError) as raised:
        decode_image_request(json.dumps({"model": "m", "prompt": "a fox"} | change).encode())
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("change", "param"),
    [({"input": None}, "input"), ({"voice": 3}, "voice"), ({"speed": 9}, "speed"), ({"stream_format": "sse"}, "stream_format"), ({"api_key": "x"}, "api_key")],
)
def test_a_wrong_request_for_speech_names_the_field(change: dict[str, Any], param: str) -> None:
    with pytest.raises(SchemaError) as raised:
        decode_speech_request(json.dumps({"model": "m", "input": "hi", "voice": "alloy"} | change).encode())
    assert raised.value.param == param


# --- forms -------------------------------------------------------------------------------------------------------------


def test_a_transcription_leaves_in_our_own_form_with_the_model_first() -> None:
    request = transcription(with_field("language", b"de"))
    final = spliced(request, b"whisper-large")
    assert request.model == "whisper-1"
    assert reread_form(final).model == "whisper-large"
    parts = parse_form(final, b"multipart/form-data; boundary=" + BOUNDARY)
    assert [(part.name, part.filename, part.media_type, part.value) for part in parts] == [
        ("model", None, "", b"whisper-large"),
        ("file", "a.mp3", "audio/mpeg", b"ID3\r\n--c\r\n"),
        ("language", None, "", b"de"),
    ]


def test_what_the_http_library_of_the_sdks_sends_is_read() -> None:
    sent = httpx.Request(
        "POST", "http://x/", data={"model": "m", "timestamp_granularities[]": ["word", "segment"], "temperature": "0.2"}, files={"file": ("ü.wav", b"RIFF")}
    )
    request = transcription(sent.read(), sent.headers["content-type"].encode())
    parts = parse_form(spliced(request, b"w"), b'multipart/form-data; boundary="%s"' % BOUNDARY)
    assert sorted(part.name for part in parts) == ["file", "model", "temperature", "timestamp_granularities[]", "timestamp_granularities[]"]
    assert next(part for part in parts if part.name == "file").value == b"RIFF"


def test_stream_false_is_said_by_not_saying_it_and_true_is_refused() -> None:
    assert b"stream" not in transcription(with_field("stream", b"false")).encoded.suffix
    with pytest.raises(SchemaError) as raised:
        transcription(with_field("stream", b"true"))
    assert raised.value.param == "stream"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (FILE + MODEL + END, b""),
        (FILE + MODEL + END, b"application/json"),
        (FILE + MODEL + END, b"multipart/form-data"),
        (FILE + MODEL + END, b"multipart/form-data; boundary=b; boundary=c"),
        (FILE + MODEL + END, b"multipart/form-data; charset=utf-8; boundary=b"),
        (FILE + MODEL + END, b'multipart/form-data; boundary="b'),
        (b"preamble\r\n" + FILE + MODEL + END, TYPE),
        (b"\r\n" + FILE + MODEL + END, TYPE),
        (FILE + MODEL + END + b"epilogue", TYPE),
        (FILE + MODEL, TYPE),
        (FILE + MODEL + b"\r\n--b", TYPE),
        (FILE + MODEL + b"\r\n--b \r\n" + END, TYPE),
        (b"", TYPE),
        (b"--b--\r\n", TYPE),
        (FILE + END, TYPE),
        (MODEL[2:] + END, TYPE),
        (FILE.replace(b"ID3\r\n--c\r\n", b"") + MODEL + END, TYPE),
        (FILE + MODEL + MODEL + END, TYPE),
        (FILE + MODEL.replace(b'"model"', b'"model[]"') + MODEL + END, TYPE),
        (FILE + MODEL.replace(b'"model"', b'"Model"') + MODEL + END, TYPE),
        (FILE + MODEL.replace(b'name="model"', b'name="model"; filename="x"') + END, TYPE),
        (FILE + MODEL.replace(b'name="model"', b"name*=utf-8''model") + END, TYPE),
        (FILE + MODEL.replace(b'name="model"', b"name=model") + END, TYPE),
        (FILE + MODEL.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n") + END, TYPE),
        (FILE + MODEL.replace(b"\r\n\r\n", b'\r\nContent-Disposition: form-data; name="file"\r\n\r\n') + END, TYPE),
        (FILE + MODEL.replace(b"\r\n\r\n", b"\n\n") + END, TYPE),
        (FILE.replace(b"audio/mpeg", b"multipart/mixed; boundary=\x00") + MODEL + END, TYPE),
        (with_field("x", b"y", filename="f"), TYPE),
        (with_field("language", b"\xff"), TYPE),
        (with_field("language", b"a" * (MAX_FORM_VALUE_BYTES + 1)), TYPE),
        (with_field("response_format", b"exe"), TYPE),
        (with_field("api_base", b"http://evil"), TYPE),
        (FILE + MODEL + b'\r\n--b\r\nContent-Disposition: form-data; name="include[]"\r\n\r\nx' * MAX_FORM_PARTS + END, TYPE),
        (with_field("prompt", BOUNDARY), TYPE),
    ],
)
def test_a_form_with_no_single_meaning_is_refused(body: bytes, content_type: bytes) -> None:
    with pytest.raises(SchemaError):
        transcription(body, content_type)


def test_translations_know_fewer_fields() -> None:
    assert transcription(with_field("prompt"), translate=True).model == "whisper-1"
    with pytest.raises(SchemaError):
        transcription(with_field("temperature", filename="x"), translate=True)


@given(st.binary(max_size=400), st.binary(max_size=60))
def test_any_bytes_are_a_form_or_the_clients_error(body: bytes, content_type: bytes) -> None:
    for declared in (content_type, TYPE):
        try:
            transcription(FILE + MODEL + body, declared)
        except ClientError:
            pass


@given(st.lists(st.tuples(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), st.binary(max_size=60)), max_size=8))
def test_what_is_written_is_read_again(fields: list[tuple[str, bytes]]) -> None:
    parts = [Part(name, value) for name, value in fields]
    prefix, suffix = encode_form(parts, first="model")
    assert parse_form(prefix + b"m" + suffix, b"multipart/form-data; boundary=" + BOUNDARY) == [Part("model", b"m"), *parts]


# --- egress ------------------------------------------------------------------------------------------------------------

FORM = spliced(transcription(FILE + MODEL + END), b"w")


@pytest.mark.parametrize(
    "final",
    [
        b"",
        FORM[1:],
        FORM[:-1],
        FORM + b"x",
        FORM.replace(b'name="model"', b'name="other"'),
        FORM.replace(b"\r\n\r\nw\r\n", b"\r\n\r\nw\r\nx\r\n"),
        FORM.replace(b'name="file"', b'name="model"'),
        FORM.replace(b'name="file"', b'name="Model"'),
        FORM.replace(b'name="file"', b'name="model[]"'),
        FORM.replace(b"Content-Type: audio/mpeg", b'Content-Disposition: form-data; name="model"'),
        FORM.replace(b"Content-Type: audio/mpeg", b'X: y\r\nContent-Disposition: form-data; name="model"'),
        FORM.replace(
            b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="file', b"--" + BOUNDARY + b' \r\nContent-Disposition: form-data; name="file'
        ),
    ],
)
def test_egress_takes_no_form_that_it_could_read_in_two_ways(final: bytes) -> None:
    with pytest.raises(SchemaError):
        reread_form(final)


def test_a_file_may_be_called_model() -> None:
    body = FILE.replace(b"a.mp3", b"model.mp3") + MODEL + END
    assert reread_form(spliced(transcription(body), b"w")).model == "w"


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"created":1,"data":[{"b64_json":"aaaa"}],"usage":{"input_tokens":5,"output_tokens":1056,"total_tokens":1061}}', Usage(5, 1056)),
        (b'{"created":1,"data":[{"url":"https://x/y.png"}]}', None),
        (b'{"created":1,"data":[{"url":"x"}],"usage":{"input_tokens":-5,"output_tokens":1}}', None),
    ],
)
def test_the_usage_of_pictures(body: bytes, usage: Usage | None) -> None:
    assert usage_of_images(body) == usage


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data":[]}', b'{"choices":[]}', b"\xff", b'{"data":["\xff"]}', b"[" * 5000])
def test_what_is_no_answer_with_pictures_is_the_providers_error(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        usage_of_images(body)


def test_the_usage_of_transcripts() -> None:
    assert usage_of_transcript(b'{"text":"hi","usage":{"type":"tokens","input_tokens":9,"output_tokens":2}}') == Usage(9, 2)
    assert usage_of_transcript(b'{"text":"hi","usage":{"type":"duration","seconds":9}}') is None
    assert usage_of_transcript(b"1\n00:00:00,000 --> 00:00:01,000\nhi\n") is None
    for body in (b'{"choices":[]}', b"\xff", b"{" * 3000):
        with pytest.raises(UpstreamError):
            usage_of_transcript(body)
