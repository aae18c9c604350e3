"""A request as bytes for an upstream that speaks Messages, with a place where egress puts the upstream's name of the model.

What always holds: what leaves has a cap on output tokens; turns alternate and tool results come first in theirs; no text is empty, since Anthropic refuses
those; thoughts go back only if this vendor signed them. On Vertex AI the model is in the path and the body says `anthropic_version`, except when it is asked
for tokens: then the body names the model as well.

How much to think: `translators.claude_thinking`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.dialects import Quirks
from cliproxy.formats.json_bounds import encode_json
from cliproxy.translators.anthropic_messages.encode_messages import TOOL_NAME, begin_with_thoughts, called_names, system_blocks, turns
from cliproxy.translators.anthropic_messages.request import MessagesRequest
from cliproxy.translators.claude_thinking import effort_of, thinking_of
from cliproxy.translators.conversation import ConversationRequest, Encoded, Tool
from cliproxy.translators.policy_targets import HubField, ToMessages

PREFIX = b'{"model":'
VERTEX_VERSION = b'{"anthropic_version":"vertex-2023-10-16",'
VERTEX_COUNT_PREFIX = VERTEX_VERSION + b'"model":'
MAX_USER_ID_CHARS = 256  # Anthropic: `metadata.user_id`
_HINTS = tuple((field, field.param) for field in (HubField.SEED, HubField.VERBOSITY, HubField.CACHE_KEY, HubField.METADATA))
_TIERS = {"auto": "auto", "default": "standard_only"}
_encoder = msgspec.json.Encoder()


def encode_same(request: MessagesRequest, quirks: Quirks) -> Encoded:
    """Return a checked request of the same dialect. Changes nothing, so it can be called again.

    Raises `SchemaError` if the request is nested more deeply than the encoder goes.
    """
    return around_model(encode_json(request.rest)[1:], vertex=has_quirk(quirks, Quirks.VERTEX))  # `rest` is never empty: it holds the messages


def encode_conversation(request: ConversationRequest, quirks: Quirks) -> Encoded:
    """Return a request of another dialect in this one's words.

    Raises `UnsupportedFeature` with the field of `ConversationRequest`, or the part's `at`, that Anthropic cannot express. `dropped` are the fields that were
    left out because they change no answer's meaning.
    """
    losses = ToMessages(request.left_out)
    body: dict[str, Any] = {"max_tokens": request.max_tokens}
    add_prompt(body, request, losses, by_budget=has_quirk(quirks, Quirks.BUDGET_THINKING))
    _add_settings(body, request, losses, thinks=_is_thinking(body))
    if request.stream:
        body["stream"] = True
    encoded = around_model(json_of(body), vertex=has_quirk(quirks, Quirks.VERTEX))
    return Encoded(encoded.prefix, encoded.suffix, tuple(losses)) if losses else encoded


def has_quirk(quirks: Quirks, quirk: Quirks) -> bool:
    """The same as `quirk in quirks`, which costs a quarter of a microsecond and is asked for targets without any."""
    return bool(quirks) and quirk in quirks


def around_model(rest: bytes, *, vertex: bool) -> Encoded:
    """Return the body whose fields but the model are `rest`, an object in JSON without its first brace."""
    return Encoded(VERTEX_VERSION + rest, b"") if vertex else Encoded(PREFIX, b"," + rest)


def json_of(body: dict[str, Any]) -> bytes:
    try:
        return _encoder.encode(body)[1:]
    except RecursionError:
        raise ToMessages.refusal(HubField.TOOL_NESTING) from None  # the only values of any depth are schemas


# --- what counts as prompt -------------------------------------------------------------------------------------------


def add_prompt(fields: dict[str, Any], request: ConversationRequest, losses: ToMessages, *, by_budget: bool) -> None:
    """Add what a request and a question for its tokens have in common. `by_budget`: the model thinks by budgets and knows no effort."""
    thinking = None
    if request.thinking is not None:
        thinking = thinking_of(request, losses, by_budget=by_budget, begin_with_thoughts=lambda: begin_with_thoughts(request.messages))
    fields["messages"] = turns(request.messages, losses)
    system = system_blocks(request.system) if request.system else None
    if system:
        fields["system"] = system
    tools, choice = _tools(request)
    if tools:
        fields["tools"] = tools
    if choice is not None:
        fields["tool_choice"] = choice
    if thinking is not None:
        fields["thinking"] = thinking
    if request.thinking is not None or request.output is not None:
        output = _output_config(request, losses, by_budget=by_budget)
        if output:
            fields["output_config"] = output


def _tools(request: ConversationRequest) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the tools and the choice. Of tools that may not be called none is shown: the vendor has no narrower choice among those it knows."""
    choice = request.tool_choice
    tools = request.tools
    names = choice.names if choice is not None else ()
    if choice is not None and choice.mode in ("auto", "required") and names:
        tools = tuple(tool for tool in tools if tool.name in names)
        if len(tools) != len(set(names)):
            raise ToMessages.refusal(HubField.TOOL_CHOICE)
    if not tools:
        if choice is not None and choice.mode in ("required", "named"):
            raise ToMessages.refusal(HubField.TOOL_CHOICE)
        return _never_called(request)
    made: dict[str, Any] | None = None
    if choice is not None:
        made = {"type": {"auto": "auto", "none": "none", "required": "any", "named": "tool"}[choice.mode]}
        if choice.mode == "named":
            if len(names) != 1 or all(tool.name != names[0] for tool in tools):
                raise ToMessages.refusal(HubField.TOOL_CHOICE)
            made["name"] = names[0]
    if request.parallel_tool_calls is not None:
        if made is None:
            made = {"type": "auto"}
        if made["type"] != "none":
            made["disable_parallel_tool_use"] = not request.parallel_tool_calls
    return [_tool(tool) for tool in tools], made


