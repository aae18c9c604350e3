"""The supervisor, as a real process with real children: start, death, restart, stop, one home, one port."""

import os
import signal
import socket
import stat

import pytest

from processes.gateway_of_probes import PATIENCE, is_alive, wait_for

ALL = ["admin", "auditor", "dialer", "egress", "vault", "worker-0"]


def names(records):
    return sorted({record["name"] for record in records})


def test_everything_gets_ready_and_the_line_says_where(gateway):
    gateway.start()
    assert names(gateway.trace(what="ready")) == ALL
    (url,) = gateway.ready["urls"]
    port = int(url.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    assert gateway.stop() == 0
    line = gateway.process.stdout.read().decode()
    assert line == f"cliproxy 0.1.0 ready on {url} (pid {gateway.pid})\n"


def test_every_channel_leads_to_whom_the_topology_says(gateway):
    gateway.start()
    heard = {("egress", 16): "worker-0", ("egress", 7): "dialer", ("egress", 6): "vault", ("dialer", 6): "egress", ("worker-0", 6): "egress"}
    heard |= {("vault", 6): "egress", ("vault", 7): "admin", ("admin", 6): "vault", ("admin", 7): "auditor", ("auditor", 12): "admin"}
    for (name, slot), text in heard.items():
        assert gateway.wait_trace(name=name, what="heard", slot=slot)[0]["text"] == text


def test_children_get_no_environment_of_ours(gateway):
    gateway.start(environment={"CLIPROXY_MASTER_KEY": "secret", "NOTIFY_SOCKET": "/nowhere"})
    for record in gateway.trace(what="prepare"):
        assert set(record["environment"]) <= {"LANG", "LC_CTYPE"}


def test_only_the_vault_has_the_master_key_and_only_admin_the_control_socket(gateway):
    gateway.start()
    slots = {record["name"]: record["descriptors"] for record in gateway.trace(what="prepare")}
    assert slots["vault"]["8"] == "/memfd"
    assert slots["admin"]["8"] == "socket"
    assert {name for name, open_slots in slots.items() if list(open_slots.values()).count("/memfd") > 1} == {"vault", "worker-0"}  # worker: address rates
    assert not any("cliproxy-key" in str(open_slots) for name, open_slots in slots.items() if name != "vault")


@pytest.mark.parametrize("name", ALL)
def test_a_killed_child_comes_back_and_is_connected_again(gateway, name):
    greetings = {"egress": [("worker-0", 6), ("dialer", 6), ("vault", 6)], "worker-0": [("egress", 16)], "dialer": [("egress", 7)]}
    greetings |= {"vault": [("egress", 6), ("admin", 6)], "admin": [("vault", 7), ("auditor", 12)], "auditor": [("admin", 7)]}
    gateway.start()
    for peer, slot in greetings[name]:  # one that nobody has read yet goes with the channel
        gateway.wait_trace(1, name=peer, what="heard", slot=slot, text=name)
    (before,) = gateway.pids(name)
    os.kill(before, signal.SIGKILL)
    gateway.wait_trace(2, name=name, what="ready")
    after = gateway.pids(name)[1]
    assert after != before
    for peer, slot in greetings[name]:
        gateway.wait_trace(2, name=peer, what="heard", slot=slot, text=name)
    if name != "auditor":
        gateway.wait_trace(1, name="auditor", what="REPLACE")
    else:
        for peer in ("vault", "egress", "dialer", "worker-0", "admin"):
            gateway.wait_trace(1, name=peer, what="REPLACE", argument=5)
    assert gateway.stop() == 0


def test_all_children_killed_at_once_come_back_connected(gateway):
    gateway.start()
    for record in gateway.trace(what="ready"):
        os.kill(record["pid"], signal.SIGKILL)
    for name in ALL:
        gateway.wait_trace(2, name=name, what="ready")
    last = {name: gateway.pids(name)[-1] for name in ALL}
    wait_for(lambda: any(record["pid"] == last["egress"] for record in gateway.trace(name="egress", what="heard", text="worker-0")))
    wait_for(lambda: any(record["pid"] == last["vault"] for record in gateway.trace(name="vault", what="heard", text="admin")))
    assert gateway.stop() == 0


def test_a_signal_is_named_in_the_line_about_a_death(gateway):
    gateway.start()
    os.kill(gateway.pids("dialer")[0], signal.SIGSYS)
    wait_for(lambda: "dialer sandbox_violation (31)" in gateway.stderr())
    gateway.wait_trace(2, name="dialer", what="ready")


def test_a_child_that_never_gets_up_stops_the_start_after_five_deaths(gateway):
    gateway.behave(exit={"egress": 70})
    gateway.start(wait=False)
    assert gateway.wait() == 70
    assert len(gateway.trace(name="egress", what="exit")) == 5
    assert "5 processes ended, the last one is egress (70)" in gateway.stderr()
    assert not any(is_alive(record["pid"]) for record in gateway.trace(what="prepare"))


def test_an_unusable_configuration_stops_the_start_at_once(gateway):
    gateway.behave(exit={"vault": 78})
    gateway.start(wait=False)
    assert gateway.wait() == 78
    assert len(gateway.trace(name="vault", what="exit")) == 1
    assert gateway.ready is None


def test_a_child_of_another_build_makes_the_gateway_drain_and_stop(gateway):
    gateway.start()
    gateway.behave(exit={"dialer": 75})
    os.kill(gateway.pids("dialer")[0], signal.SIGKILL)
    assert gateway.wait() == 75
    assert gateway.trace(name="worker-0", what="DRAIN")


def test_a_child_that_breaks_the_control_protocol_is_killed(gateway):
    gateway.behave(garbage="dialer")
    gateway.start(wait=False)
    wait_for(lambda: len(gateway.trace(name="dialer", what="prepare")) >= 2)


def test_only_admin_may_stop_the_gateway(gateway):
    gateway.start()
    gateway.behave(sends={"egress": "STOP"})
    gateway.wait_trace(2, name="egress", what="ready")  # it was killed for the claim
    gateway.behave(sends={"admin": "STOP"})
    (gateway.home / "sent-STOP").unlink()
    assert gateway.wait() == 0


def test_sigterm_stops_in_order_the_auditor_last(gateway):
    gateway.configure(workers=2)
    gateway.start()
    assert gateway.stop() == 0
    drained = names(gateway.trace(what="DRAIN"))
    assert drained == ["worker-0", "worker-1"]
    order = [record["name"] for record in gateway.trace(what="STOP")]
    assert sorted(order[:2]) == ["worker-0", "worker-1"]
    assert order[2:] == ["egress", "dialer", "vault", "admin", "auditor"]
    assert not (gateway.home / "run" / "control.sock").exists()
    assert not any(is_alive(record["pid"]) for record in gateway.trace(what="prepare"))


def test_a_worker_that_does_not_drain_is_killed_after_its_time(gateway):
    gateway.configure(drain=0.5)
    gateway.behave(never_drained=True)
    gateway.start()
    assert gateway.stop() == 0


def test_a_second_signal_stops_now(gateway):
    gateway.configure(drain=600.0)
    gateway.behave(never_drained=True, ignores_stop=True)
    gateway.start()
    gateway.process.send_signal(signal.SIGTERM)
    gateway.wait_trace(name="worker-0", what="DRAIN")
    gateway.process.send_signal(signal.SIGINT)
    assert gateway.wait() == 0
    assert not any(is_alive(record["pid"]) for record in gateway.trace(what="prepare"))


def test_sigkill_of_the_supervisor_leaves_nobody_and_a_new_start_gets_port_and_home(gateway, new_gateway):
    gateway.start()
    port = int(gateway.ready["urls"][0].rpartition(":")[2])
    children = [record["pid"] for record in gateway.trace(what="ready")]
    gateway.process.kill()
    gateway.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in children))
    again = new_gateway(gateway.home)
    again.configure(port=port)
    again.start()
    assert again.ready["urls"] == [f"http://127.0.0.1:{port}"]
    assert again.stop() == 0


