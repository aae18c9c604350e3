"""Names to vetted addresses, in a fixed number of threads, because `getaddrinfo` blocks and knows no deadline.

Every address of a name is vetted, and one that is forbidden condemns the name: a name that leads to 169.254.169.254 among others is no
provider's. What is returned is connected to as it is; nothing is looked up twice, so a name that changes its mind in between gains nothing.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

import msgspec

from cliproxy.dialer.table import Target
from cliproxy.errors import ForbiddenAddress, UpstreamError
from cliproxy.providers.vet import verify_address

DIALER_THREADS = 8  # names resolved at a time; the rest waits within its deadline
MAX_ADDRESSES_PER_NAME = 64

LookUp = Callable[[str, int], list[str]]


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a name: addresses to try in order, or a reason as in `ipc.messages.DialFailed`; `forbidden` is the address that condemned it."""

    target: Target
    addresses: tuple[str, ...] = ()
    reason: str = ""
    forbidden: ForbiddenAddress | None = None


def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of `host` as the system's resolver orders them (RFC 6724). Raises `UpstreamError`."""
    try:
        # Bytes, or Python would import its IDNA codec; the port as a number, so that /etc/services is not read.
        found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        raise UpstreamError("the name does not resolve", code="resolve") from None
    return [str(address[0]) for _, _, _, _, address in found]


def resolve(target: Target, *, look_up: LookUp = look_up) -> Resolved:
    """Return the addresses of `target`, every one vetted, families alternating as RFC 8305 §4 has it."""
    host = target.origin.host
    try:
        ipaddress.ip_address(host)
        texts = [host]
    except ValueError:
        try:
            texts = look_up(host, target.origin.port)
        except UpstreamError:
            texts = []
    if not texts or len(texts) > MAX_ADDRESSES_PER_NAME:
        return Resolved(target=target, reason="resolve")
    try:
        vetted = [verify_address(text, loopback=target.origin.names_loopback(), private=target.private) for text in dict.fromkeys(texts)]
    except ForbiddenAddress as error:
        return Resolved(target=target, reason="forbidden_address", forbidden=error)
    first = [address for address in vetted if address.version == vetted[0].version]
    second = [address for address in vetted if address.version != vetted[0].version]
    ordered = []
    while first or second:
        ordered += [str(addresses.pop(0)) for addresses in (first, second) if addresses]
    return Resolved(target=target, addresses=tuple(dict.fromkeys(ordered)))


class Resolvers:
    """The threads. One question per origin at a time, so a name server that does not answer holds one thread per name, not one per call.

    `wake` is the write end of a non-blocking pipe; a byte is put in when `take` has something. Threads start with `start`, after the lockdown.
    """

    def __init__(self, wake: int, *, look_up: LookUp = look_up) -> None:
        self._wake = wake
        self._look_up = look_up
        self._questions: SimpleQueue[Target] = SimpleQueue()
        self._answers: deque[Resolved] = deque()
        self._asked: set[Target] = set()

    def start(self, threads: int = DIALER_THREADS) -> None:
        """Start the threads; they end with the process."""
        for number in range(threads):
            threading.Thread(target=self._work, name=f"resolver-{number}", daemon=True).start()

    def ask(self, target: Target) -> None:
        """Have `target` resolved, unless it is being resolved already: then that answer is for both."""
        if target not in self._asked:
            self._asked.add(target)
            self._questions.put(target)

    def take(self) -> list[Resolved]:
        """Return what has been resolved since."""
        taken = []
        while self._answers:
            answer = self._answers.popleft()
            self._asked.discard(answer.target)
            taken.append(answer)
        return taken

    def _work(self) -> None:
        while True:
            target = self._questions.get()
            try:
                answer = resolve(target, look_up=self._look_up)
            except Exception:  # noqa: BLE001 - a thread that dies would leave its name unanswered for ever
                answer = Resolved(target=target, reason="resolve")
            self._answers.append(answer)
            try:
                os.write(self._wake, b"\0")
            except BlockingIOError:
                pass  # the pipe is full of wake-ups