def _never_called(request: ConversationRequest) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return what a request without tools says: nothing, or, where its history calls some, their names and that none may be called. Anthropic wants both."""
    names = called_names(request.messages)
    return [_tool(Tool(name)) for name in names], {"type": "none"} if names else None


def _tool(tool: Tool) -> dict[str, Any]:
    if not TOOL_NAME.fullmatch(tool.name):
        raise ToMessages.refusal(HubField.TOOL_NAME)
    schema = tool.parameters
    if schema is None:
        schema = {"type": "object", "properties": {}}
    elif "type" not in schema:
        schema = {"type": "object", **schema}
    elif schema["type"] != "object":
        raise ToMessages.refusal(HubField.TOOL_SCHEMA)
    made: dict[str, Any] = {"name": tool.name}
    if tool.description:
        made["description"] = tool.description
    made["input_schema"] = schema
    if tool.strict is not None:
        made["strict"] = tool.strict
    if tool.cache:
        made["cache_control"] = {"type": "ephemeral"}
    return made


def _output_config(request: ConversationRequest, losses: ToMessages, *, by_budget: bool) -> dict[str, Any]:
    config: dict[str, Any] = {}
    effort = effort_of(request.thinking, by_budget=by_budget)
    if effort:
        config["effort"] = effort
    output = request.output
    if output is not None:
        if output.kind != "schema" or output.schema is None:
            losses.lose(HubField.OUTPUT_KIND)
        else:
            config["format"] = {"type": "json_schema", "schema": output.schema}
        if output.description:
            losses.lose(HubField.OUTPUT_NAMES)
    return config


def _is_thinking(body: dict[str, Any]) -> bool:
    return "thinking" in body and body["thinking"]["type"] != "disabled"


# --- settings --------------------------------------------------------------------------------------------------------


def _add_settings(fields: dict[str, Any], request: ConversationRequest, losses: ToMessages, *, thinks: bool) -> None:
    """Add the settings that steer the answer. 1.0 is the vendor's own temperature and `top_p`: it is left out, as newer models refuse either."""
    _lose_what_changes_answers(request, losses)
    if request.temperature is not None and request.temperature != 1:
        if request.temperature > 1 or thinks:
            losses.lose(HubField.TEMPERATURE)
        else:
            fields["temperature"] = request.temperature
    if request.top_p is not None and request.top_p != 1:
        if thinks and request.top_p < 0.95:
            losses.lose(HubField.TOP_P)
        else:
            fields["top_p"] = request.top_p
    if request.top_k is not None:
        if thinks:
            losses.lose(HubField.TOP_K)
        else:
            fields["top_k"] = request.top_k
    if request.stop:
        taken = [stop for stop in request.stop if stop.strip()]
        if len(taken) < len(request.stop):
            losses.lose(HubField.STOP)
        if taken:
            fields["stop_sequences"] = taken
    if request.user:
        if len(request.user) <= MAX_USER_ID_CHARS:
            fields["metadata"] = {"user_id": request.user}
        else:
            losses.lose(HubField.USER)
    if request.service_tier:
        if request.service_tier in _TIERS:
            fields["service_tier"] = _TIERS[request.service_tier]
        else:
            losses.lose(HubField.SERVICE_TIER)
    if request.store:  # Anthropic stores nothing, as `false` wants it
        losses.lose(HubField.STORE)
    if request.seed is not None or request.verbosity or request.cache_key or request.metadata is not None:
        for field, name in _HINTS:
            if getattr(request, name) not in (None, ""):
                losses.lose(field)


def _lose_what_changes_answers(request: ConversationRequest, losses: ToMessages) -> None:
    if request.n != 1:
        losses.lose(HubField.N)
    if request.logit_bias:
        losses.lose(HubField.LOGIT_BIAS)
    if request.logprobs is not None:
        losses.lose(HubField.LOGPROBS)
    if request.presence_penalty:
        losses.lose(HubField.PRESENCE_PENALTY)
    if request.frequency_penalty:
        losses.lose(HubField.FREQUENCY_PENALTY)
