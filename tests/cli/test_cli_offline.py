"""Commands that need no gateway: usage, check, doctor, completion, version, routes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cliproxy import __version__
from cliproxy.cli.main import COMMANDS

Run = Callable[..., Any]


def write(home: Path, text: str, mode: int = 0o600) -> Path:
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "config").mkdir(mode=0o700, exist_ok=True)
    file = home / "config" / "cliproxy.yaml"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_version_and_build_are_told(cliproxy: Run) -> None:
    done = cliproxy("version", "--json")
    assert done.code == 0
    assert done.json["version"] == __version__
    assert done.json["build"].startswith(__version__ + "+")
    assert cliproxy("version").out.startswith(f"cliproxy {__version__} ")


def test_every_command_has_help_with_an_example(cliproxy: Run) -> None:
    from cliproxy.cli.main import cli

    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None and command.help, name
        for leaf in getattr(command, "commands", {"": command}).values():
            assert leaf.help, (name, leaf.name)
            assert (leaf.epilog or "").startswith("Example: "), (name, leaf.name)
            assert "cliproxy " in leaf.epilog
    assert cliproxy("keys", "create", "--help").code == 0


def test_every_command_takes_home_and_json(cliproxy: Run) -> None:
    from cliproxy.cli.main import cli

    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        for leaf in getattr(command, "commands", {"": command}).values():
            options = {option for parameter in leaf.params for option in parameter.opts}
            assert name == "completion" or {"--home", "--json"} <= options, (name, leaf.name)


WRONG_USAGE = {
    "unknown command": ("bogus",),
    "unknown option": ("version", "--bogus"),
    "missing argument": ("keys", "revoke"),
    "wrong choice": ("lockdown", "maybe"),
    "wrong expiry": ("keys", "create", "--expires", "soon"),
    "expiry in the past": ("keys", "create", "--expires", "2001-01-01"),
    "no date": ("keys", "create", "--expires", "2027-02-31"),
    "wrong network": ("keys", "create", "--network", "10.0.0.1/8"),
    "negative limit": ("keys", "create", "--rpm", "-1"),
    "a key instead of its name": ("keys", "revoke", "cpk_abc"),
    "wrong public key": ("audit", "verify", "--public-key", "xyz"),
    "nothing to prove": ("audit", "prove"),
    "a name that is not UTF-8": ("keys", "create", "--name", "\udcff"),
    "a command that is not UTF-8": ("\udcff",),
}


@pytest.mark.parametrize("name", WRONG_USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(cliproxy: Run, tmp_path: Path, name: str) -> None:
    done = cliproxy("--home", str(tmp_path), *WRONG_USAGE[name])
    assert done.code == 2
    assert done.line.startswith("cliproxy: ")
    assert list(tmp_path.iterdir()) == []


def test_no_command_shows_help_and_is_wrong_usage(cliproxy: Run) -> None:
    done = cliproxy()
    assert done.code == 2
    assert "Commands:" in done.out + done.err


def test_an_error_is_json_where_json_is_asked_for(cliproxy: Run, tmp_path: Path) -> None:
    import json

    done = cliproxy("check", "--json", "--home", str(tmp_path))
    assert done.code == 78
    assert json.loads(done.line) == {"error": json.loads(done.line)["error"], "exit": 78}


NEEDS_A_HOME = {
    "check": ("check",),
    "serve": ("serve",),
    "reload": ("reload",),
    "keys list": ("keys", "list"),
    "vault status": ("vault", "status"),
    "routes": ("routes",),
    "lockdown": ("lockdown", "on"),
}


@pytest.mark.parametrize("name", NEEDS_A_HOME)
def test_without_a_home_commands_say_so_and_create_nothing(cliproxy: Run, tmp_path: Path, name: str) -> None:
    done = cliproxy(*NEEDS_A_HOME[name], "--home", str(tmp_path / "none"))
    assert done.code == 78
    assert str(tmp_path / "none") in done.line
    assert "cliproxy init" in done.line or "cliproxy serve" in done.line
    assert list(tmp_path.iterdir()) == []


def test_the_home_is_the_option_then_the_environment(cliproxy: Run, tmp_path: Path) -> None:
    write(tmp_path / "a", "providers:\n  echo:\n    models: [from-a]\n")
    write(tmp_path / "b", "providers:\n  echo:\n    models: [from-b]\n")
    environment = {"CLIPROXY_HOME": str(tmp_path / "a")}
    assert "from-a" in cliproxy("routes", environment=environment).out
    assert "from-b" in cliproxy("routes", "--home", str(tmp_path / "b"), environment=environment).out
    assert "from-b" in cliproxy("--home", str(tmp_path / "b"), "routes", environment=environment).out


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_accepts_what_is_usable_and_shows_warnings(cliproxy: Run, tmp_path: Path) -> None:
    file = write(tmp_path, "providers:\n  echo:\n    models: [echo]\n  claude:\n    rate_limit: {requests_per_minute: 100}\n")
    done = cliproxy("check", "--home", str(tmp_path), "--json")
    assert done.code == 0
    assert done.json["models"] == ["echo"]
    assert [warning.startswith(f"{file}:4: providers.claude: ") for warning in done.json["warnings"]] == [True]


def test_check_names_file_line_key_and_cure_and_exits_78(cliproxy: Run, tmp_path: Path) -> None:
    file = write(tmp_path, "server:\n  prot: 1\n")
    done = cliproxy("check", "--home", str(tmp_path))
    assert done.code == 78
    assert done.line == f"cliproxy: {file}:2: server.prot: this key is unknown; did you mean port?"


def test_check_refuses_the_placeholder_key(cliproxy: Run, tmp_path: Path) -> None:
    write(tmp_path, 'auth:\n  encryption:\n    enabled: true\n    key: "YOUR_32_BYTE_ENCRYPTION_KEY_HERE"\n')
    done = cliproxy("check", "--home", str(tmp_path))
    assert done.code == 78
    assert "placeholder" in done.line and "YOUR_32" not in done.line


def test_check_takes_another_file(cliproxy: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("providers:\n  echo:\n    models: [echo]\n")
    other.chmod(0o600)
    assert cliproxy("check", "--home", str(tmp_path / "none"), "--config", str(other)).code == 0


def test_serve_with_a_faulty_file_is_one_line_and_changes_nothing(cliproxy: Run, tmp_path: Path) -> None:
    file = write(tmp_path, "server:\n  port: 99999\n")
    before = sorted(tmp_path.rglob("*"))
    done = cliproxy("serve", "--home", str(tmp_path))
    assert done.code == 78
    assert done.line.startswith(f"cliproxy: {file}:2: server.port: ")
    assert sorted(tmp_path.rglob("*")) == before


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_finds_what_others_may_read_and_fix_takes_it_away(cliproxy: Run, home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns("control.sock"))
    copy.chmod(0o700)
    (copy / "key" / "master.key").chmod(0o644)
    (copy / "logs").chmod(0o755)
    done = cliproxy("doctor", "--home", str(copy), "--json")
    assert done.code == 1
    bad = [finding["text"] for finding in done.json["findings"] if finding["good"] is False and finding["area"] == "files"]
    assert len(bad) == 2
    assert all("chmod" in text for text in bad)
    assert stat.S_IMODE((copy / "key" / "master.key").stat().st_mode) == 0o644
    fixed = cliproxy("doctor", "--home", str(copy), "--fix", "--json")
    assert [finding for finding in fixed.json["findings"] if finding["good"] is False and finding["area"] == "files"] == []
    assert stat.S_IMODE((copy / "key" / "master.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((copy / "logs").stat().st_mode) == 0o700


def test_doctor_fix_follows_no_link_and_no_second_name(cliproxy: Run, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("x")
    victim.chmod(0o644)
    linked = tmp_path / "linked"
    linked.write_text("x")
    linked.chmod(0o644)
    home = tmp_path / "home"
    write(home, "")
    (home / "key").mkdir(mode=0o700)
    (home / "key" / "master.key").symlink_to(victim)
    os.link(linked, home / "config" / "second")
    assert cliproxy("doctor", "--home", str(home), "--fix").code == 1
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644
    assert stat.S_IMODE(linked.stat().st_mode) == 0o644


def test_doctor_reports_the_kernel_and_what_each_guarantee_rests_on(cliproxy: Run, tmp_path: Path) -> None:
    findings = cliproxy("doctor", "--home", str(tmp_path), "--json").json["findings"]
    assert any(finding["area"] == "kernel" and "seccomp" in finding["text"] for finding in findings)
    assert any(finding["area"] == "sandbox" and "execve" in finding["text"] for finding in findings)


# --- completion, routes, speed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(cliproxy: Run, shell: str) -> None:
    done = cliproxy("completion", shell)
    assert done.code == 0
    assert f"_CLIPROXY_COMPLETE={shell}_complete" in done.out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.out, text=True, check=True, timeout=30)


def test_completion_completes_commands(cliproxy: Run) -> None:
    done = cliproxy(environment={"_CLIPROXY_COMPLETE": "bash_complete", "COMP_WORDS": "cliproxy ke", "COMP_CWORD": "1"})
    assert done.out.split() == ["plain,keys"]


def test_routes_shows_where_a_model_goes(cliproxy: Run, tmp_path: Path) -> None:
    write(tmp_path, "providers:\n  up:\n    base_url: https://api.example.com/v1\nmodels:\n  cheap:\n    provider: up\n    model: small-1\n")
    done = cliproxy("routes", "cheap", "--home", str(tmp_path), "--json")
    (step,) = done.json
    assert step == step | {"model": "cheap", "order": 1, "provider": "up", "kind": "openai_compatible", "base_url": "https://api.example.com/v1"}
    assert step == step | {"provider_model": "small-1", "tier": 0, "priority": 0, "weight": 1, "strategy": "round_robin", "state": "not known"}
    assert step["endpoints"][0] == "chat_completions" and step["credentials"] == step["cooldowns"] == []
    assert "no gateway runs here" in cliproxy("routes", "cheap", "--home", str(tmp_path)).err
    missing = cliproxy("routes", "other", "--home", str(tmp_path))
    assert (missing.code, missing.out) == (1, "there is no model other: a call is answered 404; `cliproxy routes` lists those that there are\n")
    near = cliproxy("routes", "chaep", "--home", str(tmp_path))
    assert (near.code, near.out) == (1, "there is no model chaep: a call is answered 404; near it: cheap\n")


def test_routes_shows_pools_in_the_order_of_tier_and_priority_and_says_what_is_excluded(cliproxy: Run, tmp_path: Path) -> None:
    write(
        tmp_path,
        """
