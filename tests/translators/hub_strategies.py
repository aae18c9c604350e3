"""Generated values of the hub (`translators/conversation.py`) for every dialect's properties, and the fold of a stream's events to the answer that they tell.

A test names the `features` that its dialect can say; what is generated needs no others. Conversations make sense: they begin with the user, tool results answer
the calls of the turn before, and names agree. Texts are any Unicode that JSON can carry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from hypothesis import strategies as st
from msgspec.structs import replace

from cliproxy.dialects import Dialect
from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import (
    ArgumentsDelta,
    AssistantPart,
    Audio,
    Choice,
    Citation,
    CitationAdded,
    ConversationAnswer,
    ConversationRequest,
    Counted,
    Document,
    Ended,
    Finished,
    Image,
    Message,
    Part,
    PartEnded,
    PartStarted,
    Reasoning,
    Refusal,
    SignatureDelta,
    Started,
    StopReason,
    StreamEvent,
    Text,
    TextDelta,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)

Feature = Literal[
    "system",
    "tools",
    "tool_result_images",
    "tool_result_errors",
    "images_base64",
    "images_url",
    "documents_base64",
    "documents_url",
    "documents_text",
    "document_citations",
    "audio",
    "reasoning",
    "redacted",
    "refusal",
    "citations",
    "cache",
]
ALL: frozenset[Feature] = frozenset(Feature.__args__)  # type: ignore[attr-defined]
MAX_TOKENS = 4096
MODEL = "public-model"


# --- small things ----------------------------------------------------------------------------------------------------


def texts(min_size: int = 1, max_size: int = 40) -> st.SearchStrategy[str]:
    """Any characters but lone surrogates, which no UTF-8 can carry: control characters, quotes and astral planes included."""
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=min_size, max_size=max_size)


def visible_texts() -> st.SearchStrategy[str]:
    """Texts that are more than white space."""
    return texts().map(lambda text: text + "x")


def names() -> st.SearchStrategy[str]:
    """Names of functions that every vendor takes."""
    return st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,20}", fullmatch=True)


def call_ids() -> st.SearchStrategy[str]:
    """Ids of tool calls that every vendor takes."""
    return st.from_regex(r"[a-zA-Z0-9_]{1,24}", fullmatch=True)


def base64_data() -> st.SearchStrategy[str]:
    return st.sampled_from(["AAAA", "aGVsbG8=", "iVBORw0KGgo="])


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts(0)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(0), inner, max_size=3), max_leaves=5)


def json_objects() -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(texts(0), json_values(), max_size=3)


def arguments() -> st.SearchStrategy[str]:
    """JSON objects as models write them: with and without spaces and escapes."""
    styles: list[dict[str, Any]] = [{}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"indent": 1}]
    return st.builds(lambda value, style: json.dumps(value, **style), json_objects(), st.sampled_from(styles))


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """JSON Schemas of objects, closed as strict modes want them."""
    kinds = st.sampled_from([{"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "number"}}])
    properties = st.dictionaries(names(), kinds, max_size=3)
    return properties.map(lambda known: {"type": "object", "properties": known, "required": sorted(known), "additionalProperties": False})


def usages(*, reasoning: bool = True, cache: bool = True) -> st.SearchStrategy[Usage]:
    count = st.integers(0, 100_000)

    def build(fresh: int, cached: int, written: int, said: int, thought: int) -> Usage:
        cached, written, thought = cached * cache, written * cache, thought * reasoning
        return Usage(fresh + cached + written, said + thought, cached, thought, written)

    return st.builds(build, count, count, count, count, count)


# --- parts -----------------------------------------------------------------------------------------------------------


def citations() -> st.SearchStrategy[Citation]:
    """Citations of documents of the request."""
    return st.builds(Citation, title=texts(0), cited=texts(0), document=st.integers(0, 5))


def _flag(wanted: bool) -> st.SearchStrategy[bool]:
    return st.booleans() if wanted else st.just(False)


def user_texts(features: frozenset[Feature]) -> st.SearchStrategy[Text]:
    return st.builds(Text, text=visible_texts(), cache=_flag("cache" in features))


def images(features: frozenset[Feature]) -> st.SearchStrategy[Image]:
    """Nothing where the features have no images."""
    cache = _flag("cache" in features)
    inline = st.builds(Image, media_type=st.sampled_from(["image/png", "image/jpeg"]), data=base64_data(), cache=cache)
    linked = st.builds(Image, url=st.sampled_from(["https://example.com/a.png", "https://example.com/b.jpg?x=1"]), cache=cache)
    return _of(features, {"images_base64": inline, "images_url": linked})


def documents(features: frozenset[Feature]) -> st.SearchStrategy[Document]:
    """Nothing where the features have no documents."""
    common = {"title": texts(1), "citations": _flag("document_citations" in features), "cache": _flag("cache" in features)}
    inline = st.builds(Document, media_type=st.just("application/pdf"), data=base64_data(), **common)
    linked = st.builds(Document, media_type=st.just("application/pdf"), url=st.just("https://example.com/a.pdf"), **common)
    plain = st.builds(Document, media_type=st.just("text/plain"), text=visible_texts(), **common)
    return _of(features, {"documents_base64": inline, "documents_url": linked, "documents_text": plain})


def audio(features: frozenset[Feature]) -> st.SearchStrategy[Audio]:
    return _of(features, {"audio": st.builds(Audio, media_type=st.sampled_from(["audio/wav", "audio/mpeg"]), data=base64_data())})


def reasonings(features: frozenset[Feature], signer: Dialect) -> st.SearchStrategy[Reasoning]:
    open_ones = st.builds(Reasoning, text=visible_texts(), signature=base64_data(), signer=st.just(signer))
    redacted = st.builds(Reasoning, redacted=base64_data(), signer=st.just(signer))
    return _of(features, {"reasoning": open_ones, "redacted": redacted})


def _of(features: frozenset[Feature], kinds: dict[Any, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    wanted = [strategy for feature, strategy in kinds.items() if feature in features]
    return st.one_of(wanted) if wanted else st.nothing()


def _at_most_one(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """A list, which is empty where `strategy` has nothing."""
    return st.just([]) | strategy.map(lambda value: [value])


def tool_calls() -> st.SearchStrategy[ToolCall]:
    return st.builds(ToolCall, id=call_ids(), name=names(), arguments=arguments())


# --- requests --------------------------------------------------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn, features: frozenset[Feature] = ALL, *, signer: Dialect = Dialect.ANTHROPIC_MESSAGES) -> tuple[Message, ...]:
    """Turns that alternate and end with the user's; the results of a turn's calls come first in the next."""
    messages: list[Message] = [Message("user", tuple(draw(_user_parts(features))))]
    for turn in range(draw(st.integers(0, 2))):
        calls = draw(st.lists(tool_calls(), max_size=2, unique_by=lambda call: call.id)) if "tools" in features else []
        calls = [replace(call, id=f"{call.id}_{turn}") for call in calls]  # ids are for one call only
        said: list[Part] = draw(_at_most_one(reasonings(features, signer)))
        said += draw(st.lists(user_texts(features), min_size=0 if calls else 1, max_size=2))
        messages.append(Message("assistant", (*said, *calls)))
        results = [draw(_results(features, call)) for call in calls]
        messages.append(Message("user", (*results, *draw(_user_parts(features, at_least=0 if results else 1)))))
    return tuple(messages)


def _user_parts(features: frozenset[Feature], at_least: int = 1) -> st.SearchStrategy[list[Any]]:
    return st.lists(user_texts(features) | images(features) | documents(features) | audio(features), min_size=at_least, max_size=3)


@st.composite
def _results(draw: st.DrawFn, features: frozenset[Feature], call: ToolCall) -> ToolResult:
    plain = features - {"cache"}
    kinds = user_texts(plain) | images(plain) if "tool_result_images" in features else user_texts(plain)
    content = draw(st.lists(kinds, min_size=1, max_size=2))
    return ToolResult(call.id, call.name, tuple(content), is_error=draw(_flag("tool_result_errors" in features)), cache=draw(_flag("cache" in features)))


def tools(features: frozenset[Feature] = ALL, *, strict: bool = False) -> st.SearchStrategy[tuple[Tool, ...]]:
    made = st.builds(
        Tool,
        name=names(),
        description=texts(0),
        parameters=schemas(),
        strict=st.none() | st.booleans() if strict else st.none(),
        cache=_flag("cache" in features),
    )
    return st.lists(made, min_size=1, max_size=3, unique_by=lambda tool: tool.name).map(tuple)


def tool_choices(known: Sequence[Tool]) -> st.SearchStrategy[ToolChoice]:
    plain: list[ToolChoice] = [ToolChoice("auto"), ToolChoice("none"), ToolChoice("required")]
    return st.sampled_from(plain + [ToolChoice("named", (tool.name,)) for tool in known])


def efforts(*words: str) -> st.SearchStrategy[Thinking]:
    return st.builds(Thinking, effort=st.sampled_from(words or ("low", "medium", "high")))


@st.composite
def requests(
    draw: st.DrawFn,
    dialect: Dialect,
    features: frozenset[Feature] = ALL,
    *,
    signer: Dialect = Dialect.ANTHROPIC_MESSAGES,
    settings: dict[str, st.SearchStrategy[Any]] | None = None,
    strict: bool = False,
) -> ConversationRequest:
    """A request of a client of `dialect`. `settings` are strategies for further fields of `ConversationRequest`, each of which may also be left out."""
    fields: dict[str, Any] = {}
    for name, strategy in (settings or {}).items():
        if draw(st.booleans()):
            fields[name] = draw(strategy)
    if "system" in features:
        fields["system"] = tuple(draw(st.lists(user_texts(features), max_size=2)))
    if "tools" in features and draw(st.booleans()):
        known = draw(tools(features, strict=strict))
        fields["tools"] = known
        if draw(st.booleans()):
            fields["tool_choice"] = draw(tool_choices(known))
    return ConversationRequest(
        dialect=dialect,
        model=MODEL,
        stream=draw(st.booleans()),
        max_tokens=draw(st.integers(1, MAX_TOKENS)),
        messages=draw(conversations(features, signer=signer)),
        **fields,
    )


# --- answers and their streams ---------------------------------------------------------------------------------------

STOPS = (StopReason.END, StopReason.LENGTH)


@st.composite
def answers(
    draw: st.DrawFn,
    features: frozenset[Feature] = ALL,
    *,
    signer: Dialect = Dialect.ANTHROPIC_MESSAGES,
    stops: Sequence[StopReason] = STOPS,
    choices: int = 1,
    created: bool = False,
) -> ConversationAnswer:
    """`TOOL_CALLS` is the reason to stop where there are calls. No two texts are neighbours unless one of them is cited: many dialects would join them."""
    said = []
    for index in range(draw(st.integers(1, choices))):
        parts: list[AssistantPart] = draw(_at_most_one(reasonings(features, signer)))
        text = st.builds(Text, text=visible_texts(), citations=st.lists(citations(), max_size=2).map(tuple) if "citations" in features else st.just(()))
        parts += draw(st.lists(text, min_size=0 if "tools" in features else 1, max_size=1))
        calls = draw(st.lists(tool_calls(), max_size=2, unique_by=lambda call: call.id)) if "tools" in features else []
        if not parts and not calls:
            parts.append(Text("x"))
        if "refusal" in features and not calls and draw(st.booleans()):
            said.append(Choice(index, (Refusal(draw(visible_texts())),), StopReason.REFUSAL))
            continue
        said.append(Choice(index, (*parts, *calls), StopReason.TOOL_CALLS if calls else draw(st.sampled_from(list(stops)))))
    usage = draw(usages(reasoning="reasoning" in features, cache="cache" in features))
    return ConversationAnswer("answer-1", "provider-model", tuple(said), usage, draw(st.integers(1, 2**31)) if created else 0)


@st.composite
def streams(draw: st.DrawFn, whole: st.SearchStrategy[ConversationAnswer]) -> tuple[ConversationAnswer, list[StreamEvent]]:
    """An answer and events that tell it, with texts and arguments cut anywhere."""
    answer = draw(whole)
    events: list[StreamEvent] = [Started(answer.id, answer.model, created=answer.created)]
    for choice in answer.choices:
        for index, part in enumerate(choice.parts):
            events += _events_of(part, choice.index, index, lambda text: draw(_pieces(text)))
    events += [Finished(choice.index, choice.stop, choice.stop_sequence) for choice in answer.choices]
    if answer.usage is not None:
        events.append(Counted(answer.usage))
    return answer, [*events, Ended()]


def _events_of(part: AssistantPart, choice: int, index: int, cut: Callable[[str], list[str]]) -> list[StreamEvent]:
    events: list[StreamEvent]
    if isinstance(part, ToolCall):
        events = [PartStarted(choice, index, ToolCall(part.id, part.name, ""))]
        events += [ArgumentsDelta(choice, index, piece) for piece in cut(part.arguments)]
    elif isinstance(part, Image) or (isinstance(part, Reasoning) and part.redacted):
        events = [PartStarted(choice, index, part)]
    else:
        empty = Reasoning(id=part.id, signer=part.signer) if isinstance(part, Reasoning) else type(part)("")
        events = [PartStarted(choice, index, empty)]
        events += [TextDelta(choice, index, piece) for piece in cut(part.text)]
    if isinstance(part, Text):
        events += [CitationAdded(choice, index, citation) for citation in part.citations]
    if isinstance(part, Reasoning) and part.signature and part.signer is not None:
        events.append(SignatureDelta(choice, index, part.signature, part.signer))
    if isinstance(part, ToolCall) and part.signature:
        events.append(SignatureDelta(choice, index, part.signature, Dialect.GEMINI_GENERATE))
    return [*events, PartEnded(choice, index)]


@st.composite
def _pieces(draw: st.DrawFn, text: str) -> list[str]:
    at = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [piece for piece in (text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)) if piece]


def fold(events: Sequence[StreamEvent]) -> ConversationAnswer:
    """Return the answer that `events` tell. Fails (`AssertionError`) where they break what a reader promises."""
    assert events and isinstance(events[0], Started) and isinstance(events[-1], Ended), "begins with Started, ends with Ended"
    started = events[0]
    usage = started.usage
    parts: dict[int, list[AssistantPart]] = {}
    finished: dict[int, Finished] = {}
    open_part: dict[int, bool] = {}
    for event in events[1:-1]:
        assert not isinstance(event, Started | Ended), "once"
        if isinstance(event, Counted):
            usage = event.usage
            continue
        assert event.choice not in finished, "nothing of a choice after it is finished"
        mine = parts.setdefault(event.choice, [])
        if isinstance(event, Finished):
            assert not open_part.get(event.choice), "parts end before their choice does"
            finished[event.choice] = event
        elif isinstance(event, PartStarted):
            assert not open_part.get(event.choice) and event.index == len(mine), "one part after the other"
            open_part[event.choice] = True
            mine.append(event.part)
        else:
            assert open_part.get(event.choice) and event.index == len(mine) - 1, "a delta belongs to the open part"
            if isinstance(event, PartEnded):
                open_part[event.choice] = False
            else:
                mine[-1] = _more(mine[-1], event)
    assert parts.keys() == finished.keys(), "every choice is finished"
    choices = [Choice(index, tuple(parts[index]), end.stop, end.stop_sequence) for index, end in sorted(finished.items())]
    return ConversationAnswer(started.id, started.model, tuple(choices), usage, started.created)


def _more(part: AssistantPart, event: TextDelta | ArgumentsDelta | SignatureDelta | CitationAdded) -> AssistantPart:
    if isinstance(event, ArgumentsDelta):
        assert isinstance(part, ToolCall)
        return ToolCall(part.id, part.name, part.arguments + event.json, part.signature)
    if isinstance(event, CitationAdded):
        assert isinstance(part, Text)
        return Text(part.text, (*part.citations, event.citation))
    if isinstance(event, SignatureDelta):
        if isinstance(part, ToolCall):
            return ToolCall(part.id, part.name, part.arguments, event.signature)
        assert isinstance(part, Reasoning) and not part.signature
        return Reasoning(part.text, event.signature, signer=event.signer, id=part.id)
    if isinstance(part, Text):
        return Text(part.text + event.text, part.citations)
    if isinstance(part, Refusal):
        return Refusal(part.text + event.text)
    assert isinstance(part, Reasoning) and not part.redacted
    return Reasoning(part.text + event.text, part.signature, signer=part.signer, id=part.id)
