"""Which functions each dialect has: one row for what clients may speak, one for what providers do. Routes and encoders are looked up here and nowhere else.

A row's request is whatever its own `decode` returns, and its hub is `ConversationRequest` and `ConversationAnswer`, or `EmbeddingRequest` and
`EmbeddingAnswer`, or, for counting, `ConversationRequest` and a number. Only rows of one operation meet, so the pairs fit; types end at this table's edge.

Egress must not import this: of the dialects it has what `metering` reads, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import msgspec

from cliproxy.dialects import Dialect, Endpoint, Operation, Quirks
from cliproxy.formats.sse import KEEP_ALIVE
from cliproxy.translators.anthropic_messages import answer as messages_answer
from cliproxy.translators.anthropic_messages import count as messages_count
from cliproxy.translators.anthropic_messages import decode as messages_decode
from cliproxy.translators.anthropic_messages import encode as messages_encode
from cliproxy.translators.anthropic_messages import read_stream as messages_read
from cliproxy.translators.anthropic_messages import to_hub as messages_to_hub
from cliproxy.translators.anthropic_messages import write_stream as messages_write
from cliproxy.translators.bedrock_converse import answer as converse_answer
from cliproxy.translators.bedrock_converse import encode as converse_encode
from cliproxy.translators.bedrock_converse import read_stream as converse_read
from cliproxy.translators.conversation import Encoded, StreamEvent
from cliproxy.translators.gemini_embed import answer as gemini_embed_answer
from cliproxy.translators.gemini_embed import decode as gemini_embed_decode
from cliproxy.translators.gemini_embed import encode as gemini_embed_encode
from cliproxy.translators.gemini_embed import to_hub as gemini_embed_to_hub
from cliproxy.translators.gemini_generate import answer as gemini_answer
from cliproxy.translators.gemini_generate import count as gemini_count
from cliproxy.translators.gemini_generate import decode as gemini_decode
from cliproxy.translators.gemini_generate import encode as gemini_encode
from cliproxy.translators.gemini_generate import read_stream as gemini_read
from cliproxy.translators.gemini_generate import to_hub as gemini_to_hub
from cliproxy.translators.gemini_generate import write_stream as gemini_write
from cliproxy.translators.openai_chat import answer as chat_answer
from cliproxy.translators.openai_chat import decode as chat_decode
from cliproxy.translators.openai_chat import encode as chat_encode
from cliproxy.translators.openai_chat import read_stream as chat_read
from cliproxy.translators.openai_chat import to_hub as chat_to_hub
from cliproxy.translators.openai_chat import write_stream as chat_write
from cliproxy.translators.openai_chat.request import ChatRequest
from cliproxy.translators.openai_completions import answer as completions_answer
from cliproxy.translators.openai_completions import decode as completions_decode
from cliproxy.translators.openai_completions import to_hub as completions_to_hub
from cliproxy.translators.openai_completions import write_stream as completions_write
from cliproxy.translators.openai_embeddings import answer as embeddings_answer
from cliproxy.translators.openai_embeddings import decode as embeddings_decode
from cliproxy.translators.openai_embeddings import encode as embeddings_encode
from cliproxy.translators.openai_embeddings import to_hub as embeddings_to_hub
from cliproxy.translators.openai_media import decode as media_decode
from cliproxy.translators.openai_media.request import MediaRequest
from cliproxy.translators.openai_responses import answer as responses_answer
from cliproxy.translators.openai_responses import decode as responses_decode
from cliproxy.translators.openai_responses import encode as responses_encode
from cliproxy.translators.openai_responses import read_stream as responses_read
from cliproxy.translators.openai_responses import to_hub as responses_to_hub
from cliproxy.translators.openai_responses import write_stream as responses_write


class DecodeOptions(msgspec.Struct, frozen=True, gc=False):
    """What a decoder is told beside the body and its type: the operator's cap on output tokens, and what the path says."""

    max_tokens: int
    on_excess: Literal["reject", "clamp"]
    provider_state: bool = False
    model: str = ""
    stream: bool | None = None
    batch: bool = False


class RequestFacts(msgspec.Struct, frozen=True, gc=False):
    """What egress is told of a request, and reads again itself. `max_tokens` is 0 for what generates nothing."""

    model: str
    max_tokens: int
    n: int
    stream: bool
    estimate: int


class Reader(Protocol):
    """A provider's stream on its way to the hub."""

    def feed(self, data: bytes) -> Sequence[StreamEvent]:
        """Return the events that `data` completes. Raises `UpstreamError` after those before the fault were returned."""

    def finish(self) -> Sequence[StreamEvent]:
        """The stream is over. Raises `UpstreamError` if it broke off."""


