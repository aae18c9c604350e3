"""The start-up self-check: whether anything but what we know runs in our interpreters before our first line does.

Python executes lines of every `*.pth` file in its site directories, and a `sitecustomize` module there, at the start of every process, isolated (-I) or not:
LiteLLM 1.82.8 was shipped with such a file, listed in its package's RECORD with the right hash. So a file is not trusted because some package owns it; what
may be there is a table, and what is in the table must be, byte for byte, what its package installed. Anything else stops the start.
"""

from __future__ import annotations

import hashlib
import os
import re
import site
import stat
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cliproxy.bounds import KIB, MIB
from cliproxy.errors import ConfigError

MAX_START_HOOK_BYTES = 64 * KIB  # a `.pth` file; known ones have 15 to 151 bytes
MAX_PACKAGE_RECORD_BYTES = 4 * MIB  # a distribution's RECORD; of the large ones here 100 KiB

# File name to the distribution that installs it. Whoever locks a dependency that brings one adds a line, having read the file.
_KNOWN: Final = (
    (re.compile(r"distutils-precedence\.pth"), "setuptools"),
    (re.compile(r"__editable__\.cliproxy-[0-9A-Za-z.+]+\.pth"), "cliproxy"),
)
# What a known start file imports: judged with it, file by file. A start file that only adds a directory imports nothing itself.
_IMPORTED: Final = {"distutils-precedence.pth": "_distutils_hack"}
# What `uv venv` and `virtualenv` write into an environment when they make it. It belongs to no package: one that is listed as a package's is that package's.
_ENVIRONMENT_HOOK: Final = "_virtualenv.pth"
_ENVIRONMENT_HOOK_TEXT: Final = b"import _virtualenv"
_ENVIRONMENT_MAKERS: Final = ("uv", "virtualenv")
_CUSTOMIZE: Final = ("sitecustomize", "usercustomize")
_CURE: Final = "find out what put it there and remove that; the gateway wants an environment of its own (`make serve` makes one)"


def site_directories() -> tuple[Path, ...]:
    """Return the directories whose start files this interpreter has executed."""
    directories = [Path(directory) for directory in site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        directories.append(Path(site.getusersitepackages()))
    return tuple(dict.fromkeys(directories))


def verify_start_files(directories: Sequence[Path] | None = None, *, prefix: Path | None = None) -> tuple[Path, ...]:
    """Return the start files of the site directories (this interpreter's, unless told), all of them known ones.

    Raises `ConfigError` (exit code 78) that names the first file that is not, and changes nothing.
    """
    environment = Path(sys.prefix) if prefix is None else prefix
    found = []
    for directory in site_directories() if directories is None else directories:
        for file in _start_files(directory):
            complaint = _complaint_about(file, environment)
            if complaint:
                raise ConfigError(f"this file would run code in every process of the gateway, and {complaint}", cure=_CURE, file=str(file))
            found.append(file)
    return tuple(found)


def _start_files(directory: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - names only
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"the directory of installed packages cannot be listed ({error.strerror})", cure=_CURE, file=str(directory)) from error
    for name in names:
        if name.endswith(".pth") or name.partition(".")[0] in _CUSTOMIZE:
            yield directory / name


def _complaint_about(file: Path, environment: Path) -> str:
    """Say why `file` is not to run, or nothing."""
    content = _read(file, MAX_START_HOOK_BYTES)
    if content is None:
        return "it cannot be read"
    if file.name == _ENVIRONMENT_HOOK:
        known = content.strip() == _ENVIRONMENT_HOOK_TEXT and _is_made_by_a_known_tool(environment) and not any(_records_of(file.parent, file.name, owner=None))
        return "" if known else "it is not the one that uv or virtualenv writes"
    owner = next((owner for pattern, owner in _KNOWN if pattern.fullmatch(file.name)), None)
    if owner is None:
        return "no part of the gateway brings it"
    complaint = _complaint_about_owned(content, file.parent, file.name, owner)
    if not complaint and file.name in _IMPORTED:
        return _complaint_about_import(file.parent, _IMPORTED[file.name], owner)
    return complaint or _complaint_about_added(content, file.parent)


def _complaint_about_owned(content: bytes, directory: Path, name: str, owner: str) -> str:
    """Say why what is in `directory`/`name` is not what distribution `owner` installed there, or nothing."""
    digest = b"sha256=" + urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    recorded = list(_records_of(directory, name, owner=owner))
    if not recorded:
        return f"no installed {owner} lists it"
    return "" if digest in recorded else f"it is not the one that {owner} installed"


def _complaint_about_import(directory: Path, package: str, owner: str) -> str:
    """Say why `package`, which a start file of distribution `owner` imports, is not to run, or nothing. Compiled files are not judged: who can write those
    can write the package that they come from.
    """
    try:
        found = sorted(os.listdir(directory / package))  # noqa: PTH208 - names only
    except OSError:
        found = []
    if "__init__.py" not in found:  # then a module of that name from elsewhere would be imported
        return f"it imports {package}, which is not there"
    for name in found:
        if name != "__pycache__":
            content = _read(directory / package / name, MAX_START_HOOK_BYTES)
            complaint = "it cannot be read" if content is None else _complaint_about_owned(content, directory, f"{package}/{name}", owner)
            if complaint:
                return f"it imports {package}, of whose file {name} is to say: {complaint}"
    return ""


def _complaint_about_added(content: bytes, directory: Path) -> str:
    """Say which start module lies in a directory that a start file adds (an editable installation's), or nothing: Python looks for one there, too."""
    for line in content.decode("utf-8", "surrogateescape").splitlines():
        added = directory / line.strip()
        if line.strip() and added.is_dir():
            for name in sorted(os.listdir(added)):  # noqa: PTH208 - names only
                if name.partition(".")[0] in _CUSTOMIZE:
                    return f"it leads to {added / name}, which would run too"
    return ""


def _is_made_by_a_known_tool(environment: Path) -> bool:
    text = _read(environment / "pyvenv.cfg", MAX_START_HOOK_BYTES) or b""
    keys = {line.partition("=")[0].strip() for line in text.decode("utf-8", "replace").splitlines()}
    return any(maker in keys for maker in _ENVIRONMENT_MAKERS)


def _records_of(directory: Path, name: str, *, owner: str | None) -> Iterator[bytes]:
    """Yield the hash that each RECORD in `directory` (of the distribution `owner`; None: of any) states for its file `name`."""
    line = re.compile(rb"^" + re.escape(os.fsencode(name)) + rb",([^,\r\n]*),", re.MULTILINE)
    for info in directory.glob("*.dist-info"):
        if owner is None or info.name.partition("-")[0].lower() == owner:
            yield from line.findall(_read(info / "RECORD", MAX_PACKAGE_RECORD_BYTES) or b"")


def _read(file: Path, limit: int) -> bytes | None:
    """Return what is in a regular file of at most `limit` bytes, else None."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            return None
        with open(descriptor, "rb", closefd=False) as stream:
            content = stream.read(limit + 1)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return content if len(content) <= limit else None
