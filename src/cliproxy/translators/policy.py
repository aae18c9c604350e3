"""What becomes of what a dialect cannot say: the rules that translators obey, and how they ask for them. The rows are in
`policy_clients.py` and `policy_targets.py`.

A translator knows whether its dialect can say something. What happens when it cannot is decided here, by a rule for each field:

| rule | what happens |
|---|---|
| (none) | the field is kept |
| `drop` | it is left out, and the answer's `Warning` header names it |
| `emulate` | it is said in another way, and the `Warning` header names it |
| `refuse` | the request is refused with 400 and the client's name of the field; changed to `drop`, it is left out instead |
| `never` | the request is refused, and no other rule is possible: without it there is no request, or another one |

What always holds: a translator that meets a field which has no rule fails (`KeyError`), and a test finds it first; no other module raises `UnsupportedFeature`
for a request, or adds to what was left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar

import msgspec

from cliproxy.errors import UnsupportedFeature


class Action(Enum):
    DROP = "left out"
    EMULATE = "said in another way"
    REFUSE = "refused"
    NEVER = "refused always"


class Rule(msgspec.Struct, frozen=True):
    """`text` says why leaving it out is harmless, or how it is said instead, or what the client is told, with `{param}` for the name of its field."""

    action: Action
    text: str


def drop(why: str) -> Rule:
    return Rule(Action.DROP, why)


def emulate(how: str) -> Rule:
    return Rule(Action.EMULATE, how)


def refuse(message: str) -> Rule:
    return Rule(Action.REFUSE, message)


def never(message: str) -> Rule:
    return Rule(Action.NEVER, message)


class Field(Enum):
    """Something that a request may say. The value is the name of the field, or the pattern of its path, and behind a colon what of it, where it has several
    rules."""

    @property
    def param(self) -> str:
        """The name without what is behind the colon."""
        return str(self.value).partition(":")[0]


Rules = Mapping[Field, Rule]


class Losses(dict[str, None]):
    """What one request lost so far, by the names that the `Warning` header tells. Each subclass is the rules of one dialect."""

    __slots__ = ()
    rules: ClassVar[Rules] = {}

    def lose(self, field: Field, at: str = "") -> None:
        """`field` cannot be said: return if it is to be left out or said in another way, with that noted. Raises `UnsupportedFeature` if it is refused.

        `at` is its path, where it has one.
        """
        rule = self.rules[field]
        if rule.action is Action.REFUSE:
            raise _unsupported(rule, at or field.param)
        assert rule.action is not Action.NEVER, field
        self[at or field.param] = None

    @classmethod
    def refusal(cls, field: Field, at: str = "") -> UnsupportedFeature:
        """Return the refusal of `field`, which cannot be said, and nothing without it. `at` as above."""
        rule = cls.rules[field]
        assert rule.action is Action.NEVER, field
        return _unsupported(rule, at or field.param)


def _unsupported(rule: Rule, param: str) -> UnsupportedFeature:
    return UnsupportedFeature(rule.text.replace("{param}", param), param=param)
