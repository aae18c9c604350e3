"""YAML text as a tree that remembers lines: what is accepted of YAML at all, before any meaning.

What always holds: the text is UTF-8 and at most `MAX_CONFIG_BYTES`; no key stands twice in a block; there are no tags, no merge keys and no
second document; the tree has at most `MAX_CONFIG_NODES` nodes after aliases are expanded and is at most `MAX_CONFIG_DEPTH` deep, so that
whoever walks it does bounded work. Scalars stay text: their type is decided by the schema (`config.shape`), by the rules of YAML 1.2, so
that `no` is not false and `1:30` is not 90.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from cliproxy.bounds import MAX_CONFIG_BYTES, MAX_CONFIG_NAME_CHARS
from cliproxy.errors import ConfigError

MAX_CONFIG_NODES = 100_000  # keys and values after aliases are expanded: no "billion laughs"
MAX_CONFIG_DEPTH = 16  # the schema needs 6

_BRACKETS = {"while parsing a flow sequence": "[", "while parsing a flow mapping": "{"}  # PyYAML's contexts


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as text. `plain`: it was written without quotes, so it may be a number, a boolean or nothing."""

    line: int
    text: str = field(repr=False)
    plain: bool


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key's line and value."""

    line: int
    value: Node


@dataclass(frozen=True, slots=True)
class Mapping:
    """A block; the order is the file's."""

    line: int
    entries: dict[str, Entry]


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class _Sized:
    """A node with what it counts as after expansion."""

    node: Node
    nodes: int
    depth: int


@dataclass(slots=True)
class _Open:
    """A list or block that is not closed yet."""

    line: int
    mapping: bool
    anchor: str | None
    children: list[_Sized] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)  # with their lines, in the file's order


def parse_document(data: bytes, *, file: str) -> Mapping:
    """Return the one document in `data`; an empty one is an empty block. Raises `ConfigError` and nothing else."""
    text = _text(data, file=file)
    builder = _Builder(file)
    try:
        return builder.build(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, file=file) from None
    except (yaml.YAMLError, RecursionError, ValueError, IndexError, OverflowError):  # the last three: PyYAML on escapes and versions that are out of range
        raise ConfigError(
            "this is not YAML, here or somewhat below", cure="look at the escapes (\\x \\u \\U) between double quotes", file=file, line=builder.line
        ) from None


def _text(data: bytes, *, file: str) -> str:
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the file is larger than {MAX_CONFIG_BYTES} bytes", cure="make it smaller", file=file)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("these bytes are not UTF-8", cure="save the file as UTF-8", file=file, line=data.count(b"\n", 0, error.start) + 1) from None
    unprintable = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if unprintable:
        raise ConfigError(
            f"there is a control character (U+{ord(unprintable.group()):04X})", cure="remove it", file=file, line=text.count("\n", 0, unprintable.start()) + 1
        )
    return text


def _not_yaml(error: yaml.MarkedYAMLError, *, file: str) -> ConfigError:
    """Say what PyYAML stumbled over, in the line that has to be mended: of a quote that is never closed that is the first line, not the file's last."""
    mark, began = error.problem_mark or error.context_mark, error.context_mark
    line = 1 if mark is None else mark.line + 1
    problem = error.problem or "unreadable"
    cure = "mend the indentation or the quotes of this line"
    if problem.startswith(r"found character '\t'"):
        problem, cure = "there is a tab", "write spaces in its place"
    elif began is not None and error.context == "while scanning a quoted scalar" and "unexpected" in problem:
        line, problem, cure = began.line + 1, "this quote is not closed", "close it"
    elif began is not None and error.context in _BRACKETS:
        problem = f"a comma is missing, or the {_BRACKETS[error.context]} that was opened in line {began.line + 1} is not closed"
        cure = "mend it here or there"
    return ConfigError(f"this is not YAML: {_without_quotations(problem)}", cure=cure, file=file, line=line)


def _without_quotations(problem: str) -> str:
    """PyYAML's messages quote the text, which may be a key: leave only single characters and words of YAML itself."""
    return re.sub(r"'[^']{2,}'|\"[^\"]{2,}\"", "…", " ".join(problem.split()))[:200]


