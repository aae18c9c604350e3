"""Attempts: the real authoriser, router and limits; providers are the test, time is the test's."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import msgspec
import pytest
import uvloop

from cliproxy.audit.events import ProviderOutcome, ProviderRequest
from cliproxy.bounds import MAX_ROUTE_TARGETS
from cliproxy.config.schema import ModelRoute, PoolMember, Provider, ProviderRate, Routing, Settings
from cliproxy.dialects import Endpoint
from cliproxy.egress.call import Call, State
from cliproxy.egress.cooldowns import Key, fault_of
from cliproxy.errors import ChannelError, CliproxyError, ProviderRefusal, Unavailable, UpstreamError
from cliproxy.ipc.messages import PolicyChange, PolicyRules
from cliproxy.ipc.mux import Abort, Answer, CallHead, Kind, Reroute
from cliproxy.secret import Secret
from fakes.dispatcher_rig import ABC, BODY, EVENT, MESSAGES, MODEL_OFFSET, PROOF, Case, in_a_loop, of, pool, refusal

GOES_ON = {
    "429": refusal(429),
    "500": refusal(500),
    "503": refusal(503),
    "401": refusal(401),
    "404": refusal(404),
    "409": refusal(409),
    "timeout": UpstreamError("x", status=504, code="provider_timeout"),
    "reset": UpstreamError("x", code="provider_broke_off"),
    "refused": UpstreamError("x", code="provider_refused_connection"),
    "no room": Unavailable("x", code="provider_busy"),
}


@pytest.mark.parametrize("error", GOES_ON.values(), ids=GOES_ON)
def test_a_failed_attempt_goes_to_the_next_target_and_each_is_in_the_log(error: CliproxyError) -> None:
    def test() -> None:
        case = Case()
        case.submit()
        case.fail(error)
        case.succeed()
        assert case.tried() == "ab"
        assert case.bodies == [BODY.replace(b":,", b':"at-a",', 1), BODY.replace(b":,", b':"at-b",', 1)]
        answer = case.told(Kind.ANSWER, Answer)
        assert (answer.provider, answer.model, answer.attempts) == ("b", "at-b", 2)
        log = [(type(event), event.attempt, event.request) for event in case.logged()]
        assert sorted(log, key=str) == sorted([(ProviderRequest, n, "req_1") for n in (1, 2)] + [(ProviderOutcome, n, "req_1") for n in (1, 2)], key=str)
        assert case.worker.calls == {}

    in_a_loop(test)


STAYS = {"400": refusal(400), "413": refusal(413), "422": refusal(422), "ours": UpstreamError("x", status=500, code="internal_error")}


@pytest.mark.parametrize("error", STAYS.values(), ids=STAYS)
def test_what_is_not_the_providers_fault_is_not_tried_elsewhere_and_cools_nothing(error: CliproxyError) -> None:
    def test() -> None:
        case = Case()
        case.submit()
        case.fail(error)
        assert case.tried() == "a" and case.told(Kind.ABORT, Abort).code == getattr(error, "code", "")
        assert not case.authoriser.cooldowns.table

    in_a_loop(test)


def test_a_provider_that_takes_nothing_is_passed_over_at_once() -> None:
    def test() -> None:
        case = Case()
        case.nothing_leaves = Unavailable("x", code="dialer_gone")
        case.submit()
        for _ in range(5):
            case.dispatcher.flush()
        assert case.told(Kind.ABORT, Abort).code == "dialer_gone"
        assert len([event for event in case.logged() if isinstance(event, ProviderRequest)]) == 3

    in_a_loop(test)


def test_when_all_have_failed_the_client_gets_the_last_error_and_the_next_client_the_soonest_end() -> None:
    def test() -> None:
        case = Case()
        case.submit()
        case.fail(refusal(500))
        case.fail(refusal(429, 9.0))
        case.fail(refusal(401))
        assert case.tried() == "abc" and case.told(Kind.ABORT, Abort).code == "was_401"
        case.frames.clear()
        case.submit(2)
        abort = case.told(Kind.ABORT, Abort)
        assert case.tried() == "abc" and abort.status == 429 and 8.0 < abort.retry_after <= 9.0

    in_a_loop(test)


def test_no_more_is_sent_than_the_configuration_allows() -> None:
    def test() -> None:
        case = Case(routing=Routing(max_attempts=2, retry_rounds=3))
        case.submit()
        case.fail(refusal(409))
        case.fail(refusal(409))
        assert case.tried() == "ab" and case.told(Kind.ABORT, Abort).code == "was_409"

    in_a_loop(test)


def test_a_provider_that_cannot_be_reached_is_not_tried_with_its_other_models() -> None:
    def test() -> None:
        members = (PoolMember(provider="a", model="one"), PoolMember(provider="a", model="two"), PoolMember(provider="b", model="three"))
        case = Case({"providers": ABC["providers"], "models": {"m": ModelRoute(pool=members, strategy="fill_first")}})
        case.submit()
        case.fail(UpstreamError("x", code="provider_connect_timeout"))
        assert case.tried() == "ab"

    in_a_loop(test)


# --- after the first byte ------------------------------------------------------------------------------------------------


def test_after_the_first_byte_nothing_is_tried_again_and_the_body_is_gone() -> None:
    async def test() -> None:
        case = Case()
        case.submit(body=BODY[:-1] + b',"stream":true}', stream=True)
        case.started[0].on_head(200, {})
        case.started[0].on_data(EVENT)
        assert case.started[0].request.call.body == b"" and case.dispatcher.kept.used == 0
        case.fail(UpstreamError("x", status=504, code="provider_idle_timeout"))
        assert case.tried() == "a"
        assert [kind for kind, _, _ in case.frames] == [Kind.ANSWER, Kind.ABORT]
        assert Key("a", "", "at-a", 1) in case.authoriser.cooldowns.table

    in_a_loop(test)


def test_a_whole_answer_that_is_none_goes_elsewhere_since_the_client_saw_nothing_of_it() -> None:
    def test() -> None:
        case = Case()
        case.submit()
        case.started[0].on_head(200, {})
        case.started[0].on_data(b'{"type":"message"}')
        case.started[0].on_complete()
        case.dispatcher.flush()
        case.succeed()
        assert case.tried() == "ab" and case.told(Kind.ANSWER, Answer).provider == "b"

    in_a_loop(test)


def test_bodies_without_room_are_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def test() -> None:
        monkeypatch.setattr("cliproxy.egress.dispatcher.MAX_KEPT_BODY_BYTES", len(BODY) + 5)
        case = Case()
        case.submit(1)
        case.submit(2)
        case.fail(refusal(500))
        assert case.told(Kind.ABORT, Abort).code == "was_500"
        case.started[0].on_failure(refusal(500))
        case.dispatcher.flush()
        assert len(case.started) == 3
        case.succeed()
        assert case.dispatcher.kept.used == 0

    in_a_loop(test)


# --- whoever leaves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["under way", "between attempts", "cooling"])
@pytest.mark.parametrize("how", ["client", "worker", "revoked", "lockdown"])
def test_a_call_that_nobody_waits_for_is_not_tried_again_and_holds_nothing(when: str, how: str) -> None:
    async def test() -> None:
        case = Case(routing=Routing(retry_rounds=1, max_wait_seconds=5.0))
        case.submit()
        if when == "between attempts":
            case.started[-1].on_failure(refusal(500))  # the next one waits for the end of the turn
        elif when == "cooling":
            for _ in range(3):
                case.fail(refusal(429))
            assert case.at(State.COOLING) == {1} and len(case.started) == 3
        before = len(case.started)
        if how == "client":
            case.worker._on_cancel(1, b"")
        elif how == "worker":
            case.worker.channel_lost(None)
        else:
            change = PolicyChange(number=2, revoked=("k",)) if how == "revoked" else PolicyChange(number=2, rules=PolicyRules(lockdown=True))
            case.dispatcher.policy(change)
        case.dispatcher.flush()
        await asyncio.sleep(0)
        assert len(case.started) == before
        assert case.worker.calls == {} and case.dispatcher.kept.used == 0
        keys, providers = case.meters()
        assert {in_flight for in_flight, _ in (*keys.values(), *providers.values())} == {0}
        if how in ("revoked", "lockdown"):
            assert case.told(Kind.ABORT, Abort).code == "revoked"

    in_a_loop(test)


# --- rounds ----------------------------------------------------------------------------------------------------------------


def test_a_round_waits_for_the_first_cooldown_to_end_and_goes_there() -> None:
    async def test() -> None:
        case = Case(routing=Routing(retry_rounds=1))
        case.submit()
        case.fail(refusal(500))
        case.fail(refusal(429, 0.02))
        case.fail(refusal(500))
        assert case.frames == [] and case.at(State.COOLING) == {1}
        await asyncio.sleep(0.1)
        assert case.tried() == "abcb"
        assert case.started[-1].request.probe
        case.succeed()
        assert case.told(Kind.ANSWER, Answer).attempts == 4
        assert Key("b", "", "at-b", 1) not in case.authoriser.cooldowns.table

    in_a_loop(test)


def test_a_wait_is_over_when_the_cooldown_is_and_never_before() -> None:
    """A timer of uvloop's may run a millisecond early: the call then found its target still cooling, and failed with its last round used up."""

    async def test() -> None:
        case = Case({"providers": {"a": of("a")}, "models": {"m": pool("a")}}, routing=Routing(retry_rounds=1))
        for number in range(1, 41):
            case.submit(number)
            case.fail(refusal(429, 0.0101))
            while not case.started[-1].request.probe and not case.frames:
                await asyncio.sleep(0.001)
            assert not case.frames, f"call {number} found its target cooling"
            case.succeed()
            case.frames.clear()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())


