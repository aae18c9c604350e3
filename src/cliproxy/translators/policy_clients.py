"""What of each dialect that clients speak has no place in the hub, and what becomes of it: a class for each, a row for each field. What has no row is kept.

`policy_targets.py` has the rows of providers' dialects, and says how the rows are used.
"""

from __future__ import annotations

from typing import ClassVar

from cliproxy.dialects import Dialect
from cliproxy.translators.policy import Field, Losses, Rules, never, refuse

# Not every provider takes instructions between turns, and moved to another place they would mean something else.
_BETWEEN = never("The provider of this model takes instructions before the first turn only: put them there, or into a message of the user.")
_UNTRANSLATED = "{param} cannot be translated for the provider of this model."
_NOT_TRANSLATED = refuse(_UNTRANSLATED)
_NEVER_TRANSLATED = never(_UNTRANSLATED)


class ChatField(Field):
    UNKNOWN = "*: a field that is not known, at any depth"
    AUDIO = "audio"
    PREDICTION = "prediction"
    CACHE_RETENTION = "prompt_cache_retention"
    WEB_SEARCH = "web_search_options"
    LOGPROBS = "logprobs"
    MODALITIES = "modalities"
    OBFUSCATION = "stream_options.include_obfuscation"
    SPEAKER = "messages[].name"
    INSTRUCTIONS_BETWEEN = "messages[].role: instructions between turns"
    FUNCTION_RESULT = "messages[].name: a result without its call"
    SPOKEN_ANSWER = "messages[].audio"
    CUSTOM_CALL = "messages[].tool_calls[]: of a custom tool"
    CACHE_TTL = "messages[].cache_control.ttl"
    IMAGE_URL = "messages[].content[].image_url.url"
    AUDIO_FORMAT = "messages[].content[].input_audio.format"
    FILE_ID = "messages[].content[].file.file_id"
    FILE = "messages[].content[].file: without data"
    FILE_TYPE = "messages[].content[].file.file_data: of no known type"
    CUSTOM_TOOL = "tools[]: a custom tool"
    CUSTOM_CHOICE = "tool_choice.custom"
    ALLOWED_TOOL = "tool_choice.allowed_tools.tools[]: not a function"


class FromChat(Losses):
    """OpenAI's chat completions."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        ChatField.UNKNOWN: _NOT_TRANSLATED,
        ChatField.AUDIO: _NOT_TRANSLATED,
        ChatField.PREDICTION: _NOT_TRANSLATED,
        ChatField.CACHE_RETENTION: _NOT_TRANSLATED,
        ChatField.WEB_SEARCH: _NOT_TRANSLATED,
        ChatField.LOGPROBS: _NOT_TRANSLATED,
        ChatField.MODALITIES: _NOT_TRANSLATED,
        ChatField.OBFUSCATION: _NOT_TRANSLATED,
        ChatField.SPEAKER: refuse("The provider of this model knows no names of who speaks: write the name into the text."),
        ChatField.INSTRUCTIONS_BETWEEN: _BETWEEN,
        ChatField.FUNCTION_RESULT: _NEVER_TRANSLATED,
        ChatField.SPOKEN_ANSWER: _NEVER_TRANSLATED,
        ChatField.CUSTOM_CALL: _NEVER_TRANSLATED,
        ChatField.CACHE_TTL: _NOT_TRANSLATED,
        ChatField.IMAGE_URL: _NEVER_TRANSLATED,
        ChatField.AUDIO_FORMAT: _NEVER_TRANSLATED,
        ChatField.FILE_ID: _NEVER_TRANSLATED,
        ChatField.FILE: _NEVER_TRANSLATED,
        ChatField.FILE_TYPE: _NEVER_TRANSLATED,
        ChatField.CUSTOM_TOOL: _NEVER_TRANSLATED,
        ChatField.CUSTOM_CHOICE: _NEVER_TRANSLATED,
        ChatField.ALLOWED_TOOL: _NEVER_TRANSLATED,
    }


class CompletionField(Field):
    UNKNOWN = "*: a field that is not known"
    SUFFIX = "suffix"
    ECHO = "echo"
    BEST_OF = "best_of"
    LOGPROBS = "logprobs"
    OBFUSCATION = "stream_options.include_obfuscation"
    PROMPT = "prompt: several, or tokens"


class FromCompletions(Losses):
    """OpenAI's legacy completions."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        CompletionField.UNKNOWN: _NOT_TRANSLATED,
        CompletionField.SUFFIX: _NOT_TRANSLATED,
        CompletionField.ECHO: _NOT_TRANSLATED,
        CompletionField.BEST_OF: _NOT_TRANSLATED,
        CompletionField.LOGPROBS: _NOT_TRANSLATED,
        CompletionField.OBFUSCATION: _NOT_TRANSLATED,
        CompletionField.PROMPT: _NEVER_TRANSLATED,
    }


