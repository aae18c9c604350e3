"""A spawned process has exactly the descriptors that are listed, and next to no environment."""

import json
import os
import sys

import pytest

from cliproxy.processes.spawn import FIRST_SOURCE_FD, build_id, keep_descriptors_here, lift, program, scrubbed_environment, spawn

REPORT = """
import json, os, sys
fds = {}
for entry in os.listdir("/proc/self/fd"):
    try:
        fds[int(entry)] = os.readlink("/proc/self/fd/" + entry)
    except OSError:
        pass
os.write(7, json.dumps({"fds": fds, "environment": dict(os.environ), "flags": [sys.flags.isolated, sys.flags.dont_write_bytecode]}).encode())
"""


@pytest.fixture(autouse=True)
def nothing_of_the_test_runners():
    keep_descriptors_here()


def report_of(descriptors=None, output=2):
    reader, writer = os.pipe()
    writer = lift(writer)
    pid = spawn([sys.executable, "-I", "-B", "-c", REPORT], descriptors={7: writer, **(descriptors or {})}, output=output)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(data)


def test_the_child_has_the_listed_descriptors_at_their_numbers_and_no_others():
    sealed = lift(os.memfd_create("given", os.MFD_CLOEXEC))
    fds = report_of({3: sealed, 12: sealed})["fds"]
    assert set(fds) == {"0", "1", "2", "3", "7", "12"}
    assert fds["0"] == "/dev/null"
    assert "given" in fds["3"] and "given" in fds["12"]
    os.close(sealed)


def test_inherited_descriptors_stay_here_once_marked():
    stray = os.memfd_create("stray", 0)
    os.set_inheritable(stray, True)
    keep_descriptors_here()
    assert not any("stray" in target for target in report_of()["fds"].values())
    os.close(stray)


def test_the_environment_is_scrubbed(monkeypatch):
    monkeypatch.setenv("CLIPROXY_MASTER_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/evil")
    monkeypatch.setenv("LD_PRELOAD_", "x")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ca.pem")
    environment = report_of()["environment"]
    assert set(environment) <= {"LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "LC_CTYPE"}  # CPython coerces LC_CTYPE (PEP 538)
    assert environment["SSL_CERT_FILE"] == "/etc/ca.pem"
    assert "PATH" not in scrubbed_environment()


def test_roles_run_isolated_and_write_no_bytecode():
    assert program("egress") == [sys.executable, "-I", "-B", "-m", "cliproxy.processes.egress"]
    assert report_of()["flags"] == [1, 1]


def test_a_source_among_the_slots_is_refused():
    with pytest.raises(ValueError, match="among the numbers"):
        spawn(["/bin/true"], descriptors={5: 2}, output=2)


def test_lift_moves_above_every_slot_and_closes_the_original():
    reader, writer = os.pipe()
    lifted = lift(reader)
    assert lifted >= FIRST_SOURCE_FD and not os.get_inheritable(lifted)
    with pytest.raises(OSError):
        os.fstat(reader)
    os.close(lifted)
    os.close(writer)


def test_the_build_id_is_stable():
    assert build_id() == build_id()
    assert build_id().startswith("0.1.0+")