@pytest.mark.parametrize("verdict", ["good", "bad", "none", "late"])
def test_calls_that_wait_for_one_cooldown_wait_for_the_verdict_of_the_one_that_probes(verdict: str) -> None:
    """They failed at the moment at which the provider was well again: all of them but the probe had used up their round."""

    async def test() -> None:
        routing = Routing(retry_rounds=1, max_wait_seconds=0.3 if verdict == "late" else 5.0)
        case = Case({"providers": {"a": of("a")}, "models": {"m": pool("a")}}, routing=routing)
        case.submit(1)
        case.fail(refusal(429, 0.02))
        for number in range(2, 6):
            case.submit(number)
        while len(case.started) < 2:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert len(case.started) == 2 and case.frames == []  # one probes, the others wait on
        if verdict == "good":
            case.succeed()
        elif verdict == "bad":
            case.fail(refusal(401))
        elif verdict == "none":
            case.worker._on_cancel(case.started[-1].stream, b"")
        while case.waits() and (verdict != "none" or len(case.started) < 3):
            await asyncio.sleep(0.01)
        refused = [kind for kind, _, _ in case.frames if kind is Kind.ABORT]
        started = {"good": 6, "bad": 2, "none": 3, "late": 2}[verdict]
        assert (len(case.started), len(refused)) == (started, {"good": 0, "bad": 5, "none": 0, "late": 4}[verdict])

    in_a_loop(test)


