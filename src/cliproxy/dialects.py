"""Enumerations and ids that several layers share; no behaviour beyond their tables."""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag


class Dialect(str, Enum):
    """A wire format."""

    OPENAI_CHAT = "openai_chat"
    OPENAI_RESPONSES = "openai_responses"
    OPENAI_COMPLETIONS = "openai_completions"
    OPENAI_EMBEDDINGS = "openai_embeddings"
    OPENAI_MEDIA = "openai_media"
    ANTHROPIC_MESSAGES = "anthropic_messages"
    GEMINI_GENERATE = "gemini_generate"
    GEMINI_EMBED = "gemini_embed"
    BEDROCK_CONVERSE = "bedrock_converse"


class Operation(str, Enum):
    """What a client wants, whatever the dialect. Providers are chosen among those that can do it."""

    GENERATE = "generate"
    COUNT_TOKENS = "count_tokens"
    EMBED = "embed"
    IMAGES = "images"
    SPEECH = "speech"
    TRANSCRIBE = "transcribe"
    TRANSLATE_SPEECH = "translate_speech"


class Endpoint(IntEnum):
    """What a worker may ask egress for. An enum, never a path: egress maps it to the provider's own path."""

    CHAT_COMPLETIONS = 1
    EMBEDDINGS = 2
    RESPONSES = 3
    MESSAGES = 4
    GENERATE_CONTENT = 5
    CONVERSE = 6
    COUNT_MESSAGE_TOKENS = 7
    COUNT_CONTENT_TOKENS = 8
    EMBED_CONTENT = 9
    IMAGES = 10
    SPEECH = 11
    TRANSCRIPTIONS = 12
    TRANSLATIONS = 13


ENDPOINT_NAMES = {endpoint: endpoint.name.lower() for endpoint in Endpoint}  # as the log and the vault have them

ENDPOINTS: dict[Endpoint, tuple[Operation, Dialect]] = {
    Endpoint.CHAT_COMPLETIONS: (Operation.GENERATE, Dialect.OPENAI_CHAT),
    Endpoint.RESPONSES: (Operation.GENERATE, Dialect.OPENAI_RESPONSES),
    Endpoint.MESSAGES: (Operation.GENERATE, Dialect.ANTHROPIC_MESSAGES),
    Endpoint.GENERATE_CONTENT: (Operation.GENERATE, Dialect.GEMINI_GENERATE),
    Endpoint.CONVERSE: (Operation.GENERATE, Dialect.BEDROCK_CONVERSE),
    Endpoint.COUNT_MESSAGE_TOKENS: (Operation.COUNT_TOKENS, Dialect.ANTHROPIC_MESSAGES),
    Endpoint.COUNT_CONTENT_TOKENS: (Operation.COUNT_TOKENS, Dialect.GEMINI_GENERATE),
    Endpoint.EMBEDDINGS: (Operation.EMBED, Dialect.OPENAI_EMBEDDINGS),
    Endpoint.EMBED_CONTENT: (Operation.EMBED, Dialect.GEMINI_EMBED),
    Endpoint.IMAGES: (Operation.IMAGES, Dialect.OPENAI_MEDIA),
    Endpoint.SPEECH: (Operation.SPEECH, Dialect.OPENAI_MEDIA),
    Endpoint.TRANSCRIPTIONS: (Operation.TRANSCRIBE, Dialect.OPENAI_MEDIA),
    Endpoint.TRANSLATIONS: (Operation.TRANSLATE_SPEECH, Dialect.OPENAI_MEDIA),
}


class Quirks(IntFlag):
    """How a target departs from its dialect. Dialect and quirks together are a profile: a body is written for one profile."""

    NONE = 0
    OLD_TOKEN_CAP = 1  # OpenAI chat: knows `max_tokens` and not `max_completion_tokens`
    NEW_TOKEN_CAP = 2  # OpenAI chat: wants `max_completion_tokens`; reasoning models refuse `max_tokens`
    NO_STREAM_OPTIONS = 4  # OpenAI chat: refuses `stream_options`; sends usage unasked
    NO_DEVELOPER_ROLE = 8  # OpenAI chat: `developer` messages go as `system`
    VERTEX = 16  # Anthropic: the model is in the path, the body says `anthropic_version`
    STATELESS = 32  # OpenAI responses: keeps nothing, so `previous_response_id` and `conversation` cannot work
    CLAUDE = 64  # Bedrock Converse: the model is Anthropic's, whose `thinking` and `top_k` go beside what all models have
    BUDGET_THINKING = 128  # Anthropic: the model is older than 4.6, thinks by a budget of tokens and knows no effort
