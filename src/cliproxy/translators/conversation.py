"""The hub of all translation: a request, an answer and the events of a streamed answer, in no vendor's words.

Each dialect decodes to these types and encodes from them, so that n dialects need 2n translations and not n². What always holds:

- Nothing is lost silently. What has no place here, or no word in a target's dialect, is lost by a rule (`policy.py`): refused with `UnsupportedFeature`, or
  left out and reported in `Encoded.dropped`, by the client's path, a field of `ConversationRequest`, or a part's `at`.
- `at` is the part's path in the body it was read from (`messages[2].content[0]`), empty for parts that every dialect can say.
- Texts are never altered, not even their white space. JSON that a model wrote stays the text that it wrote.
- In an answer, a tool call's `arguments` are a JSON object: whoever reads a provider's answer verifies it (`verify_arguments`).
- `None` and empty mean: not said. Whether absence means a default is the target's business.

Everything is frozen, compares by value, and is not tracked by the collector (no cycles).
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import msgspec

from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.metering.usage import Usage


class _Value(msgspec.Struct, frozen=True, gc=False):
    """A value of the hub."""


# --- parts -----------------------------------------------------------------------------------------------------------


class Citation(_Value, frozen=True):
    """Where a stretch of text comes from. `start` and `end` are characters of the part's text (-1: not told); `url` or `document` (its index in the request)
    names the source, `cited` is what the source says there."""

    url: str = ""
    title: str = ""
    cited: str = ""
    document: int = -1
    start: int = -1
    end: int = -1


class Text(_Value, frozen=True):
    """`cache` marks the end of a prefix that the target may keep (Anthropic's `cache_control`, Bedrock's `cachePoint`)."""

    text: str
    citations: tuple[Citation, ...] = ()
    cache: bool = False


class Refusal(_Value, frozen=True):
    """The model's own words of why it does not answer."""

    text: str


class Image(_Value, frozen=True):
    """Either `data` (base64, with its `media_type`) or `url`. `detail`: OpenAI's `low`, `high`, `auto`."""

    media_type: str = ""
    data: str = ""
    url: str = ""
    detail: str = ""
    at: str = ""
    cache: bool = False


class Document(_Value, frozen=True):
    """A file for the model to read: `data` (base64), `url`, or `text`. `title` is its name. `citations`: the client wants sources named."""

    media_type: str = ""
    data: str = ""
    url: str = ""
    text: str = ""
    title: str = ""
    citations: bool = False
    at: str = ""
    cache: bool = False


class Audio(_Value, frozen=True):
    """`data` is base64; `media_type` as IANA names it (`audio/wav`, `audio/mpeg`)."""

    media_type: str
    data: str
    at: str = ""


class Reasoning(_Value, frozen=True):
    """What a model thought. `signature` proves it to the vendor whose dialect is `signer`, and to nobody else; `redacted` is thought that only the vendor can
    read (then `text` is empty). `id` is OpenAI's item id."""

    text: str = ""
    signature: str = ""
    redacted: str = ""
    signer: Dialect | None = None
    id: str = ""


class ToolCall(_Value, frozen=True):
    """`arguments` is JSON text. `signature`: Gemini's thought signature of this call."""

    id: str
    name: str
    arguments: str
    signature: str = ""
    at: str = ""


class ToolResult(_Value, frozen=True):
    """What the call `call_id` of tool `name` gave. `name` may be empty where the client's dialect does not repeat it: decoders look it up in the history."""

    call_id: str
    name: str
    content: tuple[Text | Image | Document, ...]
    is_error: bool = False
    at: str = ""
    cache: bool = False


Part = Text | Refusal | Image | Document | Audio | Reasoning | ToolCall | ToolResult
UserPart = Text | Image | Document | Audio | ToolResult
AssistantPart = Text | Refusal | Image | Reasoning | ToolCall


class Message(_Value, frozen=True):
    """`user`: Text, Image, Document, Audio, ToolResult. `assistant`: Text, Refusal, Image, Reasoning, ToolCall. Neighbours may have the same role; an
    encoder whose dialect wants turns to alternate joins them."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]


# --- tools and settings ----------------------------------------------------------------------------------------------


class Tool(_Value, frozen=True):
    """A function that the client runs. `parameters` is a JSON Schema of an object; `None`: it takes none."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache: bool = False


class ToolChoice(_Value, frozen=True):
    """`required`: some tool must be called; `named`: the one of `names`. With `auto` and `required`, `names` (if any) are the only tools allowed."""

    mode: Literal["auto", "none", "required", "named"]
    names: tuple[str, ...] = ()