def test_a_cooldown_that_grows_longer_while_a_call_waits_costs_it_no_second_round() -> None:
    async def test() -> None:
        case = Case({"providers": {"a": of("a")}, "models": {"m": pool("a")}}, routing=Routing(retry_rounds=1))
        case.submit(1)
        case.submit(2)
        case.started[0].on_failure(refusal(429, 0.02))
        case.started[1].on_failure(refusal(429, 0.1))
        while case.waits() and len(case.started) < 3:
            await asyncio.sleep(0.005)
        assert case.frames == []
        case.succeed()
        while case.waits():
            await asyncio.sleep(0.005)
        case.succeed()
        assert [kind for kind, _, _ in case.frames] == [Kind.ANSWER] * 2

    in_a_loop(test)


def test_what_has_cooled_down_is_no_reason_to_wait_nor_the_one_that_a_client_is_told() -> None:
    async def test() -> None:
        case = Case({"providers": {"a": of("a", rate_limit=ProviderRate(requests_per_minute=1))}, "models": {"m": pool("a")}}, routing=Routing(retry_rounds=1))
        case.submit()
        case.fail(refusal(400))
        now = time.monotonic()
        case.authoriser.cooldowns.failed(Key("a", "", "at-a", 1), fault_of(refusal(401)), started=now - 2000.0, now=now - 1900.0)  # over, and never probed
        case.frames.clear()
        case.submit(2)
        told = case.told(Kind.ABORT, Abort)
        assert (told.status, told.message) == (429, "Too many requests a minute for provider a.") and told.retry_after > 50

    in_a_loop(test)


