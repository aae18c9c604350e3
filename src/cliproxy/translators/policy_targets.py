"""What is left out, said in another way or refused towards each dialect that providers speak: a class for each, a row for each field. What has no row is kept.

`policy_clients.py` has the rows of clients' dialects; a pair's rules are those of both. `docs/translation.md` is printed from them, and a test sends a request
for every row. To change what becomes of a field is to change its row: `refuse` may become `drop`.
"""

from __future__ import annotations

from typing import ClassVar

from cliproxy.dialects import Dialect
from cliproxy.translators.policy import Field, Losses, Rules, drop, emulate, never, refuse


class HubField(Field):
    """What a request of the hub may say that not every provider's dialect can. The names are those of `ConversationRequest` and `EmbedRequest`."""

    N = "n"
    STOP = "stop"
    TEMPERATURE = "temperature"
    TOP_P = "top_p"
    TOP_K = "top_k"
    SEED = "seed"
    PRESENCE_PENALTY = "presence_penalty"
    FREQUENCY_PENALTY = "frequency_penalty"
    LOGIT_BIAS = "logit_bias"
    LOGPROBS = "logprobs"
    TOOL_CHOICE = "tool_choice"
    PARALLEL_CALLS = "parallel_tool_calls"
    TOOL_NAME = "tools: a name"
    TOOL_SCHEMA = "tools: a schema"
    TOOL_NESTING = "tools: schemas nested too deeply"
    TOOLS_OF_HISTORY = "tools: of a history with calls"
    STRICT = "strict"
    OUTPUT_KIND = "output.kind"
    OUTPUT_NAMES = "output: its description"
    OUTPUT_DESCRIPTION = "output.description"
    OUTPUT_NESTING = "output: a schema nested too deeply"
    EFFORT = "thinking: an effort that is not known"
    BUDGET = "thinking: a budget, or whether to show it"
    THINKING = "thinking: at all, in this request"
    THOUGHTS = "thinking: thoughts that another vendor signed, or nobody"
    CALL_SIGNATURE = "thinking: another vendor's signature of a tool call"
    USER = "user"
    METADATA = "metadata"
    SERVICE_TIER = "service_tier"
    STORE = "store"
    CACHE_KEY = "cache_key"
    VERBOSITY = "verbosity"
    CACHE = "cache"
    IMAGE = "messages: an image of this type or address"
    IMAGE_DETAIL = "messages: how closely an image is looked at"
    DETAIL = "detail"
    DOCUMENT = "messages: a document of this type"
    DOCUMENT_CITATIONS = "messages: sources of a document"
    DOCUMENT_TITLE = "messages: a document's title"
    TITLE = "title"
    DOCUMENTS_ALONE = "messages: a turn of documents alone"
    AUDIO = "messages: sound"
    ADDRESS = "messages: an address that is not https"
    ASSISTANT_IMAGE = "messages: an image in an assistant's turn"
    CITATIONS = "messages: sources of an earlier answer"
    ARGUMENTS = "messages: arguments of a call that are no JSON object"
    CALL_NAME = "messages: the name of a called tool"
    RESULT_MEDIA = "messages: images and files in a tool's result"
    RESULT_ERROR = "messages: that a tool's result is an error"
    RESULT_NAME = "messages: a result whose call is not known"
    FIRST_TURN = "messages: a first turn that is not the user's"
    NOTHING_LEFT = "messages: no turn at all"
    UNKNOWN_PART = "messages: another kind of part"
    TEXTS = "texts"
    TASK = "task"


