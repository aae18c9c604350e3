"""What a request for pictures, speech or a transcript is once it was checked."""

from __future__ import annotations

import msgspec

from cliproxy.translators.conversation import Encoded


class MediaRequest(msgspec.Struct, frozen=True):
    """A checked request. `estimate` counts what goes in and, where the size of what comes out is known beforehand, that too; `n` pictures."""

    model: str
    estimate: int
    n: int
    encoded: Encoded