def test_a_call_that_waits_before_its_first_attempt_holds_its_keys_place() -> None:
    async def test() -> None:
        limits = {"concurrency": 2, "requests_per_minute": 10, "tokens_per_minute": 100}
        case = Case({"providers": {"a": of("a")}, "models": {"m": pool("a")}}, key=limits, routing=Routing(retry_rounds=1))
        case.submit(1)
        case.fail(refusal(429, 0.05))
        for number in (2, 3, 4):
            case.submit(number)
        assert case.at(State.COOLING) == {1, 2}
        assert [stream for _, stream, _ in case.frames] == [3, 4]

        def held() -> tuple[int, int]:
            under_way, tokens = case.meters()[0]["k"]
            return under_way, round(tokens)

        reserved = case.started[0].request.reservation.tokens
        assert held() == (2, 2 * reserved - 1) and case.meters()[1]["a"] == (0, 0.0)  # the model's name is not in the body of the second
        case.worker._on_cancel(2, b"")
        assert held() == (1, reserved)
        while len(case.started) == 1:
            await asyncio.sleep(0.005)
        case.succeed()
        assert case.tried() == "aa" and held() == (0, 5)

    in_a_loop(test)


@pytest.mark.parametrize("changes", [{"max_tokens": -1000}, {"n": -1}])
def test_a_worker_cannot_make_room_in_a_limit_with_a_call_that_waits(changes: dict[str, Any]) -> None:
    def test() -> None:
        case = Case({"providers": {"a": of("a")}, "models": {"m": pool("a")}}, routing=Routing(retry_rounds=1))
        case.submit(1)
        case.fail(refusal(429, 1.0))
        with pytest.raises(ChannelError):
            case.submit(2, **changes)

    in_a_loop(test)


def test_a_wait_that_is_too_long_or_one_round_too_many_is_an_error_at_once() -> None:
    async def test() -> None:
        case = Case(routing=Routing(retry_rounds=1, max_wait_seconds=1.0))
        case.submit()
        for _ in range(3):
            case.fail(refusal(429, 2.0))
        assert case.told(Kind.ABORT, Abort).status == 429
        case = Case({"providers": {"a": of("a")}, "models": {"m": pool("a")}}, routing=Routing(retry_rounds=1))
        case.submit()
        case.fail(refusal(429, 0.01))
        await asyncio.sleep(0.05)
        case.fail(refusal(429, 0.01))
        await asyncio.sleep(0.05)
        assert case.tried() == "aa" and case.told(Kind.ABORT, Abort).status == 429

    in_a_loop(test)


def test_only_one_of_many_calls_probes_what_has_cooled_down() -> None:
    async def test() -> None:
        case = Case({"providers": {"a": of("a")}, "models": {"m": pool("a")}})
        case.submit(1)
        case.fail(refusal(429, 0.01))
        await asyncio.sleep(0.02)
        case.frames.clear()
        for stream in (2, 3, 4):
            case.submit(stream)
        assert len(case.started) == 2 and [kind for kind, _, _ in case.frames] == [Kind.ABORT] * 2
        case.started[-1].cancel("client_gone")  # no verdict
        case.submit(5)
        assert len(case.started) == 3
        case.succeed()
        case.submit(6)
        case.submit(7)
        assert len(case.started) == 5

    in_a_loop(test)


