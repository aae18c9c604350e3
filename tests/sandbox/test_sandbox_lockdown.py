"""Each role, locked down for real: it does its work, and everything else fails, as root with separate uids, as root in a container and as an
ordinary user. What the kernel is asked, and how it must answer, is the table in `sandbox_attacks.py`.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cliproxy.sandbox.roles import PROFILES
from sandbox.sandbox_attacks import Attack, attacks_here
from sandbox.sandbox_jobs import JOBS

PROBE = Path(__file__).with_name("sandbox_probe.py")
AS_ROOT = os.geteuid() == 0
IDENTITIES = [
    pytest.param("own uid", marks=pytest.mark.skipif(not AS_ROOT, reason="needs root")),
    pytest.param("container", marks=pytest.mark.skipif(not AS_ROOT, reason="needs root")),
    "user",
]
ROLES = sorted(PROFILES)


@functools.cache
def outcomes(role: str, identity: str) -> dict[str, str]:
    """Run all attacks and jobs once."""
    run = subprocess.run(
        [sys.executable, "-I", "-B", str(PROBE), role, identity], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=170, check=False
    )
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout))


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("role", ROLES)
def test_every_attack_fails_as_the_table_says(role: str, identity: str) -> None:
    found = outcomes(role, identity)
    expected = {attack.name: attack.roles.get(role, attack.answer) for attack in attacks_here()}
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("role", ROLES)
def test_each_role_does_its_work(role: str, identity: str) -> None:
    found = outcomes(role, identity)
    expected = {job.name: "done" for job in JOBS if role in job.roles}
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize("identity", IDENTITIES)
def test_without_the_lockdown_the_same_attacks_succeed(identity: str) -> None:
    """Or they would prove nothing."""
    found = outcomes("unlocked", identity)
    expected = {attack.name: attack.unlocked for attack in attacks_here() if attack.unlocked is not None}
    assert found == expected


def test_no_two_attacks_share_a_name() -> None:
    names = [attack.name for attack in attacks_here()] + [job.name for job in JOBS]
    assert len(set(names)) == len(names)


def in_the_issue() -> dict[str, Attack]:
    wanted = {
        "open a file",
        "execve",
        "fork",
        "TCP socket",
        "UDP socket",
        "reach a UNIX socket by path",
        "reach an abstract UNIX socket",
        "ptrace",
        "read another's memory",
        "kill another",
        "F_SETOWN",
        "read another's memory through /proc",
        "memory to write and run",
        "io_uring",
    }
    return {attack.name: attack for attack in attacks_here() if attack.name in wanted}


@pytest.mark.parametrize("role", ROLES)
def test_nothing_that_a_role_may_never_do_is_expected_to_succeed(role: str) -> None:
    """Guards the table itself: an edit that lets one of these through must change this test too."""
    allowed = {"dialer": {"TCP socket", "UDP socket"}}.get(role, set())
    assert {name for name, attack in in_the_issue().items() if attack.roles.get(role, attack.answer) == "done"} == allowed
