"""Nothing that arrives is code, and nobody but the supervisor could run a program anyway.

Sources: CVE-2026-42271, CVE-2026-40217 and CVE-2026-42203 (LiteLLM: guardrail code, templates and commands through the API), PyYAML CVE-2020-14343,
Langflow CVE-2025-3248 (`exec` behind an endpoint), server-side template injection (Kettle, 2015), pickle (CWE-502).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cliproxy
from cliproxy.sandbox.bpf import ALLOW, KILL_PROCESS
from cliproxy.sandbox.roles import MAP_ANONYMOUS, PROFILES, PROT_EXEC
from cliproxy.sandbox.syscalls import NAMES, NUMBERS, Arch
from fakes.gateway import Gateway
from fakes.wire import WireClient

SOURCES = sorted(Path(cliproxy.__file__).parent.rglob("*.py"))
PWNED = Path("/tmp/cliproxy-code-execution")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    PWNED.unlink(missing_ok=True)
    with Gateway() as running:
        yield running


# --- what arrives --------------------------------------------------------------------------------------------------------

CODE = [
    "{{7*7}}",
    "${7*7}",
    "#{7*7}",
    "<%= 7*7 %>",
    "{{ cycler.__init__.__globals__.os.popen('touch /tmp/cliproxy-code-execution').read() }}",
    "{0.__class__.__mro__[1].__subclasses__}",
    "%(x)s %s %n",
    "__import__('os').system('touch /tmp/cliproxy-code-execution')",
    "$(touch /tmp/cliproxy-code-execution)",
    "`touch /tmp/cliproxy-code-execution`",
    "; touch /tmp/cliproxy-code-execution #",
    "!!python/object/apply:os.system ['touch /tmp/cliproxy-code-execution']",
    "cos\nsystem\n(S'touch /tmp/cliproxy-code-execution'\ntR.",
    "() { :;}; touch /tmp/cliproxy-code-execution",
    "${jndi:ldap://127.0.0.1:1/a}",
    '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
]


def ask(gateway: Gateway, body: Any, path: str = "/v1/chat/completions") -> Any:
    with WireClient(gateway.port) as client:
        return client.ask("POST", path, key=gateway.key, body=body)


@pytest.mark.parametrize("code", CODE)
def test_what_looks_like_code_is_text(gateway: Gateway, code: str) -> None:
    answer = ask(gateway, {"model": "echo", "messages": [{"role": "user", "content": code}], "user": code, "metadata": {"a": code}})
    assert answer.json["choices"][0]["message"]["content"] == code
    tool = {"type": "function", "function": {"name": "run", "description": code, "parameters": {"type": "object", "default": code}}}
    assert ask(gateway, {"model": "echo", "messages": [{"role": "user", "content": "x"}], "tools": [tool]}).status == 200
    for fields in ({"model": code}, {"tool_choice": code}, {"messages": [{"role": code, "content": "x"}]}, {"response_format": {"type": code}}):
        assert ask(gateway, {"model": "echo", "messages": [{"role": "user", "content": "x"}], **fields}).status in (400, 404)
    assert not PWNED.exists()


WHAT_RUNS = """
callbacks success_callback failure_callback guardrails guardrail_config hooks policies plugins mock_response mock_tool_calls preset webhook_url
"""


@pytest.mark.parametrize("field", WHAT_RUNS.split())
def test_a_field_that_would_choose_what_runs_is_refused(gateway: Gateway, field: str) -> None:
    answer = ask(gateway, {"model": "echo", "messages": [{"role": "user", "content": "x"}], field: "os.system"})
    assert (answer.status, answer.error["param"]) == (400, field)


@pytest.mark.parametrize("kind", ["mcp", "code_interpreter", "shell", "local_shell", "computer_use_preview", "web_search", "python", "file_search"])
def test_a_tool_that_somebody_would_have_to_run_is_no_tool(gateway: Gateway, kind: str) -> None:
    answer = ask(gateway, {"model": "echo", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": kind, "server_url": "http://127.0.0.1:1/"}]})
    assert answer.status == 400


@pytest.mark.parametrize(
    "text",
    [
        "server: !!python/object/apply:os.system ['touch /tmp/cliproxy-code-execution']\n",
        "server: !!python/object/new:os.system ['touch /tmp/cliproxy-code-execution']\n",
        "server: !!python/name:os.system\n",
        "server: !!python/module:os\n",
        "server: !!python/tuple [1]\n",
        "server: !include /etc/passwd\n",
        "server: !ENV ${HOME}\n",
        "? !!python/object/apply:os.system ['touch /tmp/cliproxy-code-execution']\n: x\n",
        "server:\n  command: touch /tmp/cliproxy-code-execution\n",
        "hooks: [touch /tmp/cliproxy-code-execution]\n",
        "providers:\n  x:\n    kind: os.system\n",
        "providers:\n  x:\n    module: os\n",
        "alerts: [{name: a, condition: \"__import__('os').system('touch /tmp/cliproxy-code-execution')\", duration: 1m, action: notify_admin}]\n",
        "alerts: [{name: a, condition: x > 1, duration: 1m, action: 'exec:touch /tmp/cliproxy-code-execution'}]\n",
    ],
)
def test_the_configuration_file_is_data_too(gateway: Gateway, tmp_path: Path, text: str) -> None:
    file = tmp_path / "cliproxy.yaml"
    file.write_text(text)
    file.chmod(0o600)
    done = gateway.result("check", "--config", str(file))
    assert done.returncode == 78, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert not PWNED.exists()


def test_nothing_was_started(gateway: Gateway) -> None:
    """No child has a child, none is another program, and each is under its filter."""
    children = gateway.children()
    assert sorted(children) == ["admin", "auditor", "dialer", "egress", "vault", "worker"]
    for name, pid in children.items():
        assert "".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")).split() == [], name
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1"), name
    assert "SIGSYS" not in gateway.messages()
    assert not PWNED.exists()


# --- what is there to run it ---------------------------------------------------------------------------------------------

# Calls and modules that turn data into code or into a process, and the only files where they may stand.
FORBIDDEN_CALLS = re.compile(
    r"eval|exec|compile|__import__|execfile|breakpoint|os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|fork\w*|startfile)|pty\.\w+|importlib\.\w+"
    r"|sys\.(settrace|setprofile)|yaml\.(load|load_all|unsafe_load\w*|full_load\w*|Loader|UnsafeLoader|FullLoader)|builtins\.\w+|types\.(FunctionType|CodeType)"
)
FORBIDDEN_MODULES = re.compile(
    r"(subprocess|pickle|_pickle|cPickle|shelve|marshal|dill|cloudpickle|runpy|code|codeop|pty|imp|importlib|multiprocessing|ctypes|cffi|jinja2|mako|xml|lxml)(\..*)?"
)
ALLOWED = {
    "cli/main.py": {"importlib", "importlib.import_module"},  # a command's file, by a table
    "processes/plan.py": {"os.execve", "os.posix_spawn"},  # our own interpreter and module
    "processes/spawn.py": {"os.posix_spawn"},  # the supervisor's children
    "sandbox/interpreter.py": {"__import__", "importlib.machinery"},  # shows that imports are refused
    "cli/entry.py": {"os.execv"},  # our own interpreter again, isolated
    "limits/locks.py": {"ctypes"},  # semaphores in the workers' shared table
    "memory.py": {"ctypes"},  # malloc_trim
    "sandbox/calls.py": {"ctypes"},
    "sandbox/kernel.py": {"ctypes"},
    "sandbox/landlock.py": {"ctypes"},
    "sandbox/lockdown.py": {"ctypes"},
}


def suspects_of(source: str) -> set[str]:
    """Return the names of calls and imports in `source` that are forbidden."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if FORBIDDEN_MODULES.fullmatch(alias.name)}
        elif isinstance(node, ast.ImportFrom) and FORBIDDEN_MODULES.fullmatch(node.module or ""):
            found.add(node.module or "")
        elif isinstance(node, ast.Name | ast.Attribute) and FORBIDDEN_CALLS.fullmatch(name := ast.unparse(node)):
            found.add(name)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and isinstance(word := node.args[1], ast.Constant):
            found |= {str(word.value)} if FORBIDDEN_CALLS.fullmatch(f"os.{word.value!s}") else set()
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(SOURCES[0].parent)))
def test_no_source_turns_data_into_code_or_a_process(file: Path) -> None:
    name = str(file.relative_to(Path(cliproxy.__file__).parent))
    assert suspects_of(file.read_text()) == ALLOWED.get(name, set())


