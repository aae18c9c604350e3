"""The documents say what is there: files, tests, commands, links, decisions, the version, the systemd unit."""

from __future__ import annotations

import ast
import configparser
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from cliproxy import __version__
from cliproxy.cli.main import COMMANDS, cli
from cliproxy.vault.master_key import SYSTEMD_CREDENTIAL

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MAP = ROOT / "docs" / "security" / "defense-layers.md"
DECISIONS = ROOT / "docs" / "adr"
UNIT = ROOT / "deploy" / "systemd" / "cliproxy.service"
CODE_PATH = re.compile(r"`((?:src|tests|docs|deploy|requirements|\.ci)/[\w./-]+|SECURITY\.md)(?:::(\w+))?`")
# The items of the specification, in its words; the map may not lose one.
ITEMS = (
    "Path Guard", "Signed releases", "Multi-arch builds", "Minimal base image", "Non-root user", "Read-only file system", "Security context",
    "Seccomp profiles",
    "Encrypted storage", "Secure file permissions", "Token refresh isolation", "Device fingerprinting", "TLS only", "Security headers", "Request validation",
    "Rate limiting", "IP allowlisting", "Audit logging", "Secret scanning", "Dependency scanning", "Vulnerability management", "Metrics", "Alerting",
    "Incident response", "SOC 2: access control", "SOC 2: change management", "SOC 2: data protection", "GDPR: minimisation", "GDPR: erasure, portability",
)  # fmt: skip


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def rows() -> Iterator[list[str]]:
    """Yield the rows of the map's tables of five columns, without their heads."""
    for line in MAP.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 5 and cells[0] != "item" and not set(cells[0]) <= {"-"}:
            yield cells


