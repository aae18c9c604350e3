"""What egress reads of bodies and answers, by endpoint: the meters of all dialects in one table.

Egress reads again what a worker wrote: what the final body asks for must be what the worker said. It reads an answer for what it used, and for
whether it is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cliproxy.dialects import Endpoint
from cliproxy.errors import UpstreamError
from cliproxy.metering import anthropic_messages as anthropic
from cliproxy.metering import bedrock_converse as bedrock
from cliproxy.metering import gemini_embed as gemini_embed
from cliproxy.metering import gemini_generate as gemini
from cliproxy.metering import openai_chat as chat
from cliproxy.metering import openai_embeddings as embeddings
from cliproxy.metering import openai_media as media
from cliproxy.metering import openai_responses as responses
from cliproxy.metering.stream import StreamMeter
from cliproxy.metering.usage import AskedFor, Usage


class Meter(NamedTuple):
    """`asked_for`: what a final body asks for (`SchemaError` if it is none, `ChannelError` if no honest worker wrote it). `usage_of`: the usage in a whole
    answer, None if it tells none (`UpstreamError` if it is none). `stream`: None where there are no streams. `says_stream`: the body says whether it wants
    one; else the path does. `media`: the answer is of a type of its own, which the worker is told.
    """

    asked_for: Callable[[bytes], AskedFor]
    usage_of: Callable[[bytes], Usage | None]
    stream: Callable[[], StreamMeter] | None = None
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


METERS: dict[Endpoint, Meter] = {
    Endpoint.CHAT_COMPLETIONS: Meter(chat.reread, chat.usage_of_answer, chat.ChatStreamMeter),
    Endpoint.RESPONSES: Meter(responses.reread, responses.usage_of_answer, responses.ResponsesStreamMeter),
    Endpoint.MESSAGES: Meter(anthropic.reread, anthropic.usage_of_answer, anthropic.MessagesStreamMeter),
    Endpoint.GENERATE_CONTENT: Meter(gemini.reread, gemini.usage_of_answer, gemini.GenerateStreamMeter, says_stream=False),
    Endpoint.CONVERSE: Meter(bedrock.reread, bedrock.usage_of_answer, bedrock.ConverseStreamMeter, says_stream=False),
    Endpoint.COUNT_MESSAGE_TOKENS: Meter(anthropic.reread_count, _count_used(anthropic.verify_count_answer)),
    Endpoint.COUNT_CONTENT_TOKENS: Meter(gemini.reread_count, _count_used(gemini.verify_count_answer), says_stream=False),
    Endpoint.EMBEDDINGS: Meter(_embeddings_asked, embeddings.usage_of_embeddings),
    Endpoint.EMBED_CONTENT: Meter(gemini_embed.reread, gemini_embed.usage_of_embeddings, says_stream=False),
    Endpoint.IMAGES: Meter(media.reread, media.usage_of_images),
    Endpoint.SPEECH: Meter(media.reread, _sound_used, media=True),
    Endpoint.TRANSCRIPTIONS: Meter(media.reread_form, media.usage_of_transcript, media=True),
    Endpoint.TRANSLATIONS: Meter(media.reread_form, media.usage_of_transcript, media=True),
}