_CACHE = drop("where a prefix may be kept: what an answer costs, not what it says")
_CACHE_KEY = drop("which calls may share a kept prefix: what an answer costs, not what it says")
_DETAIL = drop("how closely an image is looked at: a target without the setting chooses itself")
_CITATIONS = drop("where the text of an earlier answer came from: the text stays")
_METADATA = drop("the client's own notes")
_DESCRIPTION = drop("the description of a schema, which is there itself")
_SEED = drop("a request for the same answer again, which nobody promises")
_TIER = drop("how urgent it is: what an answer costs and how long it takes")
_STORE = drop("whether the vendor keeps the answer for the client's later use")
_STRICT = drop("that arguments of tools fit their schemas to the letter is then the model's habit and not the vendor's promise")
_THOUGHTS = drop("thoughts that another vendor signed, or nobody, which would be refused")
_CALL_SIGNATURE = drop("another vendor's proof of a tool call, which says nothing to this one")
_TITLE = drop("the name of a file: its content goes")
_USER = drop("who the client's user is")
_VERBOSITY = drop("a request for longer or shorter answers")
_NEAREST_EFFORT = emulate("a budget becomes the nearest effort; whether thoughts are shown is the provider's choice")
_RESULT_ERROR = emulate("the text of the result says that it is an error")
_NO_THINKING_HERE = drop("a request for thoughts that the target would refuse in this request")

_CHAT = "The provider of this model, asked for a chat completion, has nothing like it."
_NO_CHAT = refuse(_CHAT)


class ToChat(Losses):
    """OpenAI's chat completions."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        HubField.TOP_K: _NO_CHAT,
        HubField.LOGPROBS: _NO_CHAT,
        HubField.TOOL_CHOICE: never(_CHAT),
        HubField.BUDGET: _NEAREST_EFFORT,
        HubField.THOUGHTS: _THOUGHTS,
        HubField.CALL_SIGNATURE: _CALL_SIGNATURE,
        HubField.METADATA: _METADATA,
        HubField.SERVICE_TIER: _TIER,
        HubField.STORE: _STORE,
        HubField.CACHE_KEY: _CACHE_KEY,
        HubField.VERBOSITY: _VERBOSITY,
        HubField.CACHE: _CACHE,
        HubField.DOCUMENT: never(_CHAT),
        HubField.DOCUMENT_CITATIONS: _NO_CHAT,
        HubField.AUDIO: never(_CHAT),
        HubField.ASSISTANT_IMAGE: _NO_CHAT,
        HubField.CITATIONS: _CITATIONS,
        HubField.RESULT_MEDIA: _NO_CHAT,
        HubField.RESULT_ERROR: _RESULT_ERROR,
        HubField.UNKNOWN_PART: never(_CHAT),
    }


_RESPONSES = "OpenAI's Responses API has nothing like it."
_NO_RESPONSES = refuse(_RESPONSES)
_NO_SUCH_PART = "The provider behind this model takes no such part."


class ToResponses(Losses):
    """OpenAI's Responses."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        HubField.N: _NO_RESPONSES,
        HubField.STOP: _NO_RESPONSES,
        HubField.TOP_K: _NO_RESPONSES,
        HubField.PRESENCE_PENALTY: _NO_RESPONSES,
        HubField.FREQUENCY_PENALTY: _NO_RESPONSES,
        HubField.LOGIT_BIAS: _NO_RESPONSES,
        HubField.LOGPROBS: _NO_RESPONSES,  # it has them; the hub's answers do not
        HubField.BUDGET: _NEAREST_EFFORT,
        HubField.THOUGHTS: _THOUGHTS,
        HubField.CALL_SIGNATURE: _CALL_SIGNATURE,
        HubField.USER: _USER,
        HubField.METADATA: _METADATA,
        HubField.SERVICE_TIER: _TIER,
        HubField.STORE: _STORE,
        HubField.CACHE_KEY: _CACHE_KEY,
        HubField.SEED: _SEED,
        HubField.CACHE: _CACHE,
        HubField.DOCUMENT: never(_NO_SUCH_PART),
        HubField.DOCUMENT_CITATIONS: refuse(_NO_SUCH_PART),
        HubField.AUDIO: never(_NO_SUCH_PART),
        HubField.ASSISTANT_IMAGE: refuse("The provider behind this model takes no such part from an assistant."),
        HubField.CITATIONS: _CITATIONS,
        HubField.RESULT_ERROR: _RESULT_ERROR,
        HubField.UNKNOWN_PART: never(_NO_SUCH_PART),
    }