class _Builder:
    """Builds the tree from PyYAML's events with a stack of its own: no recursion, every bound checked on the way."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._anchors: dict[str, _Sized] = {}
        self._open: list[_Open] = []
        self._nodes = 0
        self._root: _Sized | None = None
        self.line = 1  # of the last thing that was understood

    def build(self, events: Iterator[yaml.Event]) -> Mapping:
        documents = 0
        for event in events:
            self.line = _line(event)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error(event, "a second document begins", cure="keep one document in the file")
            elif isinstance(event, yaml.AliasEvent):
                target = self._anchors.get(event.anchor or "")
                if target is None:
                    raise self._error(event, "an alias (*name) has no anchor (&name) before it", cure="put the text in quotes if it is not meant as an alias")
                self._add(target, event)
            elif isinstance(event, yaml.ScalarEvent):
                self._refuse_tag(event)
                self._close(Scalar(line=_line(event), text=event.value, plain=event.style in (None, "")), event.anchor, [], event)
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                self._refuse_tag(event)
                if len(self._open) >= MAX_CONFIG_DEPTH:
                    raise self._error(event, f"this is nested more than {MAX_CONFIG_DEPTH} deep", cure="compare it with docs/configuration.md")
                self._open.append(_Open(line=_line(event), mapping=isinstance(event, yaml.MappingStartEvent), anchor=event.anchor))
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                done = self._open.pop()
                if done.mapping:
                    values = done.children
                    entries = {key: Entry(line, value.node) for (key, line), value in zip(done.keys.items(), values, strict=True)}
                    self._close(Mapping(done.line, entries), done.anchor, values, event)
                else:
                    self._close(Sequence(done.line, tuple(child.node for child in done.children)), done.anchor, done.children, event)
        return self._result()

    def _result(self) -> Mapping:
        if self._root is None:
            return Mapping(1, {})
        root = self._root.node
        if isinstance(root, Scalar) and root.plain and root.text == "":
            return Mapping(1, {})
        if not isinstance(root, Mapping):
            raise ConfigError("the file is not a block of keys", cure="write keys as in docs/configuration.md", file=self._file, line=root.line)
        return root

    def _close(self, node: Node, anchor: str | None, children: list[_Sized], event: yaml.Event) -> None:
        sized = _Sized(node, 1 + sum(child.nodes for child in children), 1 + max((child.depth for child in children), default=0))
        if anchor is not None:
            self._anchors[anchor] = sized
        self._add(sized, event, own=1)

    def _add(self, sized: _Sized, event: yaml.Event, *, own: int | None = None) -> None:
        self._nodes += sized.nodes if own is None else own
        if self._nodes > MAX_CONFIG_NODES:
            raise self._error(event, f"there are more than {MAX_CONFIG_NODES} keys and values (aliases expanded)", cure="make the file smaller")
        if len(self._open) + sized.depth > MAX_CONFIG_DEPTH + 1:
            raise self._error(event, f"this is nested more than {MAX_CONFIG_DEPTH} deep", cure="compare it with docs/configuration.md")
        if not self._open:
            self._root = sized
            return
        parent = self._open[-1]
        if parent.mapping and len(parent.keys) == len(parent.children):
            parent.keys[self._key(sized.node, event, parent)] = _line(event)
        else:
            parent.children.append(sized)

    def _key(self, node: Node, event: yaml.Event, parent: _Open) -> str:
        if not isinstance(node, Scalar):
            raise self._error(event, "a key is not plain text", cure="write one word before the colon")
        name = node.text
        if not name or len(name) > MAX_CONFIG_NAME_CHARS or not name.isprintable():
            raise self._error(event, f"a key is empty, longer than {MAX_CONFIG_NAME_CHARS} characters or not printable", cure="write one word before the colon")
        if name == "<<" and node.plain:
            raise self._error(event, "merge keys (<<) are not supported", cure="write the keys out")
        first = parent.keys.get(name)
        if first is not None:
            raise self._error(event, f"the key {name!r} stands twice in this block (first in line {first})", cure="remove one of them")
        return name

    def _refuse_tag(self, event: yaml.ScalarEvent | yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        if event.tag is not None:
            raise self._error(event, "YAML tags (!name) are not supported", cure="remove it, or put the text in quotes")

    def _error(self, event: yaml.Event, problem: str, *, cure: str) -> ConfigError:
        return ConfigError(problem, cure=cure, file=self._file, line=_line(event))


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return 1 if mark is None else int(mark.line) + 1
