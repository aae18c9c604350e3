"""A conversation in no SDK's words, and what came back, so that one test speaks through every SDK."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, replace
from typing import Any

from fakes.vendor_plan import Item, Turn

# A picture of one pixel and a page of nothing: small, whole, and of a length that nobody guesses.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00data\x00\x00\x00\x00"
URL = "https://images.example/cat.png"
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Wo? – ü"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER_TOOL = {"name": "get_weather", "description": "Says the weather.", "schema": WEATHER_SCHEMA}
OTHER_TOOL = {"name": "other_tool", "description": "Does something else.", "schema": {"type": "object", "properties": {"x": {"type": "number"}}}}
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["city", "degrees", "tags"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Prompt:
    """What a client asks. `choice`: `auto`, `none`, `required`, `named:NAME`. `effort`: how much to think; empty: not said."""

    turns: tuple[Turn, ...]
    system: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    choice: str = ""
    parallel: bool | None = None
    schema: dict[str, Any] | None = None
    json_object: bool = False
    stop: tuple[str, ...] = ()
    max_tokens: int | None = 2048
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: int = 1
    effort: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def then(self, result: Result, *items: Item) -> Prompt:
        """Return the prompt for the next turn: the answer's first choice, and what the user says to it."""
        return replace(self, turns=(*self.turns, Turn("assistant", result.items), Turn("user", items)))


def ask(text: str, *more: Item, **fields: Any) -> Prompt:
    """Return a prompt with one user turn."""
    return Prompt((Turn("user", (*more, Item("text", text=text))),), **fields)


def result_of(call: Item, *items: Item, error: bool = False) -> Item:
    """Return what a tool gave."""
    return Item("result", id=call.id, name=call.name, items=items, error=error)


@dataclass(frozen=True)
class Result:
    """What an SDK gave. `items` are those of the first choice. `stop` is as the SDK says it."""

    items: tuple[Item, ...]
    stop: str
    usage: dict[str, int]
    texts: tuple[str, ...] = ()
    stop_sequence: str = ""
    model: str = ""
    sources: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return "".join(item.text for item in self.items if item.kind == "text")

    @property
    def refusal(self) -> str:
        """The refusal of the first choice."""
        return "".join(item.text for item in self.items if item.kind == "refusal")

    @property
    def thoughts(self) -> str:
        """The thoughts of the first choice."""
        return "".join(item.text for item in self.items if item.kind == "thought")

    @property
    def calls(self) -> tuple[Item, ...]:
        """The tool calls of the first choice."""
        return tuple(item for item in self.items if item.kind == "call")

    def arguments(self) -> list[tuple[str, Any]]:
        """Name and decoded arguments of each call."""
        return [(call.name, json.loads(call.arguments)) for call in self.calls]
