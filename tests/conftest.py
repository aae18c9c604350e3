"""Its place puts `tests/` on the import path, so that tests say `from fakes.provider import FakeProvider`; and no test may lock down the process of all."""

import ctypes

import pytest

_PR_GET_NO_NEW_PRIVS = 39
_libc = ctypes.CDLL(None)


def _cannot_gain() -> bool:
    return bool(_libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)


_CANNOT_FROM_THE_START = _cannot_gain()  # containers may be started so


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A lockdown step stays, and changes what later tests find. Those that want one start a process of their own."""
    if not _CANNOT_FROM_THE_START and _cannot_gain():
        pytest.exit(f"{item.nodeid} set no_new_privs in the process of the tests", returncode=1)
