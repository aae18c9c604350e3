"""Measure this gateway beside a bare nginx reverse proxy (where installed) and print the table of docs/performance.md.

    python -m bench [--rounds 3] [--seconds 5] [--only WORD] [--json]

CPU time is summed over all processes of each. Both are pinned to core 0, the load generator and the stand-in provider to core 1. A machine's
speed drifts by a fifth within minutes, so what counts is the ratio in one run: rounds alternate, and the median is quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.serve import Gateway

HERE = Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")
NGINX = """worker_processes 1; pid {home}/nginx.pid; error_log /dev/null; daemon off; master_process off;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
 upstream u {{ server 127.0.0.1:{upstream}; keepalive 256; }}
 server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; }} }} }}
"""
TRANSLATED = ("--model", "claude-fast")  # nginx hands the same request on as it is, and its upstream answers in the client's dialect
# name, load arguments, upstream's interval in ms, what is compared, budget of docs/performance.md
CASES: tuple[tuple[str, tuple[str, ...], str, str, str], ...] = (
    ("chat, 32 connections: CPU-µs per request", ("32",), "0", "cpu", "≤ 3.7 x nginx"),
    ("streamed answer of 103 events: CPU-µs", ("32", "--stream"), "0", "cpu", "≤ 250 µs"),
    ("trickling stream, 64 at once: CPU-µs", ("64", "--stream"), "10", "cpu", "≤ 2 x nginx"),
    ("translated (to Anthropic), 32 connections: CPU-µs", ("32", *TRANSLATED), "0", "cpu", "≤ 5 x nginx"),
    ("translated stream of 103 events: CPU-µs", ("32", "--stream", *TRANSLATED), "0", "cpu", "≤ 500 µs"),
    ("translated trickling stream, 64 at once: CPU-µs", ("64", "--stream", *TRANSLATED), "10", "cpu", "≤ 2 x nginx"),
    ("p99 at 1,000 requests/s: ms", ("32", "--rate", "1000"), "0", "p99", "≤ nginx + 1.5 ms"),
)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tree(pid: int) -> list[int]:
    """Return `pid` and all its descendants."""
    found, todo = [], [pid]
    while todo:
        process = todo.pop()
        found.append(process)
        try:
            for task in Path(f"/proc/{process}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            pass
    return found


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process tree."""
    total = 0
    for process in tree(pid):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return total / TICK


def pss_mb(pid: int) -> float:
    """Return the proportional set size of a process tree in MB."""
    total = 0
    for process in tree(pid):
        try:
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        except OSError:
            pass
    return total / 1024


def pinned(core: int, *command: str) -> list[str]:
    """Return `command` pinned to `core`, where there is more than one and taskset."""
    if (os.cpu_count() or 1) > 1 and shutil.which("taskset"):
        return ["taskset", "-c", str(core), *command]
    return list(command)


def load(url: str, key: str, arguments: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """Run the load generator and return what it counted."""
    connections, *options = arguments
    command = pinned(1, sys.executable, str(HERE / "load.py"), url + "/v1/chat/completions", connections, str(seconds), "--key", key, *options)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    return dict(json.loads(done.stdout))


def measure(pid: int, url: str, key: str, arguments: tuple[str, ...], seconds: float) -> dict[str, float]:
    """Return CPU-µs per answer, p99 in ms and errors under one load, after a short warm-up."""
    load(url, key, arguments, 1.0)
    before = cpu_seconds(pid)
    result = load(url, key, arguments, seconds)
    used = cpu_seconds(pid) - before
    if result["errors"] or not result["requests"]:
        raise SystemExit(f"{result['errors']} errors in {result['requests']} requests: the figures would mean nothing")
    return {"cpu": 1e6 * used / result["requests"], "p99": result["p99_ms"], "rps": result["rps"]}


def start_nginx(home: Path, upstream: int) -> tuple[subprocess.Popen[bytes], str]:
    """Start a bare nginx that forwards to the stand-in provider."""
    port = free_port()
    (home / "nginx.conf").write_text(NGINX.format(home=home, upstream=upstream, port=port))
    process = subprocess.Popen(pinned(0, "nginx", "-c", str(home / "nginx.conf")), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process, f"http://127.0.0.1:{port}"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start_upstream(port: int, interval: str) -> subprocess.Popen[bytes]:
    """Start the stand-in provider and wait until it listens."""
    process = subprocess.Popen(pinned(1, sys.executable, str(HERE / "upstream.py"), str(port), "100", interval))
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    stop(process)
    raise SystemExit("the stand-in provider did not start")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", default="", help="only the rows whose name holds this")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    has_nginx = shutil.which("nginx") is not None
    home = Path(tempfile.mkdtemp(prefix="cliproxy-bench-"))
    upstream_port = free_port()
    upstream = start_upstream(upstream_port, "0")
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {0})  # the gateway inherits it
    gateway = Gateway(upstream=f"http://127.0.0.1:{upstream_port}", port=free_port())
    nginx, nginx_url = start_nginx(home, upstream_port) if has_nginx else (None, "")
    rows: list[dict[str, Any]] = []
    try:
        memory = {"ours": pss_mb(gateway.pid), "nginx": pss_mb(nginx.pid) if nginx else None}
        for name, arguments, interval, figure, budget in (case for case in CASES if asked.only in case[0]):
            stop(upstream)
            upstream = start_upstream(upstream_port, interval)
            rounds: list[tuple[float, float | None]] = []
            for _ in range(asked.rounds):
                theirs = measure(nginx.pid, nginx_url, gateway.key, arguments, asked.seconds)[figure] if nginx else None
                rounds.append((measure(gateway.pid, gateway.url, gateway.key, arguments, asked.seconds)[figure], theirs))
            ours = statistics.median(one for one, _ in rounds)
            bare = [two for _, two in rounds if two is not None]
            ratio = statistics.median(one / two for one, two in rounds if two) if bare else None
            rows.append(
                {
                    "what": name,
                    "ours": round(ours, 2),
                    "nginx": round(statistics.median(bare), 2) if bare else None,
                    "ratio": ratio and round(ratio, 2),
                    "budget": budget,
                }
            )
        memory["ours_after"] = pss_mb(gateway.pid)
        rows.append(
            {
                "what": "memory, all processes (PSS), MB",
                "ours": round(memory["ours_after"] or 0, 1),
                "nginx": memory["nginx"] and round(memory["nginx"], 1),
                "ratio": None,
                "budget": "≤ 120 MB",
            }
        )
        rows.append({"what": "start to ready, s", "ours": round(gateway.ready_seconds, 2), "nginx": None, "ratio": None, "budget": "≤ 1.5 s"})
    finally:
        gateway.stop()
        if nginx:
            stop(nginx)
        stop(upstream)
        shutil.rmtree(home, ignore_errors=True)
    if asked.json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    if not has_nginx:
        print("nginx is not installed: absolute figures only, and they drift by a fifth within minutes\n")
    print(f"| {'':52} | cliproxy |  nginx | ratio | budget |\n|{'-' * 54}|---------:|-------:|------:|--------|")
    for row in rows:
        print(f"| {row['what']:52} | {row['ours']:8} | {row['nginx'] or '':>6} | {row['ratio'] or '':>5} | {row['budget']} |")


if __name__ == "__main__":
    main()
