"""Bedrock's Converse and ConverseStream: read by the vendor's own model of the service (botocore's), answered with real event-stream framing."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import struct
import urllib.parse
import zlib
from functools import cache
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape

from fakes.vendor_plan import SOURCE_TITLE, Answer, Asked, Item, Plan, Tokens, Turn, pieces, verify_signature
from fakes.vendor_schema import Refused, decoded, mapping, strict_schema, text

ACCESS_KEY = "AKIDFAKE0123456789AB"
SECRET_KEY = "fake/secret/0123456789abcdefghijklmnopqrs"
REGION = "eu-central-1"


@cache
def service() -> ServiceModel:
    """Return botocore's description of the service."""
    return ServiceModel(Loader().load_service_model("bedrock-runtime", "service-2"), "bedrock-runtime")


def verify_shape(value: Any, shape: Shape, path: str) -> None:
    """Refuse what the service's model does not allow."""
    kind = shape.type_name
    if kind == "structure":
        if getattr(shape, "is_document_type", False):
            return
        mapping(value, path)
        unknown = set(value) - set(shape.members)
        if unknown:
            raise Refused(f"Unknown member {sorted(unknown)[0]}.", path=path)
        for name in shape.metadata.get("required", ()):
            if name not in value and shape.members[name].serialization.get("location") != "uri":
                raise Refused("Member must not be null.", path=f"{path}.{name}".lstrip("."))
        if getattr(shape, "is_tagged_union", False) and len(value) != 1:
            raise Refused("Exactly one member of a union must be set.", path=path)
        for name, member in value.items():
            verify_shape(member, shape.members[name], f"{path}.{name}".lstrip("."))
    elif kind == "list":
        if not isinstance(value, list) or not shape.metadata.get("min", 0) <= len(value) <= shape.metadata.get("max", 1 << 20):
            raise Refused("Expected a list of another length.", path=path)
        for index, one in enumerate(value):
            verify_shape(one, shape.member, f"{path}.{index}")
    elif kind == "map":
        mapping(value, path)
    elif kind in ("string", "blob"):
        text(value, path)
        if kind == "blob":
            decoded(value, path)
        enum = getattr(shape, "enum", None)
        if enum and value not in enum:
            raise Refused(f"Member must satisfy enum value set: {enum}.", path=path)
        if "pattern" in shape.metadata and not re.fullmatch(shape.metadata["pattern"], value):
            raise Refused("Member must satisfy regular expression pattern.", path=path)
        if kind == "string" and not shape.metadata.get("min", 0) <= len(value) <= shape.metadata.get("max", 1 << 30):
            raise Refused("Member must have another length.", path=path)
    elif kind == "boolean":
        if not isinstance(value, bool):
            raise Refused("Expected a boolean.", path=path)
    elif isinstance(value, bool) or not isinstance(value, int if kind in ("integer", "long") else int | float):
        raise Refused("Expected a number.", path=path)
    elif not float(shape.metadata.get("min", "-inf")) <= value <= float(shape.metadata.get("max", "inf")):
        raise Refused("Member is out of range.", path=path)


def verify_authorization(method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> None:
    """Refuse a request whose signature (AWS Signature Version 4) is not the one of our key."""
    values = {name.lower(): value.strip() for name, value in headers}
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/bedrock/aws4_request, ?SignedHeaders=([\w;-]+), ?Signature=([0-9a-f]{64})",
        values.get("authorization", ""),
    )
    if not found:
        raise Refused("Missing Authentication Token", status=403, kind="MissingAuthenticationTokenException")
    key, date, region, names, signature = found.groups()
    stamp = values.get("x-amz-date", "")
    if key != ACCESS_KEY or region != REGION or not stamp.startswith(date):
        raise Refused("The security token included in the request is invalid.", status=403, kind="UnrecognizedClientException")
    if not {"host", "x-amz-date"} <= set(names.split(";")):
        raise Refused("'Host' must be a signed header.", status=403, kind="InvalidSignatureException")
    digest = hashlib.sha256(body).hexdigest()
    if values.get("x-amz-content-sha256", digest) != digest:
        raise Refused("The provided 'x-amz-content-sha256' header does not match what was computed.", status=400, kind="InvalidSignatureException")
    path, _, query = target.partition("?")
    canonical_path = urllib.parse.quote(path, safe="/~-_.")  # what was sent is encoded once more, as every service but S3 wants
    lines = [method, canonical_path, query, *(f"{name}:{values.get(name, '')}" for name in names.split(";")), "", names, digest]
    scope = f"{date}/{region}/bedrock/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()])
    step = ("AWS4" + SECRET_KEY).encode()
    for part in (date, region, "bedrock", "aws4_request"):
        step = hmac.digest(step, part.encode(), "sha256")
    if not hmac.compare_digest(hmac.digest(step, to_sign.encode(), "sha256").hex(), signature):
        raise Refused("The request signature we calculated does not match the signature you provided.", status=403, kind="InvalidSignatureException")


