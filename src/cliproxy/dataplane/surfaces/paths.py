"""What a path and a query say: a model's name, the values of a parameter.

What always holds: a name in a path is percent-decoded once, must then be UTF-8 of printable characters, and is looked up in a table: it never becomes part of
another path.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from cliproxy.bounds import MAX_MODEL_NAME_CHARS
from cliproxy.errors import NotFound

MAX_QUERY_VALUE_BYTES = 256  # percent-encoded; a key of 53 bytes has 159 at most

MODELS: Final = b"/v1/models"  # of more than one vendor: who asks decides
MODEL_PREFIX: Final = b"/v1/models/"
_MOST_BYTES_A_CHARACTER: Final = 12  # four of UTF-8, each as %XX


def model_name(encoded: bytes) -> str:
    """Return the name in a path. Decoded once: what still looks encoded is part of the name. Raises `NotFound` for what no model can be called."""
    if len(encoded) > MAX_MODEL_NAME_CHARS * _MOST_BYTES_A_CHARACTER:
        raise _no_such_model()
    decoded = unquote_to_bytes(encoded)
    try:
        name = decoded.decode()
    except UnicodeDecodeError:
        raise _no_such_model() from None
    if not 0 < len(name) <= MAX_MODEL_NAME_CHARS or not name.isprintable():
        raise _no_such_model()
    return name


def _no_such_model() -> NotFound:
    return NotFound("There is no model of that name here; the list of models names those that there are.", param="model", code="model_not_found")


def parameters(query: bytes | None, name: bytes) -> list[bytes]:
    """Return the values of the parameter `name`, percent-decoded; other spellings of the name are other parameters. A value that is too long for any use
    stays as it is: decoding 16 KB costs strangers nothing and us a millisecond."""
    if query is None:
        return []
    pairs = (part.partition(b"=") for part in query.split(b"&"))
    return [unquote_to_bytes(value) if len(value) <= MAX_QUERY_VALUE_BYTES else value for found, _, value in pairs if found == name]
