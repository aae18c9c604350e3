"""The table of origins, and names to vetted addresses."""

from __future__ import annotations

import os
import select
import threading
import time

import pytest

from cliproxy.config.schema import Provider, ProviderTimeouts
from cliproxy.dialer.resolve import MAX_ADDRESSES_PER_NAME, Resolved, Resolvers, look_up, resolve
from cliproxy.dialer.table import Target, build_table
from cliproxy.errors import ConfigError, UpstreamError


def target(base_url: str, *, private: bool = False) -> Target:
    (only,) = build_table({"p": Provider(base_url=base_url, private_network=private, plain_http=True)}).values()
    return only


def answering(*addresses: str) -> object:
    return lambda host, port: list(addresses)


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_holds_the_origins_of_remote_providers_only() -> None:
    table = build_table(
        {
            "openai": Provider(base_url="https://api.openai.com/v1", timeouts=ProviderTimeouts(connect=3.0)),
            "lan": Provider(base_url="http://10.0.0.1:8000/v1", plain_http=True, private_network=True),
            "named": Provider(),
            "echo": Provider(base_url="https://never.example"),
        }
    )
    assert {origin: (row.private, row.connect_seconds) for origin, row in table.items()} == {
        "https://api.openai.com:443": (False, 3.0),
        "http://10.0.0.1:8000": (True, 10.0),
    }


@pytest.mark.parametrize("base_url", ["http://localhost:1/v1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1"])
def test_plain_http_to_literal_loopback_needs_no_word(base_url: str) -> None:
    assert len(build_table({"p": Provider(base_url=base_url)})) == 1


@pytest.mark.parametrize("base_url", ["http://api.example.com/v1", "http://10.0.0.1/v1", "http://localhost.example/v1"])
def test_plain_http_elsewhere_needs_the_operators_word(base_url: str) -> None:
    with pytest.raises(ConfigError, match=r"providers\.p\.base_url"):
        build_table({"p": Provider(base_url=base_url)})
    with pytest.raises(ConfigError):
        build_table({"p": Provider(base_url=base_url, private_network=True)})
    assert len(build_table({"p": Provider(base_url=base_url, plain_http=True)})) == 1


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_two_providers_at_one_origin_get_what_both_allow(order: tuple[str, str]) -> None:
    providers = {
        "a": Provider(base_url="https://h.example/a", private_network=True, timeouts=ProviderTimeouts(connect=2.0)),
        "b": Provider(base_url="https://h.example/b", timeouts=ProviderTimeouts(connect=5.0)),
    }
    (row,) = build_table({name: providers[name] for name in order}).values()
    assert (row.private, row.connect_seconds) == (False, 5.0)


# --- one name --------------------------------------------------------------------------------------------------------


def test_families_alternate_in_the_resolvers_order() -> None:
    found = answering("2606:4700::1", "2606:4700::2", "8.8.8.8", "2606:4700::3", "8.8.4.4", "8.8.8.8")
    resolved = resolve(target("https://h.example"), look_up=found)  # type: ignore[arg-type]
    assert resolved.addresses == ("2606:4700::1", "8.8.8.8", "2606:4700::2", "8.8.4.4", "2606:4700::3")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_forbidden_address_condemns_the_name(at: int) -> None:
    addresses = ["8.8.8.8", "8.8.4.4"]
    addresses.insert(at, "169.254.169.254")
    resolved = resolve(target("https://h.example", private=True), look_up=answering(*addresses))  # type: ignore[arg-type]
    assert resolved.reason == "forbidden_address" and resolved.addresses == ()
    assert resolved.forbidden is not None and resolved.forbidden.address == "169.254.169.254" and resolved.forbidden.reason == "metadata"


@pytest.mark.parametrize(
    ("base_url", "private", "address", "reason"),
    [
        ("https://h.example", False, "127.0.0.1", "forbidden_address"),
        ("https://h.example", True, "127.0.0.1", ""),
        ("http://localhost:1", False, "127.0.0.1", ""),
        ("http://localhost:1", False, "::1", ""),
        ("http://localhost:1", False, "10.0.0.1", "forbidden_address"),
        ("https://h.example", False, "10.0.0.1", "forbidden_address"),
        ("https://h.example", True, "10.0.0.1", ""),
        ("https://h.example", True, "fe80::1", "forbidden_address"),
        ("https://h.example", True, "fe80::1%2", "forbidden_address"),
        ("https://h.example", False, "::ffff:127.0.0.1", "forbidden_address"),
    ],
)
def test_what_a_name_may_lead_to_is_up_to_its_provider(base_url: str, private: bool, address: str, reason: str) -> None:
    assert resolve(target(base_url, private=private), look_up=answering(address)).reason == reason  # type: ignore[arg-type]


