"""What CPython itself would do late, and may not: import a module, read a source line for a traceback.

Either would open a file, which kills a locked process. A late import raises `LateImport`, an ImportError, so that optional imports stay optional and codec
look-ups become LookupError; tracebacks go out with files and line numbers but without source lines. CPython's own C code prints tracebacks by opening the
sources, so its three hooks are replaced.
"""

from __future__ import annotations

import encodings.idna  # host names as str, in socket and uvloop
import encodings.punycode  # noqa: F401 - idna looks it up with the first name that is not ASCII
import linecache
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

from cliproxy.errors import SandboxError


class LateImport(SandboxError, ImportError):
    """A module was asked for after the lockdown. `module` is its full name."""

    def __init__(self, module: str) -> None:
        super().__init__(f"module {module} was asked for after the lockdown", cure=f"import {module} in the role's prepare()")
        self.module = module


class _NoMoreImports:
    """Stands first in `sys.meta_path`: whatever is not in `sys.modules` by now does not exist."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        raise LateImport(fullname)


def close_interpreter() -> None:
    """Let the interpreter open nothing from here on. Raises `SandboxError` when an import still goes through."""
    linecache.clearcache()
    linecache.updatecache = _no_lines
    linecache.checkcache = _no_check
    sys.excepthook = _report
    sys.unraisablehook = _report_unraisable
    threading.excepthook = _report_thread
    sys.meta_path.insert(0, _NoMoreImports())
    _verify_imports_refused()


def _verify_imports_refused() -> None:
    try:
        __import__("cliproxy_late_import")
    except LateImport:
        return
    except ImportError:
        pass
    raise SandboxError("an import went past the hook", cure="see `cliproxy doctor`")


def _no_lines(filename: str, module_globals: dict[str, Any] | None = None) -> list[str]:
    return []


def _no_check(filename: str | None = None) -> None:
    return None


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    traceback.print_exception(kind, error, trace)


def _report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    print(f"{unraisable.err_msg or 'Exception ignored'}: {unraisable.object!r}", file=sys.stderr)  # noqa: T201
    traceback.print_exception(unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
