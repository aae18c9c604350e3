"""The tables of docs/translation.md, worked out from the vectors: each request through every target, each answer and stream to every client.

    python tests/translation_table.py            write docs/translation.md
    python tests/translation_table.py --check    say whether it is up to date (exit code 1 when not)

`DROPPABLE` is the list of what may be left out of a request at all. A translator that reports anything else as dropped fails `test_translation_table.py`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliproxy.dialects import Dialect, Endpoint, Operation, Quirks
from cliproxy.errors import ClientError, UnsupportedFeature, UpstreamError
from cliproxy.translators.table import CLIENTS, TARGETS, ClientRow, Given, TargetRow

ROOT = Path(__file__).parent.parent
VECTORS = ROOT / "tests" / "vectors"
DOCUMENT = ROOT / "docs" / "translation.md"

CLIENT_DIALECTS = (Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES, Dialect.ANTHROPIC_MESSAGES, Dialect.GEMINI_GENERATE)
TARGET_ENDPOINTS = (Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.GENERATE_CONTENT, Endpoint.CONVERSE)
SPOKEN = {
    Endpoint.CHAT_COMPLETIONS: Dialect.OPENAI_CHAT,
    Endpoint.RESPONSES: Dialect.OPENAI_RESPONSES,
    Endpoint.MESSAGES: Dialect.ANTHROPIC_MESSAGES,
    Endpoint.GENERATE_CONTENT: Dialect.GEMINI_GENERATE,
    Endpoint.CONVERSE: Dialect.BEDROCK_CONVERSE,
}
NAMES = {
    Dialect.OPENAI_CHAT: "OpenAI chat",
    Dialect.OPENAI_RESPONSES: "OpenAI responses",
    Dialect.ANTHROPIC_MESSAGES: "Anthropic",
    Dialect.GEMINI_GENERATE: "Gemini",
    Dialect.BEDROCK_CONVERSE: "Bedrock",
}
FEATURES = {
    "text": "text",
    "system": "system prompts",
    "multi_turn": "several turns",
    "tools": "tools",
    "tool_choice": "tool choice",
    "parallel_tool_calls": "parallel tool calls",
    "tool_results": "tool results",
    "images_base64": "images (base64)",
    "images_url": "images (URL)",
    "documents": "documents",
    "audio_input": "audio",
    "reasoning": "reasoning",
    "reasoning_signature": "signed reasoning",
    "structured_output": "structured output",
    "stop_sequences": "stop sequences",
    "stop_reasons": "stop reasons",
    "usage_details": "usage in detail",
    "refusal": "refusals",
    "citations": "citations",
    "choices": "several choices",
    "sampling": "sampling",
    "logprobs": "log probabilities",
}
# What a target may leave out, by the hub's names, and why no answer means anything else without it.
DROPPABLE = {
    "cache": "where a prefix may be kept: what an answer costs, not what it says",
    "cache_key": "which calls may share a kept prefix: the same",
    "detail": "how closely an image is looked at: a target without the setting chooses itself",
    "messages": "where the text of an earlier answer came from: the text stays",
    "metadata": "the client's own notes",
    "output": "the name and the description of a schema, or that it need not be kept strictly: answers fit it all the same",
    "output.description": "the description of a schema, which is there itself",
    "seed": "a wish for the same answer again, which nobody promises",
    "service_tier": "how urgent it is: what an answer costs and how long it takes",
    "store": "whether the vendor keeps the answer for the client's later use",
    "strict": "that arguments of tools fit their schemas to the letter is then the model's habit and not the vendor's promise",
    "thinking": "thoughts that another vendor signed, which would be refused; or a wish for thoughts that the target would refuse in this request",
    "title": "the name of a file: its content goes",
    "user": "who the client's user is",
    "verbosity": "a wish for longer or shorter answers",
}
# Marks on one part, by its path: that a tool's result is an error (its text says so), how closely an image is looked at, where a text came from.
MARKED = re.compile(r"(messages|input|contents)\[\d+\](\.(content|parts|output)\[\d+\])*")

INTRODUCTION = """# Translation

Every client dialect is translated to every provider's, whole and streamed, by way of one set of types (`src/cliproxy/translators/conversation.py`). A call
whose provider speaks the client's dialect is not translated: it is checked, and fields that the gateway does not know stay.

