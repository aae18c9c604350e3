"""A request for Bedrock's Converse. The model is in the path, so `Encoded.prefix` is all of it.

What always holds: what leaves has a cap on output tokens; turns alternate and the user begins; no text is empty; thoughts go back only if Bedrock's model
signed them; every field is one that `metering` knows, which egress reads again.

Converse has no word for thinking and `top_k`: where the model is Anthropic's (`Quirks.CLAUDE`) they go into `additionalModelRequestFields`
(https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html), as `translators.claude_thinking` says; for other models `top_k`
is refused, and how much to think is `outputConfig.effort` at most. What cannot be said of it is left out and reported as `thinking`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cliproxy.dialects import Quirks
from cliproxy.errors import SchemaError
from cliproxy.formats.json_bounds import encode_json
from cliproxy.translators.bedrock_converse.encode_messages import CACHE_POINT, TOOL_NAME, Turns, begin_with_thoughts, called_names, system_blocks
from cliproxy.translators.claude_thinking import effort_of, thinking_of
from cliproxy.translators.conversation import ConversationRequest, Encoded, OutputFormat, Tool
from cliproxy.translators.policy_targets import HubField, ToConverse

MAX_STOP_SEQUENCES = 2500  # InferenceConfigurationStopSequencesList
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}
_HINTS = tuple((field, field.param) for field in (HubField.SEED, HubField.VERBOSITY, HubField.CACHE_KEY, HubField.METADATA, HubField.USER))
_TIERS = frozenset(("default", "flex", "priority"))
_encoder = msgspec.json.Encoder()


def encode_conversation(request: ConversationRequest, quirks: Quirks) -> Encoded:
    """Return `request` in Converse's words.

    Raises `UnsupportedFeature` with the field of `ConversationRequest`, or the part's `at`, that it cannot express. `dropped` are the fields that were left out
    because they change no answer's meaning.
    """
    losses = ToConverse(request.left_out)
    _lose_what_changes_answers(request, losses)
    claude = bool(quirks & Quirks.CLAUDE)
    thinking = _thinking_of(request, losses, quirks)
    thinks = thinking is not None and thinking["type"] != "disabled"
    body: dict[str, Any] = {"messages": Turns(losses).write(request.messages), "inferenceConfig": _inference(request, losses, claude=claude, thinks=thinks)}
    system = system_blocks(request.system)
    if system:
        body["system"] = system
    tools = _tool_config(request, losses)
    if tools:
        body["toolConfig"] = tools
    output = _output_config(request, losses, quirks)
    if output:
        body["outputConfig"] = output
    more: dict[str, Any] = {}
    if thinking is not None:
        more["thinking"] = thinking
    if request.top_k is not None:
        if not claude or thinks:
            losses.lose(HubField.TOP_K)
        else:
            more["top_k"] = request.top_k
    if more:
        body["additionalModelRequestFields"] = more
    if request.service_tier:
        if request.service_tier in _TIERS:
            body["serviceTier"] = {"type": request.service_tier}
        else:
            losses.lose(HubField.SERVICE_TIER)
    for field, name in _HINTS:
        if getattr(request, name) not in (None, ""):
            losses.lose(field)
    if request.store:  # Bedrock stores nothing, as `false` wants it
        losses.lose(HubField.STORE)
    try:
        return Encoded(_encoder.encode(body), b"", tuple(losses))
    except RecursionError:
        raise losses.refusal(HubField.TOOL_NESTING) from None  # the only values of any depth are schemas


def _lose_what_changes_answers(request: ConversationRequest, losses: ToConverse) -> None:
    if request.n != 1:
        losses.lose(HubField.N)
    if request.logit_bias:
        losses.lose(HubField.LOGIT_BIAS)
    if request.presence_penalty:
        losses.lose(HubField.PRESENCE_PENALTY)
    if request.frequency_penalty:
        losses.lose(HubField.FREQUENCY_PENALTY)
    if request.logprobs is not None:
        losses.lose(HubField.LOGPROBS)


def _inference(request: ConversationRequest, losses: ToConverse, *, claude: bool, thinks: bool) -> dict[str, Any]:
    """Return the settings that every model has. 1.0 is Anthropic's own temperature and `top_p`: it is left out there, as newer models refuse either."""
    fields: dict[str, Any] = {"maxTokens": request.max_tokens}
    if request.temperature is not None and not (claude and request.temperature == 1):
        if not 0 <= request.temperature <= 1 or thinks:
            losses.lose(HubField.TEMPERATURE)
        else:
            fields["temperature"] = request.temperature
    if request.top_p is not None and not (claude and request.top_p == 1):
        if not 0 <= request.top_p <= 1 or (thinks and request.top_p < 0.95):
            losses.lose(HubField.TOP_P)
        else:
            fields["topP"] = request.top_p
    if request.stop:
        taken = [stop for stop in request.stop if stop.strip()][:MAX_STOP_SEQUENCES]
        if len(taken) < len(request.stop):
            losses.lose(HubField.STOP)
        if taken:
            fields["stopSequences"] = taken
    return fields


