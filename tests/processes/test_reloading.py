"""A reload is a transaction: all processes take the new settings or none does, and nothing is lost on the way."""

import os
import signal
import socket

import pytest

from processes.gateway_of_probes import PATIENCE, is_alive, wait_for


def accepts(url):
    host, _, port = url.removeprefix("http://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


def reload(gateway):
    gateway.process.send_signal(signal.SIGHUP)


def applied(gateway, generation):
    wait_for(lambda: f"configuration reloaded, generation {generation}" in gateway.stderr())


def refused(gateway, reason, times=1):
    wait_for(lambda: sum("reload refused" in line and reason in line for line in gateway.stderr().splitlines()) >= times)


def test_everyone_prepares_then_commits_and_the_workers_are_replaced(gateway):
    gateway.start()
    (old,) = gateway.pids("worker-0")
    gateway.configure(workers=2)
    reload(gateway)
    applied(gateway, 2)
    for name in ("egress", "dialer", "vault", "auditor", "admin"):
        assert [record["what"] for record in gateway.trace(name=name) if record["what"] in ("PREPARE", "COMMIT")] == ["PREPARE", "COMMIT"]
    assert {record["name"] for record in gateway.trace(what="ready", generation=2)} == {"worker-1", "worker-2"}
    gateway.wait_trace(name="worker-0", what="STOP")
    wait_for(lambda: not is_alive(old))
    for slot, name in ((17, "worker-1"), (18, "worker-2")):
        gateway.wait_trace(name="egress", what="heard", slot=slot, text=name)
    gateway.wait_trace(name="admin", what="RELOADED", argument=2)
    assert gateway.stop() == 0


def test_the_old_workers_drain_only_when_the_new_ones_are_ready(gateway):
    gateway.start()
    reload(gateway)
    applied(gateway, 2)
    records = gateway.trace()
    ready = next(index for index, record in enumerate(records) if record["what"] == "ready" and record["generation"] == 2)
    gateway.wait_trace(what="DRAIN")
    assert ready < next(index for index, record in enumerate(gateway.trace()) if record["what"] == "DRAIN")


def test_the_listening_socket_stays_when_the_address_does(gateway):
    gateway.start()
    (url,) = gateway.ready["urls"]
    reload(gateway)
    applied(gateway, 2)
    assert accepts(url)


def test_a_new_address_is_listened_on_and_the_old_one_let_go(gateway):
    gateway.start()
    (url,) = gateway.ready["urls"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gateway.configure(port=port)
    reload(gateway)
    applied(gateway, 2)
    assert accepts(f"http://127.0.0.1:{port}")
    wait_for(lambda: not accepts(url))


def test_admin_may_ask_and_is_told_the_generation(gateway):
    gateway.start()
    gateway.behave(sends={"admin": "RELOAD"})
    gateway.wait_trace(name="admin", what="RELOADED", argument=2)


def test_nobody_else_may_ask(gateway):
    gateway.start()
    gateway.behave(sends={"dialer": "RELOAD"})
    gateway.wait_trace(2, name="dialer", what="ready")
    assert "reload" not in gateway.stderr()


REFUSALS = {
    "an unusable file": (lambda gateway: (gateway.home / "cliproxy.yaml").write_text("server:\n  prot: 1\n"), "server.prot"),
    "a file that is gone": (lambda gateway: (gateway.home / "cliproxy.yaml").unlink(), "cliproxy.yaml"),
    "a process that refuses": (lambda gateway: gateway.behave(prepare={"dialer": "REFUSED"}), "dialer refuses"),
    "a changed sandbox": (lambda gateway: gateway.configure(extra="  uid_base: 70000\n"), "needs a restart"),
}


@pytest.mark.parametrize(("break_it", "reason"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refused_reload_leaves_everything_as_it_was(gateway, break_it, reason):
    gateway.start()
    before = {record["name"]: record["pid"] for record in gateway.trace(what="ready")}
    break_it(gateway)
    reload(gateway)
    refused(gateway, reason)
    gateway.wait_trace(name="admin", what="RELOADED", argument=0)
    assert not gateway.trace(what="COMMIT")
    assert {record["name"]: record["pid"] for record in gateway.trace(what="ready")} == before
    assert all(is_alive(pid) for pid in before.values())
    assert accepts(gateway.ready["urls"][0])
    if gateway.trace(what="PREPARE"):
        gateway.wait_trace(5, what="ABANDON")


def test_a_new_port_in_use_is_refused(gateway):
    gateway.start()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        gateway.configure(port=taken.getsockname()[1])
        reload(gateway)
        refused(gateway, "the port is in use")
    assert accepts(gateway.ready["urls"][0])


def test_a_death_during_prepare_abandons(gateway):
    gateway.behave(prepare={"vault": "SILENCE"})
    gateway.start()
    reload(gateway)
    gateway.wait_trace(name="vault", what="PREPARE")
    os.kill(gateway.pids("vault")[0], signal.SIGKILL)
    refused(gateway, "vault ended meanwhile")
    gateway.behave()
    gateway.wait_trace(2, name="vault", what="ready")
    reload(gateway)
    applied(gateway, 3)  # 2 was tried: numbers are not used twice


def test_new_workers_that_cannot_start_bring_the_settings_of_before_back(gateway):
    gateway.start()
    (old,) = gateway.pids("worker-0")
    gateway.behave(exit={"worker": 78}, from_generation=2)
    gateway.configure(workers=3)
    reload(gateway)
    wait_for(lambda: "going back to the settings before" in gateway.stderr())
    gateway.behave()
    gateway.wait_trace(name="admin", what="RELOADED", argument=0)
    assert len(gateway.trace(what="ready", generation=3)) == 1  # one worker, as before
    wait_for(lambda: not is_alive(old))
    assert accepts(gateway.ready["urls"][0])
    assert gateway.stop() == 0


def test_requests_during_a_reload_become_one_more(gateway):
    gateway.behave(prepare={"vault": "SILENCE"})
    gateway.start()
    reload(gateway)
    gateway.wait_trace(name="vault", what="PREPARE")
    gateway.behave()
    for _ in range(5):
        reload(gateway)
    os.kill(gateway.pids("vault")[0], signal.SIGKILL)
    refused(gateway, "vault ended meanwhile")
    gateway.wait_trace(2, name="admin", what="RELOADED")  # refused, or in force where the vault was back before the settings were read
    gateway.wait_trace(2, name="vault", what="ready")
    assert gateway.stop() == 0
    assert len(gateway.trace(name="admin", what="RELOADED")) == 2


def test_at_most_four_generations_drain(gateway):
    gateway.configure(drain=600.0)
    gateway.behave(never_drained=True)
    gateway.start()
    for generation in range(2, 8):
        reload(gateway)
        applied(gateway, generation)
    workers = [record for record in gateway.trace(what="ready") if record["name"].startswith("worker")]
    assert len(workers) == 7
    wait_for(lambda: [record["generation"] for record in workers if is_alive(record["pid"])] == [3, 4, 5, 6, 7])
    gateway.process.send_signal(signal.SIGTERM)
    gateway.process.send_signal(signal.SIGTERM)
    gateway.end()


def test_a_restarted_process_has_the_settings_in_force(gateway):
    gateway.start()
    reload(gateway)
    applied(gateway, 2)
    os.kill(gateway.pids("egress")[0], signal.SIGKILL)
    assert gateway.wait_trace(name="egress", what="ready", generation=2)
