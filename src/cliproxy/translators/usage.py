"""What a call consumed, whatever the dialect."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as the provider counted them. Cached ones are part of the prompt's, reasoning is part of the completion's."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        """What limits count."""
        return self.prompt + self.completion
