"""What a call consumed, whatever the dialect."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as the provider counted them. Cached ones are part of the prompt's, reasoning is part of the completion's."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """What limits count."""
        return self.prompt_tokens + self.completion_tokens