class MessagesField(Field):
    UNKNOWN = "*: a field that is not known"
    SPEED = "speed"
    CACHE_FILLING = "max_tokens: 0"
    INSTRUCTIONS_BETWEEN = "messages[].role: instructions between turns"
    BLOCK = "messages[].content[]: a block of the vendor's own"
    TOOLSET_CALL = "messages[].content[]: a call by a toolset, or by code"
    TOOLSET_RESULT = "messages[].content[].toolset_name"
    SOURCE = "messages[].content[].source: a file that was sent before, or a document in pieces"
    CONTEXT = "messages[].content[].context"
    VENDORS_TOOL = "tools[]: of the vendor's own"
    DEFER_LOADING = "tools[].defer_loading"
    INPUT_EXAMPLES = "tools[].input_examples"
    ALLOWED_CALLERS = "tools[].allowed_callers"
    THINKING_TYPE = "thinking.type: that is not known"


_ANTHROPICS = "{param} is known to Anthropic only; this model's provider is another."
_ANTHROPICS_OWN = refuse(_ANTHROPICS)
_ALWAYS_ANTHROPICS = never(_ANTHROPICS)


class FromMessages(Losses):
    """Anthropic's Messages."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        MessagesField.UNKNOWN: _ANTHROPICS_OWN,
        MessagesField.SPEED: _ANTHROPICS_OWN,
        MessagesField.CACHE_FILLING: _ALWAYS_ANTHROPICS,  # filling the prompt cache is nothing that others know
        MessagesField.INSTRUCTIONS_BETWEEN: _BETWEEN,
        MessagesField.BLOCK: _ALWAYS_ANTHROPICS,
        MessagesField.TOOLSET_CALL: _ALWAYS_ANTHROPICS,
        MessagesField.TOOLSET_RESULT: _ALWAYS_ANTHROPICS,
        MessagesField.SOURCE: _ALWAYS_ANTHROPICS,
        MessagesField.CONTEXT: _ANTHROPICS_OWN,
        MessagesField.VENDORS_TOOL: _ALWAYS_ANTHROPICS,
        MessagesField.DEFER_LOADING: _ANTHROPICS_OWN,
        MessagesField.INPUT_EXAMPLES: _ANTHROPICS_OWN,
        MessagesField.ALLOWED_CALLERS: _ANTHROPICS_OWN,
        MessagesField.THINKING_TYPE: _ANTHROPICS_OWN,
    }


class ResponsesField(Field):
    UNKNOWN = "*: a field that is not known"
    STATE = "*: what the provider keeps"
    TRUNCATION = "truncation"
    CACHE_OPTIONS = "prompt_cache_options"
    INCLUDE = "include[]: that is not known"
    REASONING_CONTEXT = "reasoning.context"
    REASONING_MODE = "reasoning.mode"
    HOSTED_TOOL = "tools[]: that the provider runs"
    DEFER_LOADING = "tools[].defer_loading"
    ALLOWED_CALLERS = "tools[].allowed_callers"
    TOOL_CHOICE = "tool_choice: a tool that the provider runs"
    ALLOWED_TOOL = "tool_choice.tools[]: not a function"
    CALLED_BY_CODE = "input[]: a call by the provider's code"
    ITEM = "input[]: an item of a tool that the provider runs"
    INSTRUCTIONS_BETWEEN = "input[]: instructions between turns"
    INSTRUCTION_PART = "input[].content[]: media in instructions"
    PART = "input[].content[]: a part that is not known on this side"
    NO_DATA = "input[].content[]: without data"
    DATA_URL = "input[].content[].image_url: data that names no type"


_NOTHING_LIKE = "The provider behind this model has nothing like {param}."
_NONE_LIKE = refuse(_NOTHING_LIKE)
_NEVER_LIKE = never(_NOTHING_LIKE)


class FromResponses(Losses):
    """OpenAI's Responses."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        ResponsesField.UNKNOWN: refuse("The provider behind this model has no such field."),
        ResponsesField.STATE: never("The provider behind this model keeps nothing for this dialect: send the whole input, with store: false."),
        ResponsesField.TRUNCATION: _NONE_LIKE,
        ResponsesField.CACHE_OPTIONS: _NONE_LIKE,
        ResponsesField.INCLUDE: _NONE_LIKE,
        ResponsesField.REASONING_CONTEXT: _NONE_LIKE,
        ResponsesField.REASONING_MODE: _NONE_LIKE,
        ResponsesField.HOSTED_TOOL: _NEVER_LIKE,
        ResponsesField.DEFER_LOADING: _NONE_LIKE,
        ResponsesField.ALLOWED_CALLERS: _NONE_LIKE,
        ResponsesField.TOOL_CHOICE: _NEVER_LIKE,
        ResponsesField.ALLOWED_TOOL: _NEVER_LIKE,
        ResponsesField.CALLED_BY_CODE: _NEVER_LIKE,
        ResponsesField.ITEM: _NEVER_LIKE,
        ResponsesField.INSTRUCTIONS_BETWEEN: _BETWEEN,
        ResponsesField.INSTRUCTION_PART: _NEVER_LIKE,
        ResponsesField.PART: _NEVER_LIKE,
        ResponsesField.NO_DATA: _NEVER_LIKE,
        ResponsesField.DATA_URL: never("Say data:TYPE;base64, before the data."),
    }


