"""What a fake vendor understood of a request, and what it decides to answer: in no dialect's words, and with nothing of the gateway's code.

The last user text says what happens: `[[call]]`, `[[parallel]]`, `[[image]]` and so on (`answer_to`). Without a mark the answer repeats the text. After
tool results the answer quotes them. So a test knows exactly what must come back, and the answer itself proves what arrived.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from fakes.vendor_schema import Refused

THOUGHT = "Let me think: the Wörthersee is in Kärnten. 🤔"
SOURCE, SOURCE_TITLE = "https://pages.example/wien", "Wien – Übersicht"
TAIL = " – grüße 🌍"  # so that every text has characters of two, three and four bytes
WEATHER = {"city": "Wien", "unit": "°C", "days": 3, "exact": True, "names": ["a", "b"]}


@dataclass(frozen=True)
class Item:
    """A part of a message: `text`, `refusal`, `image`, `document`, `audio`, `thought`, `call` or `result`."""

    kind: str
    text: str = ""
    name: str = ""
    id: str = ""
    media: str = ""
    data: bytes = b""
    url: str = ""
    signature: str = ""
    arguments: str = ""
    error: bool = False
    items: tuple[Item, ...] = ()
    source: str = ""  # a page that the text is from

    def told(self) -> str:
        """What an answer says about it."""
        if self.kind in ("image", "document", "audio"):
            what = self.url or (f"{len(self.data)} bytes" if self.data else f"{self.text!r}")
            return " ".join(part for part in (self.kind, self.media, what, self.name) if part)
        return self.text


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Asked:
    """A request as a vendor understood it. `settings`: what was said about sampling, by the names that the answer to `[[settings]]` uses."""

    vendor: str
    model: str
    stream: bool
    turns: tuple[Turn, ...]
    system: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    choice: str = ""
    n: int = 1
    stop: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None
    json_object: bool = False
    thinking: bool = False
    usage_asked: bool = True


@dataclass(frozen=True)
class Answer:
    """One choice. `stop`: `end`, `length`, `sequence`, `tools`, `filter` or `refusal`."""

    items: tuple[Item, ...]
    stop: str = "end"
    stop_sequence: str = ""


@dataclass(frozen=True)
class Tokens:
    """`prompt` includes `cached` and `written`, `completion` includes `reasoning`."""

    prompt: int = 31
    cached: int = 12
    written: int = 0
    completion: int = 17
    reasoning: int = 0


@dataclass(frozen=True)
class Plan:
    """What is answered."""

    choices: tuple[Answer, ...]
    tokens: Tokens = Tokens()


def signature_of(vendor: str, thought: str) -> str:
    """Return the proof that `vendor` thought so. It is base64, as Gemini's must be."""
    return base64.b64encode(hashlib.sha256(f"{vendor}|{thought}".encode()).digest()).decode()


def verify_signature(vendor: str, thought: str, signature: str, path: str) -> None:
    """Refuse a thought that this vendor did not think, or that was altered since."""
    if signature != signature_of(vendor, thought):
        raise Refused("Invalid `signature` in `thinking` block.", path=path)


def pieces(value: str, size: int) -> list[str]:
    """Cut a text into deltas of `size` characters."""
    return [value[start : start + size] for start in range(0, len(value), size)] or [""]


def history(asked: Asked) -> str:
    """Say every turn in one line."""

    def one(item: Item) -> str:
        if item.kind == "call":
            return f"call {item.name}({json.dumps(json.loads(item.arguments), sort_keys=True, ensure_ascii=False)})"
        if item.kind == "result":
            return f"result {item.name}={results_told((item,))}"
        return f"{item.kind} {item.told()}" if item.kind not in ("text", "image", "document", "audio") else item.told()

    return " | ".join(f"{turn.role}: {'; '.join(one(item) for item in turn.items)}" for turn in asked.turns)


def results_told(results: tuple[Item, ...]) -> str:
    """Say what the tools gave."""

    def one(item: Item) -> str:
        said = " + ".join(part.told() for part in item.items)
        return f"error {said}" if item.error else said

    return ", ".join(one(item) for item in results)


