"""One key takes all that it can of each room that calls share in egress; an ordinary call of another key is served all the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cliproxy.audit.events import ChannelViolation
from cliproxy.bounds import MAX_DATA_FRAME_BYTES
from cliproxy.config.schema import ModelRoute, Routing
from cliproxy.egress.call import State
from cliproxy.ipc.mux import Abort, CallHead, Kind
from fakes.dispatcher_rig import ABC, BODY, MODEL_OFFSET, OTHER_PROOF, PROOF, WHOLE, Case, in_a_loop, of, refusal

ONE: dict[str, Any] = {"providers": {"a": of("a")}, "models": {"m": ModelRoute(provider="a", model="at-a")}}
ORDINARY = 100_000  # the stream of the other key's call


def aborted(case: Case) -> dict[int, str]:
    return {stream: msgspec.msgpack.decode(payload, type=Abort).code for kind, stream, payload in case.frames if kind is Kind.ABORT}


def test_one_key_fills_the_streams_of_a_channel_and_another_is_served() -> None:
    def test() -> None:
        case = Case(ONE)
        case.worker.places.limit = 64
        for stream in range(1, 65):
            case.submit(stream)
        assert set(aborted(case).values()) == {"overloaded"} and len(case.started) == 32
        case.submit(ORDINARY, proof=OTHER_PROOF)
        case.succeed()
        assert ORDINARY not in aborted(case) and case.frames[-1][:2] == (Kind.ANSWER, ORDINARY)

    in_a_loop(test)


def test_one_key_fills_the_room_for_bodies_that_arrive_and_another_is_served() -> None:
    def test() -> None:
        case = Case(ONE)
        case.worker._arriving.limit = 64 * len(BODY)

        def announce(stream: int, proof: bytes) -> None:
            honest = {
                "endpoint": 1,
                "request_id": f"req_{stream}",
                "address": "127.0.0.1",
                "model": "m",
                "max_tokens": 10,
                "n": 1,
                "stream": False,
                "estimate": 5,
            }
            head = CallHead(proof=proof, model_offset=MODEL_OFFSET, body_bytes=len(BODY), body=b"", **honest)  # type: ignore[arg-type]
            case.worker._on_call(stream, msgspec.msgpack.encode(head))

        for stream in range(1, 65):
            announce(stream, PROOF)
        assert list(aborted(case).values()) == ["overloaded"] * 32
        announce(ORDINARY, OTHER_PROOF)
        case.worker._on_data(ORDINARY, BODY)
        case.worker._on_end(ORDINARY, b"")
        case.dispatcher.flush()
        case.succeed()
        assert case.frames[-1][:2] == (Kind.ANSWER, ORDINARY)
        for stream in range(1, 65):
            case.worker._on_cancel(stream, b"")
        assert case.worker._arriving.used == case.worker.places.used == 0 and case.worker.calls == {}

    in_a_loop(test)


def test_one_key_fills_the_room_for_bodies_to_be_sent_again_and_anothers_call_goes_to_the_next_provider() -> None:
    def test() -> None:
        case = Case(ABC)
        case.dispatcher.kept.limit = 64 * len(BODY)
        for stream in range(1, 65):
            case.submit(stream)
        assert case.dispatcher.kept.used == 32 * len(BODY)
        case.submit(ORDINARY, proof=OTHER_PROOF)
        case.fail(refusal(500))
        case.succeed()
        assert (ORDINARY in aborted(case), case.started[-1].request.target.provider) == (False, "b")

    in_a_loop(test)


def test_one_key_fills_the_room_for_calls_that_cool_and_another_may_wait() -> None:
    def test() -> None:
        case = Case(ONE, routing=Routing(retry_rounds=1))
        case.dispatcher.kept.limit = 64 * len(BODY)
        case.submit(1)
        case.fail(refusal(429, 5.0))
        for stream in range(2, 65):
            case.submit(stream)
        assert set(aborted(case).values()) == {"overloaded"}
        case.submit(ORDINARY, proof=OTHER_PROOF)
        assert ORDINARY in case.at(State.COOLING)
        case.worker.channel_lost(None)
        assert case.dispatcher.kept.used == 0

    in_a_loop(test)


def test_one_key_fills_the_room_for_what_waits_for_the_auditor_and_another_leaves_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def test() -> None:
        monkeypatch.setattr("cliproxy.egress.audit_gate.MAX_BYTES_AWAITING_AUDIT", 64 * len(BODY))
        case = Case(ONE)
        while case.dispatcher.gate._audit.offer([ChannelViolation(peer="p", reason="r")]):
            pass
        for stream in range(1, 65):
            case.submit(stream)
        case.submit(ORDINARY, proof=OTHER_PROOF)
        assert set(aborted(case).values()) == {"audit_unavailable"} and ORDINARY not in aborted(case) and case.started == []
        case.logged()
        case.dispatcher.flush()
        assert case.started[-1].stream == ORDINARY

    in_a_loop(test)


def test_one_key_fills_the_room_for_whole_answers_and_another_has_its_own() -> None:
    def test() -> None:
        case = Case(ONE)
        size = 2 * MAX_DATA_FRAME_BYTES
        large = WHOLE.replace(b"hi", b"x" * size)
        case.dispatcher.held.limit = 8 * len(large)
        for stream in range(1, 9):
            case.submit(stream)
        for attempt in list(case.started):
            attempt.on_head(200, {})
            attempt.on_data(large)
        assert list(aborted(case).values()) == ["overloaded"] * 4
        case.submit(ORDINARY, proof=OTHER_PROOF)
        case.started[-1].on_head(200, {})
        case.started[-1].on_data(large)
        case.started[-1].on_complete()
        assert ORDINARY not in aborted(case) and case.frames[-1][:2] == (Kind.END, ORDINARY)
        case.worker.channel_lost(None)
        assert case.dispatcher.held.used == 0

    in_a_loop(test)
