"""What cannot be said: by an SDK at all, and by a target. Everything that is not here must work."""

from __future__ import annotations

# What an SDK has no word for.
IMPOSSIBLE: dict[str, set[str]] = {
    "openai_chat": {"tool_error", "tool_result_image", "top_k", "thoughts_shown"},
    "openai_responses": {"stop_sequence", "top_k", "choices", "tool_error", "audio", "thoughts_shown"},
    "anthropic_messages": {"choices", "json_object", "audio", "thoughts_shown"},
    "gemini_generate": {"tool_result_image", "thoughts_shown"},
}

# (client, target): scenario: the field that the refusal names, in the client's own words.
REFUSED: dict[tuple[str, str], dict[str, str]] = {}

# Thoughts that are not shown, since one side shows none.
DROPPED_THOUGHTS: set[tuple[str, str]] = {(client, "openai_chat") for client in IMPOSSIBLE} | {("openai_chat", target) for target in ()}

TOLD_APART: dict[str, dict[str, dict[str, tuple[str, str]]]] = {}