class Writer(Protocol):
    """Events of the hub on their way to a client."""

    def write(self, events: Sequence[StreamEvent]) -> bytes:
        """Return whole server-sent events."""


class Passthrough(Protocol):
    """A stream that stays in its dialect: whole events come, whole events go."""

    def feed(self, data: bytes) -> bytes:
        """Return what the client is to have of `data`; may be empty."""


class ArrayPassthrough(Passthrough, Protocol):
    """The same as the elements of one JSON array."""

    def finish(self) -> bytes:
        """Return the array's end."""

    def error_event(self, message: str, *, kind: str, code: str, status: int) -> bytes:
        """Return how the array ends that broke."""


class ArrayWriter(Writer, Protocol):
    """The same as the elements of one JSON array, whose end comes with the last event."""

    def error_event(self, message: str, *, kind: str, code: str, status: int) -> bytes:
        """Return how the array ends that broke."""


class ClientRow(msgspec.Struct, frozen=True, kw_only=True):
    """A dialect for clients, for one operation.

    `same` encodes a request in its own dialect, `None` where no provider speaks it; `hub_of` says it in the hub's types. `same_answer` is for a dialect of
    several endpoints with answers of several forms. `passthrough` and `writer` are for streams, `None` where there are none. The first event of every stream
    in the dialect has one of `first_event_has`; what has none is another dialect. `splits`: its `Passthrough` takes pieces that are cut anywhere, others whole
    events. `field_names` are the client's own paths of the hub's fields. `session_of` is what the request itself says of the session it belongs to.
    """

    dialect: Dialect
    operation: Operation
    decode: Callable[[bytes, DecodeOptions, bytes | None], Any]  # body, what the path says, Content-Type
    facts_of: Callable[[Any], RequestFacts] | None = None  # `None`: a request has them itself, by the same names
    same: Callable[[Any, Quirks], Encoded] | None = None
    same_answer: Callable[[bytes, Any], bytes] | None = None
    hub_of: Callable[[Any], Any] | None = None
    field_names: Mapping[str, str] = {}
    encode_answer: Callable[..., bytes] | None = None  # (answer, *, request, id, model, created)
    passthrough: Callable[[Any], Passthrough] | None = None
    writer: Callable[..., Writer] | None = None  # (*, request, id, model, created)
    array_passthrough: Callable[[Any], ArrayPassthrough] | None = None
    array_writer: Callable[..., ArrayWriter] | None = None
    error_event: Callable[..., bytes] | None = None  # (message, *, kind, code, status)
    first_event_has: tuple[bytes, ...] = ()
    splits: bool = False
    keep_alive: bytes = KEEP_ALIVE
    media: bool = False  # answers may be of another type than JSON
    session_of: Callable[[Any], str] = lambda request: ""


class TargetRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider's endpoint speaks. `reader` is `None` where there are no streams."""

    encode: Callable[[Any, Quirks], Encoded]
    decode_answer: Callable[[bytes], Any]
    reader: Callable[[], Reader] | None = None


# --- what rows have in common -------------------------------------------------------------------------------------------


def _facts_of_input(request: Any) -> RequestFacts:
    """Of a request that generates nothing."""
    return RequestFacts(request.model, 0, 1, False, request.estimate)


def _facts_of_media(request: Any) -> RequestFacts:
    return RequestFacts(request.model, 0, request.n, False, request.estimate)


def _openai_session(request: Any) -> str:
    return _first_text(request.rest, "prompt_cache_key", "safety_identifier", "user")


def _anthropic_session(request: Any) -> str:
    metadata = request.rest.get("metadata")
    return _first_text(metadata, "user_id") if isinstance(metadata, dict) else ""


def _first_text(rest: Mapping[str, Any], *names: str) -> str:
    for name in names:
        value = rest.get(name)
        if isinstance(value, str) and value:
            return value
    return ""


# --- decoders and encoders that take less than a row gives --------------------------------------------------------------


def _decode_chat(body: bytes, options: DecodeOptions, content_type: bytes | None) -> ChatRequest:
    return chat_decode.decode_chat(body, max_tokens_cap=options.max_tokens, on_excess=options.on_excess, allow_provider_state=options.provider_state)


def _decode_completion(body: bytes, options: DecodeOptions, content_type: bytes | None) -> Any:
    return completions_decode.decode_completion(body, max_tokens_cap=options.max_tokens, on_excess=options.on_excess)


def _decode_messages(body: bytes, options: DecodeOptions, content_type: bytes | None) -> Any:
    return messages_decode.decode_messages(body, max_tokens_cap=options.max_tokens, on_excess=options.on_excess, allow_provider_state=options.provider_state)


def _decode_responses(body: bytes, options: DecodeOptions, content_type: bytes | None) -> Any:
    return responses_decode.decode_responses(body, max_tokens_cap=options.max_tokens, on_excess=options.on_excess, allow_provider_state=options.provider_state)