What a provider cannot be asked is refused with `400 unsupported_feature` and the name of the client's field; nothing is lost silently. What is harmless and
in the list below is left out, and the answer's `Warning` header names it.

The tables are made from `tests/vectors/` by `python tests/translation_table.py`; a test fails when they are not what the code does. Each row stands for one
to five requests or answers; "in part" means that some of them are refused, with the fields that were.

Two habits of chat clients are refused towards every other dialect, since no rewriting keeps their meaning: instructions between turns
(`messages[2].role`, or the item's path in Responses; put them before the first turn, or into a user's message) and names of speakers (`messages[0].name`;
write the name into the text). An answer with several choices for a client that cannot have asked for several (Anthropic, Responses) is the provider's
fault (502).
"""


@dataclass(frozen=True)
class Vector:
    """One file of the vectors. `stream` is the bytes of a stream beside it."""

    dialect: Dialect
    name: str
    feature: str
    kind: str
    body: Any
    path: dict[str, Any]
    stream: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a vector: `refused` names the field, `dropped` what was left out."""

    refused: str = ""
    dropped: tuple[str, ...] = ()


def vectors(dialect: Dialect) -> Iterator[Vector]:
    """Yield the vectors of `dialect` that say which feature they show."""
    for file in sorted((VECTORS / dialect.value).rglob("*.json")):
        value = json.loads(file.read_bytes())
        if isinstance(value, dict) and {"feature", "kind"} <= set(value):
            stream = file.with_suffix(".sse").read_bytes() if value["kind"] == "stream" else b""
            path = {name: value[name] for name in ("model", "stream") if name in value}
            yield Vector(dialect, file.stem, value["feature"], value["kind"], value.get("body"), path, stream)


def client_row(dialect: Dialect) -> ClientRow:
    """Return what clients of `dialect` have."""
    return CLIENTS[dialect, Operation.GENERATE]


def decoded(vector: Vector) -> Any:
    """Return the request of a vector as its dialect decodes it."""
    model = "" if vector.dialect is not Dialect.GEMINI_GENERATE else vector.path.get("model", "gemini-2.5-flash")
    stream = None if vector.dialect is not Dialect.GEMINI_GENERATE else vector.path.get("stream", False)
    given = Given(max_tokens=65536, on_excess="clamp", model=model, stream=stream)
    return client_row(vector.dialect).decode(json.dumps(vector.body).encode(), given, b"application/json")


def asked(vector: Vector, target: TargetRow) -> Outcome:
    """Return what becomes of a request on its way to `target`."""
    row = client_row(vector.dialect)
    assert row.hub_of is not None
    try:
        encoded = target.encode(row.hub_of(decoded(vector)), Quirks.NONE)
    except UnsupportedFeature as error:
        return Outcome(refused=row.field_names.get(error.param or "", error.param or ""))
    json.loads(encoded.prefix + b'"model"' + encoded.suffix if encoded.suffix else encoded.prefix)
    return Outcome(dropped=encoded.dropped)


def answered(vector: Vector, target: TargetRow, row: ClientRow) -> Outcome:
    """Return what becomes of a provider's answer on its way to a client. `row.dialect` differs from the vector's."""
    request = plain_request(row.dialect, stream=vector.kind == "stream")
    try:
        if vector.kind == "stream":
            assert target.reader is not None
            assert row.writer is not None
            reader, writer = target.reader(), row.writer(request=request, id="id", model="model", created=1)
            written = writer.write(reader.feed(vector.stream)) + writer.write(reader.finish())
            assert written.endswith(b"\n\n")
        else:
            assert row.encode_answer is not None
            json.loads(row.encode_answer(target.decode_answer(json.dumps(vector.body).encode()), request=request, id="id", model="model", created=1))
    except UpstreamError as error:
        return Outcome(refused=error.code or "upstream_error")
    except ClientError as error:
        return Outcome(refused=error.param or error.code or "error")
    return Outcome()


