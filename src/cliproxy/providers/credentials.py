"""How the text of a credential is made up, where it is more than one secret."""

from __future__ import annotations

import re

_AWS = re.compile(r"([A-Z0-9]{16,128}):([A-Za-z0-9/+=]{16,256})(?::([A-Za-z0-9/+=_-]{16,7000}))?")
AWS_FORM = "ACCESS_KEY_ID:SECRET_ACCESS_KEY[:SESSION_TOKEN]"


def parse_aws_credential(text: str) -> tuple[str, str, str] | None:
    """Return access key id, secret key and session token (empty: none) of a text of `AWS_FORM`; `None` if it is none."""
    match = _AWS.fullmatch(text)
    return (match[1], match[2], match[3] or "") if match is not None else None
