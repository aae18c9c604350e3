"""One call in egress: exactly one ending, settled once, bounded by credit, cancelled upstream when nobody waits."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cliproxy.bounds import MAX_DATA_FRAME_BYTES, MAX_WHOLE_ANSWER_BYTES, STREAM_WINDOW_BYTES
from cliproxy.dialects import Endpoint
from cliproxy.egress.attempt import Attempt
from cliproxy.egress.cooldowns import Rule, fault_of
from cliproxy.egress.dispatcher import MAX_HELD_ANSWER_BYTES
from cliproxy.egress.rooms import Room
from cliproxy.egress.worker_channel import WorkerChannel
from cliproxy.errors import ProviderRefusal, UpstreamError
from cliproxy.ipc.mux import Abort, Answer, Kind
from cliproxy.metering.table import METERS

WHOLE = b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'  # noqa: E501
EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"


class Channel:
    paused = False

    def __init__(self):
        self.frames = []

    def queue(self, kind, stream, payload):
        self.frames.append((kind, payload))

    def kinds(self):
        return [kind for kind, _ in self.frames]

    def body(self):
        return b"".join(msgspec.msgpack.decode(p, type=Answer).body if k is Kind.ANSWER else p for k, p in self.frames if k in (Kind.ANSWER, Kind.DATA))

    def abort(self):
        return msgspec.msgpack.decode(self.frames[-1][1], type=Abort)


class Sending:
    def __init__(self):
        self.did = []

    def cancel(self):
        self.did.append("cancel")

    def pause_reading(self):
        self.did.append("pause")

    def resume_reading(self):
        self.did.append("resume")


class Case:
    def __init__(self, *, stream=False, endpoint=Endpoint.CHAT_COMPLETIONS, goes_on=False):
        self.channel, self.sending, self.outcomes = Channel(), Sending(), []
        asked = SimpleNamespace(meter=METERS[endpoint], principal=SimpleNamespace(id="k"))
        call = SimpleNamespace(asked=asked, stream=9)
        request: Any = SimpleNamespace(stream=stream, endpoint=endpoint, call=call, target=SimpleNamespace(provider="p", model="theirs"), attempt=3)
        self.goes_on, self.began, self.held = goes_on, 0, Room(MAX_HELD_ANSWER_BYTES)
        self.unfinished = Room(MAX_HELD_ANSWER_BYTES)
        self.call = Attempt(request, channel=self.channel, ledger=self)
        self.call.sent(self.sending)

    def answered(self, call):
        self.began += 1

    def settled(self, call, outcome, error):
        self.outcomes.append(outcome)
        return self.goes_on and error is not None and call.may_go_on

    def head(self):
        self.call.on_head(200, {b"x-request-id": b"up-1"})


def run(scenario):
    async def go():
        scenario()
        await asyncio.sleep(0)

    asyncio.run(go())


def test_a_whole_answer_is_one_final_frame_with_its_usage_settled():
    case = Case()

    def scenario():
        case.head()
        case.call.on_data(WHOLE[:50])
        case.call.on_data(WHOLE[50:])
        case.call.on_complete()

    run(scenario)
    assert case.channel.kinds() == [Kind.ANSWER] and case.channel.body() == WHOLE
    (outcome,) = case.outcomes
    assert (outcome.usage.prompt, outcome.usage.completion, outcome.error, outcome.received) == (3, 2, "", len(WHOLE))


def test_a_stream_is_passed_on_in_whole_events_and_ends_with_done():
    case = Case(stream=True)

    def scenario():
        case.head()
        case.call.on_data(EVENT + EVENT[:20])
        case.call.on_data(EVENT[20:] + LAST + DONE)
        case.call.on_complete()

    run(scenario)
    assert case.channel.kinds() == [Kind.ANSWER, Kind.DATA, Kind.END]
    assert case.channel.body() == EVENT + EVENT + LAST + DONE
    assert case.outcomes[0].usage.total == 5


OVER = {
    Endpoint.CHAT_COMPLETIONS: EVENT + LAST + DONE,
    Endpoint.RESPONSES: b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":2}}}\n\n',
    Endpoint.MESSAGES: b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    Endpoint.CONVERSE: b'event: messageStop\ndata: {"stopReason":"end_turn"}\n\nevent: metadata\ndata: {"usage":{"inputTokens":3,"outputTokens":2}}\n\n',
}


@pytest.mark.parametrize("endpoint", OVER)
def test_a_stream_that_has_told_its_end_is_whole_whatever_becomes_of_its_connection(endpoint):
    case = Case(stream=True, endpoint=endpoint, goes_on=True)

    def scenario():
        case.head()
        case.call.on_data(OVER[endpoint])
        case.call.on_failure(UpstreamError("The provider broke off the connection.", code="provider_broke_off"))

    run(scenario)
    assert case.channel.kinds() == [Kind.ANSWER, Kind.END]
    assert case.channel.body() == OVER[endpoint]
    assert case.outcomes[0].error == "" and case.outcomes[0].usage.total == 5 and len(case.outcomes) == 1


def test_a_stream_of_gemini_has_no_end_but_that_of_its_body():
    case = Case(stream=True, endpoint=Endpoint.GENERATE_CONTENT)

    def scenario():
        case.head()
        case.call.on_data(b'data: {"candidates":[{"index":0,"finishReason":"STOP"}]}\n\n')
        case.call.on_failure(UpstreamError("gone", code="provider_broke_off"))

    run(scenario)
    assert case.channel.kinds() == [Kind.ANSWER, Kind.ABORT]


@pytest.mark.parametrize("endpoint", OVER)
def test_an_event_that_is_no_text_ends_the_stream_before_the_client_has_it(endpoint):
    case = Case(stream=True, endpoint=endpoint)
    event = 'data: {"text":"ä€😀"}\n\n'.encode()

    def scenario():
        case.head()
        for byte in event:
            case.call.on_data(bytes([byte]))
        case.call.on_data(b'data: {"text":"\xff\xfe"}\n\n')

    run(scenario)
    assert case.channel.body() == event and case.channel.kinds()[-1] is Kind.ABORT
    assert case.outcomes[0].error == "bad_upstream_answer"


def test_the_client_sees_the_head_even_if_no_event_comes():
    case = Case(stream=True)
    run(case.head)
    assert case.channel.kinds() == [Kind.ANSWER] and case.channel.body() == b""


@pytest.mark.parametrize("cut", [0, 10, len(EVENT), len(EVENT) + 5])
def test_a_stream_that_breaks_off_is_aborted_and_never_done(cut):
    case = Case(stream=True)

    def scenario():
        case.head()
        if cut:
            case.call.on_data((EVENT + EVENT)[:cut])
        case.call.on_complete()

    run(scenario)
    assert case.channel.kinds()[-1] is Kind.ABORT
    assert b"[DONE]" not in case.channel.body()
    assert len(case.outcomes) == 1 and case.outcomes[0].error


@pytest.mark.parametrize("body", [b"", b"<html>", WHOLE[:-1], b"{}", WHOLE + b"x"], ids=["empty", "html", "cut", "no choices", "trailing"])
def test_a_whole_answer_that_is_none_is_a_502(body):
    case = Case()

    def scenario():
        case.head()
        if body:
            case.call.on_data(body)
        case.call.on_complete()

    run(scenario)
    assert case.channel.abort().status == 502
    assert case.outcomes[0].usage is None


def test_a_refusal_of_the_provider_keeps_its_status_for_the_log_and_ours_for_the_client():
    case = Case()
    run(lambda: case.call.on_failure(ProviderRefusal("no", status=502, code="provider_credential_rejected", provider_status=401, retry_after=None)))
    assert case.channel.abort().status == 502
    assert (case.outcomes[0].status, case.outcomes[0].error) == (401, "provider_credential_rejected")


def test_no_more_than_the_window_is_under_way_and_the_provider_is_paused():
    case = Case(stream=True)
    many = EVENT * (STREAM_WINDOW_BYTES // len(EVENT) * 3)

    def scenario():
        case.head()
        for start in range(0, len(many), 50_000):
            case.call.on_data(many[start : start + 50_000])

    run(scenario)
    assert len(case.channel.body()) <= STREAM_WINDOW_BYTES
    assert case.sending.did == ["pause"]
    assert all(len(payload) <= MAX_DATA_FRAME_BYTES for kind, payload in case.channel.frames if kind is Kind.DATA)


def test_credit_lets_it_go_on_until_all_is_said():
    case = Case(stream=True)
    many = EVENT * (STREAM_WINDOW_BYTES // len(EVENT) * 3)

    def scenario():
        case.head()
        case.call.on_data(many)
        case.call.on_data(DONE)
        case.call.on_complete()
        granted = 0
        while Kind.END not in case.channel.kinds():
            sent = len(case.channel.body())
            assert sent - granted <= STREAM_WINDOW_BYTES
            assert case.call.credit(sent - granted)
            granted = sent

    run(scenario)
    assert case.channel.body() == many + DONE
    assert len(case.outcomes) == 1


def test_credit_that_was_never_spent_is_noticed():
    case = Case(stream=True)
    run(case.head)
    assert case.call.credit(1) is False


def test_a_paused_channel_pauses_the_provider_and_a_ready_one_resumes_it():
    case = Case(stream=True)

    def scenario():
        case.head()
        case.channel.paused = True
        case.call.on_data(EVENT)
        case.call.on_data(EVENT)
        case.channel.paused = False
        case.call.channel_ready()

    run(scenario)
    assert case.sending.did == ["pause", "resume"]
    assert case.channel.body() == EVENT + EVENT


def test_what_comes_while_the_channel_is_paused_waits_in_its_call():
    case = Case(stream=True)

    def scenario():
        case.head()
        case.call.on_data(EVENT)
        case.channel.paused = True
        case.call.on_data(EVENT)
        assert case.channel.body() == EVENT and case.sending.did == ["pause"]
        case.channel.paused = False
        case.call.channel_ready()
        assert case.channel.body() == EVENT * 2 and case.sending.did == ["pause", "resume"]

    run(scenario)


def test_calls_take_turns_at_a_channel_that_has_room_again():
    served = []

    def scenario():
        worker = WorkerChannel(0, SimpleNamespace(flush=None), build="b", max_body_bytes=1)

        def serve(number):
            served.append(number)
            worker.channel.paused = len(served) % 3 == 0  # there is room for three

        calls: dict[int, Any] = {number: SimpleNamespace(attempt=SimpleNamespace(channel_ready=partial(serve, number))) for number in range(7)}
        worker.calls = calls
        for _ in range(7):
            worker.channel.paused = False
            worker.channel_paused(False)

    run(scenario)
    assert [served.count(number) for number in range(7)] == [3] * 7


def test_a_cancelled_call_closes_the_connection_and_says_nothing_more():
    case = Case(stream=True)

    def scenario():
        case.head()
        case.call.on_data(EVENT)
        case.call.cancel("client_gone")
        case.call.on_data(EVENT)
        case.call.on_complete()
        case.call.on_failure(UpstreamError("late"))

    run(scenario)
    assert case.sending.did == ["cancel"]
    assert case.channel.kinds() == [Kind.ANSWER]
    assert [outcome.error for outcome in case.outcomes] == ["client_gone"]


def test_an_answer_without_end_is_cut_off():
    case = Case()

    def scenario():
        case.head()
        piece = b" " * (1 << 20)
        for _ in range(MAX_WHOLE_ANSWER_BYTES // len(piece) + 1):
            case.call.on_data(piece)

    run(scenario)
    assert case.channel.abort().code == "provider_answer_too_large"
    assert case.sending.did == ["cancel"]


def test_whole_answers_are_held_within_a_bound_for_all_calls_together():
    case = Case()
    case.held = Room(1000)
    case.held.add("another", 980)

    def scenario():
        case.head()
        case.call.on_data(WHOLE)
        case.call.on_data(bytes(MAX_DATA_FRAME_BYTES - len(WHOLE)))
        assert case.outcomes == []  # an ordinary answer is not what fills it
        case.call.on_data(b" ")

    run(scenario)
    abort = case.channel.abort()
    assert (abort.status, abort.code) == (503, "overloaded") and case.sending.did == ["cancel"]
    assert case.held.used == 980
    assert fault_of(UpstreamError("full", status=503, code="overloaded")).rule is Rule.NOTHING  # nobody's fault: nothing cools


@pytest.mark.parametrize("how", ["whole", "large", "cancelled", "failed", "nonsense"])
def test_what_is_held_of_whole_answers_is_counted_until_the_call_ends(how):
    case = Case()
    size = STREAM_WINDOW_BYTES * 2 if how == "large" else MAX_DATA_FRAME_BYTES  # what is smaller goes on whatever is held, and is not counted
    body = b"nonsense" * size if how == "nonsense" else WHOLE.replace(b"hi", b"x" * size)

    def scenario():
        case.head()
        case.call.on_data(body[:50])
        assert case.held.used == 0
        case.call.on_data(body[50:])
        assert case.held.used == len(body)
        if how == "cancelled":
            case.call.cancel("client_gone")
        elif how == "failed":
            case.call.on_failure(UpstreamError("gone", code="provider_broke_off"))
        else:
            case.call.on_complete()
        if how == "large":
            assert case.held.used == len(body) and case.call._parts == []  # it waits for credit, once
            while not case.outcomes:
                assert case.call.credit(STREAM_WINDOW_BYTES)

    run(scenario)
    assert case.held.used == 0 and len(case.outcomes) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_attempt_that_told_the_worker_nothing_gives_the_call_back_without_a_word(stream):
    case = Case(stream=stream, goes_on=True)
    run(lambda: case.call.on_failure(UpstreamError("gone", code="provider_broke_off")))
    assert case.channel.frames == [] and case.began == 0
    assert [outcome.error for outcome in case.outcomes] == ["provider_broke_off"]


def test_an_error_inside_a_stream_before_its_first_event_gives_the_call_back():
    case = Case(stream=True, goes_on=True)

    def scenario():
        case.head()
        case.call.on_data(b'data: {"error":{"message":"overloaded"}}\n\n')

    run(scenario)
    assert case.channel.frames == [] and len(case.outcomes) == 1


@pytest.mark.parametrize("after", ["head", "event"])
def test_an_attempt_whose_answer_has_begun_ends_the_call(after):
    case = Case(stream=True, goes_on=True)

    async def go():
        case.head()
        if after == "event":
            case.call.on_data(EVENT)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        case.call.on_failure(UpstreamError("gone", code="provider_broke_off"))

    asyncio.run(go())
    assert case.channel.kinds() == [Kind.ANSWER, Kind.ABORT] and case.began == 1


def test_a_call_that_the_gateway_ends_does_not_go_on():
    case = Case(goes_on=True)
    run(lambda: case.call.abort(UpstreamError("revoked")))
    assert case.channel.kinds() == [Kind.ABORT]


def test_the_answer_says_who_gave_it_and_at_which_attempt():
    case = Case()

    def scenario():
        case.head()
        case.call.on_data(WHOLE)
        case.call.on_complete()

    run(scenario)
    answer = msgspec.msgpack.decode(case.channel.frames[0][1], type=Answer)
    assert (answer.provider, answer.model, answer.attempts, answer.media) == ("p", "theirs", 3, "")
