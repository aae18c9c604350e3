"""docs/translation.md says what the code does, and nothing is left out of a request but what it lists."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st

import translation_table as made
from cliproxy.dialects import Dialect, Endpoint, Quirks
from cliproxy.errors import UnsupportedFeature
from cliproxy.translators.conversation import ConversationRequest, OutputFormat, Thinking
from cliproxy.translators.table import TARGETS
from translators.hub_strategies import requests

# Each client dialect shows these at least; beside them what the vendor has no word for.
EVERYWHERE = set(made.FEATURES) - {"usage_details", "stop_reasons"}
WITHOUT = {
    Dialect.OPENAI_CHAT: set(),
    Dialect.OPENAI_RESPONSES: {"audio_input", "choices", "stop_sequences", "citations"},
    Dialect.ANTHROPIC_MESSAGES: {"audio_input", "choices", "logprobs", "refusal"},
    Dialect.GEMINI_GENERATE: {"refusal", "citations"},
}
HINTS = {
    "seed": st.integers(0, 9),
    "user": st.just("u-1"),
    "metadata": st.just({"a": "b"}),
    "service_tier": st.sampled_from(["auto", "default", "flex"]),
    "store": st.booleans(),
    "cache_key": st.just("k"),
    "verbosity": st.just("low"),
    "temperature": st.just(0.5),
    "thinking": st.builds(
        Thinking, effort=st.sampled_from(["", "none", "low", "high"]), budget=st.none() | st.integers(0, 4000), show=st.none() | st.booleans()
    ),
    "output": st.builds(OutputFormat, kind=st.just("object")),
}


def test_the_document_is_up_to_date() -> None:
    wanted = made.document()
    assert made.DOCUMENT.read_text(encoding="utf-8") == wanted, "run: python tests/translation_table.py"


@pytest.mark.parametrize("dialect", made.CLIENT_DIALECTS, ids=lambda dialect: dialect.value)
def test_every_feature_of_a_client_dialect_has_a_request(dialect: Dialect) -> None:
    shown = {vector.feature for vector in made.vectors(dialect) if vector.kind == "request"}
    assert sorted(EVERYWHERE - WITHOUT[dialect] - shown) == []


@pytest.mark.parametrize("endpoint", made.TARGET_ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_every_target_has_answers_and_streams(endpoint: Endpoint) -> None:
    found = list(made.vectors(made.SPOKEN[endpoint]))
    for kind in ("answer", "stream"):
        shown = {vector.feature for vector in found if vector.kind == kind}
        assert {"text", "parallel_tool_calls", "stop_reasons"} <= shown, (kind, shown)


def test_every_vector_names_a_feature_of_the_table() -> None:
    for dialect in (*made.CLIENT_DIALECTS, Dialect.BEDROCK_CONVERSE):
        assert {vector.feature for vector in made.vectors(dialect)} <= set(made.FEATURES)


@pytest.mark.parametrize("dialect", made.CLIENT_DIALECTS, ids=lambda dialect: dialect.value)
def test_no_vector_loses_a_field_that_is_not_listed(dialect: Dialect) -> None:
    for vector in made.vectors(dialect):
        if vector.kind == "request":
            for endpoint in made.TARGET_ENDPOINTS:
                if made.SPOKEN[endpoint] is not dialect:
                    for name in made.asked(vector, TARGETS[endpoint]).dropped:
                        assert made.may_be_left_out(name, made.SPOKEN[endpoint]), (vector.name, endpoint, name)


@pytest.mark.parametrize("endpoint", made.TARGET_ENDPOINTS, ids=lambda endpoint: endpoint.name)
@pytest.mark.parametrize("client", made.CLIENT_DIALECTS, ids=lambda dialect: dialect.value)
@budget(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_generated_request_loses_a_field_that_is_not_listed(client: Dialect, endpoint: Endpoint, data: st.DataObject) -> None:
    request: ConversationRequest = data.draw(requests(client, settings=HINTS))
    try:
        dropped = TARGETS[endpoint].encode(request, Quirks.NONE).dropped
    except UnsupportedFeature as error:
        assert error.param
        return
    for name in dropped:
        assert made.may_be_left_out(name, made.SPOKEN[endpoint]), name
    assert len(dropped) == len(set(dropped))
