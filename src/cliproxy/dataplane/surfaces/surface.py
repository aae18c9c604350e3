"""What a vendor's clients see of the gateway: a `Surface` for each vendor, and what it says of a path (`ClientRoute`) and of an error (`Problem`).

A surface is one module here and one row of `surfaces/table.py`. What always holds: whatever the surface, the status of an error is the same; a surface decides
how things are worded, never what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import msgspec

from cliproxy.config.routes import Route
from cliproxy.dialects import Dialect, Operation
from cliproxy.translators.table import ClientRow


class Page(Enum):
    """What is answered without a provider."""

    HEALTH = "health"
    READY = "ready"
    MODELS = "models"
    MODEL = "model"


class Problem(msgspec.Struct, frozen=True, gc=False):
    """An error that no vendor has worded yet. `wait`: seconds after which trying again may help, 0.0 for none. `challenge`: the key is missing or bad."""

    status: int
    kind: str
    code: str
    message: str
    param: str | None = None
    wait: float = 0.0
    challenge: bool = False

    @property
    def message_with_field(self) -> str:
        """The message; the field's path stands before it where it does not stand in it. For vendors whose errors have no place for the path."""
        if self.param is None or self.param in self.message:
            return self.message
        return f"{self.param}: {self.message}"


class Surface(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A vendor's surface. Two are the same only if they are the same object.

    Paths: `calls` and `pages` mean this vendor whoever asks; so does every path, existing or not, that it `owns`. `find` returns what other paths are for
    somebody who speaks to this vendor, `None` for nothing; it raises `NotFound` for a name that no model can have.

    Hints and keys are attributes of `RawRequest`: the header that tells which vendor is meant where the path does not, the header that a key may stand in
    beside `Authorization: Bearer`, and the query parameter, on its own paths only.
    """

    name: str
    calls: Mapping[bytes, tuple[Dialect, Operation]] = {}
    pages: Mapping[bytes, Page] = {}
    owns: Callable[[bytes], bool]
    find: Callable[[bytes, bytes | None], ClientRoute | None]
    hint: str = ""
    key_header: str = ""
    key_parameter: bytes = b""
    id_header: bytes = b""  # where the vendor's SDKs read the request's id, beside `x-request-id`
    method_hint: str = ""  # for who takes a model's page with another method than GET
    error_body: Callable[[Problem, str], bytes]  # (problem, request id)
    list_body: Callable[[list[dict[str, Any]]], dict[str, Any]]  # of the items that `model_item` made: always one page
    model_item: Callable[[str, Route, int], dict[str, Any]]  # (public name, route, the operator's cap on output tokens)

    def __repr__(self) -> str:
        return f"Surface({self.name})"


class ClientRoute(msgspec.Struct, frozen=True, gc=False):
    """Either a `page`, or a call as `row` of the dialects' table says. `model` and `stream` are what the path says, if it does.

    `array`: a stream goes out as one JSON array, and not as events (Gemini without `alt=sse`). `batch`: many requests in one body.
    """

    surface: Surface
    method: bytes
    page: Page | None = None
    row: ClientRow | None = None
    model: str = ""
    stream: bool | None = None
    array: bool = False
    batch: bool = False
