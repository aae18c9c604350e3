"""AWS signatures: AWS's published test suite, and botocore's signer on generated requests."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime
from unittest.mock import patch

import pytest
from botocore import auth as botocore_auth
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.egress.sigv4 import Signer
from cliproxy.providers.facts import path_segment

ID = "AKIDEXAMPLE"
KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
NOW = float(calendar.timegm((2015, 8, 30, 12, 36, 0)))
HOST = (b"Host", b"example.amazonaws.com")
TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1Nt"
    "BmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9K"
    "SYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)

# https://docs.aws.amazon.com/general/latest/gr/signature-v4-test-suite.html: method, target, headers, body, session token, and the signature.
SUITE = {
    "get-vanilla": (b"GET", b"/", [], b"", "", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    "get-unreserved": (
        b"GET",
        b"/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
        [],
        b"",
        "",
        "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
    ),
    "get-vanilla-query-order-key-case": (
        b"GET",
        b"/?Param2=value2&Param1=value1",
        [],
        b"",
        "",
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    "get-header-key-duplicate": (
        b"GET",
        b"/",
        [(b"My-Header1", b"value2"), (b"My-Header1", b"value2"), (b"My-Header1", b"value1")],
        b"",
        "",
        "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
    ),
    "get-header-value-trim": (
        b"GET",
        b"/",
        [(b"My-Header1", b" value1"), (b"My-Header2", b' "a   b   c"')],
        b"",
        "",
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
    "post-vanilla": (b"POST", b"/", [], b"", "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    "post-header-key-sort": (b"POST", b"/", [(b"My-Header1", b"value1")], b"", "", "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"),
    "post-x-www-form-urlencoded": (
        b"POST",
        b"/",
        [(b"Content-Type", b"application/x-www-form-urlencoded")],
        b"Param1=value1",
        "",
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
    ),
    "post-sts-header-before": (b"POST", b"/", [], b"", TOKEN, "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"),
}


@pytest.mark.parametrize("name", SUITE)
def test_awss_own_test_suite(name: str) -> None:
    method, target, headers, body, token, signature = SUITE[name]
    signer = Signer(access_key_id=ID, secret_key=KEY, session_token=token, region="us-east-1", service="service")
    added = dict(signer.sign(method=method, target=target, headers=[HOST, *headers], body=body, now=NOW))
    names = ";".join(sorted({"host", "x-amz-date", *(["x-amz-security-token"] if token else []), *(header.decode().lower() for header, _ in headers)}))
    assert added[b"X-Amz-Date"] == b"20150830T123600Z" and added.get(b"X-Amz-Security-Token", b"") == token.encode()
    assert added[b"Authorization"].decode() == (
        f"AWS4-HMAC-SHA256 Credential={ID}/20150830/us-east-1/service/aws4_request, SignedHeaders={names}, Signature={signature}"
    )


def botocores(url: str, body: bytes, *, token: str, now: float) -> str:
    request = AWSRequest(method="POST", url=url, data=body, headers={"Content-Type": "application/json"})
    moment = datetime.fromtimestamp(now, UTC).replace(tzinfo=None)
    with patch.object(botocore_auth, "get_current_datetime", return_value=moment):
        SigV4Auth(Credentials(ID, KEY, token or None), "bedrock", "eu-west-1").add_auth(request)
    return str(request.headers["Authorization"])


def test_the_patch_of_botocores_clock_works() -> None:
    assert "/20150830/" in botocores("https://h.example/", b"", token="", now=NOW)


@given(
    model=st.text(min_size=1, max_size=40).filter(lambda text: text.strip(".") != ""),
    body=st.binary(max_size=100),
    token=st.sampled_from(["", TOKEN]),
    now=st.integers(0, 4_000_000_000),
)
def test_botocore_signs_a_call_of_any_model_alike(model: str, body: bytes, token: str, now: int) -> None:
    target = f"/model/{path_segment(model)}/converse-stream"
    host = "bedrock-runtime.eu-west-1.amazonaws.com"
    signer = Signer(access_key_id=ID, secret_key=KEY, session_token=token, region="eu-west-1", service="bedrock")
    headers = [(b"Host", host.encode()), (b"Content-Type", b"application/json")]
    ours = dict(signer.sign(method=b"POST", target=target.encode(), headers=headers, body=body, now=float(now)))
    assert ours[b"Authorization"].decode() == botocores(f"https://{host}{target}", body, token=token, now=float(now))


def test_the_key_of_a_day_is_not_used_on_the_next() -> None:
    signer = Signer(access_key_id=ID, secret_key=KEY, region="us-east-1", service="service")

    def signed(now: float) -> bytes:
        return dict(signer.sign(method=b"POST", target=b"/", headers=[HOST], body=b"", now=now))[b"Authorization"]

    first, second, again = signed(NOW), signed(NOW + 86400), signed(NOW)
    assert first == again != second and b"/20150831/" in second


def test_nothing_prints_the_key() -> None:
    signer = Signer(access_key_id=ID, secret_key=KEY, session_token=TOKEN, region="us-east-1", service="service")
    assert KEY not in repr(signer) and not hasattr(signer, "__dict__")
