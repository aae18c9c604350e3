"""The command as a user runs it: a process of its own, with a clean environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line on stderr."""
        assert self.err.count("\n") == 1, self.err
        return self.err.rstrip("\n")


def run_cliproxy(*arguments: str, stdin: str = "", environment: dict[str, str] | None = None) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "cliproxy.cli.main", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **(environment or {})},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def cliproxy() -> Callable[..., Done]:
    return run_cliproxy


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A home made by `init`, and what it printed."""
    home = tmp_path_factory.mktemp("home") / "cliproxy"
    done = run_cliproxy("init", "--home", str(home), "--json")
    assert done.code == 0, done.err
    return home, done.json


@pytest.fixture
def home(made: tuple[Path, dict[str, Any]]) -> Path:
    return made[0]