def test_the_static_check_sees_what_it_looks_for() -> None:
    for line in (
        "eval(x)",
        "import subprocess",
        "from pickle import loads",
        "os.system(x)",
        "f = exec",
        "yaml.load(x)",
        "import a; importlib.import_module(x)",
        "getattr(os, 'popen')",
    ):
        assert suspects_of(line), line
    assert suspects_of("re.compile(x); self.exec_count; json.load(x)") == set()


# --- who could ---------------------------------------------------------------------------------------------------------

RUNNING = ("execve", "execveat", "fork", "vfork")
_FLAGS = ((0, 0, 0, 0, 0, 0), (0xFFFF_FFFF_FFFF_FFFF,) * 6, (0x3D0F00, 0, 0, 0, 0, 0), (0x3D0F00 | 0x1000000, 1, 2, 3, 4, 5))
CLONE_THREAD = 0x10000


@pytest.mark.parametrize("arch", list(Arch), ids=lambda arch: arch.name)
@pytest.mark.parametrize("role", sorted(PROFILES))
def test_running_a_program_kills_every_process_but_the_supervisor(role: str, arch: Arch) -> None:
    """The profile table, for any arguments; tests/sandbox does it for real, process by process."""
    policy = PROFILES[role].policy(ancillary=frozenset({3}), replaceable=frozenset(), listening=frozenset({8}), process=4711)
    numbers = {name: number for number, name in NAMES[arch].items()}
    for name in RUNNING:
        if name in numbers:
            for arguments in _FLAGS:
                assert policy.decide(arch, arch.value, numbers[name], arguments) == KILL_PROCESS, name
    for flags in (0, 17, 0x1200011, 0x100, 0xF00, 0x3D0F00 & ~CLONE_THREAD, 0x4000 | 0x100 | 17):  # fork, vfork, posix_spawn
        assert policy.decide(arch, arch.value, numbers["clone"], (flags, 0, 0, 0, 0, 0)) == KILL_PROCESS, hex(flags)
    for arguments in _FLAGS:
        assert policy.decide(arch, arch.value, numbers["clone3"], arguments) != ALLOW


