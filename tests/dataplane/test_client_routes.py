"""Which paths there are, and in whose words errors about them are told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.bounds import MAX_MODEL_NAME_CHARS
from cliproxy.dataplane.routes import MAX_QUERY_PARAMETERS, route_of, surface_of
from cliproxy.dataplane.surfaces.anthropic import ANTHROPIC
from cliproxy.dataplane.surfaces.gemini import GEMINI
from cliproxy.dataplane.surfaces.openai import OPENAI
from cliproxy.dataplane.surfaces.surface import ClientRoute, Page, Surface
from cliproxy.dialects import Dialect, Operation
from cliproxy.errors import ClientError, NotFound
from cliproxy.ingress.framing import RawRequest
from cliproxy.ingress.head import PartialHead

GENERATE, COUNT, EMBED = Operation.GENERATE, Operation.COUNT_TOKENS, Operation.EMBED


def request(path: str, *, query: str | None = None, **headers: bytes) -> RawRequest:
    encoded = None if query is None else query.encode()
    return RawRequest(b"POST", path.encode(), encoded, None, None, None, None, b"", True, **headers)  # type: ignore[arg-type]


def found(path: str, **more: Any) -> ClientRoute:
    route = route_of(request(path, **more))
    assert route is not None, path
    return route


CALLS = {
    "/v1/chat/completions": (OPENAI, Dialect.OPENAI_CHAT, GENERATE),
    "/v1/responses": (OPENAI, Dialect.OPENAI_RESPONSES, GENERATE),
    "/v1/completions": (OPENAI, Dialect.OPENAI_COMPLETIONS, GENERATE),
    "/v1/embeddings": (OPENAI, Dialect.OPENAI_EMBEDDINGS, EMBED),
    "/v1/images/generations": (OPENAI, Dialect.OPENAI_MEDIA, Operation.IMAGES),
    "/v1/audio/speech": (OPENAI, Dialect.OPENAI_MEDIA, Operation.SPEECH),
    "/v1/audio/transcriptions": (OPENAI, Dialect.OPENAI_MEDIA, Operation.TRANSCRIBE),
    "/v1/audio/translations": (OPENAI, Dialect.OPENAI_MEDIA, Operation.TRANSLATE_SPEECH),
    "/v1/messages": (ANTHROPIC, Dialect.ANTHROPIC_MESSAGES, GENERATE),
    "/v1/messages/count_tokens": (ANTHROPIC, Dialect.ANTHROPIC_MESSAGES, COUNT),
    "/v1beta/models/m:generateContent": (GEMINI, Dialect.GEMINI_GENERATE, GENERATE),
    "/v1beta/models/m:streamGenerateContent": (GEMINI, Dialect.GEMINI_GENERATE, GENERATE),
    "/v1beta/models/m:countTokens": (GEMINI, Dialect.GEMINI_GENERATE, COUNT),
    "/v1beta/models/m:embedContent": (GEMINI, Dialect.GEMINI_EMBED, EMBED),
    "/v1beta/models/m:batchEmbedContents": (GEMINI, Dialect.GEMINI_EMBED, EMBED),
}


@pytest.mark.parametrize("path", CALLS)
def test_a_call_has_its_dialect_its_operation_and_takes_post_only(path: str) -> None:
    route = found(path)
    assert route.row is not None
    assert (route.surface, route.row.dialect, route.row.operation) == CALLS[path]
    assert route.method == b"POST" and route.page is None
    assert route.model == ("m" if "/v1beta/" in path else "")


@pytest.mark.parametrize(
    ("path", "page", "surface"),
    [
        ("/v1/models", Page.MODELS, OPENAI),
        ("/v1/models/m", Page.MODEL, OPENAI),
        ("/v1beta/models", Page.MODELS, GEMINI),
        ("/v1beta/models/m", Page.MODEL, GEMINI),
        ("/healthz", Page.HEALTH, OPENAI),
        ("/readyz", Page.READY, OPENAI),
    ],
)
def test_a_page_takes_get_only(path: str, page: Page, surface: Surface) -> None:
    route = found(path)
    assert (route.page, route.surface, route.method, route.row) == (page, surface, b"GET", None)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m"])
def test_models_are_anthropics_when_the_client_names_anthropics_version(path: str) -> None:
    assert found(path, anthropic_version=b"2023-06-01").surface is ANTHROPIC
    assert found(path).surface is OPENAI


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/chat/completions/",
        "/v1/Chat/completions",
        "/v1/chat%2Fcompletions",
        "/v1/messages/",
        "/v1/messages/batches",
        "/v1beta",
        "/v1beta/",
        "/v1beta/tunedModels/m:generateContent",
        "/v1/engines",
        "//v1/models",
    ],
)
def test_other_paths_are_no_routes(path: str) -> None:
    assert route_of(request(path)) is None


NAMES = {
    "gpt-4o": "gpt-4o",
    "org/model": "org/model",
    "org%2Fmodel": "org/model",
    "org%252Fmodel": "org%2Fmodel",  # decoded once
    "llama3:8b": "llama3:8b",
    "llama3%3A8b": "llama3:8b",
    "..%2F..": "../..",  # only a name, which no table has
    "gr%C3%BC%C3%9Fe": "grüße",
}


@pytest.mark.parametrize("encoded", NAMES)
def test_a_models_name_in_a_path_is_decoded_once(encoded: str) -> None:
    assert found(f"/v1/models/{encoded}").model == NAMES[encoded]
    assert found(f"/v1beta/models/{encoded}").model == NAMES[encoded]
    call = found(f"/v1beta/models/{encoded}:generateContent")
    assert call.model == NAMES[encoded] and call.row is not None


@pytest.mark.parametrize("encoded", ["", "%00", "a%0Ab", "%FF", "a%C3", "%ED%A0%80", "a%E2%80%AE", "a" * (MAX_MODEL_NAME_CHARS + 1)])
def test_a_name_that_no_model_can_have_is_404(encoded: str) -> None:
    for path in (f"/v1/models/{encoded}", f"/v1beta/models/{encoded}", f"/v1beta/models/x{encoded}:generateContent" if encoded else "/v1beta/models/"):
        with pytest.raises(NotFound):
            route_of(request(path))


@pytest.mark.parametrize("verb", ["generatecontent", "predict", "GenerateContent", "", "generateContent%20", "generateContent:x"])
def test_what_is_no_verb_is_part_of_a_name(verb: str) -> None:
    route = found(f"/v1beta/models/m:{verb}")
    assert (route.page, route.row) == (Page.MODEL, None)


@pytest.mark.parametrize("path", [path for path in CALLS if path.startswith("/v1beta/")])
def test_geminis_calls_may_begin_with_v1_as_its_newer_sdks_say(path: str) -> None:
    assert found(path.replace("/v1beta/", "/v1/")) == found(path)
    assert surface_of(PartialHead(path.replace("/v1beta/", "/v1/").encode())) is GEMINI


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m"])
def test_geminis_pages_may_begin_with_v1_for_who_shows_googles_key(path: str) -> None:
    assert found(path, goog_api_key=b"k") == found(path.replace("/v1/", "/v1beta/"))


def test_a_verb_without_a_model_is_no_call() -> None:
    assert found("/v1beta/models/:generateContent").page is Page.MODEL


@pytest.mark.parametrize(("query", "array"), [(None, True), ("", True), ("alt=json", True), ("alt=sse", False), ("key=k&alt=sse", False), ("ALT=sse", True)])
def test_a_gemini_stream_is_events_when_asked_for_and_else_an_array(query: str | None, array: bool) -> None:
    route = found("/v1beta/models/m:streamGenerateContent", query=query)
    assert (route.stream, route.array) == (True, array)


@pytest.mark.parametrize("query", ["alt=proto", "alt=", "alt=sse&alt=sse", "alt=sse%00", "&".join("a" * (MAX_QUERY_PARAMETERS + 1))])
def test_a_query_that_is_not_understood_is_400(query: str) -> None:
    with pytest.raises(ClientError) as refused:
        route_of(request("/v1beta/models/m:streamGenerateContent", query=query))
    assert refused.value.status == 400


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m", "/v1/models/m:countTokens", "/v1beta/models", "/v1/messages", "/v1/embeddings", "/healthz"])
@pytest.mark.parametrize("anthropic", [True, False])
@pytest.mark.parametrize("goog", [True, False])
def test_an_error_about_a_route_is_told_in_the_routes_words(path: str, anthropic: bool, goog: bool) -> None:
    headers = {"anthropic_version": b"x"} if anthropic else {}
    headers |= {"goog_api_key": b"k"} if goog else {}
    assert found(path, **headers).surface is (OPENAI if path == "/healthz" else surface_of(PartialHead(path.encode(), anthropic, goog)))


@given(st.binary(max_size=80), st.binary(max_size=40))
def test_any_path_and_query_is_a_route_or_an_error_of_ours(path: bytes, query: bytes) -> None:
    for prefix in (b"", b"/v1/models/", b"/v1beta/models/"):
        raw = RawRequest(b"GET", prefix + path, query, None, None, None, None, b"", True)
        try:
            route = route_of(raw)
        except ClientError as error:
            assert error.status in (400, 404)
        else:
            assert route is None or isinstance(route, ClientRoute)


SURFACES = {
    ("/v1beta/models/m:generateContent", False, False): GEMINI,
    ("/v1beta/nowhere", False, False): GEMINI,
    ("/v1/messages", False, False): ANTHROPIC,
    ("/v1/messages/nowhere", False, False): ANTHROPIC,
    ("/v1/chat/completions", True, True): OPENAI,
    ("/v1/embeddings", True, False): OPENAI,
    ("/v1/models", True, False): ANTHROPIC,
    ("/v1/models", False, False): OPENAI,
    ("/nowhere", False, False): OPENAI,
    ("/nowhere", True, False): ANTHROPIC,
    ("/nowhere", False, True): GEMINI,
    ("", False, True): GEMINI,
    ("", False, False): OPENAI,
}


@pytest.mark.parametrize("case", SURFACES)
def test_errors_are_told_in_the_words_of_the_path_and_else_of_the_headers(case: tuple[str, bool, bool]) -> None:
    path, anthropic, goog = case
    assert surface_of(PartialHead(path.encode(), anthropic, goog)) is SURFACES[case]
