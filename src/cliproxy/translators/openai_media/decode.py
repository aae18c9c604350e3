"""Requests for pictures, speech and transcripts from their bytes: checked, and what leaves decided.

There is nothing to translate to: these go to providers that have the endpoint, and leave as our own encoding of what was checked.
"""

from __future__ import annotations

from typing import Any

from cliproxy.bounds import KIB, MAX_CHAT_VALUES, MAX_MODEL_NAME_CHARS
from cliproxy.errors import SchemaError, UnsupportedFeature
from cliproxy.formats.form import Part, encode_form, parse_form
from cliproxy.formats.json_bounds import decode_json, encode_json
from cliproxy.translators.conversation import Encoded
from cliproxy.translators.estimate import tokens_of_text
from cliproxy.translators.openai_media.request import MediaRequest
from cliproxy.translators.openai_media.wire import (
    IMAGE_FIELDS,
    SPEECH_FIELDS,
    TEXT_FORMATS,
    TRANSCRIPTION_FIELDS,
    TRANSLATION_FIELDS,
    ImageBody,
    SpeechBody,
)
from cliproxy.translators.schema import convert, verify_unknown_fields

MAX_FORM_VALUE_BYTES = 64 * KIB  # of a field that is no file; OpenAI's prompts have 224 tokens, speakers' samples are data URLs of seconds

IMAGE_OUTPUT_TOKENS = 1056  # OpenAI, gpt-image: a square picture of medium quality
SPEECH_TOKENS_PER_TEXT_TOKEN = 5  # 20 tokens a second of speech, at some 4 tokens of text a second
AUDIO_BYTES_PER_TOKEN = 800  # ten tokens a second of sound; MP3 has 8 kB


def decode_image_request(body: bytes) -> MediaRequest:
    """Return the request for pictures in `body`. Raises `SchemaError` with the path of the field; its message never quotes the client."""
    document = decode_json(body, max_values=MAX_CHAT_VALUES)
    wire = convert(document, ImageBody)
    _verify_known(document, IMAGE_FIELDS)
    if wire.stream or wire.partial_images:
        raise UnsupportedFeature("Pictures are not streamed by this gateway; ask for them whole.", param="stream" if wire.stream else "partial_images")
    n = wire.n or 1
    return MediaRequest(wire.model, tokens_of_text(len(body)) + n * IMAGE_OUTPUT_TOKENS, n, _json_around_model(document))


def decode_speech_request(body: bytes) -> MediaRequest:
    """Return the request for speech in `body`. Raises `SchemaError` as above."""
    document = decode_json(body, max_values=MAX_CHAT_VALUES)
    wire = convert(document, SpeechBody)
    _verify_known(document, SPEECH_FIELDS)
    if wire.stream_format == "sse" or wire.stream:
        raise UnsupportedFeature("Speech comes as audio, not as events.", param="stream" if wire.stream else "stream_format")
    text = tokens_of_text(len(body))
    return MediaRequest(wire.model, text + text * SPEECH_TOKENS_PER_TEXT_TOKEN, 1, _json_around_model(document))


def decode_transcription_request(body: bytes, *, content_type: bytes, translate: bool) -> MediaRequest:
    """Return the request for a transcript (or its translation into English) in the form `body`. Raises `SchemaError` with the field's name."""
    known = TRANSLATION_FIELDS if translate else TRANSCRIPTION_FIELDS
    parts = parse_form(body, content_type)
    _verify_form(parts, known)
    single = {part.name: part for part in parts}
    if "model" not in single:
        raise SchemaError("The field model is missing.", param="model", code="missing_field")
    if "file" not in single:
        raise SchemaError("The field file is missing.", param="file", code="missing_field")
    if not single["file"].value:
        raise SchemaError("The file is empty.", param="file", code="invalid_value")
    if "response_format" in single and single["response_format"].value.decode() not in TEXT_FORMATS:
        raise SchemaError("This is not one of the values that are allowed (response_format).", param="response_format", code="invalid_value")
    if "stream" in single and single["stream"].value.lower() not in (b"false", b"0"):
        raise UnsupportedFeature("Transcripts are not streamed by this gateway; ask for them whole.", param="stream")
    model = single["model"].value.decode()
    if not 1 <= len(model) <= MAX_MODEL_NAME_CHARS:
        raise SchemaError("The model's name is empty or too long.", param="model", code="invalid_value")
    prefix, suffix = encode_form([part for part in parts if part.name not in ("model", "stream")], first="model")
    estimate = len(single["file"].value) // AUDIO_BYTES_PER_TOKEN + tokens_of_text(len(suffix) - len(single["file"].value))
    return MediaRequest(model, estimate, 1, Encoded(prefix, suffix))


def _verify_known(document: dict[str, Any], known: frozenset[str]) -> None:
    if not known.issuperset(document):
        verify_unknown_fields(document, known)


def _json_around_model(document: dict[str, Any]) -> Encoded:
    rest = {name: value for name, value in document.items() if name != "model"}
    return Encoded(b'{"model":', b"," + encode_json(rest)[1:])  # never empty: there is a prompt or a text


def _verify_form(parts: list[Part], known: dict[str, bool]) -> None:
    """Raise `SchemaError` unless each field is known or harmless, a file where one belongs, and not there twice."""
    seen: set[str] = set()
    for part in parts:
        name = part.name.removesuffix("[]")
        repeats = known.get(name, False)
        if (part.name != name and not repeats) or (name in seen and not repeats):
            raise SchemaError(
                f"The form has the field {name} twice, or as a list." if name in known else "The form has a field twice.", param=_told(name, known)
            )
        seen.add(name)
        if (part.filename is None) is (name == "file"):
            raise SchemaError("The recording, and nothing else, is sent as a file.", param=_told(name, known), code="invalid_type")
        if name != "file":
            if len(part.value) > MAX_FORM_VALUE_BYTES:
                raise SchemaError("A field of the form is too long.", param=_told(name, known), code="invalid_value")
            try:
                part.value.decode()
            except UnicodeDecodeError:
                raise SchemaError("A field of the form is not UTF-8.", param=_told(name, known), code="invalid_type") from None
    verify_unknown_fields(dict.fromkeys(seen), frozenset(known))


def _told(name: str, known: dict[str, bool]) -> str | None:
    """Return the name to tell a client: only names of ours."""
    return name if name in known else None
