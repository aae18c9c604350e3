"""What is missing is named with its cure, and the table of guarantees follows the report."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from cliproxy.errors import SandboxError
from cliproxy.sandbox import kernel
from cliproxy.sandbox.bpf import Verdict
from cliproxy.sandbox.kernel import KernelReport, guarantees, probe_kernel, require_kernel, verify_sufficient

GOOD = KernelReport(
    release="6.18.0",
    machine="x86_64",
    seccomp_actions=frozenset(Verdict),
    tsync=True,
    landlock_abi=7,
    close_range=True,
    io_uring="present",
    yama=1,
    container=None,
    user_namespace=False,
)


def test_this_kernel_is_described_as_proc_says() -> None:
    report = probe_kernel()
    assert report.release == Path("/proc/sys/kernel/osrelease").read_text().strip()
    available = Path("/proc/sys/kernel/seccomp/actions_avail")
    if available.exists():
        words = available.read_text().split()
        assert {verdict.name.lower() for verdict in report.seccomp_actions} == {"kill_process", "trap", "errno", "allow"} & set(words)


def test_probing_changes_nothing() -> None:
    before = Path("/proc/self/status").read_text()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    probe_kernel()
    after = Path("/proc/self/status").read_text()

    def facts(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith(("Seccomp", "NoNewPrivs", "Cap", "Uid"))]

    assert facts(before) == facts(after)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.mark.parametrize(
    ("missing", "problem", "cure"),
    [
        ({"seccomp_actions": frozenset()}, "no seccomp filters", "CONFIG_SECCOMP_FILTER"),
        ({"seccomp_actions": frozenset({Verdict.ALLOW, Verdict.ERRNO})}, "no seccomp filters", "CONFIG_SECCOMP_FILTER"),
        ({"tsync": False}, "no seccomp filters", "CONFIG_SECCOMP_FILTER"),
        ({"landlock_abi": 0}, "no Landlock", "5.13"),
        ({"close_range": False}, "no close_range", "container profile"),
        ({"landlock_abi": 0, "container": "/.dockerenv"}, "no Landlock (in a container: /.dockerenv)", "container profile"),
    ],
    ids=["no seccomp", "seccomp that cannot kill", "seccomp without TSYNC", "no Landlock", "no close_range", "a container's profile"],
)
def test_a_kernel_that_lacks_a_required_part_is_refused_in_one_line(missing: dict[str, object], problem: str, cure: str) -> None:
    with pytest.raises(SandboxError) as caught:
        verify_sufficient(msgspec.structs.replace(GOOD, **missing))
    assert problem in caught.value.problem
    assert cure in caught.value.cure
    assert "\n" not in str(caught.value)


def test_a_kernel_with_the_least_that_is_required_will_do() -> None:
    least = msgspec.structs.replace(
        GOOD, landlock_abi=1, yama=None, io_uring="absent", seccomp_actions=frozenset({Verdict.ALLOW, Verdict.ERRNO, Verdict.KILL_PROCESS})
    )
    verify_sufficient(least)
    table = guarantees(least)
    assert all(row.present for row in table if row.required)
    assert {row.rests_on for row in table if not row.present} == {"Landlock ABI 4", "Landlock ABI 6", "Yama ptrace_scope 1 or more"}


def test_every_guarantee_is_there_on_a_new_kernel_and_every_required_one_falls_with_its_mechanism() -> None:
    assert all(row.present for row in guarantees(GOOD))
    without = guarantees(msgspec.structs.replace(GOOD, seccomp_actions=frozenset(), landlock_abi=0))
    assert not any(row.present for row in without if "seccomp" in row.rests_on or "Landlock" in row.rests_on)


def test_off_linux_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match=r"sandbox\.mode: off"):
        require_kernel()


@pytest.mark.parametrize(("code", "state"), [(38, "absent"), (1, "disabled"), (14, "present"), (22, "present")])
def test_io_uring_is_told_apart(code: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = kernel._refusal
    monkeypatch.setattr(kernel, "_refusal", lambda name, *rest: code if name == "io_uring_setup" else original(name, *rest))
    assert probe_kernel().io_uring == state
