"""Its place puts `tests/` on the import path, so that tests say `from fakes.provider import FakeProvider`; and no test may lock down the process of all."""

import ctypes
import subprocess
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

# A deadline measures the machine and whatever else it does at the moment, and so does the check for slow strategies.
settings.register_profile("cliproxy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cliproxy")

_STARTERS = ("fakes.gateway", "fakes.held", "fakes.rig", "fakes.echo_server", "fakes.dialer_process", "processes.gateway_of_probes")


def _starts_processes(module: ModuleType) -> bool:
    """Whether a test module starts processes: it uses what does, or `subprocess` itself."""
    return any(
        value is subprocess or getattr(value, "__module__", "").startswith(_STARTERS) or getattr(value, "__name__", "") in _STARTERS
        for value in vars(module).values()
    )


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """`make fast` leaves out what starts processes."""
    if isinstance(item, pytest.Function) and _starts_processes(item.module):
        item.add_marker("gateway")


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
