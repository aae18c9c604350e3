"""A body for the egress role: the real lockdown, the real dialer at `DIALER_FD`, calls through the real pool, what became of them on the audit channel.

Started as `python -I -B locked_pool.py` by `test_egress_locked.py`; only the body is a probe.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from cliproxy.config.schema import decode_settings
from cliproxy.dialects import Endpoint
from cliproxy.egress.dialer_client import DialerClient
from cliproxy.egress.inject import Injector
from cliproxy.egress.pool import Pool
from cliproxy.egress.trust import TrustStore
from cliproxy.processes import child
from cliproxy.processes.child import Boot, Control
from cliproxy.processes.descriptors import channel
from cliproxy.processes.topology import AUDIT_FD, EgressDescriptors
from cliproxy.providers.origin import parse_base_url
from cliproxy.sandbox.loop import make_event_loop
from cliproxy.secret import Secret
from fakes.rig import SECRET, Recorder, request


class Prepared:
    def __init__(self, boot: Boot) -> None:
        self.providers = decode_settings(boot.settings).providers
        self.trust = TrustStore(self.providers)
        self.loop = make_event_loop()


async def calls(prepared: Prepared) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    violations: list[str] = []
    dialer = DialerClient(loop, channel(EgressDescriptors.DIALER_FD), violated=violations.append)
    injector = Injector(prepared.providers)
    pool = Pool(loop, dialer=dialer, providers=prepared.providers, contexts=prepared.trust.contexts_for(prepared.providers), sweep_seconds=0.05)
    told: dict[str, object] = {}
    for name, provider in prepared.providers.items():
        injector.grant(name, provider=name, origin=str(parse_base_url(provider.base_url)[0]), secret=Secret(SECRET))
        bound = injector.for_provider(name)
        assert bound is not None
        for model, stream in (("m", False), ("m", True), ("fault-stall-mid", True), ("m", False), ("fault-reset", False), ("m", False)):
            recorder = Recorder()
            sent = pool.send(recorder, bound, Endpoint.CHAT_COMPLETIONS, request(model, stream=stream), stream=stream)
            if model == "fault-stall-mid":
                await asyncio.wait([asyncio.create_task(recorder.began.wait()), asyncio.create_task(recorder.ended.wait())], return_when="FIRST_COMPLETED")
                sent.cancel()
                await asyncio.sleep(0.05)
            else:
                await asyncio.wait_for(recorder.ended.wait(), 20)
            told[f"{name} {model} {stream} {len(told)}"] = getattr(recorder.error, "code", recorder.status)
        told[f"{name} counts"] = pool.counts()[name]
    told["violations"] = violations
    return told


def prepare(boot: Boot) -> Prepared:
    return Prepared(boot)


def body(boot: Boot, prepared: Prepared, control: Control) -> None:
    audit = channel(AUDIT_FD)
    try:
        told = prepared.loop.run_until_complete(calls(prepared))
        audit.send(json.dumps(told).encode())
    except BaseException as error:
        audit.send(json.dumps({"raised": repr(error)}).encode())
    os._exit(0)


if __name__ == "__main__":
    child.main("egress", prepare=prepare, body=body)