@pytest.mark.parametrize("arch", list(Arch), ids=lambda arch: arch.name)
@pytest.mark.parametrize("role", sorted(PROFILES))
def test_no_memory_becomes_code(role: str, arch: Arch) -> None:
    policy = PROFILES[role].policy(ancillary=frozenset({3}), replaceable=frozenset(), listening=frozenset({8}), process=4711)
    numbers = {name: number for number, name in NAMES[arch].items()}
    for protection in (PROT_EXEC, PROT_EXEC | 1, PROT_EXEC | 3, PROT_EXEC | 7):
        for call in ("mmap", "mprotect", "pkey_mprotect"):
            if call in numbers:
                assert policy.decide(arch, arch.value, numbers[call], (0, 4096, protection, MAP_ANONYMOUS | 2, 0, 0)) != ALLOW, call
    for call in ("memfd_create", "memfd_secret", "shmat", "remap_file_pages"):
        if call in numbers:
            assert policy.decide(arch, arch.value, numbers[call], (0,) * 6) != ALLOW, call


def test_the_table_has_every_process_and_both_machines_its_calls() -> None:
    assert sorted(PROFILES) == ["admin", "auditor", "dialer", "egress", "vault", "worker"]
    assert set(RUNNING) <= set(NUMBERS[Arch.X86_64])
    assert {"execve", "execveat", "clone", "clone3"} <= set(NUMBERS[Arch.AARCH64])
