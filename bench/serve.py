"""Start a gateway for measuring: a throw-away home, every control on, limits too high to bite, `gpt-4o-mini` routed to the upstream given, which is
asked for `claude-fast` too, in Anthropic's dialect: an OpenAI client's calls for it are translated.

    python -m bench.serve --upstream http://127.0.0.1:9000 --port 8317 [--workers 1]

Prints one JSON line `{"pid": …, "url": …, "key": …}` when ready; `pid` is the supervisor's. SIGTERM or SIGINT ends it and removes the home.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

CONFIG = """\
server:
  listen: ["127.0.0.1"]
  port: {port}
  workers: {workers}
  rate_limit: {{requests_per_second: 1000000, burst: 1000000}}
  limits: {{max_connections_per_address: 4096}}
  security:
    ip_allowlist: {{enabled: true, allowed_ips: ["127.0.0.0/8", "10.0.0.0/8"]}}
    ip_denylist: ["192.0.2.0/24"]
auth:
  key_limits: {{requests_per_minute: 1000000000, tokens_per_minute: 100000000000, concurrency: 100000}}
providers:
  bench:
    base_url: {upstream}/v1
    plain_http: true
    models: [gpt-4o-mini]
    concurrency: 100000
    rate_limit: {{requests_per_minute: 1000000000, tokens_per_minute: 100000000000}}
  bench-anthropic:
    kind: anthropic
    base_url: {upstream}/v1
    plain_http: true
    models: [claude-fast]
    concurrency: 100000
    rate_limit: {{requests_per_minute: 1000000000, tokens_per_minute: 100000000000}}
"""


class Gateway:
    """A gateway on a throw-away home."""

    def __init__(self, *, upstream: str, port: int, workers: int = 1) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="cliproxy-bench-"))
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "cliproxy.cli.main", "--home", str(self.home)]
        made = json.loads(self._run("init", "--json"))
        self.key: str = made["key"]
        config = self.home / "config" / "cliproxy.yaml"
        config.write_text(CONFIG.format(port=port, upstream=upstream.rstrip("/"), workers=workers))
        began = time.monotonic()
        self.process = subprocess.Popen([*self._command, "serve"], stdout=subprocess.DEVNULL, stderr=sys.stderr)
        self.pid = self.process.pid
        try:
            self._wait_ready()
            self.ready_seconds = time.monotonic() - began
            for provider in ("bench", "bench-anthropic"):
                self._run("credentials", "add", provider, "--stdin", stdin="sk-bench-" + secrets.token_hex(16))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and remove its home."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def _run(self, *arguments: str, stdin: str | None = None) -> str:
        done = subprocess.run([*self._command, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise SystemExit(f"cliproxy {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _wait_ready(self) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise SystemExit(f"the gateway ended with {self.process.returncode}")
            try:
                with urllib.request.urlopen(self.url + "/readyz", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.01)
        raise SystemExit("the gateway did not become ready")


def main() -> None:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(prog="bench.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", default="http://127.0.0.1:9000")
    parser.add_argument("--port", type=int, default=8317)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    stop = False

    def on_signal(number: int, frame: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    gateway = Gateway(upstream=asked.upstream, port=asked.port, workers=asked.workers)
    try:
        print(json.dumps({"pid": gateway.pid, "url": gateway.url, "key": gateway.key, "ready_seconds": round(gateway.ready_seconds, 3)}), flush=True)
        while not stop and gateway.process.poll() is None:
            time.sleep(0.1)
    finally:
        gateway.stop()
    os._exit(0)


if __name__ == "__main__":
    main()
