"""What of a request names things that Google keeps for the gateway's account, which all clients share (ADR 0096).

A file of the Files API, an object in a bucket (Vertex AI reads it with the gateway's own rights), a cached prompt, a store of documents: whoever names one
has what another client, or the operator, put there. Google tells a name that is not there by 403, which would cool the credential for everybody.
"""

from __future__ import annotations

import re

from cliproxy.translators.gemini_generate.wire import FileData, GenerateBody, Part, ResponsePart
from cliproxy.translators.schema import refuse_state

# An address that means the same to every reader: no user, no escapes in the host, no other separators.
_ADDRESS = re.compile(r"https?://([a-z0-9.-]+)(?::[0-9]{1,5})?(?:[/?][^\\\s]*)?", re.IGNORECASE | re.ASCII)
_GOOGLES = (".googleapis.com", ".cloud.google.com")


def verify_stateless(wire: GenerateBody, *, path: str = "") -> None:
    """Raise `SchemaError` for what names something stored at the provider. `path` stands before the fields' own."""
    if wire.cached_content is not None:
        refuse_state(f"{path}cachedContent")
    for index, content in enumerate(wire.contents):
        verify_parts_stateless(content.parts, f"{path}contents[{index}]")
    if wire.system_instruction is not None:
        verify_parts_stateless(wire.system_instruction.parts, f"{path}systemInstruction")
    for index, tool in enumerate(wire.tools or ()):
        if tool.file_search is not None:
            refuse_state(f"{path}tools[{index}].fileSearch")


def verify_parts_stateless(parts: list[Part], path: str) -> None:
    """The same of the parts of a turn at `path`."""
    for index, part in enumerate(parts):
        if part.text is not None:
            continue
        inner: list[Part] | list[ResponsePart] = [part]
        if part.function_response is not None:
            inner = part.function_response.parts or []
        if any(one.file_data is not None and _is_kept(one.file_data) for one in inner):
            refuse_state(f"{path}.parts[{index}]")


def _is_kept(file: FileData) -> bool:
    """Whether the file is anything but what anybody can fetch from a public address."""
    match = _ADDRESS.fullmatch(file.file_uri)
    return match is None or ("." + match[1].lower().rstrip(".")).endswith(_GOOGLES)