def _decode_gemini(body: bytes, options: DecodeOptions, content_type: bytes | None) -> Any:
    return gemini_decode.decode_gemini(
        body,
        model=options.model,
        stream=options.stream is True,
        max_tokens_cap=options.max_tokens,
        on_excess=options.on_excess,
        allow_provider_state=options.provider_state,
    )


def _encode_gemini_count(tokens: int, *, request: Any, id: str, model: str, created: int) -> bytes:
    return gemini_count.encode_count_answer(tokens)


def _encode_messages_count(tokens: int, *, request: Any, id: str, model: str, created: int) -> bytes:
    return messages_count.encode_count_answer(tokens)


def _decode_transcription(body: bytes, content_type: bytes | None, *, translate: bool) -> Any:
    return media_decode.decode_transcription_request(body, content_type=content_type or b"", translate=translate)


def _media_same(request: MediaRequest, quirks: Quirks) -> Encoded:
    return request.encoded


# --- the rows ----------------------------------------------------------------------------------------------------------

_CLIENT_ROWS = (
    ClientRow(
        dialect=Dialect.OPENAI_CHAT,
        operation=Operation.GENERATE,
        decode=_decode_chat,
        same=chat_encode.encode_same,
        hub_of=chat_to_hub.conversation_of,
        field_names=chat_to_hub.FIELD_NAMES,
        encode_answer=chat_answer.encode_answer,
        passthrough=chat_write.Passthrough,
        splits=True,
        first_event_has=(b'"choices"',),
        writer=chat_write.Writer,
        error_event=chat_write.error_event,
        session_of=_openai_session,
    ),
    ClientRow(
        dialect=Dialect.OPENAI_EMBEDDINGS,
        operation=Operation.EMBED,
        decode=lambda body, options, content_type: embeddings_decode.decode_embeddings(body),
        facts_of=_facts_of_input,
        same=embeddings_encode.encode_same,
        hub_of=embeddings_to_hub.embed_request_of,
        field_names=embeddings_to_hub.FIELD_NAMES,
        encode_answer=embeddings_answer.encode_embed_answer,
        session_of=_openai_session,
    ),
    ClientRow(
        dialect=Dialect.ANTHROPIC_MESSAGES,
        operation=Operation.GENERATE,
        decode=_decode_messages,
        same=messages_encode.encode_same,
        hub_of=messages_to_hub.conversation_of,
        field_names=messages_to_hub.FIELD_NAMES,
        encode_answer=messages_answer.encode_answer,
        passthrough=messages_write.Passthrough,
        first_event_has=(b'"message_start"', b'"ping"'),
        writer=messages_write.Writer,
        error_event=messages_write.error_event,
        keep_alive=messages_write.KEEP_ALIVE,
        session_of=_anthropic_session,
    ),
    ClientRow(
        dialect=Dialect.ANTHROPIC_MESSAGES,
        operation=Operation.COUNT_TOKENS,
        decode=lambda body, options, content_type: messages_count.decode_count(body, allow_provider_state=options.provider_state),
        facts_of=_facts_of_input,
        same=messages_count.encode_count_same,
        hub_of=messages_to_hub.conversation_of,
        field_names=messages_to_hub.FIELD_NAMES,
        encode_answer=_encode_messages_count,
        session_of=_anthropic_session,
    ),
    ClientRow(
        dialect=Dialect.OPENAI_RESPONSES,
        operation=Operation.GENERATE,
        decode=_decode_responses,
        same=responses_encode.encode_same,
        hub_of=responses_to_hub.conversation_of,
        field_names=responses_to_hub.FIELD_NAMES,
        encode_answer=responses_answer.encode_answer,
        passthrough=responses_write.Passthrough,
        splits=True,
        first_event_has=(b'"response.',),
        writer=responses_write.Writer,
        error_event=responses_write.error_event,
        session_of=_openai_session,
    ),
    ClientRow(
        dialect=Dialect.GEMINI_GENERATE,
        operation=Operation.GENERATE,
        decode=_decode_gemini,
        same=gemini_encode.encode_same,
        hub_of=gemini_to_hub.conversation_of,
        field_names=gemini_to_hub.FIELD_NAMES,
        encode_answer=gemini_answer.encode_answer,
        passthrough=gemini_write.Passthrough,
        first_event_has=(b'"candidates"', b'"promptFeedback"', b'"usageMetadata"'),
        writer=gemini_write.Writer,
        array_passthrough=lambda request: gemini_write.Passthrough(request, sse=False),
        array_writer=partial(gemini_write.Writer, sse=False),
        error_event=gemini_write.error_event,
        keep_alive=gemini_write.KEEP_ALIVE,
    ),
    ClientRow(
        dialect=Dialect.GEMINI_GENERATE,
        operation=Operation.COUNT_TOKENS,
        decode=lambda body, options, content_type: gemini_count.decode_count(body, model=options.model, allow_provider_state=options.provider_state),
        facts_of=_facts_of_input,
        same=gemini_count.encode_count_same,
        hub_of=gemini_count.conversation_of,
        field_names=gemini_to_hub.FIELD_NAMES,
        encode_answer=_encode_gemini_count,
    ),
    ClientRow(
        dialect=Dialect.GEMINI_EMBED,
        operation=Operation.EMBED,
        decode=lambda body, options, content_type: gemini_embed_decode.decode_embed(
            body, model=options.model, batch=options.batch, allow_provider_state=options.provider_state
        ),
        facts_of=_facts_of_input,
        same=gemini_embed_encode.encode_same,
        same_answer=gemini_embed_answer.same_answer,
        hub_of=gemini_embed_to_hub.embed_request_of,
        field_names=gemini_embed_to_hub.FIELD_NAMES,
        encode_answer=gemini_embed_answer.encode_embed_answer,
    ),
    ClientRow(
        dialect=Dialect.OPENAI_COMPLETIONS,
        operation=Operation.GENERATE,
        decode=_decode_completion,
        hub_of=completions_to_hub.conversation_of,
        field_names=completions_to_hub.FIELD_NAMES,
        encode_answer=completions_answer.encode_answer,
        writer=completions_write.Writer,
        error_event=chat_write.error_event,
        session_of=_openai_session,
    ),
    ClientRow(
        dialect=Dialect.OPENAI_MEDIA,
        operation=Operation.IMAGES,
        decode=lambda body, options, content_type: media_decode.decode_image_request(body),
        facts_of=_facts_of_media,
        same=_media_same,
    ),
    ClientRow(
        dialect=Dialect.OPENAI_MEDIA,
        operation=Operation.SPEECH,
        decode=lambda body, options, content_type: media_decode.decode_speech_request(body),
        facts_of=_facts_of_media,
        same=_media_same,
        media=True,
    ),
    ClientRow(
        dialect=Dialect.OPENAI_MEDIA,
        operation=Operation.TRANSCRIBE,
        decode=lambda body, options, content_type: _decode_transcription(body, content_type, translate=False),
        facts_of=_facts_of_media,
        same=_media_same,
        media=True,
    ),
    ClientRow(
        dialect=Dialect.OPENAI_MEDIA,
        operation=Operation.TRANSLATE_SPEECH,
        decode=lambda body, options, content_type: _decode_transcription(body, content_type, translate=True),
        facts_of=_facts_of_media,
        same=_media_same,
        media=True,
    ),
)
CLIENTS: dict[tuple[Dialect, Operation], ClientRow] = {(row.dialect, row.operation): row for row in _CLIENT_ROWS}