_ANTHROPIC = "Anthropic's models cannot be asked for this."
_NO_ANTHROPIC = refuse(_ANTHROPIC)
_NO_EFFORT = refuse("The provider of this model knows no such effort.")
_TOO_DEEP = never("The request is nested too deeply.")


class ToMessages(Losses):
    """Anthropic's Messages."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        HubField.N: _NO_ANTHROPIC,
        HubField.LOGIT_BIAS: _NO_ANTHROPIC,
        HubField.LOGPROBS: _NO_ANTHROPIC,
        HubField.PRESENCE_PENALTY: _NO_ANTHROPIC,
        HubField.FREQUENCY_PENALTY: _NO_ANTHROPIC,
        HubField.TEMPERATURE: _NO_ANTHROPIC,
        HubField.TOP_P: _NO_ANTHROPIC,
        HubField.TOP_K: _NO_ANTHROPIC,
        HubField.STOP: _NO_ANTHROPIC,  # sequences of white space alone
        HubField.SEED: _SEED,
        HubField.TOOL_CHOICE: never(_ANTHROPIC),
        HubField.TOOL_NAME: never(_ANTHROPIC),
        HubField.TOOL_SCHEMA: never(_ANTHROPIC),
        HubField.TOOL_NESTING: _TOO_DEEP,
        HubField.OUTPUT_KIND: _NO_ANTHROPIC,  # "some JSON object" is nothing that Anthropic can be held to
        HubField.OUTPUT_NAMES: _DESCRIPTION,
        HubField.EFFORT: _NO_EFFORT,
        HubField.THINKING: _NO_THINKING_HERE,
        HubField.THOUGHTS: _THOUGHTS,
        HubField.USER: _USER,
        HubField.METADATA: _METADATA,
        HubField.SERVICE_TIER: _TIER,
        HubField.STORE: _STORE,
        HubField.CACHE_KEY: _CACHE_KEY,
        HubField.VERBOSITY: _VERBOSITY,
        HubField.IMAGE: never(_ANTHROPIC),
        HubField.IMAGE_DETAIL: _DETAIL,
        HubField.DOCUMENT: never(_ANTHROPIC),
        HubField.AUDIO: never(_ANTHROPIC),
        HubField.ASSISTANT_IMAGE: _NO_ANTHROPIC,
        HubField.CITATIONS: _CITATIONS,
        HubField.ARGUMENTS: never(_ANTHROPIC),
        HubField.CALL_NAME: never(_ANTHROPIC),
        HubField.FIRST_TURN: never(_ANTHROPIC),
        HubField.UNKNOWN_PART: never(_ANTHROPIC),
    }


_BEDROCK = "Bedrock's Converse cannot be asked for this."
_NO_BEDROCK = refuse(_BEDROCK)


class ToConverse(Losses):
    """Bedrock's Converse."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        HubField.N: _NO_BEDROCK,
        HubField.LOGIT_BIAS: _NO_BEDROCK,
        HubField.LOGPROBS: _NO_BEDROCK,
        HubField.PRESENCE_PENALTY: _NO_BEDROCK,
        HubField.FREQUENCY_PENALTY: _NO_BEDROCK,
        HubField.TEMPERATURE: _NO_BEDROCK,
        HubField.TOP_P: _NO_BEDROCK,
        HubField.TOP_K: _NO_BEDROCK,
        HubField.STOP: _NO_BEDROCK,
        HubField.SEED: _SEED,
        HubField.TOOL_CHOICE: never(_BEDROCK),
        HubField.PARALLEL_CALLS: _NO_BEDROCK,
        HubField.TOOL_NAME: never(_BEDROCK),
        HubField.TOOL_SCHEMA: never(_BEDROCK),
        HubField.TOOL_NESTING: _TOO_DEEP,
        HubField.TOOLS_OF_HISTORY: never(_BEDROCK),
        HubField.OUTPUT_KIND: _NO_BEDROCK,  # "some JSON object" is nothing that Converse has a word for
        HubField.OUTPUT_NESTING: never(_BEDROCK),
        HubField.EFFORT: refuse(_BEDROCK),
        HubField.THINKING: _NO_THINKING_HERE,
        HubField.THOUGHTS: _THOUGHTS,
        HubField.USER: _USER,
        HubField.METADATA: _METADATA,
        HubField.SERVICE_TIER: _TIER,
        HubField.STORE: _STORE,
        HubField.CACHE_KEY: _CACHE_KEY,
        HubField.VERBOSITY: _VERBOSITY,
        HubField.IMAGE: never(_BEDROCK),
        HubField.IMAGE_DETAIL: _DETAIL,
        HubField.DOCUMENT: never(_BEDROCK),
        HubField.DOCUMENT_TITLE: emulate("what a document's name can hold of its title"),
        HubField.DOCUMENTS_ALONE: never(_BEDROCK),
        HubField.AUDIO: never(_BEDROCK),
        HubField.ASSISTANT_IMAGE: _NO_BEDROCK,
        HubField.CITATIONS: _CITATIONS,
        HubField.ARGUMENTS: never(_BEDROCK),
        HubField.CALL_NAME: never(_BEDROCK),
        HubField.FIRST_TURN: never(_BEDROCK),
        HubField.UNKNOWN_PART: never(_BEDROCK),
    }


