"""What egress reads, by endpoint: every endpoint has a row, and no other module of a dialect is in reach."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cliproxy.dialects import ENDPOINTS, Endpoint, Operation
from cliproxy.egress.reading import READINGS
from cliproxy.errors import SchemaError, UpstreamError

ROOT = Path(__file__).parents[2]
NO_JSON = b"\xff\x00{["
ALLOWED = {"openai_media.form"}  # constants and one regular expression of how our own forms are written


def test_every_endpoint_has_a_row_and_conversations_can_be_streamed() -> None:
    assert set(READINGS) == set(Endpoint)
    for endpoint, reading in READINGS.items():
        assert (reading.stream is not None) == (ENDPOINTS[endpoint][0] is Operation.GENERATE)


@pytest.mark.parametrize("endpoint", Endpoint)
def test_garbage_is_a_refusal_and_never_a_fault(endpoint: Endpoint) -> None:
    reading = READINGS[endpoint]
    with pytest.raises(SchemaError):
        reading.asked(NO_JSON)
    if not reading.media:
        with pytest.raises(UpstreamError):
            reading.used(NO_JSON)


def test_empty_sound_is_no_answer() -> None:
    with pytest.raises(UpstreamError):
        READINGS[Endpoint.SPEECH].used(b"")
    assert READINGS[Endpoint.SPEECH].used(b"ID3") is None


def test_counting_costs_nothing() -> None:
    used = READINGS[Endpoint.COUNT_MESSAGE_TOKENS].used(b'{"input_tokens": 12}')
    assert used is not None and used.total == 0


def test_the_import_contract_names_every_module_of_every_dialect_but_the_one_that_egress_reads() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["name"].startswith("Egress reads usage")]
    dialects = [folder for folder in (ROOT / "src/cliproxy/translators").iterdir() if (folder / "__init__.py").exists()]
    modules = {f"{folder.name}.{file.stem}" for folder in dialects for file in folder.glob("*.py") if file.stem not in ("__init__", "usage")}
    named = {name.removeprefix("cliproxy.translators.") for name in contract["forbidden_modules"]}
    assert modules - ALLOWED <= named
