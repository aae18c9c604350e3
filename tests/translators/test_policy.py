"""The tables of what is left out, emulated and refused: the code obeys them, every row is asked, and a row is all that changes with a decision."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cliproxy.dialects import Dialect, Endpoint, Operation, Quirks
from cliproxy.errors import UnsupportedFeature
from cliproxy.translators.policy import Action, Field, Losses, drop
from cliproxy.translators.policy_clients import FROM, EmbedField
from cliproxy.translators.policy_targets import TO
from cliproxy.translators.table import CLIENTS, TARGETS, DecodeOptions
from translators.policy_cases import EMBEDDINGS, QUIRKS, TOWARDS, body_of

TRANSLATORS = Path(__file__).parents[2] / "src" / "cliproxy" / "translators"
ENDPOINT_OF = {
    Dialect.OPENAI_CHAT: Endpoint.CHAT_COMPLETIONS,
    Dialect.OPENAI_RESPONSES: Endpoint.RESPONSES,
    Dialect.ANTHROPIC_MESSAGES: Endpoint.MESSAGES,
    Dialect.GEMINI_GENERATE: Endpoint.GENERATE_CONTENT,
    Dialect.BEDROCK_CONVERSE: Endpoint.CONVERSE,
    Dialect.OPENAI_EMBEDDINGS: Endpoint.EMBEDDINGS,
    Dialect.GEMINI_EMBED: Endpoint.EMBED_CONTENT,
}
EMBEDS = (Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBED)
TARGET_ROWS = [(dialect, field) for dialect, losses in TO.items() for field in losses.rules]
CLIENT_ROWS = [(dialect, field) for dialect, losses in FROM.items() for field in losses.rules]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[type[Losses], Field]]:
    """What of the tables is asked during the test."""
    rows: list[tuple[type[Losses], Field]] = []
    lose, refusal = Losses.lose, Losses.refusal.__func__  # type: ignore[attr-defined]

    def lose_and_note(self: Losses, field: Field, at: str = "") -> None:
        rows.append((type(self), field))
        lose(self, field, at)

    def refuse_and_note(cls: type[Losses], field: Field, at: str = "") -> UnsupportedFeature:
        rows.append((cls, field))
        return refusal(cls, field, at)  # type: ignore[no-any-return]

    monkeypatch.setattr(Losses, "lose", lose_and_note)
    monkeypatch.setattr(Losses, "refusal", classmethod(refuse_and_note))
    return rows


def towards(dialect: Dialect, field: Field) -> Any:
    """Encode the request that says `field` for a provider of `dialect`."""
    request = (EMBEDDINGS if dialect in EMBEDS else TOWARDS)[field]
    return TARGETS[ENDPOINT_OF[dialect]].encode(request, QUIRKS.get((dialect, field), Quirks.NONE))


def hub_of(dialect: Dialect, field: Field) -> Any:
    """Return the hub's request for what a client of `dialect` says."""
    row = CLIENTS[dialect, Operation.EMBED if dialect in EMBEDS else Operation.GENERATE]
    batch = field is EmbedField.SETTINGS
    given = DecodeOptions(max_tokens=4096, on_excess="reject", provider_state=True, model="m", stream=False, batch=batch)
    assert row.hub_of is not None
    return row.hub_of(row.decode(body_of(dialect, field), given, b"application/json"))


@pytest.mark.parametrize(("dialect", "field"), TARGET_ROWS, ids=str)
def test_every_row_towards_a_provider_is_asked_and_obeyed(dialect: Dialect, field: Field, asked: list[tuple[type[Losses], Field]]) -> None:
    rule = TO[dialect].rules[field]
    if rule.action in (Action.REFUSE, Action.NEVER):
        with pytest.raises(UnsupportedFeature) as caught:
            towards(dialect, field)
        assert caught.value.param == field.param
    else:
        encoded = towards(dialect, field)
        assert field.param in encoded.dropped
    assert (TO[dialect], field) in asked


@pytest.mark.parametrize(("dialect", "field"), CLIENT_ROWS, ids=str)
def test_every_row_from_a_client_is_asked_and_obeyed(dialect: Dialect, field: Field, asked: list[tuple[type[Losses], Field]]) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        hub_of(dialect, field)
    assert asked == [(FROM[dialect], field)]
    pattern = field.param
    assert pattern == "*" or re.sub(r"\[\d+\]", "[]", caught.value.param or "").startswith(pattern.split("[")[0])


@pytest.mark.parametrize(
    ("dialect", "field"), [(dialect, field) for dialect, field in TARGET_ROWS if TO[dialect].rules[field].action is Action.REFUSE], ids=str
)
def test_a_row_towards_a_provider_is_all_that_says_refuse(dialect: Dialect, field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same request, with that one row changed: it is sent without the field, and says so."""
    monkeypatch.setattr(TO[dialect], "rules", {**TO[dialect].rules, field: drop("for the test")})
    encoded = towards(dialect, field)
    assert field.param in encoded.dropped
    json.loads(encoded.prefix + (b'"m"' if encoded.suffix else b"") + encoded.suffix)


@pytest.mark.parametrize(
    ("dialect", "field"), [(dialect, field) for dialect, field in CLIENT_ROWS if FROM[dialect].rules[field].action is Action.REFUSE], ids=str
)
def test_a_row_from_a_client_is_all_that_says_refuse(dialect: Dialect, field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same request, with that one row changed: the hub has it without the field, and a provider's encoder reports it."""
    monkeypatch.setattr(FROM[dialect], "rules", {**FROM[dialect].rules, field: drop("for the test")})
    hub = hub_of(dialect, field)
    assert len(hub.left_out) == 1
    target = Endpoint.EMBEDDINGS if dialect is Dialect.GEMINI_EMBED else Endpoint.EMBED_CONTENT if dialect in EMBEDS else Endpoint.GENERATE_CONTENT
    assert set(hub.left_out) <= set(TARGETS[target].encode(hub, Quirks.NONE).dropped)


def test_no_other_code_decides_what_is_left_out_or_refused() -> None:
    """What the gateway itself does not do, whatever the provider, is `decode`'s to refuse."""
    for file in TRANSLATORS.rglob("*.py"):
        if file.name in ("policy.py", "decode.py", "provider_state.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Name) and node.id == "UnsupportedFeature"), f"{file}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Encoded":
                assert all(isinstance(arg, (ast.Call, ast.Name, ast.IfExp, ast.Attribute)) for arg in node.args[2:]), f"{file}:{node.lineno}"


def test_the_tables_have_a_row_for_what_the_code_asks() -> None:
    """Which fields a dialect's code names is which rows its table has: none is missing, none is idle."""
    for table, prefix in ((TO, "To"), (FROM, "From")):
        for dialect, losses in table.items():
            named = set()
            for file in [*(TRANSLATORS / dialect.value).glob("*.py"), TRANSLATORS / "claude_thinking.py"]:
                text = file.read_text(encoding="utf-8")
                if file.name == "claude_thinking.py" and dialect not in (Dialect.ANTHROPIC_MESSAGES, Dialect.BEDROCK_CONVERSE):
                    continue
                named |= set(re.findall(r"\b(\w+Field)\.([A-Z_]+)\b", text))
            kinds = {type(field).__name__ for field in losses.rules}
            assert {name for kind, name in named if kind in kinds} == {field.name for field in losses.rules}, (prefix, dialect)