providers:
  a: {base_url: "https://a.example.com/v1"}
  b: {base_url: "https://b.example.com/v1", priority: 5}
  c: {base_url: "https://c.example.com/v1", prefix: c, models: ["*"], exclude: ["*-preview"]}
models:
  best:
    pool: [{provider: a, model: one, weight: 3}, {provider: b, model: two}]
    strategy: weighted
    fallback: [last]
  last: {provider: c, model: three}
""",
    )
    steps = cliproxy("routes", "best", "--home", str(tmp_path), "--json").json
    assert [(step["provider"], step["tier"], step["priority"], step["weight"], step["strategy"]) for step in steps] == [
        ("b", 0, 5, 1, "weighted"),
        ("a", 0, 0, 3, "weighted"),
        ("c", 1, 0, 1, "round_robin"),
    ]
    assert cliproxy("routes", "c/anything", "--home", str(tmp_path), "--json").json[0]["provider_model"] == "anything"
    everything = cliproxy("routes", "--home", str(tmp_path))
    assert [line.split("\t")[:3] for line in everything.out.splitlines()][:2] == [["best", "1", "b"], ["best", "2", "a"]]
    assert "and every name like c/*: ask for one by its name" in everything.err
    excluded = cliproxy("routes", "c/new-preview", "--home", str(tmp_path))
    assert (excluded.code, excluded.out) == (1, "there is no model c/new-preview: a call is answered 404; provider c excludes it\n")


def test_on_a_terminal_routes_are_steps_below_their_model_with_what_cools_and_why() -> None:
    from cliproxy.cli.routes import _lines

    def step(provider: str, tier: int, priority: int, state: str, **more: Any) -> dict[str, Any]:
        known = {"model": "fast", "provider": provider, "provider_model": "m", "tier": tier, "priority": priority, "weight": 3, "strategy": "weighted"}
        return {**known, "state": state, "cooldowns": [], **more}

    cooldown = {"credential": "cred_1", "endpoint": "messages", "until": time.time() + 1015.0, "status": 404, "code": "provider_not_found"}
    steps = [
        step("a", 0, 1, "ready"),
        step("long", 0, 1, "cooling for 17 min", cooldowns=[cooldown]),
        step("c", 0, 0, "no credential"),
        step("d", 1, 1, "ready"),
    ]
    assert _lines(steps) == [
        "fast",
        "  1  a/m     ready (weighted, weight 3)",
        "  1  long/m  cooling for 17 min (weighted, weight 3)",
        "       cred_1 messages: provider_not_found (404) for 17 min",
        "  2  c/m     no credential",
        "  3  d/m     ready (fallback)",
    ]


@pytest.mark.parametrize(
    ("cooling", "state"),
    [
        ([], "ready"),
        ([("cred_1", "messages")], "partly cooling"),
        ([("cred_1", "messages"), ("cred_1", "chat_completions"), ("cred_2", "messages")], "partly cooling"),
        ([("cred_1", "messages"), ("cred_1", "chat_completions"), ("cred_2", "messages"), ("cred_2", "chat_completions")], "cooling for 17 min"),
        ([("cred_9", "messages")], "ready"),
    ],
)
def test_routes_say_whether_some_or_all_of_a_target_cools(cooling: list[tuple[str, str]], state: str) -> None:
    from cliproxy.cli.routes import _Live, _steps
    from cliproxy.config.routes import RouteTable
    from cliproxy.config.schema import ModelRoute, Provider, Settings
    from cliproxy.ipc.messages import CooldownRecord

    table = RouteTable(
        Settings(providers={"p": Provider(kind="deepseek", base_url="https://api.example.com")}, models={"m": ModelRoute(provider="p", model="x")})
    )
    until = time.time() + 1015.0
    cooldowns: dict[tuple[str, str, str], list[CooldownRecord]] = {}
    for credential, endpoint in cooling:
        record = CooldownRecord(provider="p", credential=credential, model="x", endpoint=endpoint, until=until, status=404, code="c", strikes=0)
        cooldowns.setdefault(("p", credential, "x"), []).append(record)
    route = table.find("m")
    assert route is not None
    (step,) = _steps(
        "m",
        route,
        _Live({("p", "https://api.example.com:443"): ["cred_1", "cred_2"], ("p", "https://old.example.com:443"): ["cred_9"]}, cooldowns, frozenset()),
    )
    assert step["state"] == state


@pytest.mark.parametrize(
    ("words", "expected"),
    [("cliproxy routes be", ["best"]), ("cliproxy routes x", []), ("cliproxy credentials add u", ["up"]), ("cliproxy routes ", ["best", "cheap"])],
)
def test_completion_knows_the_configurations_names(cliproxy: Run, tmp_path: Path, words: str, expected: list[str]) -> None:
    write(tmp_path, "providers:\n  up: {base_url: 'https://api.example.com/v1', models: [cheap]}\nmodels:\n  best: {provider: up, model: m}\n")
    line = {"_CLIPROXY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "CLIPROXY_HOME": str(tmp_path)}
    assert cliproxy(environment=line).out.split() == [f"plain,{name}" for name in expected]


def test_completion_is_silent_where_the_configuration_cannot_be_used(cliproxy: Run, tmp_path: Path) -> None:
    write(tmp_path, "providers: nonsense\n")
    line = {"_CLIPROXY_COMPLETE": "bash_complete", "COMP_WORDS": "cliproxy routes b", "COMP_CWORD": "2", "CLIPROXY_HOME": str(tmp_path)}
    done = cliproxy(environment=line)
    assert (done.out.strip(), done.err) == ("", "")


def test_a_command_imports_only_what_it_needs() -> None:
    script = "import sys; from cliproxy.cli.main import _run; _run(['version']); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert not {"yaml", "rich", "uvloop", "httptools", "cryptography", "ssl", "asyncio", "sqlite3"} & loaded
    script = "import sys; import cliproxy.cli.serve, cliproxy.cli.starting; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert not {"yaml", "rich", "uvloop", "httptools", "ssl", "asyncio"} & set(done.stdout.split())
