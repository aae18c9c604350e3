"""The pool works in a process that can make no socket: connections come from the real dialer, both locked down."""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path

import pytest

from cliproxy.config.schema import Provider, Settings, encode_settings
from cliproxy.processes.boot import Boot, encode_boot, seal
from cliproxy.processes.spawn import build_id, lift, spawn
from cliproxy.processes.topology import AUDIT_FD, BOOT_FD, CONTROL_FD, EgressDescriptors
from fakes.certificates import Authority
from fakes.dialer_process import DialerProcess, pair
from fakes.output import spawn_output
from fakes.provider import FakeProvider
from fakes.proxy import running_proxy


def run_locked_pool(providers: dict[str, Provider]) -> dict[str, object]:
    with DialerProcess(providers) as dialer:
        control, control_far = pair()
        audit, audit_far = pair()
        boot = Boot(
            role="egress",
            name="egress",
            build=build_id(),
            generation=1,
            settings=encode_settings(Settings(providers=providers)),
            home="/nonexistent",
            uid=os.getuid(),
            gid=os.getgid(),
            operator_uid=os.getuid(),
            serving=True,
            sandbox=True,
            supervisor_pid=os.getpid(),
        )
        lifted = {number: lift(sock.detach()) for number, sock in {CONTROL_FD: control_far, AUDIT_FD: audit_far}.items()}
        lifted[EgressDescriptors.DIALER_FD] = lift(os.dup(dialer.channel.fileno()))
        lifted[BOOT_FD] = lift(seal(encode_boot(boot), name="boot"))
        pid = spawn([sys.executable, "-I", "-B", str(Path(__file__).parent / "locked_pool.py")], descriptors=lifted, output=spawn_output())
        for number in lifted.values():
            os.close(number)
        with control, audit:
            assert select.select([audit], [], [], 60)[0]
            told = audit.recv(65536)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert told, f"it ended with {code}"
            result: dict[str, object] = json.loads(told)
            return result


@pytest.mark.skipif(sys.platform != "linux", reason="the lockdown is Linux's")
def test_calls_in_clear_and_over_tls_work_in_a_locked_process(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("127.0.0.1", "localhost")
    with FakeProvider() as plain, FakeProvider(cert=issued.cert, key=issued.key, ca=authority.ca) as secure:
        told = run_locked_pool(
            {
                "plain": Provider(base_url=plain.base_url),
                "secure": Provider(base_url=secure.base_url, ca_file=str(authority.ca)),
                "named": Provider(base_url=f"https://localhost:{secure.port}/v1", ca_file=str(authority.ca)),
            }
        )
        assert told.pop("violations", None) == []
        for name in ("plain", "secure", "named"):
            assert told.pop(f"{name} counts") == [1, 1, 0]
        assert list(told.values()) == [200, 200, 200, 200, "provider_broke_off", 200] * 3
        assert plain.record()["broken_off"] == 1 and secure.record()["broken_off"] == 2
        assert plain.record()["connections"] == 3  # one for each call that ended its connection, and the last


@pytest.mark.skipif(sys.platform != "linux", reason="the lockdown is Linux's")
def test_a_tunnel_through_a_proxy_is_made_in_a_locked_process(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("127.0.0.1")
    with FakeProvider(cert=issued.cert, key=issued.key, ca=authority.ca) as secure, running_proxy() as proxy:
        told = run_locked_pool({"behind": Provider(base_url=secure.base_url, ca_file=str(authority.ca), proxy=proxy.url)})
        assert told.pop("violations") == [] and told.pop("behind counts") == [1, 1, 0]
        assert list(told.values()) == [200, 200, 200, 200, "provider_broke_off", 200]
        assert len(proxy.heads) == 3