TARGETS: dict[Endpoint, TargetRow] = {
    Endpoint.CHAT_COMPLETIONS: TargetRow(
        encode=chat_encode.encode_conversation,
        decode_answer=chat_answer.decode_answer,
        reader=chat_read.Reader,
    ),
    Endpoint.MESSAGES: TargetRow(
        encode=messages_encode.encode_conversation,
        decode_answer=messages_answer.decode_answer,
        reader=messages_read.Reader,
    ),
    Endpoint.RESPONSES: TargetRow(
        encode=responses_encode.encode_conversation,
        decode_answer=responses_answer.decode_answer,
        reader=responses_read.Reader,
    ),
    Endpoint.GENERATE_CONTENT: TargetRow(
        encode=gemini_encode.encode_conversation,
        decode_answer=gemini_answer.decode_answer,
        reader=gemini_read.Reader,
    ),
    Endpoint.CONVERSE: TargetRow(
        encode=converse_encode.encode_conversation,
        decode_answer=converse_answer.decode_answer,
        reader=converse_read.Reader,
    ),
    Endpoint.EMBEDDINGS: TargetRow(
        encode=embeddings_encode.encode_embed,
        decode_answer=embeddings_answer.decode_embed_answer,
    ),
    Endpoint.EMBED_CONTENT: TargetRow(
        encode=gemini_embed_encode.encode_embed,
        decode_answer=gemini_embed_answer.decode_embed_answer,
    ),
    Endpoint.COUNT_CONTENT_TOKENS: TargetRow(
        encode=gemini_count.encode_count,
        decode_answer=gemini_count.decode_count_answer,
    ),
    Endpoint.COUNT_MESSAGE_TOKENS: TargetRow(
        encode=messages_count.encode_count,
        decode_answer=messages_count.decode_count_answer,
    ),
}