# --- tools -----------------------------------------------------------------------------------------------------------


def _tool_config(request: ConversationRequest, losses: ToConverse) -> dict[str, Any]:
    """Return tools and choice; empty without tools. Of tools that may not be called none is shown, since Converse has no such choice; but it wants the tools of
    a history with calls."""
    choice, tools = request.tool_choice, request.tools
    mode, names = (choice.mode, choice.names) if choice is not None else ("auto", ())
    if mode in ("auto", "required") and names:
        tools = tuple(tool for tool in tools if tool.name in names)
        if len(tools) != len(set(names)):
            raise losses.refusal(HubField.TOOL_CHOICE)
    if mode == "none" or not tools:
        if mode in ("required", "named"):
            raise losses.refusal(HubField.TOOL_CHOICE)
        if called_names(request.messages):
            raise losses.refusal(HubField.TOOL_CHOICE if tools else HubField.TOOLS_OF_HISTORY)
        return {}
    if request.parallel_tool_calls is False:
        losses.lose(HubField.PARALLEL_CALLS)
    config: dict[str, Any] = {"tools": [block for tool in tools for block in ([_tool(tool), CACHE_POINT] if tool.cache else [_tool(tool)])]}
    if mode == "required":
        config["toolChoice"] = {"any": {}}
    elif mode == "named":
        if len(names) != 1 or all(tool.name != names[0] for tool in tools):
            raise losses.refusal(HubField.TOOL_CHOICE)
        config["toolChoice"] = {"tool": {"name": names[0]}}
    return config


def _tool(tool: Tool) -> dict[str, Any]:
    if not TOOL_NAME.fullmatch(tool.name):
        raise ToConverse.refusal(HubField.TOOL_NAME)
    schema = tool.parameters
    if schema is None:
        schema = {"type": "object", "properties": {}}
    elif "type" not in schema:
        schema = {"type": "object", **schema}
    elif schema["type"] != "object":
        raise ToConverse.refusal(HubField.TOOL_SCHEMA)
    made: dict[str, Any] = {"name": tool.name, "inputSchema": {"json": schema}}
    if tool.description:
        made["description"] = tool.description
    if tool.strict is not None:
        made["strict"] = tool.strict
    return {"toolSpec": made}


# --- output and thinking ---------------------------------------------------------------------------------------------


def _output_config(request: ConversationRequest, losses: ToConverse, quirks: Quirks) -> dict[str, Any]:
    config: dict[str, Any] = {}
    wanted = request.thinking
    if quirks & Quirks.CLAUDE:
        effort = effort_of(wanted, by_budget=bool(quirks & Quirks.BUDGET_THINKING))
    else:
        effort = "" if wanted is None else _EFFORTS.get(wanted.effort, "")
    if effort:
        config["effort"] = effort
    output = request.output
    if output is not None:
        if output.kind != "schema" or output.schema is None:
            losses.lose(HubField.OUTPUT_KIND)
        else:
            config["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": _json_schema(output)}}
    return config


def _json_schema(output: OutputFormat) -> dict[str, Any]:
    try:
        schema: dict[str, Any] = {"schema": encode_json(output.schema).decode()}
    except SchemaError:
        raise ToConverse.refusal(HubField.OUTPUT_NESTING) from None
    if output.name:
        schema["name"] = output.name
    if output.description:
        schema["description"] = output.description
    return schema


def _thinking_of(request: ConversationRequest, losses: ToConverse, quirks: Quirks) -> dict[str, Any] | None:
    """Return what an Anthropic model is told of thinking; None for nothing."""
    if quirks & Quirks.CLAUDE:
        by_budget = bool(quirks & Quirks.BUDGET_THINKING)
        return thinking_of(request, losses, by_budget=by_budget, begin_with_thoughts=lambda: begin_with_thoughts(request.messages))
    wanted = request.thinking
    if wanted is not None:
        if wanted.effort and wanted.effort != "none" and wanted.effort not in _EFFORTS:
            losses.lose(HubField.EFFORT)
        elif wanted.effort not in _EFFORTS:
            losses.lose(HubField.THINKING)
    return None