class GeminiField(Field):
    UNKNOWN = "*: a field that is not known, at any depth"
    SAFETY = "safetySettings[]: a filter that is on"
    INSTRUCTION_PART = "systemInstruction.parts[]: not a text"
    WORDLESS_THOUGHT = "contents[].parts[]: a thought without words"
    MODELS_MEDIA = "contents[].parts[]: the model's own files"
    PART = "contents[].parts[].functionResponse.parts[]: of no kind"
    MEDIA_TYPE = "contents[].parts[]: a media type that others do not know"
    ADDRESS = "contents[].parts[]: an address that others cannot fetch"
    RESULT_MEDIA = "contents[].parts[].functionResponse.parts[]: sound"
    CALLING_MODE = "toolConfig.functionCallingConfig.mode"
    MODALITIES = "generationConfig.responseModalities"
    MIME_TYPE = "generationConfig.responseMimeType"
    LEVEL = "generationConfig.thinkingConfig.thinkingLevel"


_NO_ADDRESS = "Only public https addresses can be translated."


class FromGemini(Losses):
    """Gemini's `generateContent`."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        GeminiField.UNKNOWN: refuse("The field cannot be translated."),
        GeminiField.SAFETY: refuse("Only Google has such filters."),
        GeminiField.INSTRUCTION_PART: never("Only text can be translated here."),
        GeminiField.WORDLESS_THOUGHT: refuse("Only thoughts in words can be translated."),
        GeminiField.MODELS_MEDIA: never("Of the model's own files only pictures can be translated."),
        GeminiField.PART: never("This kind of part cannot be translated."),
        GeminiField.MEDIA_TYPE: never("This media type cannot be translated."),
        GeminiField.ADDRESS: never(_NO_ADDRESS),
        GeminiField.RESULT_MEDIA: refuse("This media type cannot be translated in a function response."),
        GeminiField.CALLING_MODE: never("This mode cannot be translated."),
        GeminiField.MODALITIES: never("Only text can be asked for."),
        GeminiField.MIME_TYPE: never("Only text and JSON can be asked for."),
        GeminiField.LEVEL: refuse("This level cannot be translated."),
    }


class EmbedField(Field):
    UNKNOWN = "*: a field that is not known"
    TOKENS = "input: in tokens"
    PARTS = "content.parts: anything but one text"
    SETTINGS = "requests[]: settings that differ between vectors"


class FromOpenAIEmbeddings(Losses):
    """OpenAI's embeddings."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        EmbedField.UNKNOWN: refuse("The field cannot be translated."),
        EmbedField.TOKENS: never("Tokens are numbers of OpenAI's; send texts."),
    }


class FromGeminiEmbed(Losses):
    """Gemini's `embedContent` and `batchEmbedContents`."""

    __slots__ = ()
    rules: ClassVar[Rules] = {
        EmbedField.UNKNOWN: refuse("The field cannot be translated."),
        EmbedField.PARTS: never("Only one text a vector can be translated."),
        EmbedField.SETTINGS: never("Settings that differ between vectors cannot be translated."),
    }


FROM: dict[Dialect, type[Losses]] = {
    Dialect.OPENAI_CHAT: FromChat,
    Dialect.OPENAI_RESPONSES: FromResponses,
    Dialect.ANTHROPIC_MESSAGES: FromMessages,
    Dialect.GEMINI_GENERATE: FromGemini,
    Dialect.OPENAI_COMPLETIONS: FromCompletions,
    Dialect.OPENAI_EMBEDDINGS: FromOpenAIEmbeddings,
    Dialect.GEMINI_EMBED: FromGeminiEmbed,
}
