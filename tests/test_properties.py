"""What holds for every property test of this directory."""

from __future__ import annotations

from hypothesis import settings


def test_no_property_has_a_deadline() -> None:
    """Hypothesis gives an example 200 ms unless told otherwise: on a busy machine right code would fail."""
    assert settings().deadline is None
