"""A question for the tokens of a request (`/v1/messages/count_tokens`), and its answer.

A question is a request without what steers the answer only. What leaves is our own encoding of what was checked, as with a request.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.bounds import MAX_CHAT_VALUES
from cliproxy.dialects import Quirks
from cliproxy.errors import UpstreamError
from cliproxy.formats.json_bounds import decode_json, encode_json
from cliproxy.metering.anthropic_messages import CountAnswer, verify_count_answer
from cliproxy.translators.anthropic_messages.decode import checked, estimate_of, verify_stateless, without_foreign_thoughts
from cliproxy.translators.anthropic_messages.encode import PREFIX, VERTEX_COUNT_PREFIX, add_prompt, has_quirk, json_of
from cliproxy.translators.anthropic_messages.request import MessagesRequest
from cliproxy.translators.anthropic_messages.wire import COUNT_FIELDS, CountBody
from cliproxy.translators.conversation import ConversationRequest, Encoded
from cliproxy.translators.policy_targets import ToMessages
from cliproxy.translators.schema import convert

_decoder = msgspec.json.Decoder(CountAnswer)


def decode_count(body: bytes, *, allow_provider_state: bool = False) -> MessagesRequest:
    """Return the question in `body`; it asks for no output. `allow_provider_state` as in a request. Raises `SchemaError` with the path of the field."""
    document = decode_json(body, max_values=MAX_CHAT_VALUES)
    wire = convert(document, CountBody)
    checked(document, wire, COUNT_FIELDS)
    if not allow_provider_state:
        verify_stateless(wire.messages)
    without_foreign_thoughts(document)
    del document["model"]
    return MessagesRequest(wire.model, False, 1, 0, estimate_of(len(body), wire.messages), document, wire)


def encode_count_same(request: MessagesRequest, quirks: Quirks) -> Encoded:
    """Return a checked question of the same dialect. Vertex AI wants the model in its body. Raises `SchemaError` if it is nested too deeply."""
    prefix = VERTEX_COUNT_PREFIX if quirks & Quirks.VERTEX else PREFIX
    return Encoded(prefix, b"," + encode_json(request.rest)[1:])


def encode_count(request: ConversationRequest, quirks: Quirks) -> Encoded:
    """Return the question for the tokens of `request`. What only steers an answer is left out: it has no tokens. Raises as `encode_conversation` does."""
    losses = ToMessages(request.left_out)
    body: dict[str, Any] = {}
    add_prompt(body, request, losses, by_budget=has_quirk(quirks, Quirks.BUDGET_THINKING))
    return Encoded(VERTEX_COUNT_PREFIX if has_quirk(quirks, Quirks.VERTEX) else PREFIX, b"," + json_of(body), tuple(losses))


def decode_count_answer(body: bytes) -> int:
    """Return the tokens that a provider counted. Raises `UpstreamError` if `body` is no such answer."""
    verify_count_answer(body)
    try:
        return _decoder.decode(body).input_tokens
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamError("The provider's answer is not a count of tokens.", code="bad_upstream_answer") from None


def encode_count_answer(tokens: int) -> bytes:
    """Return the answer that there are `tokens` in a request."""
    return b'{"input_tokens":%d}' % tokens