# --- limits ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "costs"),
    [(400, False), (401, False), (404, False), (408, True), (429, False), (500, True), (501, False), (502, True), (503, False), (504, True), (529, False)],
)
def test_what_a_provider_turned_away_is_free_and_what_it_broke_down_on_is_not(status: int, costs: bool) -> None:
    def test() -> None:
        case = Case({"providers": {"a": of("a")}, "models": {"m": pool("a")}}, key={"tokens_per_minute": 1000}, routing=Routing(retry_rounds=0))
        case.submit()
        reserved = case.started[0].request.reservation.tokens
        case.fail(refusal(status))
        keys, providers = case.meters()
        assert keys["k"] == providers["a"] == (0, reserved if costs else 0.0)

    in_a_loop(test)


def test_a_call_counts_once_for_its_key_and_at_each_provider_that_it_was_sent_to() -> None:
    def test() -> None:
        settings = {**ABC, "providers": {name: of(name, rate_limit=ProviderRate(requests_per_minute=100, tokens_per_minute=10_000)) for name in "abc"}}
        case = Case(settings, key={"requests_per_minute": 1, "tokens_per_minute": 1000, "concurrency": 1})
        case.submit()
        case.fail(refusal(503))
        keys, providers = case.meters()
        reserved = case.started[0].request.reservation.tokens
        assert keys["k"] == (1, reserved) and providers["a"] == (0, 0.0) and providers["b"] == (1, reserved)
        case.fail(UpstreamError("x", code="provider_broke_off"))  # it may have worked on it: that stays counted
        _, providers = case.meters()
        assert providers["b"] == (0, reserved) and providers["c"] == (1, reserved)
        case.succeed()
        keys, providers = case.meters()
        assert keys["k"] == (0, 5.0) and providers["c"] == (0, 5.0)
        case.submit(2)
        assert case.told(Kind.ABORT, Abort).status == 429  # a request a minute is what the key has

    in_a_loop(test)


# what became of the only attempt -> whether its tokens stay counted
USED = {
    "429": (refusal(429), False),
    "400": (refusal(400), False),
    "not reached": (UpstreamError("x", code="provider_refused_connection"), False),
    "no room": (Unavailable("x", code="provider_busy"), False),
    "broken off": (UpstreamError("x", code="provider_broke_off"), True),
    "silent": (UpstreamError("x", status=504, code="provider_timeout"), True),
}


@pytest.mark.parametrize("how", ["at once", "after a round", "client gone while it waits"])
@pytest.mark.parametrize(("error", "counted"), USED.values(), ids=USED)
def test_tokens_are_given_back_to_key_and_provider_unless_some_may_have_been_used(error: CliproxyError, counted: bool, how: str) -> None:
    async def test() -> None:
        limits = {"requests_per_minute": 10, "tokens_per_minute": 100}  # few, so that what time pays back meanwhile does not matter
        rounds = 0 if how == "at once" else 1
        routing = Routing(retry_rounds=rounds, cooldown_seconds=0.02)
        case = Case({"providers": {"a": of("a", rate_limit=ProviderRate(tokens_per_minute=100))}, "models": {"m": pool("a")}}, key=limits, routing=routing)
        case.submit()
        reserved = case.started[0].request.reservation.tokens
        case.fail(error)
        if how == "client gone while it waits":
            case.worker._on_cancel(1, b"")
        elif case.waits():
            while len(case.started) < 2 and case.waits():
                await asyncio.sleep(0.005)
            if len(case.started) == 2:
                case.fail(refusal(429))
        keys, providers = case.meters()
        assert (keys["k"][0], round(keys["k"][1])) == (0, reserved if counted else 0)
        assert (providers["a"][0], round(providers["a"][1])) == (0, reserved if counted else 0)

    in_a_loop(test)