def test_a_second_gateway_on_the_same_home_is_told_who_runs_there(gateway, new_gateway):
    gateway.start()
    second = new_gateway(gateway.home)
    second.start(wait=False)
    assert second.wait() == 78
    assert f"a cliproxy (pid {gateway.pid}) runs there; stop it first" in second.stderr()
    assert (gateway.home / "run" / "control.sock").exists()
    assert gateway.stop() == 0


def test_a_port_in_use_is_one_line_and_changes_nothing_on_disk(gateway):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        gateway.configure(port=port)
        gateway.start(wait=False)
        assert gateway.wait() == 78
    (line,) = [line for line in gateway.stderr().splitlines() if "WARNING" not in line]
    assert f"server.listen: 127.0.0.1:{port}: the port is in use; stop what listens there" in line
    assert list((gateway.home / "run").iterdir()) == [] == list((gateway.home / "logs").iterdir())


def test_the_control_socket_and_the_log_are_for_the_owner_alone(gateway):
    gateway.start()
    for name, kind in (("run/control.sock", stat.S_ISSOCK), ("logs/audit-00000001.jsonl", stat.S_ISREG), ("run/lock", stat.S_ISREG)):
        mode = (gateway.home / name).stat().st_mode
        assert kind(mode) and stat.S_IMODE(mode) == 0o600, name


def test_a_command_without_a_gateway_starts_three_roles_and_no_listener(gateway):
    gateway.start(serving=False, starter=True)
    assert names(gateway.trace(what="ready")) == ["admin", "auditor", "vault"]
    assert gateway.ready["urls"] == []
    os.close(gateway.starter)
    gateway.starter = -1
    assert gateway.wait() == 0
    assert gateway.process.stdout.read() == b""


def test_a_command_ends_by_itself_when_admin_says_so(gateway):
    gateway.behave(sends={"admin": "STOP"})
    gateway.start(serving=False)
    assert gateway.wait() == 0


def test_the_auditor_gets_the_next_segment_and_no_other(gateway):
    gateway.behave(sends={"auditor": "SEGMENT"}, argument=2)
    gateway.start()
    gateway.wait_trace(name="auditor", what="SEGMENT", argument=2)
    assert (gateway.home / "logs" / "audit-00000002.jsonl").exists()
    gateway.behave(sends={"auditor": "SEGMENT"}, argument=9)
    (gateway.home / "sent-SEGMENT").unlink()
    wait_for(lambda: "log segment 9 is not the next one" in gateway.stderr())
    os.kill(gateway.pids("auditor")[0], signal.SIGKILL)
    gateway.wait_trace(2, name="auditor", what="prepare")
    assert gateway.trace(name="auditor", what="prepare")[1]["descriptors"]["9"].endswith("audit-00000002.jsonl")


def test_orphans_are_reaped_by_a_supervisor_that_is_pid_1_for_them(gateway):
    gateway.start()
    zombies = [record["pid"] for record in gateway.trace(what="ready")]
    os.kill(zombies[0], signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{zombies[0]}"))


def test_the_service_manager_hears_when_it_is_ready_and_when_it_stops(gateway, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        gateway.start(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(1000) == f"READY=1\nMAINPID={gateway.pid}".encode()
        gateway.process.send_signal(signal.SIGHUP)
        assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(1000) == b"READY=1"
        assert gateway.stop() == 0
        assert manager.recv(1000) == b"STOPPING=1"
