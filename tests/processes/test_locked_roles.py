"""What each process can not do once it is locked, tried by an attacker in the place of its body, behind its own `prepare` and with its own slots, under the
real supervisor: as root with separate uids, with everything below a directory of mode 0700 as in /root, and as an ordinary user.

`tests/sandbox` attacks the profiles by themselves; its table of attacks and answers is used here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cliproxy.sandbox.roles import PROFILES
from fakes.gateway import Gateway
from fakes.ordinary import ORDINARY_UID, as_ordinary, ordinary_python
from sandbox.sandbox_attacks import attacks_here

PROGRAM = str(Path(__file__).with_name("fallen_role.py"))
AS_ROOT = os.geteuid() == 0
SECONDS = 30.0
NAMES = {"worker": "worker-0"}
ROLES = sorted(PROFILES)


class Fallen(Gateway):
    """A gateway whose processes have all been attacked from within before they serve. `ordinary`: the interpreter of an ordinary user, whose gateway it is."""

    def __init__(self, base: Path, *, ordinary: str | None) -> None:
        super().__init__({"server": {"workers": 1}})
        shutil.rmtree(self.home)
        self._python = ordinary or sys.executable
        self._drops = ordinary is not None and AS_ROOT
        self.private = base / "home"  # as /root: mode 0700, and the gateway's home is ~/.cliproxy in it
        self.private.mkdir(mode=0o700)
        if self._drops:
            os.chown(self.private, ORDINARY_UID, ORDINARY_UID)
        self.home = self.private / ".cliproxy"
        self._environment = {name: value for name, value in self._environment.items() if name != "CLIPROXY_HOME"} | {"HOME": str(self.private)}

    def configure(self, settings: dict[str, Any]) -> None:
        super().configure(settings)
        if self._drops:
            os.chown(self.home / "config" / "cliproxy.yaml", ORDINARY_UID, ORDINARY_UID)

    def command(self, *arguments: str) -> list[str]:
        line = (
            [self._python, "-I", "-B", PROGRAM, "start", str(self.home)] if arguments == ("serve",) else [self._python, "-m", "cliproxy.cli.main", *arguments]
        )
        return as_ordinary(*line) if self._drops else line

    def children(self) -> dict[str, int]:
        assert self.process is not None
        found = {}
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if PROGRAM.encode() in words:
                found[words[words.index(PROGRAM.encode()) + 1].decode()] = int(child)
        return found


@pytest.fixture(scope="module", params=["root", "ordinary user"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Fallen]:
    if request.param == "root" and not AS_ROOT:
        pytest.skip("needs root")
    base = Path(tempfile.mkdtemp(prefix="cliproxy-fallen-"))
    base.chmod(0o755)
    try:
        ordinary = None
        if request.param == "ordinary user":
            ordinary = ordinary_python(base / "interpreter") if AS_ROOT else sys.executable
            if ordinary is None:
                pytest.skip("the interpreter lies where an ordinary user does not reach it, and no copy of it runs")
        with Fallen(base, ordinary=ordinary) as running:
            yield running
    finally:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def outcomes(gateway: Fallen) -> dict[str, dict[str, dict[str, str]]]:
    return {role: json.loads((gateway.home / f"fallen-{NAMES.get(role, role)}").read_text()) for role in ROLES}


@pytest.mark.parametrize("role", ROLES)
def test_every_attack_fails_as_the_table_says(outcomes: dict[str, dict[str, dict[str, str]]], role: str) -> None:
    expected = {attack.name: attack.roles.get(role, attack.answer) for attack in attacks_here()}
    assert outcomes[role]["locked"] == expected


@pytest.mark.parametrize("role", ROLES)
def test_the_supervisor_is_out_of_reach(outcomes: dict[str, dict[str, dict[str, str]]], role: str) -> None:
    found = outcomes[role]["supervisor"]
    expected = {attack.name: attack.roles.get(role, attack.answer) for attack in attacks_here() if attack.name in found}
    assert len(found) > 10 and "done" not in found.values() and found == expected


def test_without_the_lockdown_the_same_attacks_succeed(outcomes: dict[str, dict[str, dict[str, str]]]) -> None:
    """Or they would prove nothing: same process, same user, same slots."""
    (found,) = [kinds["unlocked"] for kinds in outcomes.values() if "unlocked" in kinds]
    assert found == {attack.name: attack.unlocked for attack in attacks_here() if attack.unlocked is not None}


def test_each_process_is_closed_from_outside_too(gateway: Fallen) -> None:
    """No core, nothing in /proc for its equals, no capability, no way to new rights, filtered; as root a user of its own each."""
    uids = set()
    children = gateway.children()
    assert sorted(children) == ROLES
    for role, pid in children.items():
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "1", role
        assert all(int(status[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")), role
        assert len(set(status["Uid"].split())) == len(set(status["Gid"].split())) == 1, role
        (core,) = [line.split()[4:6] for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core file size")]
        assert core == ["0", "0"], role
        for name in ("mem", "environ", "maps", "fd"):
            assert Path(f"/proc/{pid}/{name}").stat().st_uid == 0, (role, name)  # the kernel gives what is not dumpable to root
        uids.add(int(status["Uid"].split()[0]))
    assert gateway.process is not None
    supervisor = Path(f"/proc/{gateway.process.pid}").stat().st_uid
    if supervisor == 0:
        assert len(uids) == len(ROLES) and 0 not in uids
    else:
        assert uids == {supervisor}


def test_an_attacked_gateway_serves(gateway: Fallen) -> None:
    status, _, body = gateway.post("/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "still there"}]})
    assert (status, b"still there" in body) == (200, True)
    assert "after the lockdown" not in gateway.messages() and "Traceback" not in gateway.messages()


def test_who_is_killed_for_an_attack_is_told_to_the_log_and_replaced(gateway: Fallen) -> None:
    before = gateway.children()
    for role in ROLES:
        (gateway.home / f"fall-{NAMES.get(role, role)}").touch()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    fallen = {NAMES.get(role, role) for role in ROLES}
    until = time.monotonic() + SECONDS
    while True:
        events = [line for line in gateway.audit_lines() if line["event"] == "process" and line["what"] == "sandbox_violation"]
        if {line["role"] for line in events} == fallen and set(gateway.children()) == set(ROLES) and gateway.is_ready():
            break
        assert time.monotonic() < until, (events, gateway.messages())
        time.sleep(0.1)
    assert [(line["code"], line["source"]) for line in events] == [(signal.SIGSYS, "supervisor")] * len(ROLES)
    assert not set(gateway.children().values()) & set(before.values())
    assert gateway.post("/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "back"}]})[0] == 200