def test_a_provider_in_the_process_that_a_reload_took_away_is_not_called_by_calls_from_before() -> None:
    def test() -> None:
        models = {"m": ModelRoute(provider="a", model="at-a", fallback=("e",)), "e": ModelRoute(provider="echo", model="echo")}
        case = Case({"providers": {"a": of("a"), "echo": Provider(kind="echo")}, "models": models})
        case.submit()
        settings = Settings(providers={"a": of("a")}, models={"m": pool("a")}, routing=Routing(retry_rounds=0))
        case.authoriser.reconfigure(settings, now=time.monotonic())
        case.fail(refusal(500))
        assert case.tried() == "a" and case.told(Kind.ABORT, Abort).code == "was_500"

    in_a_loop(test)


def test_a_credential_that_is_refused_cools_by_itself_and_the_other_one_takes_the_call() -> None:
    def test() -> None:
        providers = {"a": Provider(kind="openai_compatible", base_url="https://a.example/v1")}
        case = Case({"providers": providers, "models": {"m": pool("a")}})
        for id in ("cred_1", "cred_2"):
            case.authoriser._injector.grant(id, provider="a", origin="https://a.example:443", secret=Secret(f"sk-of-{id}-0000".encode()))
        case.submit()
        case.fail(refusal(401))
        case.succeed()
        used = [call.request.credential.id for call in case.started if call.request.credential is not None]
        assert sorted(used) == ["cred_1", "cred_2"]
        (cooling,) = case.authoriser.cooldowns.table
        assert cooling.credential == used[0]
        for number in (2, 3):
            case.submit(number)
            case.succeed()
        assert [call.request.key.credential for call in case.started[2:]] == [used[1]] * 2
        assert [event.credential for event in case.logged() if isinstance(event, ProviderRequest)] == [*used, used[1], used[1]]

    in_a_loop(test)


@pytest.mark.parametrize(
    ("change", "cools"),
    [
        ({"base_url": "https://a.example/v2"}, False),
        ({"auth": "bearer"}, False),
        ({"kind": "openai"}, False),
        ({"concurrency": 3}, True),
        ({"priority": 1}, True),
    ],
)
def test_a_reload_that_mends_a_provider_ends_its_cooldowns_and_no_others(change: dict[str, Any], cools: bool) -> None:
    """After a 404 because of a wrong `base_url` the right one was not called for twelve hours."""

    def test() -> None:
        case = Case()
        case.submit()
        case.fail(refusal(404))
        case.fail(refusal(404))
        case.succeed()
        assert {key.provider for key in case.authoriser.cooldowns.table} == {"a", "b"}
        providers = case.settings.providers | {"a": msgspec.structs.replace(case.settings.providers["a"], **change)}
        case.authoriser.reconfigure(msgspec.structs.replace(case.settings, providers=providers), now=time.monotonic())
        assert {key.provider for key in case.authoriser.cooldowns.table} == ({"a", "b"} if cools else {"b"})

    in_a_loop(test)


def test_a_providers_own_limit_sends_a_call_to_the_next_and_is_the_error_when_there_is_none() -> None:
    def test() -> None:
        settings = {"providers": {"a": of("a", concurrency=1), "b": of("b", concurrency=1)}, "models": {"m": pool("a", "b", strategy="fill_first")}}
        case = Case(settings)
        for stream in (1, 2, 3):
            case.submit(stream)
        assert case.tried() == "ab"
        assert "provider b" in case.told(Kind.ABORT, Abort).message or "provider a" in case.told(Kind.ABORT, Abort).message

    in_a_loop(test)


# --- other profiles --------------------------------------------------------------------------------------------------------

MIXED = {
    "providers": {"a": of("a"), "b": Provider(kind="anthropic", base_url="https://b.example", auth="none")},
    "models": {"m": pool("a", "b")},
}


