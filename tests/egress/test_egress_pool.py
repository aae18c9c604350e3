"""Calls over real sockets against a provider in another process."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from cliproxy.config.schema import Provider
from cliproxy.dialects import Endpoint
from cliproxy.egress import pool as pool_module
from cliproxy.egress.inject import Injector
from cliproxy.errors import ForeignOrigin, ProviderRefusal, Unavailable, UpstreamError
from cliproxy.secret import Secret
from fakes.provider import TEXT, FakeProvider
from fakes.rig import SECRET, Recorder, Rig, raw_server, request, run


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.fixture(autouse=True)
def forgotten(provider: FakeProvider) -> None:
    provider.reset()


async def until(condition: object, seconds: float = 5.0) -> None:
    """Wait until `condition()` holds; fails the test when it does not within `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():  # type: ignore[operator]
        assert asyncio.get_running_loop().time() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


def failure(recorder: Recorder) -> tuple[int, str]:
    error = recorder.error
    assert isinstance(error, UpstreamError | Unavailable), error
    return error.status, error.code


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_whole_answer_arrives_whole(provider: FakeProvider) -> None:
    async def work() -> None:
        recorder = await Rig(provider.base_url).call()
        assert recorder.completed and recorder.status == 200
        assert recorder.headers == {b"content-type": b"application/json", b"x-request-id": b"req-fake"}
        assert TEXT.encode() in recorder.body

    run(work)
    (received,) = provider.record()["requests"]
    assert received["line"] == "POST /v1/chat/completions HTTP/1.1"
    assert [name for name, _ in received["headers"]] == ["Host", "Authorization", "Content-Type", "Accept", "Accept-Encoding", "User-Agent", "Content-Length"]
    assert dict(received["headers"])["Authorization"] == f"Bearer {SECRET.decode()}"
    assert received["body"] == request().decode()


def test_a_stream_arrives_as_events(provider: FakeProvider) -> None:
    async def work() -> None:
        recorder = await Rig(provider.base_url).call(stream=True)
        assert recorder.completed and recorder.body.endswith(b"data: [DONE]\n\n") and recorder.body.count(b"\n\n") == 13
        assert len(recorder.pieces) < 13  # what one read brings comes in one piece

    run(work)
    assert dict(provider.record()["requests"][0]["headers"])["Accept"] == "text/event-stream"


def test_embeddings_go_to_their_own_path(provider: FakeProvider) -> None:
    async def work() -> None:
        assert (await Rig(provider.base_url).call(endpoint=Endpoint.EMBEDDINGS)).completed

    run(work)
    assert provider.record()["requests"][0]["line"] == "POST /v1/embeddings HTTP/1.1"


@pytest.mark.parametrize("size", [0, 65_535, 65_536, 65_537, 3_000_000])
def test_a_body_of_any_size_arrives_unchanged(provider: FakeProvider, size: int) -> None:
    body = b'{"model":"m","pad":"' + b"p" * size + b'"}'

    async def work() -> None:
        recorder, _ = Rig(provider.base_url).send(body)
        await recorder.ended.wait()
        assert recorder.completed

    run(work)
    assert provider.record()["requests"][0]["body"].encode() == body


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_in_tiny_pieces_arrives_whole(provider: FakeProvider, stream: bool) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        slow = await rig.call("fault-slow", stream=stream)
        assert (
            slow.completed and slow.body.endswith(b"data: [DONE]\n\n" if stream else b"}") and b"token9" in slow.body if stream else TEXT.encode() in slow.body
        )

    run(work)


@pytest.mark.parametrize("fault", ["interim", "close", "until-close", "http-1.0"])
def test_unusual_but_valid_answers_are_taken(provider: FakeProvider, fault: str) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        for _ in range(2):
            recorder = await rig.call(f"fault-{fault}")
            assert recorder.completed and TEXT.encode() in recorder.body

    run(work)
    assert provider.record()["connections"] == (1 if fault == "interim" else 2)


def test_trailers_are_dropped_and_the_connection_is_kept(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        for _ in range(2):
            recorder = await rig.call("fault-trailer", stream=True)
            assert recorder.completed and recorder.headers.keys() == {b"content-type", b"x-request-id"}

    run(work)
    assert provider.record()["connections"] == 1


# --- connections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_second_request_reuses_the_connection(provider: FakeProvider, stream: bool) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        for _ in range(20):
            assert (await rig.call(stream=stream)).completed
        assert rig.dialer.dials == 1 and rig.pool.counts() == {"fake": (1, 1, 0)}

    run(work)
    record = provider.record()
    assert record["connections"] == 1 and len(record["requests"]) == 20


def test_a_call_that_is_sent_from_on_complete_reuses_the_connection(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        first, _ = rig.send(request())
        second: list[Recorder] = []
        first.then = lambda: second.append(rig.send(request())[0])
        await first.ended.wait()
        await second[0].ended.wait()
        assert second[0].completed and rig.dialer.dials == 1

    run(work)


def test_a_refusal_does_not_cost_the_connection(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        assert isinstance((await rig.call("fault-status-429")).error, ProviderRefusal)
        assert (await rig.call()).completed and rig.dialer.dials == 1

    run(work)


def test_many_calls_share_few_connections_and_the_rest_waits(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url, connections=4)
        recorders = [rig.send(request())[0] for _ in range(50)]
        assert rig.pool.counts()["fake"][2] == 50 and rig.dialer.dials == 4
        await asyncio.gather(*(recorder.ended.wait() for recorder in recorders))
        assert all(recorder.completed for recorder in recorders) and rig.dialer.dials == 4

    run(work)
    assert provider.record()["connections"] == 4


def test_the_queue_for_a_connection_is_bounded(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MAX_WAITING_PER_PROVIDER", 5)

    async def work() -> None:
        rig = Rig(provider.base_url, connections=1)
        rig.dialer.hold = True
        recorders = [rig.send(request())[0] for _ in range(5)]
        with pytest.raises(Unavailable) as caught:
            rig.send(request())
        assert caught.value.code == "provider_busy"
        rig.dialer.release()
        await asyncio.gather(*(recorder.ended.wait() for recorder in recorders))
        assert all(recorder.completed for recorder in recorders)

    run(work)


def test_another_providers_idle_connection_makes_room_for_a_new_one(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MAX_UPSTREAM_CONNECTIONS", 1)

    async def work() -> None:
        rig = Rig(provider.base_url)
        rig.pool.retable(rig.providers | {"other": rig.providers["fake"]}, {})
        rig.injector.retable(rig.providers | {"other": rig.providers["fake"]})
        rig.injector.grant("c2", provider="other", origin=rig.origin, secret=Secret(b"sk-the-other-one"))
        assert (await rig.call()).completed
        bound = rig.injector.for_provider("other")
        assert bound is not None
        recorder = Recorder()
        rig.pool.send(recorder, bound, Endpoint.CHAT_COMPLETIONS, request(), stream=False)
        await recorder.ended.wait()
        assert recorder.completed
        assert rig.pool.counts() == {"fake": (0, 0, 0), "other": (1, 1, 0)}

    run(work)


def test_two_providers_at_one_origin_do_not_share_connections(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        providers = rig.providers | {"other": rig.providers["fake"]}
        rig.pool.retable(providers, {})
        rig.injector.retable(providers)
        rig.injector.grant("c2", provider="other", origin=rig.origin, secret=Secret(b"sk-the-other-one"))
        assert (await rig.call()).completed
        bound = rig.injector.for_provider("other")
        assert bound is not None
        recorder = Recorder()
        rig.pool.send(recorder, bound, Endpoint.CHAT_COMPLETIONS, request(), stream=False)
        await recorder.ended.wait()

    run(work)
    record = provider.record()
    assert record["connections"] == 2
    assert [dict(entry["headers"])["Authorization"] for entry in record["requests"]] == [f"Bearer {SECRET.decode()}", "Bearer sk-the-other-one"]


def test_an_idle_connection_that_the_provider_closes_is_noticed(provider: FakeProvider) -> None:
    async def work() -> None:
        with FakeProvider() as other:
            rig = Rig(other.base_url)
            assert (await rig.call()).completed
            assert rig.pool.counts()["fake"][:2] == (1, 1)
            other.kill()
            await until(lambda: rig.pool.counts()["fake"] == (0, 0, 0))

    run(work)


def test_unsolicited_bytes_close_an_idle_connection(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        first = await rig.call("fault-unsolicited-idle")
        assert first.completed and b"smuggled" not in first.body
        await until(lambda: rig.pool.counts()["fake"] == (0, 0, 0))
        second = await rig.call()
        assert second.completed and b"smuggled" not in second.body and rig.dialer.dials == 2

    run(work)


def test_an_idle_connection_is_closed_in_time(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "UPSTREAM_IDLE_SECONDS", 0.1)

    async def work() -> None:
        rig = Rig(provider.base_url)
        assert (await rig.call()).completed
        await until(lambda: rig.pool.counts()["fake"] == (0, 0, 0))

    run(work)


# --- the dialer says no ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        ("resolve", 502, "provider_resolve"),
        ("refused", 502, "provider_refused_connection"),
        ("unreachable", 502, "provider_unreachable"),
        ("timeout", 504, "provider_connect_timeout"),
        ("forbidden_address", 502, "provider_forbidden_address"),
        ("not_enrolled", 503, "provider_not_enrolled"),
        ("busy", 503, "dialer_busy"),
        ("dialer_gone", 503, "dialer_gone"),
        ("some new reason", 502, "provider_unreachable"),
    ],
)
def test_each_reason_has_its_answer(provider: FakeProvider, reason: str, status: int, code: str) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        rig.dialer.reason = reason
        recorder, sent = rig.send(request())
        await recorder.ended.wait()
        assert failure(recorder) == (status, code) and not sent.may_have_left
        rig.dialer.reason = ""
        assert (await rig.call()).completed  # one failure says nothing about the next

    run(work)


def test_every_waiting_call_ends_when_nothing_can_be_dialled(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url, connections=2)
        rig.dialer.reason = "refused"
        recorders = [rig.send(request())[0] for _ in range(20)]
        await asyncio.gather(*(recorder.ended.wait() for recorder in recorders))
        assert {failure(recorder) for recorder in recorders} == {(502, "provider_refused_connection")}
        assert rig.pool.counts() == {"fake": (0, 0, 0)}

    run(work)


def test_a_dialer_that_is_gone_is_a_503_at_once(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        rig.dialer.reason = "dialer_gone"
        monkeypatch.setattr(rig.dialer, "dial", lambda origin, done: False)
        with pytest.raises(Unavailable):
            rig.send(request())

    run(work)


def test_a_dialer_that_takes_no_more_at_once_is_asked_again(provider: FakeProvider) -> None:
    """A client that left again and again used up the questions of a second, and others got 503."""

    async def work() -> None:
        rig = Rig(provider.base_url)
        rig.dialer.busy = 5
        recorders = [rig.send(request())[0] for _ in range(3)]
        await asyncio.gather(*(recorder.ended.wait() for recorder in recorders))
        assert all(recorder.completed for recorder in recorders)

    run(work)


def test_calls_that_wait_to_ask_again_end_when_the_dialer_is_gone_meanwhile(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        monkeypatch.setattr(rig.dialer, "dial", lambda origin, done: False)
        recorder, _ = rig.send(request())
        rig.dialer.reason = "dialer_gone"
        await recorder.ended.wait()
        assert failure(recorder) == (503, "dialer_gone")

    run(work)


def test_a_connection_that_nobody_waits_for_any_more_becomes_idle(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        rig.dialer.hold = True
        recorder, sent = rig.send(request())
        sent.cancel()
        rig.dialer.release()
        await until(lambda: rig.pool.counts()["fake"] == (1, 1, 0))
        assert recorder.told == 0
        assert (await rig.call()).completed and rig.dialer.dials == 1

    run(work)
    assert len(provider.record()["requests"]) == 1


# --- cancel, pause ---------------------------------------------------------------------------------------------------


def test_a_cancel_reaches_the_provider(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        recorder, sent = rig.send(request("fault-stall-mid", stream=True), stream=True)
        await recorder.began.wait()
        told = recorder.told
        sent.cancel()
        sent.cancel()
        await until(lambda: rig.pool.counts()["fake"] == (0, 0, 0))
        assert recorder.told == told and recorder.error is None

    run(work)
    assert provider.record()["broken_off"] == 1


def test_a_cancel_before_the_first_byte_reaches_the_provider(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        recorder, sent = rig.send(request("fault-stall"))
        await until(lambda: sent.may_have_left)
        await asyncio.sleep(0.1)
        sent.cancel()
        await until(lambda: rig.pool.counts()["fake"] == (0, 0, 0))
        assert recorder.told == 0

    run(work)
    assert provider.record()["broken_off"] == 1


def test_a_cancel_from_within_on_head_stops_the_answer(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)

        class Cancelling(Recorder):
            def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
                super().on_head(status, headers)
                sent.cancel()

        recorder = Cancelling()
        bound = rig.injector.for_provider("fake")
        assert bound is not None
        sent = rig.pool.send(recorder, bound, Endpoint.CHAT_COMPLETIONS, request(), stream=False)
        await recorder.began.wait()
        await until(lambda: rig.pool.counts()["fake"] == (0, 0, 0))
        assert recorder.told == 1

    run(work)


def test_a_cancelled_connection_is_never_used_again(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        recorder, sent = rig.send(request("fault-trickle-20", stream=True), stream=True)
        await recorder.began.wait()
        sent.cancel()
        after = await rig.call()
        assert after.completed and b" token" not in after.body and rig.dialer.dials == 2

    run(work)


def test_a_paused_call_takes_no_more_than_one_read(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        recorder, sent = rig.send(request("fault-endless", stream=True), stream=True)
        await recorder.began.wait()
        await until(lambda: len(recorder.body) > 100_000)
        sent.pause_reading()
        before = len(recorder.body)
        await asyncio.sleep(0.3)
        assert len(recorder.body) - before <= 256 * 1024
        sent.resume_reading()
        await until(lambda: len(recorder.body) > before + 1_000_000)
        sent.cancel()

    run(work)


def test_a_connection_that_was_paused_at_its_end_reads_again(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)

        class Pausing(Recorder):
            def on_data(self, data: bytes) -> None:
                super().on_data(data)
                sent.pause_reading()

        recorder = Pausing()
        bound = rig.injector.for_provider("fake")
        assert bound is not None
        sent = rig.pool.send(recorder, bound, Endpoint.CHAT_COMPLETIONS, request(), stream=False)
        await recorder.ended.wait()
        assert recorder.completed
        assert (await rig.call()).completed and rig.dialer.dials == 1

    run(work)


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "stream", "timeouts", "code"),
    [
        ("stall", False, {"first_byte": 0.2}, "provider_timeout"),
        ("stall-mid", False, {"idle": 0.2}, "provider_idle_timeout"),
        ("stall-mid", True, {"idle": 0.2}, "provider_idle_timeout"),
        ("trickle-60", True, {"total": 0.3}, "provider_total_timeout"),
        ("stall", True, {"total": 0.2}, "provider_total_timeout"),
    ],
)
def test_each_deadline_ends_the_call_and_the_connection(provider: FakeProvider, fault: str, stream: bool, timeouts: dict[str, Any], code: str) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url, **timeouts)
        recorder = await rig.call(f"fault-{fault}", stream=stream)
        assert failure(recorder) == (504, code)
        await until(lambda: rig.pool.counts()["fake"] == (0, 0, 0))

    run(work)


def test_a_trickling_stream_outlives_the_first_byte_and_idle_deadlines(provider: FakeProvider) -> None:
    async def work() -> None:
        recorder = await Rig(provider.base_url, first_byte=0.5, idle=0.5).call("fault-trickle-100", stream=True)
        assert recorder.completed and recorder.body.endswith(b"[DONE]\n\n")

    run(work)


def test_a_call_that_gets_no_connection_in_time_fails(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url, connect=0.2)
        rig.dialer.hold = True
        recorder, sent = rig.send(request())
        await recorder.ended.wait()
        assert failure(recorder) == (504, "provider_connect_timeout") and not sent.may_have_left

    run(work)


def test_a_call_that_finds_every_connection_taken_for_too_long_is_a_503(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url, connections=1, connect=0.2)
        _, stalled = rig.send(request("fault-stall"))
        await until(lambda: stalled.may_have_left)
        recorder, sent = rig.send(request())
        await recorder.ended.wait()
        assert failure(recorder) == (503, "provider_busy") and not sent.may_have_left
        stalled.cancel()
        assert (await rig.call()).completed

    run(work)


def test_idle_time_does_not_count_while_the_client_holds_back(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url, idle=0.2)
        recorder, sent = rig.send(request("fault-endless", stream=True), stream=True)
        await recorder.began.wait()
        sent.pause_reading()
        await asyncio.sleep(0.6)
        assert recorder.error is None
        sent.resume_reading()
        await until(lambda: len(recorder.body) > 2_000_000)
        sent.cancel()

    run(work)


# --- never sent twice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["reset", "cut-length"])
def test_what_may_have_left_is_not_sent_again(provider: FakeProvider, fault: str) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        assert (await rig.call()).completed
        recorder, sent = rig.send(request(f"fault-{fault}"))
        await recorder.ended.wait()
        assert failure(recorder) == (502, "provider_broke_off") and sent.may_have_left

    run(work)
    assert len(provider.record()["requests"]) == 2


@pytest.mark.parametrize("fault", ["reset-mid", "cut-chunked"])
def test_a_stream_that_breaks_off_fails_and_does_not_complete(provider: FakeProvider, fault: str) -> None:
    async def work() -> None:
        recorder = await Rig(provider.base_url).call(f"fault-{fault}", stream=True)
        assert failure(recorder) == (502, "provider_broke_off") and not recorder.completed and recorder.body.startswith(b"data: ")

    run(work)


# --- credentials, reload, end ----------------------------------------------------------------------------------------


def test_a_credential_for_another_origin_leaves_nothing(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        foreign = Injector({"fake": Provider(base_url="https://elsewhere.example/v1")})
        foreign.grant("c", provider="fake", origin="https://elsewhere.example:443", secret=Secret(b"sk-of-elsewhere"))
        bound = foreign.for_provider("fake")
        assert bound is not None
        with pytest.raises(ForeignOrigin):
            rig.pool.send(Recorder(), bound, Endpoint.CHAT_COMPLETIONS, request(), stream=False)
        assert rig.dialer.dials == 0

    run(work)
    assert provider.record()["requests"] == []


def test_a_reload_that_changes_nothing_keeps_the_connections(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        assert (await rig.call()).completed
        rig.pool.retable(dict(rig.providers), {})
        assert (await rig.call()).completed and rig.dialer.dials == 1

    run(work)


def test_a_reload_that_moves_a_provider_ends_its_idle_connections_and_lets_calls_finish(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url, connections=2)
        assert (await rig.call()).completed
        running, _ = rig.send(request("fault-trickle-20", stream=True), stream=True)
        await running.began.wait()
        assert (await rig.call()).completed
        stalled, _ = rig.send(request("fault-stall"))
        waiting, _ = rig.send(request())
        rig.pool.retable({"fake": Provider(base_url="https://elsewhere.example/v1")}, {"fake": ssl.create_default_context()})
        await waiting.ended.wait()
        assert failure(waiting) == (503, "provider_changed")
        await running.ended.wait()
        assert running.completed
        assert rig.pool.counts() == {"fake": (0, 0, 0)} and not stalled.ended.is_set()
        with pytest.raises(ForeignOrigin):
            rig.send(request())
        rig.pool.close()
        await stalled.ended.wait()

    run(work)


def test_an_https_provider_without_trust_is_refused(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        with pytest.raises(Unavailable):
            rig.pool.retable({"fake": Provider(base_url="https://elsewhere.example/v1")}, {})
        assert (await rig.call()).completed  # and nothing has changed

    run(work)


def test_after_close_every_call_has_ended_and_none_begins(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url, connections=1)
        running, _ = rig.send(request("fault-stall"))
        waiting, _ = rig.send(request())
        await asyncio.sleep(0.1)
        rig.pool.close()
        await asyncio.gather(running.ended.wait(), waiting.ended.wait())
        assert running.error is not None and waiting.error is not None
        with pytest.raises(Unavailable):
            rig.send(request())

    run(work)


def test_a_provider_that_is_not_in_the_table_is_unavailable(provider: FakeProvider) -> None:
    async def work() -> None:
        rig = Rig(provider.base_url)
        rig.pool.retable({}, {})
        with pytest.raises(Unavailable):
            rig.send(request())

    run(work)


def test_an_answer_cut_at_every_byte_arrives_whole() -> None:
    whole = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: r\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n'

    async def work() -> None:
        for cut in range(1, len(whole)):
            with raw_server(whole[:cut], whole[cut:], close=False) as (base_url, _):
                rig = Rig(base_url)
                recorder = await rig.call()
                assert recorder.completed and recorder.body == b'{"a":1}' and recorder.headers[b"x-request-id"] == b"r", cut
                rig.pool.close()
                await asyncio.sleep(0.001)  # the server's thread waits for the close

    run(work)
