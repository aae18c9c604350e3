"""The real supervisor with probe roles: `python run_supervisor.py PLAN_FD [REAL_ROLE...]`."""

import sys
from pathlib import Path

from cliproxy.processes import spawn, supervisor

PROBE = str(Path(__file__).parent / "probe_role.py")


def program(role):
    if role == "config_loader":
        return spawn.program(role)
    return [sys.executable, "-I", "-B", PROBE, role]


if __name__ == "__main__":
    sys.exit(supervisor.main(sys.argv[1:2], program=program))