def test_a_call_that_no_target_of_its_profile_can_take_is_rerouted_and_goes_on_where_it_was() -> None:
    def test() -> None:
        case = Case(MIXED, routing=Routing(retry_rounds=0, max_attempts=2), key={"requests_per_minute": 1})
        case.submit()
        case.fail(refusal(500))
        reroute = case.told(Kind.REROUTE, Reroute)
        assert (reroute.endpoint, reroute.quirks, reroute.tried) == (int(Endpoint.MESSAGES), 0, ("a/at-a",))
        assert case.dispatcher.kept.used == 0 and case.worker.calls == {}
        case.frames.clear()
        case.submit(2, body=MESSAGES, endpoint=int(Endpoint.MESSAGES), request_id="req_1", tried=reroute.tried)
        assert case.tried() == "ab" and case.started[-1].request.attempt == 2  # and the key's one request a minute was counted once
        case.fail(refusal(500))
        assert case.told(Kind.ABORT, Abort).code == "was_500"  # two attempts were all

    in_a_loop(test)


@pytest.mark.parametrize("comes_back", [True, False])
def test_tokens_that_may_have_been_used_before_a_reroute_stay_counted_once(comes_back: bool) -> None:
    def test() -> None:
        case = Case(MIXED, key={"tokens_per_minute": 100})
        case.submit()
        reserved = case.started[0].request.reservation.tokens
        case.fail(UpstreamError("x", code="provider_broke_off"))
        reroute = case.told(Kind.REROUTE, Reroute)
        assert (case.meters()[0]["k"][0], round(case.meters()[0]["k"][1])) == (0, reserved)  # a worker may find that it cannot write the call so
        if comes_back:
            case.submit(2, body=MESSAGES, endpoint=int(Endpoint.MESSAGES), request_id="req_1", tried=reroute.tried)
            assert (case.meters()[0]["k"][0], round(case.meters()[0]["k"][1])) == (1, reserved)
            case.fail(refusal(500))
            assert (case.meters()[0]["k"][0], round(case.meters()[0]["k"][1])) == (0, reserved)

    in_a_loop(test)


def test_a_reroute_counts_anew_for_another_request_and_after_its_time() -> None:
    def test() -> None:
        case = Case(MIXED, key={"requests_per_minute": 1})
        case.submit()
        case.fail(refusal(500))
        case.submit(2, body=MESSAGES, endpoint=int(Endpoint.MESSAGES), request_id="req_other", tried=("a/at-a",))
        assert case.tried() == "a" and case.told(Kind.ABORT, Abort).status == 429
        ((before, _),) = case.dispatcher._rerouted.calls.values()
        case.dispatcher._rerouted.calls[0, "req_1"] = (before, time.monotonic() - 1)
        case.frames.clear()
        case.submit(3, body=MESSAGES, endpoint=int(Endpoint.MESSAGES), request_id="req_1", tried=("a/at-a",))
        assert case.tried() == "a" and case.told(Kind.ABORT, Abort).status == 429
        assert not case.dispatcher._rerouted.calls

    in_a_loop(test)


def test_the_late_end_of_a_replaced_channel_forgets_nothing_of_its_successor() -> None:
    def test() -> None:
        case = Case(MIXED)
        before = case.worker
        case.worker = case.dispatcher.worker(0, max_body_bytes=1 << 20)
        case.dispatcher._rerouted.calls[0, "req_1"] = (Call(case.worker, 1, State.DECIDING, b""), time.monotonic() + 9)
        case.dispatcher.worker_lost(before, None)
        assert list(case.dispatcher._rerouted.calls) == [(0, "req_1")]
        case.dispatcher.worker_lost(case.worker, None)
        assert not case.dispatcher._rerouted.calls

    in_a_loop(test)


def test_a_call_written_for_a_profile_that_the_route_does_not_have_is_sent_back_for_one_that_it_has() -> None:
    def test() -> None:
        case = Case()
        case.submit(endpoint=int(Endpoint.MESSAGES), body=MESSAGES)  # as after a reload that changed the provider
        assert case.started == [] and case.told(Kind.REROUTE, Reroute).endpoint == int(Endpoint.CHAT_COMPLETIONS)

    in_a_loop(test)


