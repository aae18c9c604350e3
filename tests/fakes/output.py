"""What a process that a test spawns itself writes on: the test runner's stderr, unless that is a terminal, which no process of ours takes (`pytest -s`)."""

from __future__ import annotations

import os


def spawn_output() -> int:
    """Return the descriptor, which stays open."""
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC) if os.isatty(2) else 2
