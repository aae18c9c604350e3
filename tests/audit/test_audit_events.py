"""Lines are canonical JSON; each source may send its own kinds only."""

from __future__ import annotations

import json
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliproxy.audit import events
from cliproxy.audit.client import packet_decoder
from cliproxy.audit.events import (
    KINDS,
    MAX_AUDIT_TEXT,
    SOURCES,
    AddressDenied,
    Authentication,
    ChannelViolation,
    Event,
    Process,
    VaultIntent,
    clip,
    lines_of,
    timestamp,
)
from cliproxy.audit.files import MAX_AUDIT_LINE_BYTES

NOW = "2026-01-02T03:04:05.000006Z"
ENCODER = msgspec.msgpack.Encoder()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_AUDIT_TEXT)


def values_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any event of `kind`."""
    by_type: dict[Any, st.SearchStrategy[Any]] = {
        events.Text: TEXT,
        events.Count: st.integers(0, 2**63 - 1),
        events.Hex: st.binary(max_size=64).map(bytes.hex),
        bool: st.booleans(),
    }
    hints = get_type_hints(kind, include_extras=True)
    fields = {name: by_type.get(hints[name]) for name in kind.__struct_fields__}
    return st.builds(kind, **{name: st.sampled_from(get_args(hints[name])) if one is None else one for name, one in fields.items()})


def simplest(kind: type[Any]) -> Any:
    """One event of `kind`."""
    hints = get_type_hints(kind, include_extras=True)
    by_type: dict[Any, Any] = {events.Text: "", events.Count: 0, events.Hex: "", bool: False}
    return kind(**{name: by_type[hints[name]] if hints[name] in by_type else get_args(hints[name])[0] for name in kind.__struct_fields__})


ANY_EVENT = st.one_of(*(values_of(kind) for kind in KINDS))


@given(ANY_EVENT)
def test_every_line_is_the_canonical_json_of_its_event(event: Event) -> None:
    line = lines_of([event], source="egress", time=NOW)
    said = json.loads(line)
    assert line == json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    assert said == {**msgspec.structs.asdict(event), "event": event.__struct_config__.tag, "source": "egress", "time": NOW}
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_AUDIT_LINE_BYTES


@given(st.lists(ANY_EVENT, max_size=8))
def test_events_cross_a_channel_unchanged(batch: list[Event]) -> None:
    assert packet_decoder(Event).decode(ENCODER.encode((7, batch))) == (7, batch)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_fields_are_declared_in_sorted_order(kind: type[Any]) -> None:
    assert list(kind.__struct_fields__) == sorted(kind.__struct_fields__)


def test_a_newline_in_a_value_does_not_begin_a_line() -> None:
    forged = '"}\n{"event":"vault_commit","epoch":9'
    line = lines_of([Process(code=0, role=forged, what="x")], source="worker-0", time=NOW)
    assert line.count(b"\n") == 1
    assert json.loads(line)["role"] == forged


@pytest.mark.parametrize("role", SOURCES)
def test_a_source_may_send_its_own_kinds_only(role: str) -> None:
    allowed = get_args(SOURCES[role])
    decoder = packet_decoder(SOURCES[role])
    for kind in KINDS:
        packet = ENCODER.encode((1, [simplest(kind)]))
        if kind in allowed:
            decoder.decode(packet)
        else:
            with pytest.raises(msgspec.ValidationError):
                decoder.decode(packet)


_OWN = {events.LogOpened, events.LogRecovered, events.LogRollbackAccepted, events.EventsSuppressed}


def test_nobody_but_the_auditor_may_tell_of_the_log_itself() -> None:
    theirs = {kind for union in SOURCES.values() for kind in get_args(union)}
    assert theirs.isdisjoint(_OWN)
    assert theirs | _OWN == set(KINDS)


@pytest.mark.parametrize(
    ("case", "event"),
    [
        ("text too long", ChannelViolation(peer="a" * (MAX_AUDIT_TEXT + 1), reason="")),
        ("count below zero", AddressDenied(address="a", count=-1, reason="", second=0)),
        ("count too large", AddressDenied(address="a", count=2**63, reason="", second=0)),
        ("a result that is none", Authentication(address="a", count=1, principal="", reason="", result="maybe", second=0)),  # type: ignore[arg-type]
        ("a root that is no hex", VaultIntent(epoch=1, root="xyz")),
        ("a root of half a byte", VaultIntent(epoch=1, root="abc")),
        ("a root with a newline", VaultIntent(epoch=1, root="ab\n")),
        ("a root too long", VaultIntent(epoch=1, root="ab" * 65)),
        ("a number for text", ChannelViolation(peer=1, reason="")),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_out_of_bounds_is_refused_by_the_receiver(case: str, event: Event) -> None:
    with pytest.raises(msgspec.ValidationError):
        packet_decoder(Event).decode(ENCODER.encode((1, [event])))


def test_a_field_more_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        packet_decoder(Event).decode(ENCODER.encode((1, [["channel_violation", "peer", "reason", "more"]])))


@given(st.text(max_size=2 * MAX_AUDIT_TEXT))
def test_clipped_text_always_fits(text: str) -> None:
    event = ChannelViolation(peer=clip(text), reason="")
    assert packet_decoder(Event).decode(ENCODER.encode((1, [event])))[1] == [event]
    if len(text) <= MAX_AUDIT_TEXT and text.isascii():
        assert event.peer == text


def test_times_are_rfc_3339_with_microseconds() -> None:
    assert timestamp(0.0) == "1970-01-01T00:00:00.000000Z"
    assert timestamp(1767323045.5) == "2026-01-02T03:04:05.500000Z"
