"""AWS Signature Version 4: a request's proof of a secret key that never leaves.

Own code over `hmac` and `hashlib`, after "Create a signed AWS API request" (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
Pure: the time is passed in. Paths come from `providers.facts`, so they have no dot segments and no empty ones, and nothing here normalises any.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from urllib.parse import quote

_ALGORITHM = b"AWS4-HMAC-SHA256"
_SPACES = re.compile(rb" +")


class Signer:
    """One AWS credential, for one service in one region. Keeps the signing key of the day (RFC 2104 keys; a day's key signs for that day alone)."""

    __slots__ = ("_access_key_id", "_day", "_day_key", "_region", "_secret_key", "_service", "_session_token")

    def __init__(self, *, access_key_id: str, secret_key: str, session_token: str = "", region: str, service: str) -> None:
        self._access_key_id = access_key_id.encode("ascii")
        self._secret_key = secret_key.encode("ascii")
        self._session_token = session_token.encode("ascii")
        self._region = region.encode("ascii")
        self._service = service.encode("ascii")
        self._day = b""
        self._day_key = b""

    def __repr__(self) -> str:
        return "Signer(***)"

    def sign(self, *, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes, now: float) -> list[tuple[bytes, bytes]]:
        """Return the headers to add to a request whose `headers` (with `Host`) are all signed. `target` is the path and query as they are sent, `now` in
        seconds since the epoch."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now)).encode("ascii")
        added = [(b"X-Amz-Date", stamp)]
        if self._session_token:
            added.append((b"X-Amz-Security-Token", self._session_token))
        canonical, names = canonical_request(method=method, target=target, headers=headers + added, body=body)
        scope = b"/".join((stamp[:8], self._region, self._service, b"aws4_request"))
        text = b"\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(canonical).hexdigest().encode("ascii")))
        signature = hmac.new(self._key_of(stamp[:8]), text, hashlib.sha256).hexdigest().encode("ascii")
        value = b"%s Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (_ALGORITHM, self._access_key_id, scope, names, signature)
        return [*added, (b"Authorization", value)]

    def _key_of(self, day: bytes) -> bytes:
        if day != self._day:
            key = b"AWS4" + self._secret_key
            for part in (day, self._region, self._service, b"aws4_request"):
                key = hmac.digest(key, part, "sha256")
            self._day, self._day_key = day, key
        return self._day_key


def canonical_request(*, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[bytes, bytes]:
    """Return the canonical request and the list of signed headers' names.

    The path is encoded once more than it is sent, as every service but S3 wants it; the query's pairs are sorted by their encoded text.
    """
    path, _, query = target.partition(b"?")
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(_SPACES.sub(b" ", value.strip()))
    names = sorted(values)
    pairs = sorted((name, value) for name, _, value in (pair.partition(b"=") for pair in query.split(b"&") if pair))
    lines = [
        method,
        quote(path, safe="/-_.~").encode("ascii"),
        b"&".join(name + b"=" + value for name, value in pairs),
        *(name + b":" + b",".join(values[name]) for name in names),
        b"",
        b";".join(names),
        hashlib.sha256(body).hexdigest().encode("ascii"),
    ]
    return b"\n".join(lines), b";".join(names)
