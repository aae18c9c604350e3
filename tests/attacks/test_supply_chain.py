"""What we depend on is what we locked, and nothing that slipped in beside it runs.

Sources: LiteLLM 1.82.7 and 1.82.8 (March 2026: a `.pth` file in the wheel ran in every Python process), event-stream, dependency confusion (Birsan, 2021).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LOCKED = sorted((ROOT / "requirements").glob("*.txt"))


def requirements_of(file: Path) -> list[str]:
    """Return the requirements of a lock file, continuation lines joined, comments left out."""
    text = re.sub(r"\\\n", " ", file.read_text())
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


# --- locks ---------------------------------------------------------------------------------------------------------------


def test_there_is_a_lock_for_building_running_and_developing() -> None:
    assert [file.name for file in LOCKED] == ["build.txt", "dev.txt", "runtime.txt"]


@pytest.mark.parametrize("file", LOCKED, ids=lambda file: file.name)
def test_every_requirement_is_one_version_with_its_hashes(file: Path) -> None:
    requirements = requirements_of(file)
    assert requirements
    for requirement in requirements:
        # name==version, perhaps a marker, then SHA-256 hashes and nothing else: no URL, no path, no editable, no index, no option
        pattern = r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[0-9][A-Za-z0-9.!+]*( ; [^#]*?)?(\s+--hash=sha256:[0-9a-f]{64})+"
        assert re.fullmatch(pattern, requirement), requirement


@pytest.mark.parametrize("name", ["build", "dev", "runtime"])
def test_everything_that_is_asked_for_is_locked(name: str) -> None:
    def asked(file: Path) -> set[str]:
        names: set[str] = set()
        for line in requirements_of(file):
            if line.startswith("-r "):
                names |= asked(file.parent / line.removeprefix("-r "))
            else:
                names.add(re.split(r"[<>=~!;\[ ]", line)[0].lower().replace("_", "-"))
        return names

    locked = {requirement.split("==")[0].lower().replace("_", "-").partition("[")[0] for requirement in requirements_of(ROOT / "requirements" / f"{name}.txt")}
    assert asked(ROOT / "requirements" / f"{name}.in") <= locked


def test_every_installation_of_the_makefile_and_of_ci_checks_hashes() -> None:
    """The editable installation of our own tree takes no dependency and no build tool from elsewhere; uv is only for `make lock`."""
    lines = [line for file in ("Makefile", ".ci/run") for line in (ROOT / file).read_text().splitlines()]
    installs = [line for line in lines if re.search(r"(pip\)?|PIP\)|uv)\s+(pip\s+)?install\b", line)]
    assert sum("--require-hashes" in line for line in installs) == 3
    for line in installs:
        ours = "--no-deps" in line and "--no-build-isolation" in line and line.rstrip().endswith("--editable .")
        assert "--require-hashes" in line or ours or line.strip() == "@$(PIP) install uv", line


def test_what_runs_now_is_what_the_runtime_lock_says() -> None:
    from importlib.metadata import version

    for requirement in requirements_of(ROOT / "requirements" / "runtime.txt"):
        name, locked = re.match(r"([^=\[]+)(?:\[.*?\])?==(\S+)", requirement).groups()  # type: ignore[union-attr]
        assert version(name) == locked


# --- what runs before us -------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment with the same packages as this one, into which something can be slipped."""
    directory = tmp_path / "environment"
    venv.EnvBuilder(symlinks=True).create(directory)
    packages = directory / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    return directory


def cliproxy(environment: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in that environment."""
    return subprocess.run(
        [environment / "bin" / "python", "-m", "cliproxy.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "CLIPROXY_HOME": str(home)},
        check=False,
    )


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="runs outside a virtual environment")
def test_a_foreign_start_file_stops_the_start_before_anything_of_ours_runs(environment: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert cliproxy(environment, home, "init", "--json").returncode == 0
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    packages = environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    info = packages / "litellm-1.82.8.dist-info"
    info.mkdir()
    evil = packages / "litellm_init.pth"
    evil.write_text(f"import os; open({str(tmp_path / 'ran')!r}, 'a').write('%d ' % os.getpid())\n")
    (info / "RECORD").write_text("litellm_init.pth,sha256=AAAA,1\n")

    done = cliproxy(environment, home, "serve")
    assert done.returncode == 78
    assert done.stderr.startswith(f"cliproxy: {evil}: ") and done.stderr.count("\n") == 1, done.stderr
    assert "remove" in done.stderr
    assert len(set((tmp_path / "ran").read_text().split())) == 1, "only in the command's own interpreter, which Python started before us"

    done = cliproxy(environment, home, "keys", "list")  # a command without a gateway starts the vault: not either
    assert done.returncode == 78 and str(evil) in done.stderr
    assert {file: file.read_bytes() for file in home.rglob("*") if file.is_file()} == before

    findings = json.loads(cliproxy(environment, home, "doctor", "--json").stdout)["findings"]
    assert [finding for finding in findings if finding["area"] == "python" and finding["good"] is False and str(evil) in finding["text"]]

    evil.unlink()
    assert cliproxy(environment, home, "keys", "list").returncode == 0