def test_a_literal_address_is_vetted_and_not_looked_up() -> None:
    def never(host: str, port: int) -> list[str]:
        raise AssertionError

    assert resolve(target("https://8.8.8.8"), look_up=never).addresses == ("8.8.8.8",)
    assert resolve(target("https://10.0.0.1"), look_up=never).reason == "forbidden_address"
    assert resolve(target("https://10.0.0.1", private=True), look_up=never).addresses == ("10.0.0.1",)
    assert resolve(target("https://169.254.169.254", private=True), look_up=never).reason == "forbidden_address"
    assert resolve(target("https://[::ffff:127.0.0.1]"), look_up=never).reason == "forbidden_address"


def test_a_name_without_addresses_or_with_absurdly_many_does_not_resolve() -> None:
    assert resolve(target("https://h.example"), look_up=answering()).reason == "resolve"  # type: ignore[arg-type]
    many = [f"8.8.{index // 250}.{index % 250 + 1}" for index in range(MAX_ADDRESSES_PER_NAME + 1)]
    assert resolve(target("https://h.example"), look_up=answering(*many[:-1])).reason == ""  # type: ignore[arg-type]
    assert resolve(target("https://h.example"), look_up=answering(*many)).reason == "resolve"  # type: ignore[arg-type]


def test_the_systems_resolver_knows_localhost_and_refuses_what_does_not_exist() -> None:
    assert set(look_up("localhost", 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(UpstreamError):
        look_up("name.invalid", 80)


# --- threads ---------------------------------------------------------------------------------------------------------


class Pipes:
    def __init__(self, look_up: object, threads: int = 2) -> None:
        self.wake, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.resolvers = Resolvers(write, look_up=look_up)  # type: ignore[arg-type]
        self.resolvers.start(threads)

    def take(self, count: int) -> list[Resolved]:
        taken: list[Resolved] = []
        until = time.monotonic() + 10
        while len(taken) < count:
            assert select.select([self.wake], [], [], max(0.0, until - time.monotonic()))[0]
            os.read(self.wake, 4096)
            taken += self.resolvers.take()
        return taken


def test_one_question_at_a_time_for_a_name_and_an_answer_for_each_name() -> None:
    asked: list[str] = []
    gate = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        asked.append(host)
        gate.wait(10)
        return ["8.8.8.8"]

    pipes = Pipes(slow)
    for _ in range(5):
        pipes.resolvers.ask(target("https://a.example"))
    pipes.resolvers.ask(target("https://b.example"))
    gate.set()
    assert {answer.target.origin.host for answer in pipes.take(2)} == {"a.example", "b.example"}
    assert sorted(asked) == ["a.example", "b.example"]
    pipes.resolvers.ask(target("https://a.example"))
    assert len(pipes.take(1)) == 1 and len(asked) == 3  # nothing is remembered: each connection resolves afresh


def test_a_name_server_that_does_not_answer_holds_one_thread() -> None:
    gate = threading.Event()

    def stuck(host: str, port: int) -> list[str]:
        if host == "stuck.example":
            gate.wait(20)
        return ["8.8.8.8"]

    pipes = Pipes(stuck, threads=2)
    for _ in range(50):
        pipes.resolvers.ask(target("https://stuck.example"))
    for number in range(5):
        pipes.resolvers.ask(target(f"https://{number}.example"))
    assert len(pipes.take(5)) == 5
    gate.set()


def test_a_look_up_that_fails_oddly_is_a_name_that_does_not_resolve() -> None:
    def odd(host: str, port: int) -> list[str]:
        raise ZeroDivisionError

    pipes = Pipes(odd, threads=1)
    for _ in range(3):
        pipes.resolvers.ask(target("https://a.example"))
        assert pipes.take(1)[0].reason == "resolve"