@cache
def functions_of(file: Path) -> frozenset[str]:
    return frozenset(node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


# --- the map from specification to tree ---------------------------------------------------------------------------------


def test_the_map_names_files_and_tests_that_exist() -> None:
    named = CODE_PATH.findall(MAP.read_text(encoding="utf-8"))
    assert len(named) > 100
    assert [path for path, _ in named if not (ROOT / path).is_file()] == []
    assert [f"{path}::{test}" for path, test in named if test and test not in functions_of(ROOT / path)] == []


def test_every_item_of_the_specification_is_in_the_map_with_a_status() -> None:
    found = {cells[0]: cells for cells in rows()}
    assert [item for item in ITEMS if item not in found] == []
    for item, (_, what, _, _, status) in found.items():
        assert what, item
        assert re.match(r"\*\*(here|part|later)\*\*", status), item


def test_what_is_here_names_where_it_is_and_a_test_that_would_fail_without_it() -> None:
    here = [cells for cells in rows() if cells[4].startswith("**here**")]
    assert len(here) > 10
    for item, _, where, proof, _ in here:
        assert CODE_PATH.search(where), item
        assert any(test for _, test in CODE_PATH.findall(proof)), item


# --- commands, links, decisions, version --------------------------------------------------------------------------------


def command_lines(file: Path) -> Iterator[str]:
    """Yield what a document shows as commands: lines of its shell blocks, and `cliproxy …` in backticks."""
    text = file.read_text(encoding="utf-8")
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            for match in re.finditer(r"(?:^|[\s;|&/])(cliproxy [a-z-].*?)(?= #|[>|;&]|$)", line):
                yield match[1]
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`((?:CLIPROXY_\w+=\S+ )?cliproxy [a-z-][^`]*)`", text):
        yield re.sub(r"^CLIPROXY_\w+=\S+ ", "", code)


def verify_command(line: str) -> None:
    """Fail unless `line` is a command of ours with options that it has."""
    words = shlex.split(line.replace("…", ""))[1:]
    command: click.Command = cli
    context = click.Context(cli)
    while words and isinstance(command, click.Group):
        word, *words = words
        if set(word) & set("| "):
            return  # a choice of several
        found = command.get_command(context, word)
        assert found is not None, line
        command = found
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in options, f"{line}: {word}"


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_every_command_that_a_document_shows_exists_with_its_options(file: Path) -> None:
    for line in command_lines(file):
        verify_command(line)


def test_commands_are_found_and_wrong_ones_noticed() -> None:
    assert sum(1 for file in DOCUMENTS for _ in command_lines(file)) > 40
    verify_command("cliproxy keys create --name x")
    for wrong in ("cliproxy no-such", "cliproxy keys no-such", "cliproxy keys create --no-such x"):
        with pytest.raises(AssertionError):
            verify_command(wrong)


def test_every_command_is_in_the_changelog() -> None:
    listed = re.search(r"Commands: `([^`]+)`", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert listed is not None
    assert set(listed[1].split()) == set(COMMANDS)


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_links_between_documents_lead_somewhere(file: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            path = (file.parent / target.partition("#")[0]).resolve()
            assert path.is_relative_to(ROOT.resolve()), target
            assert path.exists(), target


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_a_document_of_ours_that_is_named_exists(file: Path) -> None:
    for path in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), path


def test_every_decision_is_listed_once_and_has_its_number_to_itself() -> None:
    files = sorted(file.name for file in DECISIONS.glob("*.md") if file.name != "README.md")
    linked = re.findall(r"\]\((\d[^)]*)\)", (DECISIONS / "README.md").read_text(encoding="utf-8"))
    assert sorted(linked) == files
    assert len({file[:4] for file in files}) == len(files)


def test_a_decision_has_its_date_its_status_its_context_and_its_consequences() -> None:
    for file in DECISIONS.glob("[0-9]*.md"):
        text = file.read_text(encoding="utf-8")
        assert re.match(r"# .+\n\nDate: \d{4}-\d\d-\d\d\nStatus: (accepted|superseded by \d{4})", text), file.name
        for part in ("Context", "Decision", "Consequences"):
            assert re.search(rf"^(?:## {part}$|\*\*{part}\.\*\*)", text, re.MULTILINE), f"{file.name}: {part}"


def test_decisions_that_are_referred_to_exist() -> None:
    numbers = {file.name[:4] for file in DECISIONS.glob("[0-9]*.md")}
    sources = [*DOCUMENTS, *(ROOT / "src").rglob("*.py"), UNIT]
    for file in sources:
        for number in re.findall(r"\bADR (\d{4})\b|\bdocs/adr/(\d{4})", file.read_text(encoding="utf-8")):
            assert "".join(number) in numbers, f"{name_of(file)}: {number}"


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first is not None
    assert first[1] == __version__


# --- the systemd unit ---------------------------------------------------------------------------------------------------


class _Unit(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture(scope="module")
def unit() -> configparser.RawConfigParser:
    parser = _Unit(strict=True, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return parser


def test_the_unit_parses_and_starts_commands_that_exist(unit: configparser.RawConfigParser) -> None:
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for directive in ("ExecStart", "ExecReload"):
        program, *arguments = shlex.split(unit["Service"][directive])
        assert Path(program).is_absolute()
        assert Path(program).name in scripts
        verify_command(shlex.join(["cliproxy", *arguments]))


def test_the_unit_hears_the_supervisor_alone_and_hands_it_the_key(unit: configparser.RawConfigParser) -> None:
    service = unit["Service"]
    assert (service["Type"], service["NotifyAccess"], service["KillMode"]) == ("notify", "main", "mixed")
    assert service["LoadCredential"].partition(":")[0] == SYSTEMD_CREDENTIAL
    assert service["RestartPreventExitStatus"] == "78"


def test_the_unit_keeps_what_the_lockdown_needs_and_takes_the_rest(unit: configparser.RawConfigParser) -> None:
    service = unit["Service"]
    assert set(service["CapabilityBoundingSet"].split()) == {"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL"}
    # The users of the processes would not exist, or Landlock and seccomp would be refused.
    assert {"SystemCallFilter", "PrivateUsers", "DynamicUser", "PrivateNetwork", "User"}.isdisjoint(service)
    assert (service["ProtectSystem"], service["ProtectProc"], service["SystemCallArchitectures"]) == ("strict", "invisible", "native")
    assert set(service["RestrictAddressFamilies"].split()) == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
    for directive in (
        "NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs",
        "ProtectControlGroups", "ProtectClock", "ProtectHostname", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality",
        "MemoryDenyWriteExecute",
    ):  # fmt: skip
        assert service[directive] == "yes", directive
