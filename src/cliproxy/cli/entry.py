"""The installed command's first lines: run isolated (-I) before anything but `os` and `sys` is imported.

Not isolated, Python takes modules from `PYTHONPATH` and the user's own site directory before ours, and a command is handed provider keys. The launcher that
`make` writes is isolated from its first instruction on. The one that pip writes is not: what such a directory shadows (`re`, `os`) or customises
(`usercustomize`) has run by now, and starting anew keeps it out of the process that goes on, no more.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit."""
    if not sys.flags.isolated:
        os.execv(sys.executable, [sys.executable, "-I", "-m", "cliproxy.cli.main", *sys.argv[1:]])  # noqa: S606 - our own interpreter and module
    from cliproxy.cli.main import main as run

    run()
