"""What a call consumed, whatever the dialect."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as the provider counted them. `cached` (read from a cache) and `cache_written` are part of the prompt's, `reasoning` of the completion's."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0
    cache_written: int = 0

    @property
    def total(self) -> int:
        """What limits count."""
        return self.prompt + self.completion


class AskedFor(msgspec.Struct, frozen=True, gc=False):
    """What a final body asks for. `max_tokens` is the most output tokens of one of the `n` choices; `model` is empty and `stream` `None` where the dialect says
    them in the path."""

    model: str
    max_tokens: int
    n: int
    stream: bool | None
