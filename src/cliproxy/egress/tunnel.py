"""A way to a provider through an HTTP proxy: CONNECT (RFC 9110 §9.3.6) on a socket that the dialer connected to the proxy.

What always holds: nothing but the provider's host and port is said to the proxy; not a byte that the proxy sends behind its answer is taken for the
provider's; its answer is bounded, and so is the time. TLS to the provider is made inside the tunnel, so the proxy sees neither credential nor prompt
unless the provider's entry says `plain_http`.
"""

from __future__ import annotations

import asyncio
import re
import socket

from cliproxy import __version__
from cliproxy.bounds import KIB
from cliproxy.errors import UpstreamError
from cliproxy.providers.origin import Origin

MAX_TUNNEL_HEAD_BYTES = 8 * KIB  # a proxy's answer to CONNECT; curl takes 100 KiB, real ones have a few hundred bytes

_SUCCESS = re.compile(rb"HTTP/1\.[01] 2\d\d(?: [^\r\n]*)?\r\n")
_END = b"\r\n\r\n"


async def open_tunnel(loop: asyncio.AbstractEventLoop, sock: socket.socket, origin: Origin, *, seconds: float) -> None:
    """Make `sock`, connected to a proxy, a connection to `origin`. The caller closes it on failure.

    Raises `UpstreamError` when the proxy refuses, answers anything but success, or takes longer than `seconds`; `OSError` when it hangs up.
    """
    authority = str(origin).partition("://")[2].encode("ascii")
    request = b"CONNECT %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: cliproxy/%s\r\n\r\n" % (authority, authority, __version__.encode("ascii"))
    sock.setblocking(False)
    try:
        async with asyncio.timeout(seconds):
            await loop.sock_sendall(sock, request)
            head = await _read_head(loop, sock)
    except TimeoutError:
        raise UpstreamError("The proxy on the way to the provider did not answer in time.", status=504, code="provider_proxy_timeout") from None
    if _SUCCESS.match(head) is None:
        raise UpstreamError("The proxy on the way to the provider refused the connection.", code="provider_proxy_refused")
    if not head.endswith(_END):  # bytes of a tunnel that the provider cannot have sent: it speaks second
        raise UpstreamError("The proxy on the way to the provider sent more than its answer.", code="provider_proxy_answer")


async def _read_head(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    """Return what the proxy sent, up to and with the read in which its head ended."""
    head = b""
    while _END not in head:
        piece = await loop.sock_recv(sock, MAX_TUNNEL_HEAD_BYTES)
        if not piece:
            raise ConnectionResetError
        head += piece
        if len(head) > MAX_TUNNEL_HEAD_BYTES:
            raise UpstreamError("The proxy on the way to the provider answered with too large a head.", code="provider_proxy_answer")
    return head
