"""The event loop of the locked-down roles that have one: made before the lockdown, so that it needs nothing afterwards that a profile forbids.

libuv opens /dev/null (its spare descriptor for EMFILE) with the first stream of a loop, and uvloop imports parts of asyncio with its first run: either one
after the lockdown would kill the process.
"""

from __future__ import annotations

import asyncio
import socket

import uvloop

from cliproxy.sandbox.lockdown import refuse_io_uring


def make_event_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop loop that is ready for the lockdown and is the current loop of the thread.

    Refuses io_uring to the process first. Descriptors that the loop holds must be among those that the lockdown
    keeps; leave a locked-down process with `os._exit`, not by closing the loop. Raises `SandboxError`.
    """
    refuse_io_uring()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_use_one_stream(loop))
    return loop


async def _use_one_stream(loop: asyncio.AbstractEventLoop) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
        transport.write(b".")
        transport.close()
        await asyncio.sleep(0)
