"""A checked Messages request in the hub's words.

What has no place there is refused with its path: tools and blocks of the vendor's own, files that were sent before, search results, documents in pieces,
instructions in the middle of a conversation, unknown settings. Two things are read more loosely: `cache_control` keeps that a prefix may be kept and not for
how long; the effort `max` is the hub's highest, `xhigh`. Thinking that is `disabled` is a budget of 0, and `adaptive` thinking leaves effort and budget open.
"""

from __future__ import annotations

from msgspec.structs import replace

from cliproxy.dialects import Dialect
from cliproxy.formats.json_bounds import encode_json
from cliproxy.translators.anthropic_messages.request import MessagesRequest
from cliproxy.translators.anthropic_messages.signatures import Kind, untag
from cliproxy.translators.anthropic_messages.wire import (
    KNOWN_FIELDS,
    AnyChoice,
    AssistantBlock,
    AssistantMessage,
    AutoChoice,
    Base64Source,
    ContentSource,
    CountBody,
    DocumentBlock,
    ImageBlock,
    MessagesBody,
    NamedChoice,
    RedactedThinkingBlock,
    ResultContent,
    SystemMessage,
    TextBlock,
    TextCitation,
    TextSource,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
    UserBlock,
    UserMessage,
)
from cliproxy.translators.anthropic_messages.wire import Thinking as WireThinking
from cliproxy.translators.anthropic_messages.wire import Tool as WireTool
from cliproxy.translators.conversation import (
    Citation,
    ConversationRequest,
    Document,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cliproxy.translators.policy_clients import FromMessages, MessagesField

FIELD_NAMES = {
    "model": "model",
    "stream": "stream",
    "max_tokens": "max_tokens",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
    "tool_choice": "tool_choice",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop": "stop_sequences",
    "output": "output_config.format",
    "thinking": "thinking",
    "user": "metadata.user_id",
    "metadata": "metadata",
    "service_tier": "service_tier",
}

_TIERS = {"auto": "auto", "standard_only": "default"}  # in OpenAI's words, which are the hub's


def conversation_of(request: MessagesRequest) -> ConversationRequest:
    """Return `request` in the hub's words. Raises `UnsupportedFeature` with the path of what has no place there."""
    wire = request.wire
    losses = FromMessages()
    unknown = sorted(name for name in request.rest.keys() - KNOWN_FIELDS if request.rest[name] is not None)
    for name in unknown:
        losses.lose(MessagesField.UNKNOWN, name)
    if wire.speed not in (None, "standard"):
        losses.lose(MessagesField.SPEED)
    body = wire if isinstance(wire, MessagesBody) else None
    if body is not None and body.max_tokens == 0:
        raise losses.refusal(MessagesField.CACHE_FILLING)
    messages = _messages(wire, losses)
    choice, parallel = _tool_choice(wire)
    return ConversationRequest(
        dialect=Dialect.ANTHROPIC_MESSAGES,
        model=request.model,
        stream=request.stream,
        max_tokens=request.max_tokens or 1,  # a question for tokens has none, and asks for no answer
        messages=messages,
        system=_system(wire),
        tools=tuple(_tool(tool, f"tools[{index}]", losses) for index, tool in enumerate(wire.tools or ())),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        temperature=body.temperature if body else None,
        top_p=body.top_p if body else None,
        top_k=body.top_k if body else None,
        stop=tuple(body.stop_sequences or ()) if body else (),
        output=_output(wire),
        thinking=_thinking(wire, losses),
        user=(body.metadata.user_id or "") if body and body.metadata else "",
        service_tier=_TIERS.get(body.service_tier, body.service_tier) if body and body.service_tier else "",
        left_out=losses,
    )


def citation_of(citation: TextCitation) -> Citation:
    """Return `citation` without its place in the source, which the hub does not name."""
    return Citation(
        url=citation.url or citation.source or "",
        title=citation.title or citation.document_title or "",
        cited=citation.cited_text or "",
        document=-1 if citation.document_index is None else citation.document_index,
    )


# --- messages --------------------------------------------------------------------------------------------------------


def _system(wire: CountBody) -> tuple[Text, ...]:
    texts = _texts(wire.system)
    for message in wire.messages:
        if not isinstance(message, SystemMessage):
            break
        texts += _texts(message.content)
    return tuple(texts)


def _texts(content: str | list[TextBlock] | None) -> list[Text]:
    if isinstance(content, str):
        return [Text(content)] if content else []
    return [Text(block.text, cache=block.cache_control is not None) for block in content or () if block.text]


def _messages(wire: CountBody, losses: FromMessages) -> tuple[Message, ...]:
    messages: list[Message] = []
    names: dict[str, str] = {}  # of the tools that were called, by the call's id
    for index, message in enumerate(wire.messages):
        at = f"messages[{index}]"
        if isinstance(message, SystemMessage):
            if messages:
                raise losses.refusal(MessagesField.INSTRUCTIONS_BETWEEN, f"{at}.role")
            continue
        parts = _parts(message, at, names, losses)
        if parts:
            messages.append(Message("user" if isinstance(message, UserMessage) else "assistant", tuple(parts)))
    if wire.cache_control is not None and messages:
        messages[-1] = _with_cache_marker(messages[-1])
    return tuple(messages)


def _parts(message: UserMessage | AssistantMessage, at: str, names: dict[str, str], losses: FromMessages) -> list[Part]:
    """Return what `message` says, without empty texts."""
    if isinstance(message.content, str):
        return [Text(message.content)] if message.content else []
    if isinstance(message, UserMessage):
        return [_user_part(block, f"{at}.content[{place}]", names, losses) for place, block in enumerate(message.content) if not _is_empty(block)]
    parts: list[Part] = []
    for place, block in enumerate(message.content):
        if isinstance(block, ThinkingBlock | RedactedThinkingBlock):
            _add_thoughts(block, parts)
        elif not _is_empty(block):
            parts.append(_assistant_part(block, f"{at}.content[{place}]", names))
    return parts


def _add_thoughts(block: ThinkingBlock | RedactedThinkingBlock, parts: list[Part]) -> None:
    """Add what `block` tells to `parts`: a thought with its signer, or the proof of the call before it."""
    if isinstance(block, ThinkingBlock):
        signed = untag(block.signature, Kind.SIGNATURE)
        told = signed.kind is Kind.SIGNATURE and bool(signed.text)
        parts.append(Reasoning(block.thinking, signed.text if told else "", signer=signed.signer if told else None, id=signed.id))
        return
    hidden = untag(block.data, Kind.REDACTED)
    if hidden.kind is Kind.REDACTED and hidden.text:
        parts.append(Reasoning(redacted=hidden.text, signer=hidden.signer, id=hidden.id))
    elif hidden.kind is Kind.CALL and parts and isinstance(parts[-1], ToolCall):
        parts[-1] = replace(parts[-1], signature=hidden.text)


def _is_empty(block: UserBlock | AssistantBlock) -> bool:
    return isinstance(block, TextBlock) and not block.text


def _with_cache_marker(message: Message) -> Message:
    """Return `message` with a tag on its last part, as the body's own `cache_control` asks for."""
    *parts, last = message.parts
    if isinstance(last, Text | Image | Document | ToolResult):
        last = replace(last, cache=True)
    return Message(message.role, (*parts, last))


def _user_part(block: UserBlock, at: str, names: dict[str, str], losses: FromMessages) -> Part:
    if isinstance(block, TextBlock):
        return Text(block.text, cache=block.cache_control is not None)
    if isinstance(block, ImageBlock):
        return _image(block, at)
    if isinstance(block, DocumentBlock):
        return _document(block, at, losses)
    if isinstance(block, ToolResultBlock):
        return _result(block, at, names, losses)
    raise losses.refusal(MessagesField.BLOCK, at)


def _assistant_part(block: AssistantBlock, at: str, names: dict[str, str]) -> Part:
    if isinstance(block, TextBlock):
        return Text(block.text, tuple(map(citation_of, block.citations or ())), block.cache_control is not None)
    if isinstance(block, ToolUseBlock):
        if block.toolset_name is not None or (block.caller is not None and block.caller.get("type") != "direct"):
            raise FromMessages.refusal(MessagesField.TOOLSET_CALL, at)
        names[block.id] = block.name
        return ToolCall(block.id, block.name, encode_json(block.input).decode(), at=at)
    raise FromMessages.refusal(MessagesField.BLOCK, at)


def _image(block: ImageBlock, at: str) -> Image:
    cache = block.cache_control is not None
    if isinstance(block.source, Base64Source):
        return Image(media_type=block.source.media_type, data=block.source.data, at=at, cache=cache)
    if isinstance(block.source, UrlSource):
        return Image(url=block.source.url, at=at, cache=cache)
    raise FromMessages.refusal(MessagesField.SOURCE, f"{at}.source")


def _document(block: DocumentBlock, at: str, losses: FromMessages) -> Document:
    source = block.source
    if block.context:
        losses.lose(MessagesField.CONTEXT, f"{at}.context")
    media_type = data = url = text = ""
    if isinstance(source, Base64Source):
        media_type, data = source.media_type, source.data
    elif isinstance(source, UrlSource):
        media_type, url = "application/pdf", source.url  # the only kind that Anthropic fetches
    elif isinstance(source, TextSource):
        media_type, text = source.media_type, source.data
    elif isinstance(source, ContentSource) and isinstance(source.content, str):
        media_type, text = "text/plain", source.content
    else:
        raise losses.refusal(MessagesField.SOURCE, f"{at}.source")
    cited = block.citations is not None and block.citations.enabled is True
    cache = block.cache_control is not None
    return Document(media_type=media_type, data=data, url=url, text=text, title=block.title or "", citations=cited, at=at, cache=cache)


def _result(block: ToolResultBlock, at: str, names: dict[str, str], losses: FromMessages) -> ToolResult:
    if block.toolset_name is not None:
        raise losses.refusal(MessagesField.TOOLSET_RESULT, f"{at}.toolset_name")
    content: list[Text | Image | Document] = []
    if isinstance(block.content, str):
        content = [Text(block.content)] if block.content else []
    else:
        for place, inner in enumerate(block.content or ()):
            content.append(_result_part(inner, f"{at}.content[{place}]", losses))
    name = names.get(block.tool_use_id, "")
    return ToolResult(block.tool_use_id, name, tuple(content), block.is_error is True, at, block.cache_control is not None)


def _result_part(block: ResultContent, at: str, losses: FromMessages) -> Text | Image | Document:
    if isinstance(block, TextBlock):
        return Text(block.text, cache=block.cache_control is not None)
    if isinstance(block, ImageBlock):
        return _image(block, at)
    if isinstance(block, DocumentBlock):
        return _document(block, at, losses)
    raise losses.refusal(MessagesField.BLOCK, at)


# --- tools and settings ----------------------------------------------------------------------------------------------


def _tool(tool: WireTool, at: str, losses: FromMessages) -> Tool:
    if not tool.is_custom or tool.name is None:
        raise losses.refusal(MessagesField.VENDORS_TOOL, at)
    if tool.defer_loading:
        losses.lose(MessagesField.DEFER_LOADING, f"{at}.defer_loading")
    if tool.input_examples:
        losses.lose(MessagesField.INPUT_EXAMPLES, f"{at}.input_examples")
    if tool.allowed_callers not in (None, [], ["direct"]):
        losses.lose(MessagesField.ALLOWED_CALLERS, f"{at}.allowed_callers")
    return Tool(tool.name, tool.description or "", tool.input_schema, tool.strict, tool.cache_control is not None)


def _tool_choice(wire: CountBody) -> tuple[ToolChoice | None, bool | None]:
    """Return the choice, and whether calls may be parallel."""
    choice = wire.tool_choice
    if choice is None:
        return None, None
    if isinstance(choice, AutoChoice):
        made = ToolChoice("auto")
    elif isinstance(choice, AnyChoice):
        made = ToolChoice("required")
    elif isinstance(choice, NamedChoice):
        made = ToolChoice("named", (choice.name,))
    else:
        return ToolChoice("none"), None
    disabled = choice.disable_parallel_tool_use
    return made, None if disabled is None else not disabled


def _output(wire: CountBody) -> OutputFormat | None:
    if wire.output_config is None or wire.output_config.format is None:
        return None
    return OutputFormat("schema", schema=wire.output_config.format.schema)


def _thinking(wire: CountBody, losses: FromMessages) -> Thinking | None:
    effort = (wire.output_config.effort or "") if wire.output_config is not None else ""
    if effort == "max":
        effort = "xhigh"
    thinking: WireThinking | None = wire.thinking
    if thinking is None:
        return Thinking(effort) if effort else None
    show = None if thinking.display is None else thinking.display != "omitted"
    if thinking.type == "enabled":
        return Thinking(effort, thinking.budget_tokens, True if show is None else show)  # models with budgets show thoughts unless told not to
    if thinking.type == "adaptive":
        return Thinking(effort, None, show)
    if thinking.type == "disabled":
        return Thinking(effort, 0)
    losses.lose(MessagesField.THINKING_TYPE)
    return Thinking(effort) if effort else None
