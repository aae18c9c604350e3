"""The numbers against the headers of the machine that runs the test, where it has them, and against a few that everybody knows."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from cliproxy.errors import SandboxError
from cliproxy.sandbox.syscalls import NUMBERS, Arch, this_arch

HEADERS = [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")]
GENERIC = Path("/usr/include/asm-generic/unistd.h")


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("read", 0, 63),
        ("execve", 59, 221),
        ("openat", 257, 56),
        ("socket", 41, 198),
        ("seccomp", 317, 277),
        ("clone3", 435, 435),
        ("fstat", 5, 80),
        ("bpf", 321, 280),
    ],
)
def test_well_known_numbers(name: str, x86_64: int, aarch64: int) -> None:
    assert (NUMBERS[Arch.X86_64][name], NUMBERS[Arch.AARCH64][name]) == (x86_64, aarch64)


@pytest.mark.parametrize("name", ["open", "fork", "vfork", "poll", "dup2", "epoll_wait"])
def test_the_old_calls_do_not_exist_on_aarch64(name: str) -> None:
    assert name in NUMBERS[Arch.X86_64]
    assert name not in NUMBERS[Arch.AARCH64]


@pytest.mark.parametrize("arch", list(Arch))
def test_no_number_stands_for_two_calls(arch: Arch) -> None:
    assert len(set(NUMBERS[arch].values())) == len(NUMBERS[arch])


def test_the_table_agrees_with_the_x86_64_header() -> None:
    header = next((path for path in HEADERS if path.exists()), None)
    if header is None:
        pytest.skip("no x86_64 kernel headers here")
    found = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())}
    assert len(found) > 300
    assert {name: NUMBERS[Arch.X86_64].get(name) for name in found} == found


def test_the_table_agrees_with_the_generic_header() -> None:
    if not GENERIC.exists():
        pytest.skip("no generic kernel headers here")
    # the plain definitions; those of 32-bit machines (403 to 423) and of other machines' extras do not concern aarch64
    found = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", GENERIC.read_text()) if not 403 <= int(number) <= 423}
    for absent in ("syscalls", "arch_specific_syscall", "sync_file_range2"):
        found.pop(absent, None)
    assert len(found) > 250
    assert {name: NUMBERS[Arch.AARCH64].get(name) for name in found} == found


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxError, match="riscv64"):
        this_arch()
