"""Hostile providers that begin events and never end them: what is held of all of them together is bounded, and others' streams go on."""

from __future__ import annotations

import msgspec
import pytest

from cliproxy.bounds import MAX_DATA_FRAME_BYTES
from cliproxy.config.schema import Provider
from cliproxy.dialects import Endpoint
from cliproxy.ipc.mux import Abort, Kind
from fakes.dispatcher_rig import Case, in_a_loop, pool

PIECE = b"x" * (128 * 1024)
RESPONSES_BODY = b'{"model":,"max_output_tokens":10,"stream":true,"input":"Hello."}'
SETTINGS = {
    "providers": {name: Provider(kind="openai", base_url=f"https://{name}.example/v1", auth="none") for name in ("hostile", "good")},
    "models": {"bad": pool("hostile"), "good": pool("good")},
}


def begin(case: Case, stream: int, model: str) -> None:
    case.submit(stream, model=model, endpoint=int(Endpoint.RESPONSES), body=RESPONSES_BODY, stream=True)
    case.started[-1].on_head(200, {})


def test_events_that_never_end_are_held_within_a_bound_for_all_calls_together() -> None:
    def test() -> None:
        case = Case(SETTINGS)
        room = case.dispatcher.unfinished
        room.limit = 32 * len(PIECE)
        for stream in range(1, 5):
            begin(case, stream, "bad")
        hostile = list(case.started)
        for attempt in hostile:
            attempt.on_data(b"data: ")
        for _ in range(8):
            for attempt in hostile:
                attempt.on_data(PIECE)
        assert room.used <= room.limit // 2
        aborts = [msgspec.msgpack.decode(payload, type=Abort) for kind, _, payload in case.frames if kind is Kind.ABORT]
        assert aborts and {(abort.status, abort.code) for abort in aborts} == {(503, "overloaded")}
        before = len(case.frames)
        begin(case, 10, "good")
        case.started[-1].on_data(b"data: " + PIECE * 8)  # an event of a megabyte, in two reads
        case.started[-1].on_data(b"\n\n")
        assert {kind for kind, stream, _ in case.frames[before:] if stream == 10} == {Kind.ANSWER, Kind.DATA}
        case.worker.channel_lost(None)
        assert room.used == 0 and room._of == {}

    in_a_loop(test)


@pytest.mark.parametrize("size", [1, MAX_DATA_FRAME_BYTES - 6])
def test_an_ordinary_event_in_two_reads_is_not_counted(size: int) -> None:
    def test() -> None:
        case = Case(SETTINGS)
        begin(case, 1, "good")
        case.started[-1].on_data(b"data: " + b"x" * size)
        assert case.dispatcher.unfinished.used == 0
        case.started[-1].on_data(b"x" * MAX_DATA_FRAME_BYTES)
        assert case.dispatcher.unfinished.used == size + 6 + MAX_DATA_FRAME_BYTES
        case.started[-1].on_data(b"\n\ndata: ")
        assert case.dispatcher.unfinished.used == 0

    in_a_loop(test)