def read(body: Any, *, model: str, stream: bool) -> Asked:
    """Return what the request says, or refuse it."""
    verify_shape(body, service().operation_model("Converse").input_shape, "")
    if not body.get("messages"):
        raise Refused("A conversation must start with a user message.", path="messages")
    config = body.get("toolConfig", {})
    tools = tuple(
        {"name": one["toolSpec"]["name"], "description": one["toolSpec"].get("description", ""), "schema": one["toolSpec"]["inputSchema"]["json"]}
        for one in config.get("tools", ())
        if "toolSpec" in one
    )
    for tool in tools:
        if tool["schema"].get("type") != "object":
            raise Refused("The value at toolConfig.tools.0.toolSpec.inputSchema.json.type must be one of the following: object.", path="toolConfig")
    chosen = config.get("toolChoice", {"auto": {}})
    choice = f"named:{chosen['tool']['name']}" if "tool" in chosen else "required" if "any" in chosen else "auto"
    inference = body.get("inferenceConfig", {})
    more = body.get("additionalModelRequestFields", {})
    thinking = more.get("thinking") or more.get("reasoning_config") or {}
    for name in more:
        if name not in ("thinking", "reasoning_config", "top_k", "tool_choice", "anthropic_beta", "output_config"):
            raise Refused(f"extraneous key [{name}] is not permitted", path="additionalModelRequestFields")
    if thinking.get("type") == "enabled":
        if thinking.get("budget_tokens", 0) < 1024 or thinking["budget_tokens"] >= inference.get("maxTokens", 4096):
            raise Refused("max_tokens must be greater than thinking.budget_tokens, which is at least 1024.", path="additionalModelRequestFields.thinking")
        if inference.get("temperature", 1) != 1:
            raise Refused("`temperature` may only be set to 1 when thinking is enabled.", path="inferenceConfig.temperature")
        if choice != "auto":
            raise Refused("Thinking may not be enabled when tool_choice forces tool use.", path="toolConfig.toolChoice")
    form = body.get("outputConfig", {}).get("textFormat", {}).get("structure", {}).get("jsonSchema")
    schema = None
    if form:
        schema = json.loads(form["schema"])
        strict_schema(schema, "outputConfig.textFormat.structure.jsonSchema.schema", all_required=False)
    named = {"temperature": "temperature", "topP": "top_p"}
    settings = {ours: inference[theirs] for theirs, ours in named.items() if theirs in inference}
    if "top_k" in more:
        settings["top_k"] = more["top_k"]
    return Asked(
        vendor="bedrock",
        model=model,
        stream=stream,
        turns=conversation(body["messages"], tools=bool(tools), thinking=thinking.get("type") == "enabled"),
        system=tuple(one["text"] for one in body.get("system", ()) if "text" in one),
        tools=tools,
        choice=choice,
        stop=tuple(inference.get("stopSequences", ())),
        settings={**settings, "max_tokens": inference.get("maxTokens"), "thinking": thinking},
        schema=schema,
        thinking=thinking.get("type") in ("enabled", "adaptive"),
    )


