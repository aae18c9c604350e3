"""An interpreter that an ordinary user can run, also where root's lies below a directory that is root's alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ORDINARY_UID = 65534
# Become the uid in argv[1] for good, then the program behind it.
_DROP = "import os, sys; u = int(sys.argv[1]); os.setgroups([]); os.setresgid(u, u, u); os.setresuid(u, u, u); os.execv(sys.argv[2], sys.argv[2:])"


def as_ordinary(*command: str) -> list[str]:
    """Return what runs `command` as the ordinary user, from root."""
    return [sys.executable, "-I", "-c", _DROP, str(ORDINARY_UID), *command]


def ordinary_python(directory: Path) -> str | None:
    """Return an interpreter with our packages that the ordinary user can run; where this one cannot be, a copy of it in `directory` (links, where the
    file system is the same). None when that does not work either."""
    if _runs(sys.executable):
        return sys.executable
    try:
        made = _copy(directory)
    except OSError:
        return None
    return made if _runs(made) else None


def _runs(python: str) -> bool:
    done = subprocess.run(
        as_ordinary(python, "-I", "-c", "import cliproxy, msgspec, uvloop, cryptography, sqlite3, ssl"), capture_output=True, check=False, timeout=60
    )
    return done.returncode == 0


def _copy(directory: Path) -> str:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    (directory / "base" / "bin").mkdir(parents=True)
    (directory / "base" / "lib").mkdir()
    program = (base / "bin" / name).resolve().read_bytes()
    library = os.fsencode(base / "lib")
    # Where it looks for its shared library is an absolute path in the file; a path relative to the file is shorter.
    program = program.replace(library + b"\0", b"$ORIGIN/../lib".ljust(len(library), b"\0") + b"\0")
    copied = directory / "base" / "bin" / name
    copied.write_bytes(program)
    copied.chmod(0o755)
    for shared in (base / "lib").glob("libpython*"):
        _link(str(shared.resolve()), str(directory / "base" / "lib" / shared.name))
    skipped = shutil.ignore_patterns("site-packages", "test", "idlelib", "tkinter", "ensurepip", "lib2to3")
    shutil.copytree(base / "lib" / name, directory / "base" / "lib" / name, copy_function=_link, ignore=skipped, symlinks=True)
    environment = directory / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "lib" / name).mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text(f"home = {copied.parent}\ninclude-system-site-packages = false\n")
    (environment / "bin" / name).symlink_to(copied)
    packages = next(Path(entry) for entry in sys.path if entry.endswith("site-packages"))
    (environment / "lib" / name / "site-packages").symlink_to(packages)
    for path in (directory, *directory.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    return str(environment / "bin" / name)


def _link(source: str, destination: str) -> str:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
    return destination