def plain_request(dialect: Dialect, *, stream: bool) -> Any:
    """Return a request that asks for nothing special."""
    bodies: dict[Dialect, Any] = {
        Dialect.OPENAI_CHAT: {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
        Dialect.OPENAI_RESPONSES: {"model": "m", "input": "hello"},
        Dialect.ANTHROPIC_MESSAGES: {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]},
        Dialect.GEMINI_GENERATE: {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    }
    body = bodies[dialect] if dialect is Dialect.GEMINI_GENERATE else {**bodies[dialect], "stream": stream}
    return decoded(Vector(dialect, "", "", "request", body, {"stream": stream}, b""))


# --- the document -------------------------------------------------------------------------------------------------------


def cell(outcomes: list[Outcome]) -> str:
    """Return what a cell says about the vectors of one feature."""
    if not outcomes:
        return ""
    refused = list(dict.fromkeys(plain(one.refused) for one in outcomes if one.refused))
    dropped = list(dict.fromkeys(name for one in outcomes for name in one.dropped))
    said = []
    if refused:
        said.append(("in part: " if any(not one.refused for one in outcomes) else "") + "refuses " + ", ".join(f"`{name}`" for name in refused))
    if dropped:
        said.append("drops " + ", ".join(f"`{name}`" for name in dropped))
    return "; ".join(said) or "yes"


def plain(path: str) -> str:
    """Return a path without its numbers."""
    return "".join("[]" if part.startswith("[") else part for part in split_indexes(path))


def split_indexes(path: str) -> list[str]:
    """Cut a path before and after each index."""
    parts: list[str] = []
    for piece in path.split("["):
        index, bracket, rest = piece.partition("]")
        parts += [f"[{index}]", rest] if bracket else [piece]
    return parts


def table(head: str, columns: list[Dialect], rows: dict[str, dict[Dialect, list[Outcome]]]) -> list[str]:
    """Return one table in Markdown; features without a vector have no row."""
    lines = [f"| {head} | " + " | ".join(NAMES[one] for one in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for feature, title in FEATURES.items():
        if feature in rows:
            lines.append(f"| {title} | " + " | ".join(cell(rows[feature].get(one, [])) for one in columns) + " |")
    return lines


def requests_of(client: Dialect) -> dict[str, dict[Dialect, list[Outcome]]]:
    """Return what becomes of every request of `client`."""
    rows: dict[str, dict[Dialect, list[Outcome]]] = {}
    for vector in vectors(client):
        if vector.kind == "request":
            cells = rows.setdefault(vector.feature, {})
            for endpoint in TARGET_ENDPOINTS:
                if SPOKEN[endpoint] is not client:
                    cells.setdefault(SPOKEN[endpoint], []).append(asked(vector, TARGETS[endpoint]))
    return rows


def answers_to(client: Dialect) -> dict[str, dict[Dialect, list[Outcome]]]:
    """Return what becomes of every provider's answers and streams for clients of `client`."""
    rows: dict[str, dict[Dialect, list[Outcome]]] = {}
    for endpoint in TARGET_ENDPOINTS:
        for vector in vectors(SPOKEN[endpoint]):
            if SPOKEN[endpoint] is not client and vector.kind in ("answer", "stream"):
                rows.setdefault(vector.feature, {}).setdefault(SPOKEN[endpoint], []).append(answered(vector, TARGETS[endpoint], client_row(client)))
    return rows


def document() -> str:
    """Return docs/translation.md as it should be."""
    lines = [INTRODUCTION]
    lines += ["## What may be left out", "", "| field | why it is harmless |", "|---|---|", *(f"| `{name}` | {why} |" for name, why in DROPPABLE.items()), ""]
    lines += ["A part's own path (`messages[2].content[0]`) stands for a mark on that part that the target has no word for: that a tool's result is an error"]
    lines += ["(its text goes), how closely an image is looked at, where a text came from.", ""]
    lines += ["## Requests", ""]
    for client in CLIENT_DIALECTS:
        columns = [SPOKEN[endpoint] for endpoint in TARGET_ENDPOINTS if SPOKEN[endpoint] is not client]
        lines += [f"### From a client of {NAMES[client]}", "", *table("", columns, requests_of(client)), ""]
    lines += ["## Answers, whole and streamed", ""]
    for client in CLIENT_DIALECTS:
        columns = [SPOKEN[endpoint] for endpoint in TARGET_ENDPOINTS if SPOKEN[endpoint] is not client]
        lines += [f"### To a client of {NAMES[client]}", "", *table("from", columns, answers_to(client)), ""]
    return "\n".join(lines)


def main() -> int:
    """Write the document, or say whether it is up to date."""
    wanted = document()
    if "--check" in sys.argv:
        return int(DOCUMENT.read_text(encoding="utf-8") != wanted)
    DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
