"""`cliproxy doctor`: what the kernel offers, what runs in our interpreters, who may read our files, whether the configuration is usable.

One line each, with the cure.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options
from cliproxy.errors import EXIT_CHECK_FAILED, CliproxyError, ConfigError


class Finding(msgspec.Struct, frozen=True):
    """One line. `good` None: for information."""

    area: str
    text: str
    good: bool | None = True


@click.command(epilog="Example: cliproxy doctor --fix")
@click.option("--fix", is_flag=True, help="Take away the access of group and others from our own files and directories.")
@common_options
def command(home: Home, as_json: bool, fix: bool) -> int:
    """Examine the kernel, the files and the configuration. Exit code 1 when something is wrong; without --fix nothing is changed."""
    from cliproxy.cli.output import emit

    findings = [*_kernel(), *_interpreter(), *_files(home, fix=fix), *_configuration(home)]
    good = all(finding.good is not False for finding in findings)
    marks = {True: "ok  ", False: "BAD ", None: "    "}
    emit(
        {"good": good, "findings": [{"area": finding.area, "text": finding.text, "good": finding.good} for finding in findings]},
        [f"{marks[finding.good]} {finding.area:<10} {finding.text}" for finding in findings],
        as_json=as_json,
    )
    return 0 if good else EXIT_CHECK_FAILED


def _kernel() -> Iterator[Finding]:
    from cliproxy.sandbox.kernel import guarantees, probe_kernel, verify_sufficient

    try:
        report = probe_kernel()
    except CliproxyError as error:
        yield Finding("kernel", str(error), False)
        return
    yield Finding(
        "kernel",
        f"Linux {report.release} on {report.machine}: seccomp {'yes' if report.seccomp else 'no'}, Landlock ABI {report.landlock_abi}, "
        + f"io_uring {report.io_uring}"
        + (f", container ({report.container})" if report.container else ""),
        None,
    )
    try:
        verify_sufficient(report)
    except CliproxyError as error:
        yield Finding("kernel", str(error), False)
    for row in guarantees(report):
        missing = "" if row.present else " (missing here)" if row.required else " (not in this kernel; the first leg holds)"
        yield Finding("sandbox", f"{row.process} may never {row.may_never}: {row.rests_on}{missing}", True if row.present else False if row.required else None)


def _interpreter() -> Iterator[Finding]:
    from cliproxy.integrity.self_check import verify_start_files

    try:
        files = verify_start_files()
    except ConfigError as error:
        yield Finding("python", str(error), False)
        return
    names = ", ".join(file.name for file in files) or "none"
    yield Finding("python", f"start files that run in every process: {names}; as their packages installed them")


def _files(home: Home, *, fix: bool) -> Iterator[Finding]:
    from cliproxy.secure_files import verify_private_directory, verify_private_file

    if not home.path.exists():
        yield Finding("files", f"{home.path}: there is no such home; run `cliproxy init`", False)
        return
    for path, directory in _ours(home):
        if fix:
            fixed = _take_away_access(path, directory=directory)
            if fixed:
                yield Finding("files", f"{path}: {fixed}", None)
        try:
            (verify_private_directory if directory else verify_private_file)(path)
        except ConfigError as error:
            yield Finding("files", str(error), False)
        else:
            yield Finding("files", f"{path}: only for us")


def _ours(home: Home) -> Iterator[tuple[Path, bool]]:
    """Yield our directories and the files in them. A file that is not there is no finding here."""
    for directory in home.directories:
        yield directory, True
        if directory == home.path or not directory.is_dir():
            continue
        try:
            names = sorted(os.listdir(directory))  # noqa: PTH208 - names only
        except OSError:
            continue
        for name in names:
            path = directory / name
            try:
                mode = path.lstat().st_mode
            except OSError:
                continue
            if not stat.S_ISSOCK(mode):  # the control socket lives in a directory that only we may search
                yield path, stat.S_ISDIR(mode)


def _take_away_access(path: Path, *, directory: bool) -> str:
    """Take group's and others' bits from `path` if it is ours and no link; say what was done, or nothing. Never gives a bit, never changes an owner."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECTORY if directory else 0)
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return ""
    try:
        found = os.fstat(descriptor)
        regular = stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)
        if not regular or found.st_uid != os.geteuid() or not found.st_mode & 0o077:
            return ""
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & 0o700)
        return f"mode was {stat.S_IMODE(found.st_mode):04o}, is {stat.S_IMODE(found.st_mode) & 0o700:04o} now"
    except OSError as error:
        return f"not changed ({error.strerror})"
    finally:
        os.close(descriptor)


def _configuration(home: Home) -> Iterator[Finding]:
    from cliproxy.config.load import load_settings
    from cliproxy.processes.tls_files import verify_tls_files

    try:
        loaded = load_settings(home.config_file, allow_no_sandbox=True)
        verify_tls_files(loaded, file=str(home.config_file))
    except ConfigError as error:
        yield Finding("config", str(error), False)
        return
    yield Finding("config", f"{home.config_file}: usable, {len(loaded.settings.models)} models")
    for warning in loaded.warnings:
        yield Finding("config", warning, None)
    if loaded.inline_master_key is not None:
        loaded.inline_master_key.wipe()