def conversation(messages: list[dict[str, Any]], *, tools: bool, thinking: bool) -> tuple[Turn, ...]:
    """Return the turns, which alternate and begin with the user. Results answer the calls of the turn before."""
    result: list[Turn] = []
    waiting: dict[str, str] = {}
    documents: set[str] = set()
    for index, message in enumerate(messages):
        at, role = f"messages.{index}", message["role"]
        if role != ("user", "assistant")[index % 2]:
            raise Refused("A conversation must alternate between user and assistant roles.", path=at)
        if not message["content"]:
            raise Refused("The content field in the Message object is empty.", path=at)
        answers = [block["toolResult"]["toolUseId"] for block in message["content"] if "toolResult" in block]
        if sorted(answers) != sorted(waiting):
            raise Refused("Expected toolResult blocks for exactly the toolUse ids of the previous turn.", path=at)
        items = []
        for number, block in enumerate(message["content"]):
            if "cachePoint" in block:
                continue
            path = f"{at}.content.{number}"
            if "document" in block:
                name = block["document"]["name"]
                if name in documents or not re.fullmatch(r"[a-zA-Z0-9()\[\] -]+", name) or "  " in name:
                    raise Refused(
                        "The document file name can only contain alphanumeric characters, single spaces, hyphens, parentheses and brackets, and be there once.",
                        path=path,
                    )
                documents.add(name)
            items.append(item_of(block, path, waiting))
        kinds = [next(iter(block)) for block in message["content"]]
        if "toolUse" in kinds and not tools:
            raise Refused("The toolConfig field must be defined when using toolUse and toolResult content blocks.", path="toolConfig")
        if thinking and role == "assistant" and "toolUse" in kinds and kinds[0] != "reasoningContent":
            raise Refused("Expected `thinking` or `redacted_thinking`, but found `tool_use`.", path=at)
        if "document" in kinds and "text" not in kinds:
            raise Refused("A text block must be included with documents.", path=at)
        waiting = {block["toolUse"]["toolUseId"]: block["toolUse"]["name"] for block in message["content"] if "toolUse" in block}
        result.append(Turn(role, tuple(items)))
    if waiting or result[-1].role != "user":
        raise Refused("A conversation must end with a user message that answers every toolUse.", path="messages")
    return tuple(result)


FORMATS = {
    "txt": "text/plain",
    "pdf": "application/pdf",
    "md": "text/markdown",
    "csv": "text/csv",
    "html": "text/html",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
}


def item_of(block: dict[str, Any], path: str, waiting: dict[str, str]) -> Item:
    """Return what a block says."""
    kind = next(iter(block))
    value = block[kind]
    match kind:
        case "text":
            if not value:
                raise Refused("The text field in the ContentBlock object is blank.", path=path)
            return Item("text", text=value)
        case "image" | "document" | "audio":
            source = value["source"]
            name = value.get("name", "")
            if "text" in source:
                return Item("document", media="text/plain", text=source["text"], name=name)
            if "bytes" not in source:
                raise Refused("Only bytes are supported here.", path=path)
            media = f"image/{value['format']}" if kind == "image" else FORMATS[value["format"]]
            return Item(kind, media=media, data=decoded(source["bytes"], path), name=name)
        case "toolUse":
            mapping(value["input"], f"{path}.toolUse.input")
            return Item("call", id=value["toolUseId"], name=value["name"], arguments=json.dumps(value["input"]))
        case "toolResult":
            items = tuple(
                Item("text", text=json.dumps(part["json"], sort_keys=True, ensure_ascii=False)) if "json" in part else item_of(part, path, {})
                for part in value["content"]
            )
            return Item("result", id=value["toolUseId"], name=waiting[value["toolUseId"]], error=value.get("status") == "error", items=items)
        case "reasoningContent":
            thought = value.get("reasoningText")
            if thought is None:
                return Item("thought")
            verify_signature("bedrock", thought["text"], thought.get("signature", ""), path)
            return Item("thought", text=thought["text"])
        case _:
            raise Refused("This content is not supported by the model.", path=path)


# --- answers -------------------------------------------------------------------------------------------------------------

STOPS = {
    "end": "end_turn",
    "length": "max_tokens",
    "sequence": "stop_sequence",
    "tools": "tool_use",
    "filter": "guardrail_intervened",
    "refusal": "content_filtered",
}