class OutputFormat(_Value, frozen=True):
    """`object`: any JSON object; `schema`: JSON that fits `schema`."""

    kind: Literal["object", "schema"]
    name: str = ""
    description: str = ""
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class Thinking(_Value, frozen=True):
    """How much to think: `effort` (`none`, `minimal`, `low`, `medium`, `high`, `xhigh`), or a `budget` in tokens (0: none). `show`: the client wants to see
    thoughts (a summary of them, where that is all there is)."""

    effort: str = ""
    budget: int | None = None
    show: bool | None = None


class ConversationRequest(_Value, frozen=True):
    """What a client asks for. `max_tokens` is always there (the cap of the configuration, if the client named none) and counts for one choice, thoughts
    included. `system` are the instructions before the first turn. `dialect` is the client's, `left_out` what it said that was left out here."""

    dialect: Dialect
    model: str
    stream: bool
    max_tokens: int
    messages: tuple[Message, ...]
    system: tuple[Text, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None  # how many alternatives beside the chosen token; 0: only the chosen
    output: OutputFormat | None = None
    thinking: Thinking | None = None
    verbosity: str = ""
    user: str = ""
    metadata: dict[str, str] | None = None
    service_tier: str = ""
    store: bool | None = None
    cache_key: str = ""
    left_out: dict[str, None] = {}


class Encoded(_Value, frozen=True):
    """A body around the place of the upstream's model name: `prefix + json(model) + suffix`. Where the model is not in the body, `suffix` is empty and `prefix`
    is all. `dropped` are the fields of `ConversationRequest` (or parts' `at`) that were left out."""

    prefix: bytes
    suffix: bytes
    dropped: tuple[str, ...] = ()


# --- answers ---------------------------------------------------------------------------------------------------------


class StopReason(str, Enum):
    """Why a choice ended. `FILTER`: the provider's safety filter; `REFUSAL`: the model declined; `PAUSE`: a long turn that the client may continue."""

    END = "end"
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"
    TOOL_CALLS = "tool_calls"
    FILTER = "filter"
    REFUSAL = "refusal"
    PAUSE = "pause"


class Choice(_Value, frozen=True):
    """One of the answers, with `index` from 0. `stop_sequence` is the one that was met, where the provider tells."""

    index: int
    parts: tuple[AssistantPart, ...]
    stop: StopReason
    stop_sequence: str = ""


class ConversationAnswer(_Value, frozen=True):
    """A whole answer. `id` and `model` are the provider's; `created` in seconds since the epoch, 0 where the provider does not tell."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None
    created: int = 0


# --- streams ---------------------------------------------------------------------------------------------------------
#
# A reader (provider's bytes to events) promises: `Started` once and first; per choice: `PartStarted`, its deltas, `PartEnded`, one part after the other and
# never two at once, `index` from 0; then one `Finished` per choice; `Counted` any number of times, the last one counts; `Ended` once and last, after the
# provider said that it is over. If the provider broke off, there is no `Ended` but an `UpstreamError` out of `feed` or `finish`. Events before the fault
# come out first. A writer (events to the client's bytes) may rely on all that.


class Started(_Value, frozen=True):
    """`id` and `model` are the provider's and may be empty. `usage`: what is known of the prompt, if anything."""

    id: str
    model: str
    usage: Usage | None = None
    created: int = 0


class PartStarted(_Value, frozen=True):
    """`part` is empty but for what is known at once: a tool call's `id` and `name`, redacted thoughts (whole), an image (whole)."""

    choice: int
    index: int
    part: AssistantPart


class TextDelta(_Value, frozen=True):
    """More of a `Text`, `Refusal` or `Reasoning`."""

    choice: int
    index: int
    text: str


class ArgumentsDelta(_Value, frozen=True):
    """More of a tool call's JSON, cut anywhere between two characters."""

    choice: int
    index: int
    json: str


class SignatureDelta(_Value, frozen=True):
    """The signature of a `Reasoning` or `ToolCall`, whole."""

    choice: int
    index: int
    signature: str
    signer: Dialect


class CitationAdded(_Value, frozen=True):
    """A source of a `Text`."""

    choice: int
    index: int
    citation: Citation


class PartEnded(_Value, frozen=True):
    choice: int
    index: int


class Finished(_Value, frozen=True):
    choice: int
    stop: StopReason
    stop_sequence: str = ""


class Counted(_Value, frozen=True):
    usage: Usage


class Ended(_Value, frozen=True):
    """The provider said that this was all."""


StreamEvent = Started | PartStarted | TextDelta | ArgumentsDelta | SignatureDelta | CitationAdded | PartEnded | Finished | Counted | Ended


# --- what every reader needs -----------------------------------------------------------------------------------------

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def verify_arguments(arguments: str) -> str:
    """Return `arguments`, `{}` for none. Raises `UpstreamError` if a provider's tool call is no JSON object."""
    if not arguments:
        return "{}"
    try:
        _object_decoder.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise UpstreamError("The provider's tool call has arguments that are no JSON object.", code="bad_tool_arguments") from None
    return arguments
