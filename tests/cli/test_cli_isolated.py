"""The installed command takes no module from where its environment says: a command is handed provider keys."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def poisoned(tmp_path: Path) -> dict[str, str]:
    """An environment whose PYTHONPATH has a module in the place of each that the command imports, and start modules."""
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in ("click", "re", "json", "usercustomize", "sitecustomize", "msgspec"):
        (evil / f"{name}.py").write_text(f"open({str(tmp_path / name)!r} + '-ran', 'w').close()\nraise ImportError('evil')\n")
    return {**os.environ, "PYTHONPATH": str(evil), "PYTHONSTARTUP": str(evil / "re.py"), "PYTHONWARNINGS": "error"}


def ran(tmp_path: Path) -> set[str]:
    return {file.name.removesuffix("-ran") for file in tmp_path.glob("*-ran")}


def test_the_launcher_that_make_writes_is_isolated_from_its_first_instruction_on(tmp_path: Path, poisoned: dict[str, str]) -> None:
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    subprocess.run(["make", "--silent", "-C", str(ROOT), "launcher", f"BIN={python.parent}"], check=True)
    done = subprocess.run([str(python.with_name("cliproxy")), "version"], env=poisoned, capture_output=True, text=True)
    assert (done.returncode, ran(tmp_path)) == (0, set()), done.stderr
    assert done.stdout.startswith("cliproxy ")


def test_the_script_that_pip_writes_starts_itself_anew(tmp_path: Path, poisoned: dict[str, str]) -> None:
    script = "import sys; from cliproxy.cli.entry import main; sys.argv[1:] = ['version']; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", script], env=poisoned, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cliproxy ")
    assert ran(tmp_path) <= {"sitecustomize", "usercustomize"}  # before any line of ours: site imports them at the start


def test_the_installed_command_is_that_one() -> None:
    assert 'cliproxy = "cliproxy.cli.entry:main"' in (ROOT / "pyproject.toml").read_text()
