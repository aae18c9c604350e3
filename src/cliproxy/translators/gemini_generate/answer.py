"""A whole `GenerateContentResponse`, both ways, and what its parts and reasons mean, which streams need too.

Going to a client, thoughts are shown only if it asked for them (`includeThoughts`), as Google does it. What other vendors signed goes behind a tag
(`signatures`).
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from cliproxy.bounds import KIB, MAX_CITATIONS, MAX_IDENTIFIER_CHARS
from cliproxy.dialects import Dialect
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import answer_as
from cliproxy.metering.gemini_generate import usage_in
from cliproxy.metering.usage import Usage
from cliproxy.translators.conversation import (
    AssistantPart,
    Choice,
    Citation,
    ConversationAnswer,
    Image,
    Reasoning,
    Refusal,
    StopReason,
    Text,
    ToolCall,
    verify_arguments,
)
from cliproxy.translators.gemini_generate.answer_wire import (
    ABSENT,
    Answer,
    AnswerPart,
    BlobPart,
    CallPart,
    Candidate,
    Segment,
    answer_decoder,
    citations_decoder,
    grounding_decoder,
)
from cliproxy.translators.gemini_generate.media import standard_base64
from cliproxy.translators.gemini_generate.request import GeminiRequest
from cliproxy.translators.gemini_generate.signatures import tag_of

MAX_CITED_TEXT_BYTES = 256 * KIB  # of a text whose sources' places are counted over from bytes to characters; each count reads it

# --- reasons to stop ---------------------------------------------------------------------------------------------------

_STOPS = {"STOP": StopReason.END, "MAX_TOKENS": StopReason.LENGTH, "CONTINUATION": StopReason.LENGTH}
# The turn failed: there is nothing that a client could use as an answer.
_FAILURES = frozenset({"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE", "MALFORMED_RESPONSE"})
_UNSPECIFIED = "FINISH_REASON_UNSPECIFIED"

_FINISH_REASONS = {
    StopReason.END: "STOP",
    StopReason.LENGTH: "MAX_TOKENS",
    StopReason.STOP_SEQUENCE: "STOP",
    StopReason.TOOL_CALLS: "STOP",
    StopReason.FILTER: "SAFETY",
    StopReason.REFUSAL: "SAFETY",
    StopReason.PAUSE: "OTHER",
}


def is_finished(reason: str | None) -> bool:
    """Whether a candidate's `finishReason` names one."""
    return bool(reason) and reason != _UNSPECIFIED


def stop_of(reason: str, *, called: bool) -> StopReason:
    """Return what Google's reason means; `called`: the candidate calls functions. Reasons that are not known withheld something, as all others do.

    Raises `UpstreamError` if the model's turn failed.
    """
    stop = _STOPS.get(reason)
    if stop is StopReason.END and called:
        return StopReason.TOOL_CALLS
    if stop is not None:
        return stop
    if reason in _FAILURES:
        raise UpstreamError("The model's answer failed at the provider: it made a tool call that makes no sense.", code="bad_tool_call")
    return StopReason.FILTER


def finish_reason(stop: StopReason) -> str:
    """Return Google's word for `stop`."""
    return _FINISH_REASONS[stop]


# --- parts -------------------------------------------------------------------------------------------------------------

_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_-]")
_ID_CHARS = 20  # of the answer's id, of which the last characters differ most; call ids have up to 40 at OpenAI


def call_of(part: CallPart, *, answer_id: str, choice: int, number: int, signature: str) -> ToolCall:
    """Return the call, with an id that is the same whenever this is read and another one in every answer. Raises `UpstreamError` if it is no call."""
    if bytes(part.partial_args) != b"null":
        raise _untranslatable()
    try:
        arguments = "" if bytes(part.args) == b"null" else bytes(part.args).decode()
    except UnicodeDecodeError:
        raise not_gemini() from None
    id = part.id
    if not id or len(id) > MAX_IDENTIFIER_CHARS:
        unique = _NOT_IN_IDS.sub("", answer_id)[-_ID_CHARS:] or hashlib.sha256(f"{part.name}\0{arguments}".encode()).hexdigest()[:_ID_CHARS]
        id = f"call_{unique}_{choice}_{number}"
    return ToolCall(id, part.name, verify_arguments(arguments), signature)


def image_of(part: BlobPart) -> Image:
    """Return the picture. Raises `UpstreamError` for other media, which no client of another dialect can have asked for."""
    kind = part.mime_type.lower()
    if not kind.startswith("image/"):
        raise _untranslatable()
    return Image(media_type=kind, data=standard_base64(part.data))


def verify_part(part: AnswerPart) -> None:
    """Raise `UpstreamError` for a part that has no place in the hub: traces of tools that Google runs."""
    for raw in (part.executable_code, part.code_execution_result, part.file_data, part.tool_call, part.tool_response):
        if raw is not ABSENT and bytes(raw) != b"null":
            raise _untranslatable()