def instance(schema: dict[str, Any]) -> Any:
    """Return a small value that fits a JSON Schema of the ordinary kind."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    kind = (kind[0] if isinstance(kind, list) else str(kind)).lower()
    if kind == "object":
        return {name: instance(inner) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {"type": "string"}))]
    return {"string": "Wien", "integer": 21, "number": 0.5, "boolean": True}.get(kind)


def answer_to(asked: Asked) -> Plan:
    """Decide what to answer."""
    last = asked.turns[-1]
    results = tuple(item for item in last.items if item.kind == "result")
    texts = [item.text for item in last.items if item.kind == "text"]
    said = texts[-1] if texts else ""
    marks = re.findall(r"\[\[([\w-]+)\]\]", said)
    mark = marks[0] if marks else ""
    tokens = Tokens(written=3, prompt=34) if asked.vendor in ("anthropic", "bedrock") else Tokens()
    thoughts: tuple[Item, ...] = ()
    if asked.thinking:
        thoughts = (Item("thought", text=THOUGHT, signature=signature_of(asked.vendor, THOUGHT), id="rs_fake"),)
        tokens = replace(tokens, reasoning=5)
    if results and not marks:
        back = sum(item.kind == "thought" for turn in asked.turns for item in turn.items)
        suffix = f" and {back} thoughts came back" if back else ""
        return Plan((Answer((Item("text", text=f"The tools said: {results_told(results)}{suffix}{TAIL}"),)),), replace(tokens, reasoning=0))
    answer = _answer(asked, mark, said)
    if answer.stop in ("filter",):
        thoughts, tokens = (), replace(tokens, reasoning=0)
    choices = tuple(
        replace(answer, items=(*thoughts, *(replace(item, text=item.text + f" #{index}") if asked.n > 1 else item for item in answer.items)))
        for index in range(asked.n)
    )
    return Plan(choices, tokens)


def _call(asked: Asked, number: int, arguments: dict[str, Any]) -> Item:
    prefix = {"anthropic": "toolu_01", "bedrock": "tooluse_"}.get(asked.vendor, "call_")
    name = asked.tools[0]["name"]
    if asked.choice.startswith(("named:", "required:")):
        name = asked.choice.partition(":")[2].split(",")[0]
    identity = f"{prefix}Fake{len(asked.turns)}{number}"
    return Item("call", id="" if asked.vendor == "gemini" else identity, name=name, arguments=json.dumps(arguments, ensure_ascii=False))


def _answer(asked: Asked, mark: str, said: str) -> Answer:
    user = asked.turns[-1].items
    if mark in ("call", "parallel", "bad-arguments"):
        if not asked.tools or asked.choice == "none":
            return Answer((Item("text", text=f"no tools{TAIL}"),))
        if mark == "call":
            return Answer((Item("text", text=f"Let me look{TAIL}"), _call(asked, 0, WEATHER)), "tools")
        if mark == "bad-arguments":
            return Answer((replace(_call(asked, 0, WEATHER), arguments='{"city": "Wi'),), "tools")
        return Answer((_call(asked, 0, WEATHER), _call(asked, 1, {"city": "Graz"}), _call(asked, 2, {})), "tools")
    if mark == "media":
        return Answer((Item("text", text="; ".join(item.told() for item in user if item.kind in ("image", "document", "audio")) + TAIL),))
    if mark == "system":
        return Answer((Item("text", text=f"system: {' / '.join(asked.system)}{TAIL}"),))
    if mark == "history":
        return Answer((Item("text", text=history(asked) + TAIL),))
    if mark == "settings":
        tools = [{"name": tool["name"], "description": tool.get("description", ""), "schema": tool.get("schema")} for tool in asked.tools]
        everything = {**asked.settings, "stop": list(asked.stop), "tools": tools, "choice": asked.choice}
        return Answer((Item("text", text=json.dumps(everything, sort_keys=True, ensure_ascii=False)),))
    if mark == "json":
        if asked.schema is not None:
            return Answer((Item("text", text=json.dumps(instance(asked.schema), ensure_ascii=False)),))
        return Answer((Item("text", text='{"ok": true, "ort": "Köln"}' if asked.json_object else "no schema came"),))
    if mark == "refuse":
        return Answer((Item("refusal", text=f"I can't help with that{TAIL}"),), "refusal")
    if mark == "filter":
        return Answer((Item("text", text="Half a sen"),), "filter")
    if mark == "cite":
        return Answer((Item("text", text=f"Wien is in Austria{TAIL}", source=SOURCE),))
    if mark == "long":
        return Answer((Item("text", text=f"This would go on and on{TAIL}"),), "length")
    if mark == "stop":
        if not asked.stop:
            raise Refused("This scenario needs a stop sequence.", path="stop")
        return Answer((Item("text", text=f"up to here{TAIL}"),), "sequence", asked.stop[0])
    return Answer((Item("text", text=f"You said: {said}{TAIL}"),))
