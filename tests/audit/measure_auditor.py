"""CPU time of a real auditor per event, at a few rates of calls (two events each): `python tests/audit/measure_auditor.py`. Not a test."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from audit.audit_logs import intent, outcome
from audit.auditor_rig import Rig
from cliproxy.config.schema import AuditSettings


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(rate: float, seconds: float, per_packet: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        rig = Rig(Path(home), settings=AuditSettings(segment_bytes=4 << 30)).start()
        client = rig.client("egress")
        before, started, sent, mine, refused = cpu(rig.pid), time.monotonic(), 0, time.process_time(), 0
        while (now := time.monotonic()) - started < seconds:
            if sent / 2 < (now - started) * rate:
                batch = [one for number in range(per_packet) for one in (intent(sent + number), outcome(sent + number))]
                if client.offer(batch):
                    sent += len(batch)
                else:
                    refused += 1
                    time.sleep(0.001)
                client.poll(now)
            else:
                time.sleep(min(0.0005, 1 / rate))
        mine = time.process_time() - mine
        used = cpu(rig.pid) - before
        rig.stop()
        print(
            f"{rate:.0f} calls/s wanted, {sent / 2 / seconds:.0f} sent, {refused} refused: "
            f"auditor {used / sent * 1e6:.2f} CPU-µs per event, sender {mine / sent * 1e6:.2f}"
        )


if __name__ == "__main__":
    for rate, per_packet in ((100, 1), (1000, 1), (10_000, 1), (10_000, 4), (1e9, 16)):
        main(rate, 3.0, per_packet)
