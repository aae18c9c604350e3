"""Which modules each real process has, read from the process itself when its lockdown ends all imports: its code is what a break-in can call."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.gateway import Gateway

REPORTER = Path(__file__).parent / "reporting_role.py"

# Packages and modules of ours, by prefix. Whatever is not here is not loaded.
_EVERY = "errors bounds secret config.schema audit.client audit.events ipc.channel ipc.control"
_CHILD = (
    f"{_EVERY} sandbox ipc.fields ipc.messages ipc.silence processes.boot processes.child processes.lines processes.role "
    "processes.descriptors processes.spawn processes.topology"
)
OURS = {
    "supervisor": f"{_EVERY} ipc.silence audit.files "
    "limits sandbox.bpf sandbox.calls sandbox.kernel sandbox.landlock sandbox.syscalls processes.boot processes.fleet "
    "processes.journal processes.lines processes.listener_watch processes.listeners processes.loader_protocol processes.openings processes.outlet "
    "processes.plan processes.relay processes.reloading processes.service processes.spawn "
    "processes.supervisor processes.topology processes.wiring processes.workspace",
    "worker": f"{_CHILD} processes.worker auth config.routes dialects dataplane formats ingress ipc.mux "
    "ipc.policy_feed limits memory metering providers translators",
    "egress": f"{_CHILD} processes.egress auth config.routes dialects egress formats ipc.mux ipc.policy_feed limits memory metering providers",
    "dialer": f"{_CHILD} processes.dialer dialects dialer providers",
    "vault": f"{_CHILD} processes.vault vault secure_files audit.files ipc.commands config.addresses providers.origin",
    "auditor": f"{_CHILD} processes.auditor processes.queries processes.senders audit ipc.commands secure_files",
    "admin": f"{_CHILD} processes.admin admin config.addresses ipc.commands providers.origin",
}
# Others' packages. `typing_extensions` is msgspec's; the rest of what is not listed comes with Python.
OTHERS = {
    "supervisor": {"msgspec"},
    "worker": {"msgspec", "uvloop", "httptools"},
    "egress": {"msgspec", "uvloop", "httptools"},
    "dialer": {"msgspec"},
    "vault": {"msgspec", "cryptography", "_openssl"},
    "auditor": {"msgspec", "cryptography", "_openssl"},
    "admin": {"msgspec"},
}
# Parts of Python that have no business there.
_NO_LOOP = "asyncio concurrent multiprocessing subprocess"
_NO_SERVERS = "http.client http.server urllib.request smtplib ftplib socketserver xmlrpc wsgiref"
_NO_CODE = "pickle runpy pdb pip setuptools ensurepip venv tomllib xml pty webbrowser"
NOT_HERE = {
    "supervisor": f"{_NO_LOOP} {_NO_SERVERS} {_NO_CODE} ssl sqlite3 threading queue _threading_local",
    "worker": f"multiprocessing {_NO_SERVERS} {_NO_CODE} sqlite3",
    "egress": f"multiprocessing {_NO_SERVERS} {_NO_CODE} sqlite3",
    "dialer": f"{_NO_LOOP} {_NO_SERVERS} {_NO_CODE} ssl sqlite3",
    "vault": f"{_NO_LOOP} {_NO_SERVERS} {_NO_CODE} ssl",
    "auditor": f"{_NO_LOOP} {_NO_SERVERS} {_NO_CODE} ssl sqlite3",
    "admin": f"{_NO_LOOP} {_NO_SERVERS} {_NO_CODE} ssl sqlite3",
}
# Python's own site-packages hook, and Cython's and mypyc's anonymous helpers.
_NEUTRAL = re.compile(
    r"__main__|__mp_main__|typing_extensions|_distutils_hack|_virtualenv|cython_runtime|_cython_[0-9_a-z]+|_cffi_backend|_sysconfigdata\w*|__editable__\w*"
)


class Reporting(Gateway):
    """A gateway whose processes are the real ones and each write down what they have."""

    def command(self, *arguments: str) -> list[str]:
        if arguments != ("serve",):
            return super().command(*arguments)
        return [sys.executable, "-I", "-B", str(REPORTER), "start", str(self.home)]


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, frozenset[str]]]:
    """The modules of each process of a gateway that has answered calls, in its lockdown."""
    body = {"model": "echo", "messages": [{"role": "user", "content": "Hello."}]}
    settings = {"providers": {"far": {"base_url": "https://provider.invalid/v1", "models": ["far"]}}}
    with Reporting(settings, credentials={"far": "sk-canary-000000000000"}) as gateway:
        assert gateway.post("/v1/chat/completions", body)[0] == 200
        assert b"[DONE]" in gateway.post("/v1/chat/completions", {**body, "stream": True})[2]
        assert gateway.post("/v1/chat/completions", {**body, "model": "far"})[0] in (502, 504)  # the dialer has resolved a name
        assert gateway.post("/v1/chat/completions", {**body, "model": "far"}, key="cpk_wrong")[0] == 401
        gateway.run("reload")
        assert gateway.stop() == 0
        assert "after the lockdown" not in gateway.messages()  # LateImport
        yield {file.name.removeprefix("modules-"): frozenset(file.read_text().split()) for file in gateway.home.glob("modules-*")}


def test_every_process_is_listed(modules: dict[str, frozenset[str]]) -> None:
    assert sorted(modules) == sorted(OURS) == sorted(OTHERS) == sorted(NOT_HERE)


@pytest.mark.parametrize("role", sorted(OURS))
def test_of_ours_a_process_has_what_its_row_says(modules: dict[str, frozenset[str]], role: str) -> None:
    allowed = [f"cliproxy.{name}" for name in OURS[role].split()]
    parents = {".".join(name.split(".")[:depth]) for name in allowed for depth in range(1, name.count(".") + 1)}
    loaded = {name for name in modules[role] if name.split(".")[0] == "cliproxy"}
    assert [name for name in sorted(loaded - parents) if not any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)] == []
    # and the table is no longer than it must be
    assert [prefix for prefix in allowed if not any(name == prefix or name.startswith(prefix + ".") for name in loaded)] == []


@pytest.mark.parametrize("role", sorted(OTHERS))
def test_of_others_a_process_has_what_its_row_says(modules: dict[str, frozenset[str]], role: str) -> None:
    tops = {name.split(".")[0] for name in modules[role]} - set(sys.stdlib_module_names) - {"cliproxy"}
    assert {name for name in tops if not _NEUTRAL.fullmatch(name)} - OTHERS[role] == set()


@pytest.mark.parametrize("role", sorted(NOT_HERE))
def test_what_a_process_has_no_business_with_is_not_there(modules: dict[str, frozenset[str]], role: str) -> None:
    forbidden = NOT_HERE[role].split()
    assert [name for name in sorted(modules[role]) if any(name == prefix or name.startswith(prefix + ".") for prefix in forbidden)] == []


def test_who_holds_credentials_does_not_parse_clients_and_the_other_way_round(modules: dict[str, frozenset[str]]) -> None:
    """docs/architecture.md in one place: these sentences are what the tables above come from."""

    def has(role: str, *prefixes: str) -> bool:
        return any(name == prefix or name.startswith(prefix + ".") for name in modules[role] for prefix in prefixes)

    for role in set(OURS) - {"vault"}:
        assert not has(role, "cliproxy.vault"), role
    for role in set(OURS) - {"vault", "auditor"}:
        assert not has(role, "cryptography"), role
    for role in set(OURS) - {"worker", "egress"}:
        assert not has(role, "cliproxy.translators", "cliproxy.metering", "cliproxy.formats", "httptools", "ssl"), role
    for role in OURS:
        assert not has(role, "yaml", "click", "rich", "cliproxy.cli", "cliproxy.config.load"), role
    assert not has("worker", "cliproxy.egress")  # of providers it knows the facts, to write for the right dialect; who they are to is egress's
    assert not has("egress", "cliproxy.ingress", "cliproxy.dataplane", "cliproxy.admin", "cliproxy.translators")


def test_the_commands_load_nothing_of_the_data_path() -> None:
    """What a user types does not hold in memory what a worker or egress needs."""
    program = "import sys, cliproxy.cli.main as m\ntry: m.main(['version'])\nexcept SystemExit: pass\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    not_theirs = re.compile(r"cliproxy\.(vault|egress|dataplane|ingress|translators|metering|formats|sandbox)\b|cryptography|sqlite3|uvloop")
    assert [name for name in done.stdout.split() if not_theirs.match(name)] == []
