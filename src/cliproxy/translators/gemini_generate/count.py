"""`countTokens`, both ways.

Google counts a whole request (system instruction, functions) only in a form that names the model inside the body, which ours never does. So what leaves is the
form with `contents` alone: the instruction goes as a first turn, and declarations of functions as the text of their JSON. That count is exact for contents,
within some tokens for instructions, and a good guess for functions.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cliproxy.bounds import MAX_CHAT_VALUES, MAX_TOKEN_COUNT
from cliproxy.dialects import Dialect, Quirks
from cliproxy.errors import SchemaError, UpstreamError
from cliproxy.formats.json_bounds import decode_json, encode_json
from cliproxy.translators.conversation import ConversationRequest, Encoded
from cliproxy.translators.gemini_generate.decode import checked, estimate, verify_model, verify_request
from cliproxy.translators.gemini_generate.encode import contents_of, functions_of, without_foreign_thoughts
from cliproxy.translators.gemini_generate.provider_state import verify_stateless
from cliproxy.translators.gemini_generate.request import CountRequest
from cliproxy.translators.gemini_generate.spelling import may_be_misspelt, spelling_of, verify_names
from cliproxy.translators.gemini_generate.to_hub import messages_of, system_of, tools_of
from cliproxy.translators.gemini_generate.wire import CountBody, GenerateBody
from cliproxy.translators.policy_clients import FromGemini
from cliproxy.translators.policy_targets import ToGemini

_COUNT = spelling_of(CountBody)
_BESIDE = ("systemInstruction", "tools", "generationConfig")


def decode_count(body: bytes, *, model: str, allow_provider_state: bool = False) -> CountRequest:
    """Return the request in `body` for `model`. `allow_provider_state` as in `decode_gemini`. Raises `SchemaError` with the path of the field."""
    verify_model(model)
    document = decode_json(body, max_values=MAX_CHAT_VALUES)
    wire = checked(document, CountBody, _COUNT, misspelt=may_be_misspelt(body))
    verify_names(document, _COUNT)
    inner = wire.generate_content_request
    path = "generateContentRequest." if inner is not None else ""
    if inner is not None:
        if wire.contents is not None:
            raise SchemaError("contents and generateContentRequest exclude each other.", param="contents", code="invalid_value")
        request = document["generateContentRequest"]
    else:
        if wire.contents is None:
            raise SchemaError("The field contents is missing.", param="contents", code="missing_field")
        request = {name: document[name] for name in ("contents", "model", *_BESIDE) if document.get(name) is not None}
        inner = GenerateBody(wire.contents, wire.generation_config, wire.system_instruction, wire.tools, model=wire.model)
    verify_request(request, inner, model=model, path=path)
    if not allow_provider_state:
        verify_stateless(inner, path=path)
    return CountRequest(model=model, estimate=estimate(len(body), inner.contents), rest=request, wire=inner)


def conversation_of(request: CountRequest) -> ConversationRequest:
    """Return what is to be counted in the hub's types: no settings, which do not count. Raises `UnsupportedFeature`, `SchemaError`."""
    losses = FromGemini()
    try:
        tools = tools_of(request.rest, request.wire.tools, losses)
    except RecursionError:
        raise SchemaError("The body is nested too deeply.", code="nested_too_deeply") from None
    return ConversationRequest(
        dialect=Dialect.GEMINI_GENERATE,
        model=request.model,
        stream=False,
        max_tokens=1,
        messages=messages_of(request.rest["contents"], request.wire.contents, losses),
        system=system_of(request.rest, request.wire.system_instruction, losses),
        tools=tools,
        left_out=losses,
    )


def encode_count_same(request: CountRequest, quirks: Quirks) -> Encoded:
    """Return the body for an upstream of the same dialect. Raises `SchemaError` if it is nested more deeply than the encoder goes."""
    body = request.rest
    instruction = body.get("systemInstruction")
    return _body(instruction["parts"] if instruction else [], body.get("tools") or [], without_foreign_thoughts(body["contents"]), ())


def encode_count(request: ConversationRequest, quirks: Quirks) -> Encoded:
    """Return what is to be counted as a body for `countTokens`. Raises `UnsupportedFeature` for what Gemini cannot be asked."""
    losses = ToGemini(request.left_out)
    contents = contents_of(request.messages, losses)
    tools = [{"functionDeclarations": functions_of(request.tools, losses)}] if request.tools else []
    return _body([{"text": text.text} for text in request.system], tools, contents, tuple(losses))


def _body(system: list[Any], tools: list[Any], contents: list[Any], dropped: tuple[str, ...]) -> Encoded:
    before = [*system, *({"text": encode_json(tool).decode()} for tool in tools)]
    first = [{"role": "user", "parts": before}] if before else []
    return Encoded(encode_json({"contents": [*first, *contents]}), b"", dropped)


class _Answer(msgspec.Struct, gc=False, rename="camel"):
    total_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKEN_COUNT)]


_answer_decoder = msgspec.json.Decoder(_Answer)


def decode_count_answer(body: bytes) -> int:
    """Return the tokens that a provider counted. Raises `UpstreamError` if `body` tells none."""
    try:
        return _answer_decoder.decode(body).total_tokens
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamError("The provider's answer is not a count of tokens.", code="bad_upstream_answer") from None


def encode_count_answer(tokens: int) -> bytes:
    """Return the answer for a client of this dialect."""
    return b'{"totalTokens":%d}' % tokens
