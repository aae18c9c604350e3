"""docs/configuration.md against the schema: every key is there with its default and range, and nothing else is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from cliproxy.config.load import parse_config
from cliproxy.config.ranges import range_of
from cliproxy.config.rules import ALERT_METRICS, ALWAYS_ON_SUITES, CIPHER_SUITES
from cliproxy.config.schema import Settings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
ROW = re.compile(r"^\| `([a-z_.*\[\]]+)` \| (.+?) \| (.+?) \| (.+) \|$", re.MULTILINE)


def is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def leaves(kind: type[msgspec.Struct], path: str) -> Iterator[tuple[str, Any]]:
    for field in msgspec.structs.fields(kind):
        here = f"{path}.{field.name}" if path else field.name
        arguments = get_args(field.type)
        if is_block(field.type):
            yield from leaves(field.type, here)
        elif get_origin(field.type) is dict:
            yield from leaves(arguments[1], f"{here}.*")
        elif get_origin(field.type) is tuple and is_block(arguments[0]):
            yield from leaves(arguments[0], f"{here}[]")
        else:
            yield here, field


def shown(default: Any) -> str:
    if default is msgspec.NODEFAULT:
        return "(required)"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in default) + "]`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`" if default != "" else '`""`'


def values(kind: Any, path: str) -> str:
    if kind in (int, float):
        low, high = range_of(tuple(path.split(".")))
        return f"{low:.10g} to {high:.10g}"
    if kind is bool:
        return "true, false"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind) if choice)
    return "list" if get_origin(kind) is tuple else "text"


def test_every_key_is_documented_with_its_default_and_values() -> None:
    documented = {key: (default, allowed) for key, default, allowed, _ in ROW.findall(DOCUMENT)}
    assert documented.pop("auth.encryption.key") == ("(none)", "text")
    assert documented == {path: (shown(field.default), values(field.type, path)) for path, field in leaves(Settings, "")}


def test_the_example_is_usable() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert set(parse_config(example.encode(), file="example").settings.models) == {"echo", "gpt-4o-mini", "cheap"}


def test_the_default_configuration_is_usable_and_says_so_without_a_warning() -> None:
    from cliproxy.cli.init import DEFAULT_CONFIG

    loaded = parse_config(DEFAULT_CONFIG.encode(), file="default")
    assert loaded.warnings == ()
    assert set(loaded.settings.models) == {"echo"}
    assert loaded.settings.server == Settings().server


def test_cipher_suites_are_those_that_the_server_offers() -> None:
    from cliproxy.ingress.tls import SUITES, openssl_suites

    assert set(SUITES) == CIPHER_SUITES
    assert openssl_suites(tuple(sorted(CIPHER_SUITES | ALWAYS_ON_SUITES)))


def test_every_metric_of_the_alerts_is_documented() -> None:
    assert all(f"`{metric}`" in DOCUMENT for metric in ALERT_METRICS)
