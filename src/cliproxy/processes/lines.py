"""What a process says on stderr, and with which code it ends. One line, and no secret on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from cliproxy.errors import EXIT_CONFIG, CliproxyError, ConfigError, CorruptLog, NewerLog, PinMismatch, SandboxError, VaultError
from cliproxy.processes.topology import STDERR_FD

EXIT_SOFTWARE: Final = 70  # sysexits.h EX_SOFTWARE
EXIT_OTHER_BUILD: Final = 75  # sysexits.h EX_TEMPFAIL: the files on disk are no longer those that the supervisor runs
_MAX_PLACES: Final = 6  # innermost frames of an unexpected error that go on the line
MAX_LINE_BYTES: Final = 1000  # so that a line is within PIPE_BUF (4096) even if every byte becomes an escape: a pipe takes it whole or not at all


class _Stderr:
    """This process's stderr. `unsaid`: lines since the last one that it took, for which there was no room."""

    __slots__ = ("unsaid",)

    def __init__(self) -> None:
        self.unsaid = 0

    def write(self, line: str) -> None:
        """Write one line, after the number of those before it that were not written. Never raises."""
        data = line.replace("\n", " ").encode("utf-8", "backslashreplace")[:MAX_LINE_BYTES] + b"\n"
        if self.unsaid:
            data = f"cliproxy: lines dropped that nobody read in time: {self.unsaid}\n".encode() + data  # together: a small gap takes no number without a line
        try:
            os.write(STDERR_FD, data)
        except OSError:
            self.unsaid += 1
        else:
            self.unsaid = 0


_stderr = _Stderr()


def say(line: str) -> None:
    """Write one line to stderr, without the interpreter's buffers; never raises. In a child it never waits either: what the pipe has no room for is counted,
    and the number is said when there is room again.
    """
    _stderr.write(line)


def visible(text: str) -> str:
    """Return `text` with everything but printable characters and tabs as escapes: no terminal sequence, no second line, no reversed order of writing, no half
    of a surrogate pair.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode("ascii") for each in text)


def describe(error: BaseException) -> str:
    """Return one line about `error` that holds no secret: our own errors and the kernel's say what they say, others their type and place."""
    if isinstance(error, CorruptLog):
        return f"the audit log: {error}; put logs/ back as it was (`cliproxy audit verify` tells more)"
    if isinstance(error, PinMismatch):
        return f"the audit log: {error}; put back the newest copy, or accept what is lost, once: `cliproxy serve --accept-rollback`"
    if isinstance(error, CliproxyError):
        return str(error)
    kind = type(error).__name__
    if isinstance(error, OSError) and error.strerror is not None:
        kind = f"{kind}: {error.strerror}" + (f" ({error.filename})" if isinstance(error.filename, str) else "")
    elif isinstance(error, ImportError):
        kind = f"{kind}: {error}"
    places: list[str] = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{kind} at {' > '.join(places[-_MAX_PLACES:])}"


def fault_reporter(name: str) -> Callable[[object, dict[str, Any]], None]:
    """Return the exception handler of process `name`'s event loop: one line by type and place. The library's own writes a traceback whose last line is the
    error's text, and that could hold what a client or provider sent.
    """

    def report(loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        say(f"cliproxy: {name}: {describe(error) if isinstance(error, BaseException) else 'a fault in the event loop'}")

    return report


def exit_code(error: BaseException) -> int:
    """Return 78 for what the operator mends (configuration, kernel, sealed store, log), else 70."""
    return EXIT_CONFIG if isinstance(error, ConfigError | SandboxError | VaultError | CorruptLog | NewerLog | PinMismatch) else EXIT_SOFTWARE