def _untranslatable() -> UpstreamError:
    return UpstreamError("The provider's answer has a part that cannot be translated.", code="bad_upstream_answer")


def not_gemini() -> UpstreamError:
    """The error for an answer of another dialect, or of none."""
    return UpstreamError("The provider's answer is not one of Gemini's.", code="bad_upstream_answer")


def citations_of(candidate: Candidate, text: str | int) -> tuple[Citation, ...]:
    """Return the sources of `text`, of which there may be left only its length, if it is ASCII. Google counts in bytes of UTF-8; offsets that fall outside
    become unknown. What makes no sense is no citation, and neither is what goes beyond `MAX_CITATIONS`."""
    if candidate.citation_metadata is ABSENT and candidate.grounding_metadata is ABSENT:
        return ()
    made: list[Citation] = []
    encoded = len(text) if isinstance(text, str) and text.isascii() else text if isinstance(text, int) else text.encode()
    try:
        if bytes(candidate.citation_metadata) != b"null":
            metadata = citations_decoder.decode(candidate.citation_metadata)
            for source in (metadata.citation_sources or metadata.citations or [])[:MAX_CITATIONS]:
                made.append(_citation(source.uri, source.title, source.start_index, source.end_index, encoded))
        if bytes(candidate.grounding_metadata) != b"null":
            grounding = grounding_decoder.decode(candidate.grounding_metadata)
            chunks = grounding.grounding_chunks or []
            for support in (grounding.grounding_supports or [])[:MAX_CITATIONS]:
                segment = support.segment or Segment()
                for index in (support.grounding_chunk_indices or [])[: MAX_CITATIONS - len(made)]:
                    web = (chunks[index].web or chunks[index].retrieved_context) if 0 <= index < len(chunks) else None
                    if web is not None:
                        made.append(_citation(web.uri, web.title, segment.start_index, segment.end_index, encoded))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    return tuple(citation for citation in made if citation.url)[:MAX_CITATIONS]


def _citation(url: str | None, title: str | None, start: int | None, end: int | None, text: bytes | int) -> Citation:
    first, last = start or 0, end or 0
    if not 0 <= first < last <= (text if isinstance(text, int) else len(text)):
        return Citation(url or "", title or "")
    if isinstance(text, int):
        return Citation(url or "", title or "", start=first, end=last)
    if len(text) > MAX_CITED_TEXT_BYTES:
        return Citation(url or "", title or "")
    before = len(text[:first].decode(errors="ignore"))
    return Citation(url or "", title or "", start=before, end=before + len(text[first:last].decode(errors="ignore")))


# --- from a provider ---------------------------------------------------------------------------------------------------


def decode_answer(body: bytes) -> ConversationAnswer:
    """Return a provider's whole answer. A blocked prompt is one choice without parts.

    Raises `UpstreamError` if `body` is another dialect's, or an answer whose meaning cannot be told.
    """
    answer = parse_answer(body)
    id, usage = answer.response_id or "", usage_in(answer.usage_metadata)
    if not answer.candidates:
        if answer.prompt_feedback is None or not answer.prompt_feedback.block_reason:
            raise not_gemini()
        choices: tuple[Choice, ...] = (Choice(0, (), StopReason.FILTER),)
    else:
        choices = tuple(sorted((_choice(candidate, id) for candidate in answer.candidates), key=lambda choice: choice.index))
        if len({choice.index for choice in choices}) != len(choices):
            raise not_gemini()
    return ConversationAnswer(id, answer.model_version or "", choices, usage)


def parse_answer(body: bytes) -> Answer:
    """Return `body` as an answer or an event. Raises `UpstreamError` if it is none or reports an error."""
    answer = answer_as(answer_decoder, body)
    if answer is None:
        raise not_gemini()
    if answer.error is not ABSENT and bytes(answer.error) != b"null":
        raise UpstreamError("The provider reported an error in its answer.", code="upstream_stream_error")
    return answer


def _choice(candidate: Candidate, answer_id: str) -> Choice:
    index = candidate.index or 0
    if not is_finished(candidate.finish_reason):
        raise UpstreamError("The provider's answer has no end.", code="bad_upstream_answer")
    parts: list[AssistantPart] = []
    said: list[str] = []
    calls = 0
    for part in (candidate.content.parts if candidate.content is not None else None) or ():
        verify_part(part)
        signature = part.thought_signature or ""
        if part.function_call is not None:
            parts.append(call_of(part.function_call, answer_id=answer_id, choice=index, number=calls, signature=signature))
            calls += 1
        elif part.thought:
            parts.append(Reasoning(part.text or "", signature, signer=Dialect.GEMINI_GENERATE))
        else:
            if part.inline_data is not None:
                parts.append(image_of(part.inline_data))
            elif part.text:
                said.append(part.text)
                parts.append(Text(part.text))
            if signature:
                parts.append(Reasoning(signature=signature, signer=Dialect.GEMINI_GENERATE))
    citations = citations_of(candidate, "".join(said))
    if citations:
        _cite(parts, citations)
    return Choice(index, tuple(parts), stop_of(candidate.finish_reason or "", called=calls > 0))


