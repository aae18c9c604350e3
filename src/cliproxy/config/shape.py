"""A tree of YAML nodes as the types of `config.schema`: unknown keys, missing keys and values of the wrong type are errors that name file,
line and key.

A key's full name is its path (`server.tls.cert_file`, `alerts[1].condition`). A block whose keys are all commented out (`server:` and
nothing after it) counts as absent; a value or list that is left empty is an error, since nobody can say what was meant.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal, get_args, get_origin

import msgspec

from cliproxy.bounds import MAX_CONFIG_NAME_CHARS
from cliproxy.config.document import Mapping, Node, Scalar, Sequence
from cliproxy.errors import ConfigError

Path = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")  # YAML 1.2 core schema, within 64 bits
_FLOAT = re.compile(r"[-+]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][-+]?[0-9]{1,2})?")
_SECRETS = re.compile(r"(.*[_-])?(api[_-]?)?(keys?|tokens?|secrets?|passwords?|credentials?)", re.IGNORECASE)  # as other gateways name them
_NOTHING = ("", "~", "null", "Null", "NULL")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def name_of(path: Path) -> str:
    """Return a key's full name."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class Shaper:
    """Builds values of one file."""

    def __init__(self, *, file: str) -> None:
        self._file = file

    def block(self, kind: type[msgspec.Struct], node: Node, path: Path) -> Any:
        """Return a `kind` made of the keys in `node`; what is left out has the schema's default."""
        if _is_nothing(node):
            node = Mapping(node.line, {})
        if not isinstance(node, Mapping):
            raise self._error(node, path, "this must be a block of keys", cure=f"give {_some_keys(kind)} below it")
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        values: dict[str, Any] = {}
        for key, entry in node.entries.items():
            if key not in fields:
                raise ConfigError("this key is unknown", cure=_near(key, list(fields), path), file=self._file, line=entry.line, key=name_of((*path, key)))
            values[key] = self.value(fields[key].type, entry.value, (*path, key))
        for name, field in fields.items():
            if field.required and name not in values:
                raise self._error(node, (*path, name), "this key is missing", cure="add it")
        return kind(**values)

    def value(self, kind: Any, node: Node, path: Path) -> Any:
        """Return the value of `node` as the schema's type `kind`."""
        origin = get_origin(kind)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self.block(kind, node, path)
        if origin is dict:
            return self._names(get_args(kind)[1], node, path)
        if origin is tuple:
            return self._list(get_args(kind)[0], node, path)
        if not isinstance(node, Scalar):
            raise self._error(node, path, "this must be one value", cure="write it on the key's line")
        if _is_nothing(node):
            raise self._error(node, path, "this key has no value", cure='give it one, write "" for none, or remove the line')
        if origin is Literal:
            return self._choice(get_args(kind), node, path)
        return _SCALARS[kind](self, node, path)

    def _names(self, kind: type[msgspec.Struct], node: Node, path: Path) -> dict[str, Any]:
        if _is_nothing(node):
            return {}
        if not isinstance(node, Mapping):
            raise self._error(node, path, "this must be a block of names", cure="write one name with its keys per entry")
        return {name: self.block(kind, entry.value, (*path, name)) for name, entry in node.entries.items()}

    def _list(self, kind: Any, node: Node, path: Path) -> tuple[Any, ...]:
        if not isinstance(node, Sequence):
            raise self._error(node, path, "this must be a list", cure='write "- value" lines below it, or []')
        return tuple(self.value(kind, item, (*path, index)) for index, item in enumerate(node.items))

    def _choice(self, choices: tuple[str, ...], node: Scalar, path: Path) -> str:
        if node.text not in choices:
            raise self._error(node, path, "this value is not known", cure="write " + _either([choice for choice in choices if choice]))
        return node.text

    def _text(self, node: Scalar, path: Path) -> str:
        if node.plain and (node.text in _BOOLEANS or _FLOAT.fullmatch(node.text)):
            raise self._error(node, path, "this must be text, not a number or true/false", cure="put it in quotes")
        if not node.text.isprintable():
            raise self._error(node, path, "this text has control characters or line breaks", cure="write it on one line")
        if "${" in node.text:
            raise self._error(node, path, "variables of the environment are not filled in here", cure="write the value itself")
        return node.text

    def _integer(self, node: Scalar, path: Path) -> int:
        if not node.plain or not _INTEGER.fullmatch(node.text):
            raise self._error(node, path, "this must be a whole number", cure="write digits only, without quotes")
        return int(node.text)

    def _float(self, node: Scalar, path: Path) -> float:
        if not node.plain or not _FLOAT.fullmatch(node.text):
            raise self._error(node, path, "this must be a number", cure="write digits, without quotes or a unit")
        return float(node.text)

    def _boolean(self, node: Scalar, path: Path) -> bool:
        if not node.plain or node.text not in _BOOLEANS:
            raise self._error(node, path, "this must be true or false", cure="write true or false, without quotes")
        return _BOOLEANS[node.text]

    def _error(self, node: Node, path: Path, problem: str, *, cure: str) -> ConfigError:
        return ConfigError(problem, cure=cure, file=self._file, line=node.line, key=name_of(path))


_SCALARS: dict[type, Any] = {str: Shaper._text, int: Shaper._integer, float: Shaper._float, bool: Shaper._boolean}


def line_of(root: Mapping, path: Path) -> int:
    """Return the line of the key at `path`, or of the nearest block above it that the file has."""
    node: Node = root
    line = 1
    for part in path:
        if isinstance(node, Mapping) and isinstance(part, str) and part in node.entries:
            entry = node.entries[part]
            line, node = entry.line, entry.value
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            line = node.line
        else:
            break
    return line


def find(root: Mapping, path: Path) -> Node | None:
    """Return what the file says at `path`, or `None` when it says nothing there."""
    node: Node = root
    for part in path:
        if isinstance(node, Mapping) and isinstance(part, str) and part in node.entries:
            node = node.entries[part].value
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
        else:
            return None
    return node


def _is_nothing(node: Node) -> bool:
    return isinstance(node, Scalar) and node.plain and node.text in _NOTHING


def _near(key: str, known: list[str], path: Path) -> str:
    similar = difflib.get_close_matches(key[:MAX_CONFIG_NAME_CHARS].lower(), known, n=1, cutoff=0.6)
    if similar:
        return f"did you mean {similar[0]}?"
    if path[:1] == ("providers",) and _SECRETS.fullmatch(key):
        return f"a provider's secret goes into the vault: remove this and run `cliproxy credentials add {path[-1]}`"
    return f"known here: {', '.join(known)}"


def _some_keys(kind: type[msgspec.Struct]) -> str:
    return ", ".join(kind.__struct_fields__[:4])


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