def test_what_a_worker_says_was_tried_only_takes_targets_away() -> None:
    def test() -> None:
        case = Case()
        case.submit(tried=("a/at-a", "c/at-c", "nobody/nothing"))
        assert case.tried() == "b"
        case.fail(refusal(500))
        assert case.told(Kind.ABORT, Abort).code == "was_500"

    in_a_loop(test)


HOSTILE = {
    "more targets than there can be": {"tried": ("a/at-a",) * (MAX_ROUTE_TARGETS + 1)},
    "no such endpoint": {"endpoint": 99},
    "a stream where there is none": {"endpoint": int(Endpoint.EMBEDDINGS), "stream": True},
    "another cap": {"max_tokens": 9},
    "another number of choices": {"n": 2},
    "a stream that the body does not ask for": {"stream": True},
    "the model elsewhere": {"model_offset": 0},
    "a model of its own": {"body": b'{"model":"x","max_tokens":10,"messages":[]}', "model_offset": 0},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_a_worker_that_says_what_no_honest_one_says_is_found_out(changes: dict[str, Any]) -> None:
    def test() -> None:
        case = Case()
        with pytest.raises((ChannelError, CliproxyError)):
            body = changes.get("body", BODY)
            fields = {"request_id": "r", "address": "127.0.0.1", "model": "m", "max_tokens": 10, "n": 1, "stream": False, "estimate": 5}
            head = CallHead(
                **{
                    "endpoint": int(Endpoint.CHAT_COMPLETIONS),
                    "proof": PROOF,
                    **fields,
                    "model_offset": MODEL_OFFSET,
                    "body_bytes": len(body),
                    "body": body,
                    **changes,
                }
            )
            call = Call(case.worker, 1, State.DECIDING, PROOF)
            call.asked = case.authoriser.admit(head, now=time.monotonic(), wall=time.time())
            call.progress = case.authoriser.resume(call.asked, head.tried, None)
            call.body = body
            case.authoriser.authorise(call, now=time.monotonic(), wall=time.time())
        assert case.started == []
        keys, _ = case.meters()
        assert not keys

    in_a_loop(test)


def test_a_bug_between_two_attempts_does_not_leave_the_call_without_an_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    def test() -> None:
        case = Case()
        case.submit()

        def broken(*_: object, **__: object) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(case.authoriser, "authorise", broken)
        with pytest.raises(KeyError):
            case.fail(refusal(500))
        assert case.told(Kind.ABORT, Abort).code == "internal_error"
        keys, providers = case.meters()
        assert keys["k"][0] == 0 and providers["a"][0] == 0 and case.dispatcher.kept.used == 0

    in_a_loop(test)


def test_a_quirk_that_no_target_has_leads_to_a_reroute_and_never_to_a_target() -> None:
    def test() -> None:
        case = Case()
        case.submit(quirks=63)
        assert case.started == [] and case.told(Kind.REROUTE, Reroute).quirks == 0

    in_a_loop(test)


def test_a_body_leaves_once() -> None:
    def test() -> None:
        case = Case()
        case.submit()
        with pytest.raises(ChannelError):
            case.started[0].request.take_body()

    in_a_loop(test)


def test_calls_that_failed_everywhere_leave_nothing_behind() -> None:
    """Each kept its last error for ever, and with it the frames that had raised it: what held the call was hidden from the garbage collector."""

    def test() -> None:
        case = Case()

        def errors_kept() -> int:
            for kept in (case.frames, case.started, case.bodies, case.cancelled):
                kept.clear()
            case.logged()
            gc.collect()
            return sum(isinstance(thing, ProviderRefusal) for thing in gc.get_objects())

        before = errors_kept()
        for number in range(1, 21):
            case.submit(number)
            for _ in range(3):
                case.fail(refusal(409))
        assert errors_kept() <= before

    in_a_loop(test)
