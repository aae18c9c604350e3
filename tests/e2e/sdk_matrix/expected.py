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
REFUSED: dict[tuple[str, str], dict[str, str]] = {
    ("openai_chat", "openai_responses"): {"audio": "messages[0].content[0]", "stop_sequence": "stop", "choices": "n"},
    ("openai_chat", "anthropic_messages"): {"audio": "messages[0].content[0]", "json_object": "response_format", "choices": "n"},
    ("openai_chat", "bedrock_converse"): {"image_url": "messages[0].content[0]", "json_object": "response_format", "choices": "n"},
    ("openai_responses", "openai_chat"): {"tool_result_image": "input[3].output[1]"},
    ("openai_responses", "anthropic_messages"): {"json_object": "text.format"},
    ("openai_responses", "bedrock_converse"): {"image_url": "input[0].content[0]", "json_object": "text.format"},
    ("anthropic_messages", "openai_chat"): {"tool_result_image": "messages[2].content[0].content[1]", "top_k": "top_k"},
    ("anthropic_messages", "openai_responses"): {"stop_sequence": "stop_sequences", "top_k": "top_k"},
    ("anthropic_messages", "bedrock_converse"): {"image_url": "messages[0].content[0]"},
    ("gemini_generate", "openai_chat"): {"top_k": "generationConfig.topK"},
    ("gemini_generate", "openai_responses"): {
        "audio": "contents[0].parts[0]",
        "stop_sequence": "generationConfig.stopSequences",
        "top_k": "generationConfig.topK",
        "choices": "generationConfig.candidateCount",
    },
    ("gemini_generate", "anthropic_messages"): {
        "audio": "contents[0].parts[0]",
        "json_object": "generationConfig.response",
        "choices": "generationConfig.candidateCount",
    },
    ("gemini_generate", "bedrock_converse"): {
        "image_url": "contents[0].parts[0]",
        "json_object": "generationConfig.response",
        "choices": "generationConfig.candidateCount",
    },
}

# Targets that have no word for a tool's failure: its text goes, and a `Warning` says the rest.
WITHOUT_TOOL_ERRORS = {"openai_chat", "openai_responses"}

# Thoughts that are not shown: a chat completion cannot ask for them, and these vendors show them only to who asks.
DROPPED_THOUGHTS = {("openai_chat", "openai_responses"), ("openai_chat", "gemini_generate")}

_ENDS = ("[[refuse]]", "[[filter]]", "[[stop]]", "[[long]]")


def _told(*stops: str, sequence: str = "") -> dict[str, tuple[str, str]]:
    return {mark: (stop, sequence if mark == "[[stop]]" else "") for mark, stop in zip(_ENDS, stops, strict=True)}


# client: target: what the SDK says of each end, and the stop sequence where it is told
TOLD_APART: dict[str, dict[str, dict[str, tuple[str, str]]]] = {
    "openai_chat": {
        "openai_chat": _told("stop", "content_filter", "stop", "length"),
        "openai_responses": _told("stop", "content_filter", "stop", "length"),
        "anthropic_messages": _told("content_filter", "content_filter", "stop", "length"),
        "gemini_generate": _told("content_filter", "content_filter", "stop", "length"),
        "bedrock_converse": _told("content_filter", "content_filter", "stop", "length"),
    },
    "openai_responses": {
        "openai_chat": _told("completed", "content_filter", "", "max_output_tokens"),
        "openai_responses": _told("completed", "content_filter", "", "max_output_tokens"),
        "anthropic_messages": _told("content_filter", "content_filter", "", "max_output_tokens"),
        "gemini_generate": _told("content_filter", "content_filter", "", "max_output_tokens"),
        "bedrock_converse": _told("content_filter", "content_filter", "", "max_output_tokens"),
    },
    "anthropic_messages": {
        "openai_chat": _told("refusal", "refusal", "end_turn", "max_tokens"),
        "openai_responses": _told("refusal", "refusal", "", "max_tokens"),
        "anthropic_messages": _told("refusal", "refusal", "stop_sequence", "max_tokens", sequence="ENDE"),
        "gemini_generate": _told("refusal", "refusal", "end_turn", "max_tokens"),
        "bedrock_converse": _told("refusal", "refusal", "stop_sequence", "max_tokens"),
    },
    "gemini_generate": {
        "openai_chat": _told("SAFETY", "SAFETY", "STOP", "MAX_TOKENS"),
        "openai_responses": _told("SAFETY", "SAFETY", "", "MAX_TOKENS"),
        "anthropic_messages": _told("SAFETY", "SAFETY", "STOP", "MAX_TOKENS"),
        "gemini_generate": _told("PROHIBITED_CONTENT", "SAFETY", "STOP", "MAX_TOKENS"),
        "bedrock_converse": _told("SAFETY", "SAFETY", "STOP", "MAX_TOKENS"),
    },
}