def usage(tokens: Tokens) -> dict[str, Any]:
    """Return the counts: `inputTokens` without what was cached."""
    return {
        "inputTokens": tokens.prompt - tokens.cached - tokens.written,
        "outputTokens": tokens.completion,
        "totalTokens": tokens.prompt + tokens.completion,
        "cacheReadInputTokens": tokens.cached,
        "cacheWriteInputTokens": tokens.written,
    }


def block_of(item: Item) -> dict[str, Any]:
    """Return a block of an answer."""
    if item.kind == "thought":
        return {"reasoningContent": {"reasoningText": {"text": item.text, "signature": item.signature}}}
    if item.kind == "call":
        return {"toolUse": {"toolUseId": item.id, "name": item.name, "input": json.loads(item.arguments)}}
    if item.source:
        return {"citationsContent": {"content": [{"text": item.text}], "citations": [citation(item)]}}
    return {"text": item.text}


def citation(item: Item) -> dict[str, Any]:
    """Return where a text is from."""
    return {"title": SOURCE_TITLE, "sourceContent": [{"text": "Wien ist"}], "location": {"web": {"url": item.source, "domain": "pages.example"}}}


def whole(asked: Asked, plan: Plan) -> dict[str, Any]:
    """Return a whole answer."""
    (answer,) = plan.choices
    message = {"role": "assistant", "content": [block_of(item) for item in answer.items]}
    return {"output": {"message": message}, "stopReason": STOPS[answer.stop], "usage": usage(plan.tokens), "metrics": {"latencyMs": 12}}


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """Return one event-stream message: lengths, their checksum, headers, payload, checksum of all."""
    encoded = b"".join(bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode() for name, value in headers.items())
    prelude = struct.pack(">II", 16 + len(encoded) + len(payload), len(encoded))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + encoded + payload
    return message + struct.pack(">I", zlib.crc32(message))


def event(kind: str, value: dict[str, Any]) -> bytes:
    """Return an event."""
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return frame(headers, json.dumps({**value, "p": "abcdefgh"}, ensure_ascii=False).encode())  # `p` is the padding that the vendor adds


def events(asked: Asked, plan: Plan) -> list[bytes]:
    """Return a streamed answer."""
    (answer,) = plan.choices
    return stream_of(answer, plan.tokens)


def stream_of(answer: Answer, tokens: Tokens) -> list[bytes]:
    """Return the events of one answer. Text blocks have no start."""
    result = [event("messageStart", {"role": "assistant"})]
    for index, item in enumerate(answer.items):
        where = {"contentBlockIndex": index}
        if item.kind == "thought":
            result += [event("contentBlockDelta", {**where, "delta": {"reasoningContent": {"text": piece}}}) for piece in pieces(item.text, 5)]
            result.append(event("contentBlockDelta", {**where, "delta": {"reasoningContent": {"signature": item.signature}}}))
        elif item.kind == "call":
            result.append(event("contentBlockStart", {**where, "start": {"toolUse": {"toolUseId": item.id, "name": item.name}}}))
            cut = [] if item.arguments == "{}" else pieces(item.arguments, 3)
            result += [event("contentBlockDelta", {**where, "delta": {"toolUse": {"input": piece}}}) for piece in cut]
        else:
            result += [event("contentBlockDelta", {**where, "delta": {"text": piece}}) for piece in pieces(item.text, 4)]
            result += [event("contentBlockDelta", {**where, "delta": {"citation": citation(item)}})] if item.source else []
        result.append(event("contentBlockStop", where))
    result.append(event("messageStop", {"stopReason": STOPS[answer.stop]}))
    result.append(event("metadata", {"usage": usage(tokens), "metrics": {"latencyMs": 12}}))
    return result


# --- errors --------------------------------------------------------------------------------------------------------------

KINDS = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}


def error(refused: Refused) -> dict[str, Any]:
    """Return an error's body."""
    return {"message": f"{refused.path}: {refused.message}" if refused.path else refused.message}


def error_type(refused: Refused) -> str:
    """Return what the header `x-amzn-ErrorType` says."""
    return refused.kind or KINDS.get(refused.status, "InternalServerException")


def error_event(message: str) -> bytes:
    """Return how a stream breaks."""
    headers = {":exception-type": "modelStreamErrorException", ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, json.dumps({"message": message, "originalStatusCode": 500}).encode())
