"""What egress reads, by endpoint: every endpoint has a row."""

from __future__ import annotations

import pytest

from cliproxy.dialects import ENDPOINTS, Endpoint, Operation
from cliproxy.errors import SchemaError, UpstreamError
from cliproxy.metering.table import METERS

NO_JSON = b"\xff\x00{["


def test_every_endpoint_has_a_row_and_conversations_can_be_streamed() -> None:
    assert set(METERS) == set(Endpoint)
    for endpoint, meter in METERS.items():
        assert (meter.stream is not None) == (ENDPOINTS[endpoint][0] is Operation.GENERATE)


@pytest.mark.parametrize("endpoint", Endpoint)
def test_garbage_is_a_refusal_and_never_a_fault(endpoint: Endpoint) -> None:
    meter = METERS[endpoint]
    with pytest.raises(SchemaError):
        meter.asked_for(NO_JSON)
    if not meter.media:
        with pytest.raises(UpstreamError):
            meter.usage_of(NO_JSON)


def test_empty_sound_is_no_answer() -> None:
    with pytest.raises(UpstreamError):
        METERS[Endpoint.SPEECH].usage_of(b"")
    assert METERS[Endpoint.SPEECH].usage_of(b"ID3") is None


def test_counting_costs_nothing() -> None:
    used = METERS[Endpoint.COUNT_MESSAGE_TOKENS].usage_of(b'{"input_tokens": 12}')
    assert used is not None and used.total == 0