_NO_GEMINI = refuse("Gemini has no such thing, or its answer cannot be translated.")


class ToGemini(Losses):
    """Gemini's `generateContent`."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        HubField.LOGIT_BIAS: _NO_GEMINI,
        HubField.LOGPROBS: _NO_GEMINI,
        HubField.STOP: refuse("Gemini takes 5 stop sequences."),
        HubField.SEED: _SEED,
        HubField.PARALLEL_CALLS: refuse("Gemini cannot be kept from calling several tools at once."),
        HubField.STRICT: _STRICT,
        HubField.OUTPUT_DESCRIPTION: _DESCRIPTION,
        HubField.EFFORT: refuse("Gemini has no such effort."),
        HubField.THOUGHTS: _THOUGHTS,
        HubField.USER: _USER,
        HubField.METADATA: _METADATA,
        HubField.SERVICE_TIER: _TIER,
        HubField.STORE: _STORE,
        HubField.CACHE_KEY: _CACHE_KEY,
        HubField.VERBOSITY: _VERBOSITY,
        HubField.CACHE: _CACHE,
        HubField.DETAIL: _DETAIL,
        HubField.DOCUMENT_CITATIONS: refuse("Gemini cannot be asked to cite this document."),
        HubField.TITLE: _TITLE,
        HubField.ADDRESS: never("Gemini fetches https addresses only."),
        HubField.ARGUMENTS: never("Gemini takes JSON objects as arguments only."),
        HubField.RESULT_NAME: never("The result answers no call of this conversation, and Gemini wants its name."),
        HubField.NOTHING_LEFT: never("Nothing of the conversation can be said to Gemini."),
    }


class ToOpenAIEmbeddings(Losses):
    """OpenAI's embeddings."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        HubField.TASK: drop("what a vector is for: OpenAI's are for anything"),
        HubField.TITLE: drop("what a text is called, which is part of what a vector is for"),
    }


class ToGeminiEmbed(Losses):
    """Gemini's `embedContent`."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        HubField.TEXTS: never("This provider embeds one text a request."),
        HubField.USER: _USER,
    }


TO: dict[Dialect, type[Losses]] = {
    Dialect.OPENAI_CHAT: ToChat,
    Dialect.OPENAI_RESPONSES: ToResponses,
    Dialect.ANTHROPIC_MESSAGES: ToMessages,
    Dialect.GEMINI_GENERATE: ToGemini,
    Dialect.BEDROCK_CONVERSE: ToConverse,
    Dialect.OPENAI_EMBEDDINGS: ToOpenAIEmbeddings,
    Dialect.GEMINI_EMBED: ToGeminiEmbed,
}
