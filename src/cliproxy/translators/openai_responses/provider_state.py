"""What of a request names things that the provider keeps or carries credentials, and what becomes of it (ADR 0096).

The gateway speaks to a provider with one credential for all its clients. A request that names a stored response, conversation, prompt, file, container or
vector store would reach whatever any of them stored, so it is refused, and nothing is stored, unless the operator says `requests.provider_state: true`.
Tools that connect the provider to a server of the client's choice (`mcp`, connectors) or hand it secrets are refused always.
"""

from __future__ import annotations

from typing import Any

from cliproxy.errors import SchemaError, UnsupportedFeature
from cliproxy.translators.openai_responses.signatures import TAG
from cliproxy.translators.openai_responses.wire import (
    CodeInterpreter,
    CodeInterpreterCallItem,
    CustomCallOutputItem,
    FileSearch,
    FileSearchCallItem,
    FileSearchChoice,
    FunctionCallOutputItem,
    ImageGeneration,
    ImageGenerationCallItem,
    InputFile,
    InputImage,
    ItemReference,
    Mcp,
    MessageItem,
    ReasoningItem,
    ResponsesBody,
)
from cliproxy.translators.schema import refuse_other_model

ENCRYPTED_REASONING = "reasoning.encrypted_content"
HOW_TO = "send the whole input, with store: false"


def verify_credentials(wire: ResponsesBody) -> None:
    """Raise `SchemaError` for what no configuration allows: another server, secrets, another model, a response that nobody could fetch."""
    if isinstance(wire.tool_choice, ImageGeneration) and wire.tool_choice.model is not None:
        refuse_other_model("tool_choice.model")
    for index, tool in enumerate(wire.tools or ()):
        at = f"tools[{index}]"
        if isinstance(tool, ImageGeneration) and tool.model is not None:
            refuse_other_model(f"{at}.model")
        if isinstance(tool, Mcp):
            raise SchemaError("A request may not choose servers or credentials for the provider to use.", param=at, code="forbidden_field")
        if isinstance(tool, CodeInterpreter) and isinstance(tool.container, dict):
            policy = tool.container.get("network_policy")
            if policy is not None and policy != {"type": "disabled"}:  # an allow list may carry secrets for its hosts
                raise SchemaError("The code interpreter gets no network here.", param=f"{at}.container.network_policy", code="forbidden_field")
    if wire.background:
        raise UnsupportedFeature("This gateway keeps no responses to fetch later: leave out background, or stream.", param="background")


def state_field(wire: ResponsesBody) -> str:
    """Return the path of the first field that names something the provider keeps; empty if there is none."""
    for name, value in (
        ("previous_response_id", wire.previous_response_id),
        ("conversation", wire.conversation),
        ("prompt", wire.prompt),
        ("background_options", wire.background_options),
    ):
        if value is not None:
            return name
    if wire.prompt_cache_options is not None and wire.prompt_cache_options.comparison_response_id is not None:
        return "prompt_cache_options.comparison_response_id"
    for index, tool in enumerate(wire.tools or ()):
        if isinstance(tool, FileSearch):
            return f"tools[{index}]"
        if isinstance(tool, CodeInterpreter) and _names_container(tool.container):
            return f"tools[{index}].container"
        if isinstance(tool, ImageGeneration) and (tool.input_image_mask or {}).get("file_id") is not None:
            return f"tools[{index}].input_image_mask.file_id"
    if wire.tool_choice is not None and not isinstance(wire.tool_choice, str):
        if isinstance(wire.tool_choice, FileSearchChoice):
            return "tool_choice"
        if isinstance(wire.tool_choice, CodeInterpreter) and wire.tool_choice.container is not None:
            return "tool_choice.container"
        if isinstance(wire.tool_choice, ImageGeneration) and wire.tool_choice.input_image_mask is not None:
            return "tool_choice.input_image_mask"
    if isinstance(wire.input, list):
        for index, item in enumerate(wire.input):
            if type(item) is MessageItem and type(item.content) is str:
                continue
            inside = _state_in_item(item)
            if inside is not None:
                return f"input[{index}]{inside}"
    return ""


def _names_container(container: str | dict[str, Any] | None) -> bool:
    return container is not None and (isinstance(container, str) or bool(container.get("file_ids")))


def _state_in_item(item: Any) -> str | None:
    """Return where in `item` something that is kept is named, relative to it; `None` if nowhere."""
    if isinstance(item, MessageItem):
        return _file_in(item.content, ".content")
    if isinstance(item, FunctionCallOutputItem | CustomCallOutputItem):
        return _file_in(item.output, ".output")
    if isinstance(item, ItemReference | FileSearchCallItem | CodeInterpreterCallItem):  # a later call runs in the container of an earlier one
        return ""
    if isinstance(item, ImageGenerationCallItem) and not item.result:
        return ".result"
    return None


def _file_in(content: Any, name: str) -> str | None:
    if isinstance(content, list):
        for index, part in enumerate(content):
            if isinstance(part, InputImage | InputFile) and part.file_id is not None:
                return f"{name}[{index}].file_id"
    return None


def forget(document: dict[str, Any], wire: ResponsesBody) -> bool:
    """Make what leaves ask the provider to store nothing, and its thoughts to be self-contained. Return whether thoughts of the history were left out."""
    document["store"] = False
    thinks = wire.reasoning is not None and wire.reasoning.effort != "none" and bool(wire.reasoning.effort or wire.reasoning.summary)
    has_thoughts = _has_thoughts(wire)
    if (thinks or has_thoughts) and ENCRYPTED_REASONING not in (wire.include or ()):
        document["include"] = [*(wire.include or ()), ENCRYPTED_REASONING]  # models that do not reason refuse it: never unasked
    return has_thoughts and leave_out_thoughts(document, wire, lookups=True)


def _has_thoughts(wire: ResponsesBody) -> bool:
    return isinstance(wire.input, list) and ReasoningItem in map(type, wire.input)


def leave_out_thoughts(document: dict[str, Any], wire: ResponsesBody, *, lookups: bool) -> bool:
    """Leave out thoughts that another vendor signed and, with `lookups`, those that only name something stored. Return whether there were any."""
    if not _has_thoughts(wire) or not isinstance(wire.input, list):
        return False
    kept = [raw for raw, item in zip(document["input"], wire.input, strict=True) if not _is_useless(item, lookups)]
    left_out = len(kept) < len(wire.input)
    document["input"] = kept
    return left_out


def _is_useless(item: Any, lookups: bool) -> bool:
    if not isinstance(item, ReasoningItem):
        return False
    if item.encrypted_content:
        return item.encrypted_content.startswith(TAG)
    return lookups and not item.content