def _cite(parts: list[AssistantPart], citations: tuple[Citation, ...]) -> None:
    """Give the sources to the text that they are of. Google counts through all texts: with more than one, offsets are unknown and the last has the sources."""
    texts = [index for index, part in enumerate(parts) if isinstance(part, Text)]
    if not texts:
        return
    if len(texts) > 1:
        citations = tuple(Citation(citation.url, citation.title) for citation in citations)
    cited = parts[texts[-1]]
    assert isinstance(cited, Text)
    parts[texts[-1]] = Text(cited.text, citations)


# --- to a client -------------------------------------------------------------------------------------------------------


def shows_thoughts(request: GeminiRequest | None) -> bool:
    """Whether the client wants to see thoughts."""
    if request is None:
        return True
    config = request.wire.generation_config
    return config is not None and config.thinking_config is not None and config.thinking_config.include_thoughts is True


def encode_answer(answer: ConversationAnswer, *, request: GeminiRequest | None, id: str, model: str, created: int) -> bytes:
    """Return `answer` for a client of this dialect; `id` and `model` are used where the answer's are empty. Raises `UpstreamError` if a call's arguments are
    no JSON object."""
    thoughts = shows_thoughts(request)
    body: dict[str, Any] = {"candidates": [_candidate(choice, thoughts) for choice in answer.choices]}
    if answer.usage is not None:
        body["usageMetadata"] = usage_metadata(answer.usage)
    body["modelVersion"] = answer.model or model
    body["responseId"] = answer.id or id
    return msgspec.json.encode(body)


def usage_metadata(usage: Usage) -> dict[str, int]:
    """Return what Google would say: thoughts apart from the candidates' tokens, and nothing that is zero but the sums."""
    said = {
        "promptTokenCount": usage.prompt,
        "candidatesTokenCount": usage.completion - usage.reasoning,
        "totalTokenCount": usage.total,
    }
    if usage.reasoning:
        said["thoughtsTokenCount"] = usage.reasoning
    if usage.cached:
        said["cachedContentTokenCount"] = usage.cached
    return said


def _candidate(choice: Choice, thoughts: bool) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    sources = []
    length = 0
    for part in choice.parts:
        if isinstance(part, Text):
            sources += [source_of(citation, part.text, length) for citation in part.citations[:MAX_CITATIONS] if citation.url]
            length += len(part.text.encode())
        parts += parts_of(part, thoughts)
    made: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "finishReason": finish_reason(choice.stop), "index": choice.index}
    if sources:
        made["citationMetadata"] = {"citationSources": sources[:MAX_CITATIONS]}
    return made


def parts_of(part: AssistantPart, thoughts: bool) -> list[dict[str, Any]]:
    """Return Gemini's part, if it has one for it and the client is to see it. Raises `UpstreamError` if a call's arguments are no JSON object."""
    if isinstance(part, Text | Refusal):
        return [{"text": part.text}]
    if isinstance(part, ToolCall):
        # Line ends between JSON's tokens would end a server-sent event.
        arguments = verify_arguments(part.arguments).replace("\n", " ").replace("\r", " ")
        call = {"id": part.id, "name": part.name, "args": msgspec.Raw(arguments.encode())}
        return [{"functionCall": call, "thoughtSignature": part.signature} if part.signature else {"functionCall": call}]
    if isinstance(part, Image):
        if part.data:
            return [{"inlineData": {"mimeType": part.media_type, "data": part.data}}]
        return [{"fileData": {"mimeType": part.media_type or "image/png", "fileUri": part.url}}]
    signature = part.signature if part.signer is Dialect.GEMINI_GENERATE else tag_of(part)
    if part.text and thoughts:
        made: dict[str, Any] = {"text": part.text, "thought": True}
    elif signature:
        made = {"text": ""}
    else:
        return []
    if signature:
        made["thoughtSignature"] = signature
    return [made]


def source_of(citation: Citation, text: str, before: int) -> dict[str, Any]:
    """Return the source as Google says it; `before` are the bytes of the texts before this one."""
    made: dict[str, Any] = {"uri": citation.url}
    if citation.title:
        made["title"] = citation.title
    if 0 <= citation.start < citation.end <= len(text) <= MAX_CITED_TEXT_BYTES:
        made["startIndex"] = before + len(text[: citation.start].encode())
        made["endIndex"] = before + len(text[: citation.end].encode())
    return made
