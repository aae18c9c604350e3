"""The tables of docs/translation.md, worked out from the vectors: each request through every target, each answer and stream to every client.

    python tests/translation_table.py            write docs/translation.md
    python tests/translation_table.py --check    say whether it is up to date (exit code 1 when not)

What may be left out of a request is the tables' to say (`policy_targets`, `policy_clients`).
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
from cliproxy.translators.policy import Action, Field, Losses
from cliproxy.translators.policy_clients import FROM
from cliproxy.translators.policy_targets import TO
from cliproxy.translators.table import CLIENTS, TARGETS, ClientRow, DecodeOptions, TargetRow

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
    Dialect.OPENAI_COMPLETIONS: "OpenAI completions",
    Dialect.OPENAI_EMBEDDINGS: "OpenAI embeddings",
    Dialect.GEMINI_EMBED: "Gemini embeddings",
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
# The path of a part of a message in a client's words.
PART = re.compile(r"(messages|input|contents)\[\d+\](\.(content|parts|output)\[\d+\])*")

INTRODUCTION = """# Translation

Every client dialect is translated to every provider's, whole and streamed. Both meet in one set of types, the hub (`src/cliproxy/translators/conversation.py`).
A call whose provider speaks the client's dialect is not translated: it is checked, and fields that the gateway does not know stay.

What a provider cannot be asked is decided by tables, which the code obeys: `src/cliproxy/translators/policy_clients.py` for what a client's dialect has alone,
and `src/cliproxy/translators/policy_targets.py` for what a provider's dialect lacks. A pair's rules are those of both. A field without a rule is kept. The
rules are:

- **left out**: the request is sent without it, and the answer's `Warning` header names it. The table says why that is harmless.
- **said in another way**: the same, and the table says how.
- **refused**: the request gets `400 unsupported_feature` with the client's name of the field.
- **refused always**: the same. Without it there would be no request, or another one.

This page is printed from those tables and from `tests/vectors/` by `python tests/translation_table.py`. A test fails when it is not what the code does. Each
row of the tables of requests and answers stands for one to five vectors. "In part" means that some of them are refused; the fields that were are named.

Two habits of chat clients are refused towards every other dialect, since no rewriting keeps their meaning. Instructions between turns (`messages[2].role`, or
the item's path in Responses): put them before the first turn, or into a user's message. Names of speakers (`messages[0].name`): write the name into the text.

An answer with several choices for a client that cannot have asked for several (Anthropic, Responses) is the provider's fault (502).
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
    given = DecodeOptions(max_tokens=65536, on_excess="clamp", model=model, stream=stream)
    return client_row(vector.dialect).decode(json.dumps(vector.body).encode(), given, b"application/json")


def may_be_left_out(name: str, target: Dialect) -> bool:
    """Say whether a rule of `target` leaves out, or says in another way, what `dropped` calls `name`: a field's name, or the path of a part of a message."""
    rules = [(field, rule) for field, rule in TO[target].rules.items() if rule.action in (Action.DROP, Action.EMULATE)]
    parts = any(field.param == "messages" for field, _ in rules)
    return any(field.param == name for field, _ in rules) or (parts and PART.fullmatch(name) is not None)


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


def rules_of(tables: dict[Dialect, type[Losses]]) -> list[str]:
    """Return a table of rules for each dialect: fields that have the same rule are one row."""
    lines: list[str] = []
    for dialect, losses in tables.items():
        rows: dict[tuple[Action, str], list[str]] = {}
        for field, rule in losses.rules.items():
            rows.setdefault((rule.action, rule.text), []).append(spoken(field))
        lines += [f"### {NAMES[dialect]}", "", "| field | what becomes of it | why, or what the client is told |", "|---|---|---|"]
        for action in Action:
            lines += [f"| {'; '.join(fields)} | {action.value} | {text.replace('{param}', 'FIELD')} |" for (one, text), fields in rows.items() if one is action]
        lines.append("")
    return lines


def spoken(field: Field) -> str:
    """Return a field as a reader is told it: its name, and what of it."""
    name, _, what = str(field.value).partition(": ")
    if name == "*":
        return what
    return f"`{name}`" + (f" ({what})" if what else "")


def document() -> str:
    """Return docs/translation.md as it should be."""
    lines = [INTRODUCTION]
    lines += ["## What a provider's dialect lacks", "", "Fields are named as in the hub. The client is told its own name of them.", "", *rules_of(TO)]
    lines += ["## What only a client's dialect has", "", "Towards every provider of another dialect.", "", *rules_of(FROM)]
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
