"""What egress reads of bodies and answers, by endpoint: the `usage` module of each dialect, in one table.

Egress reads again what a worker wrote: what the final body asks for must be what the worker said. It reads an answer for what it used, and for
whether it is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from cliproxy.dialects import Endpoint
from cliproxy.errors import UpstreamError
from cliproxy.translators.anthropic_messages import usage as anthropic
from cliproxy.translators.bedrock_converse import usage as bedrock
from cliproxy.translators.gemini_embed import usage as gemini_embed
from cliproxy.translators.gemini_generate import usage as gemini
from cliproxy.translators.openai_chat import usage as chat
from cliproxy.translators.openai_embeddings import usage as embeddings
from cliproxy.translators.openai_media import usage as media
from cliproxy.translators.openai_responses import usage as responses
from cliproxy.translators.usage import AskedFor, Usage


class StreamReading(Protocol):
    """A stream of one dialect: whole events out, `UpstreamError` for what is none and for what broke off. `is_over`: its end was told; `finish` is fine."""

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...

    @property
    def usage(self) -> Usage | None: ...

    @property
    def is_over(self) -> bool: ...


class Reading(NamedTuple):
    """`asked`: what a final body asks for (`SchemaError` if it is none). `used`: the usage in a whole answer, None if it tells none (`UpstreamError` if it
    is none). `stream`: None where there are no streams. `says_stream`: the body says whether it wants one; else the path does. `media`: the answer is of a
    type of its own, which the worker is told.
    """

    asked: Callable[[bytes], AskedFor]
    used: Callable[[bytes], Usage | None]
    stream: Callable[[], StreamReading] | None = None
    says_stream: bool = True
    media: bool = False


def _embeddings_asked(body: bytes) -> AskedFor:
    return AskedFor(embeddings.reread(body), 0, 1, False)


def _count_used(verify: Callable[[bytes], None]) -> Callable[[bytes], Usage | None]:
    def used(body: bytes) -> Usage | None:
        verify(body)
        return Usage(0, 0)  # counting is not charged

    return used


def _sound_used(body: bytes) -> Usage | None:
    """Sound is bytes; what it cost is known before (`decode_speech_request`)."""
    if not body:
        raise UpstreamError("The provider's answer is empty.", code="bad_upstream_answer")
    return None


READINGS: dict[Endpoint, Reading] = {
    Endpoint.CHAT_COMPLETIONS: Reading(chat.reread, chat.usage_of_answer, chat.StreamUsage),
    Endpoint.RESPONSES: Reading(responses.reread, responses.usage_of_answer, responses.StreamUsage),
    Endpoint.MESSAGES: Reading(anthropic.reread, anthropic.usage_of_answer, anthropic.StreamUsage),
    Endpoint.GENERATE_CONTENT: Reading(gemini.reread, gemini.usage_of_answer, gemini.StreamUsage, says_stream=False),
    Endpoint.CONVERSE: Reading(bedrock.reread, bedrock.usage_of_answer, bedrock.StreamUsage, says_stream=False),
    Endpoint.COUNT_MESSAGE_TOKENS: Reading(anthropic.reread_count, _count_used(anthropic.verify_count_answer)),
    Endpoint.COUNT_CONTENT_TOKENS: Reading(gemini.reread_count, _count_used(gemini.verify_count_answer), says_stream=False),
    Endpoint.EMBEDDINGS: Reading(_embeddings_asked, embeddings.usage_of_embeddings),
    Endpoint.EMBED_CONTENT: Reading(gemini_embed.reread, gemini_embed.usage_of_embeddings, says_stream=False),
    Endpoint.IMAGES: Reading(media.reread, media.usage_of_images),
    Endpoint.SPEECH: Reading(media.reread, _sound_used, media=True),
    Endpoint.TRANSCRIPTIONS: Reading(media.reread_form, media.usage_of_transcript, media=True),
    Endpoint.TRANSLATIONS: Reading(media.reread_form, media.usage_of_transcript, media=True),
}
