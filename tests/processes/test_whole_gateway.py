"""The whole gateway, real roles in their lockdown: it starts, answers, loses any process and recovers, reloads without a loss, leaves nobody behind."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from processes.gateway_of_probes import PATIENCE, is_alive, wait_for

CLIPROXY = [sys.executable, "-m", "cliproxy.cli.main"]
ROLES = ["auditor", "vault", "dialer", "egress", "worker", "admin"]
CONFIG = """\
server:
  listen: [127.0.0.1]
  port: {port}
  rate_limit:
    requests_per_second: 10000
    burst: 10000
providers:
  echo:
    models: [{models}]
"""


class Whole:
    """A gateway made with `cliproxy init` and started with `cliproxy serve`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        made = subprocess.run([*CLIPROXY, "init", "--json", "--home", str(home)], capture_output=True, timeout=PATIENCE * 2)
        assert made.returncode == 0, made.stderr
        self.key = json.loads(made.stdout)["key"]
        self.stderr_file = home.parent / "stderr"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.configure()

    def configure(self, *, port: int = 0, models: str = "echo") -> None:
        (self.home / "config" / "cliproxy.yaml").write_text(CONFIG.format(port=port, models=models))

    def start(self, **options) -> "Whole":
        command = [*CLIPROXY, "serve", "--home", str(self.home)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.stderr_file.open("ab"), **options)
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        found = re.fullmatch(r"cliproxy \S+ ready on (http://127\.0\.0\.1:\d+) \(pid (\d+)\)\n", line)
        assert found is not None, line + self.stderr_file.read_text()
        assert int(found[2]) == self.process.pid
        self.url = found[1]
        return self

    def children(self) -> dict[str, int]:
        assert self.process is not None
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
                if int(fields[1]) == self.process.pid and fields[0] != "Z" and len(command) > 4:
                    found[command[4].decode().rpartition(".")[2]] = int(entry.name)
        return found

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", int(self.url.rpartition(":")[2]), timeout=PATIENCE)

    def ask(self, connection=None, *, model: str = "echo", stream: bool = False) -> tuple[int, bytes]:
        connection = connection or self.connection()
        body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": "Hello"}]})
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def answers(self, model: str = "echo") -> bool:
        try:
            return self.ask(model=model)[0] == 200
        except OSError:
            return False

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*CLIPROXY, *words, "--home", str(self.home)], capture_output=True, text=True, timeout=PATIENCE * 2)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(PATIENCE)
            if self.process.stdout is not None:
                self.process.stdout.close()


@pytest.fixture
def whole(tmp_path):
    made = Whole(tmp_path / "home")
    yield made
    made.end()


def status_of(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def test_it_answers_whole_and_streamed_and_every_child_is_locked_down(whole):
    whole.start()
    code, body = whole.ask()
    assert code == 200 and json.loads(body)["choices"][0]["message"]["content"] == "Hello"
    code, body = whole.ask(stream=True)
    assert code == 200 and body.endswith(b"data: [DONE]\n\n")
    children = whole.children()
    assert sorted(children) == sorted(ROLES)
    uids = set()
    for pid in children.values():
        status = status_of(pid)
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert len(set(status["Uid"].split())) == 1
        uids.add(status["Uid"])
    if os.geteuid() == 0:
        assert len(uids) == len(ROLES) and "0\t0\t0\t0" not in uids
    assert whole.stop() == 0
    assert not any(is_alive(pid) for pid in children.values())
    assert whole.stderr_file.read_text() == ""


def test_any_process_killed_comes_back_and_the_log_still_verifies(whole):
    whole.start()
    for role in ROLES:
        before = whole.children()[role]
        os.kill(before, signal.SIGKILL)
        wait_for(lambda role=role, before=before: whole.children().get(role, before) != before)
        wait_for(whole.answers)
    assert whole.stop() == 0
    verified = whole.command("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    lines = [json.loads(line) for line in (whole.home / "logs" / "audit-00000001.jsonl").read_text().splitlines()]
    killed = [line["role"].partition("-")[0] for line in lines if line["event"] == "process" and line["what"] == "killed"]
    assert killed == ROLES


def test_the_supervisor_killed_leaves_no_orphan_and_a_new_start_gets_everything(whole):
    whole.start()
    children = whole.children()
    port = int(whole.url.rpartition(":")[2])
    whole.process.kill()
    whole.process.wait(PATIENCE)
    whole.process.stdout.close()
    whole.configure(port=port)
    whole.start()
    assert not any(is_alive(pid) for pid in children.values())
    assert whole.url == f"http://127.0.0.1:{port}"
    assert whole.answers()


def test_a_reload_brings_a_new_model_and_replaces_the_worker_alone(whole):
    whole.start()
    before = whole.children()
    assert whole.ask(model="second")[0] == 404
    whole.configure(models="echo, second")
    done = whole.command("reload")
    assert done.returncode == 0, done.stdout + done.stderr
    assert whole.answers("second") and whole.answers("echo")
    wait_for(lambda: not is_alive(before["worker"]))
    after = whole.children()
    assert {role for role in ROLES if after[role] != before[role]} == {"worker"}


def test_a_reload_of_an_unusable_file_is_refused_and_nothing_changes(whole):
    whole.start()
    before = whole.children()
    (whole.home / "config" / "cliproxy.yaml").write_text("server:\n  prot: 1\n")
    done = whole.command("reload")
    assert done.returncode != 0
    assert whole.answers()
    assert whole.children() == before
    assert "server.prot" in whole.stderr_file.read_text()


def test_reloads_under_load_lose_no_request(whole):
    whole.start()
    over = threading.Event()
    outcomes: list[int] = []

    def client() -> None:
        while not over.is_set():
            connection = whole.connection()
            outcomes.append(whole.ask(connection)[0])
            connection.close()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    for generation in (2, 3, 4):
        before = whole.children()["worker"]
        whole.process.send_signal(signal.SIGHUP)
        wait_for(lambda generation=generation: f"generation {generation}" in whole.stderr_file.read_text())
        wait_for(lambda before=before: not is_alive(before))
    over.set()
    for thread in clients:
        thread.join(PATIENCE)
    assert set(outcomes) == {200} and len(outcomes) > 20


def test_an_occupied_port_is_one_line_and_78(whole, tmp_path):
    whole.start()
    other = Whole(tmp_path / "other")
    other.configure(port=int(whole.url.rpartition(":")[2]))
    done = other.command("serve")
    assert done.returncode == 78
    assert "the port is in use" in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == ""
