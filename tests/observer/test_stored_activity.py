"""Activity from raw readings: totals never fall, last seen follows changes and no clock but Redis'."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from keys import key_number

from peerlane.workers.dataplane.counters import PeerCounters
from peerlane.workers.store.activity import StoredActivity, advance, decode, encode, endpoint_text

KEY = key_number(1)
U64 = (1 << 64) - 1

moments = st.integers(0, 2**40)
numbers = st.integers(0, U64)
endpoints = st.one_of(
    st.none(),
    st.tuples(st.sampled_from(["192.0.2.1", "2001:db8::1", "fe80::1%3"]), st.integers(1, 65535)),
)
seens = st.builds(StoredActivity, moments, numbers, numbers, numbers, numbers, numbers, endpoints.map(endpoint_text))


def raw(handshake: float = 0.0, rx: int = 0, tx: int = 0, endpoint: tuple[str, int] | None = None) -> PeerCounters:
    return PeerCounters(KEY, handshake, rx, tx, endpoint)


readings = st.builds(
    raw,
    st.one_of(st.just(0.0), st.floats(0, 2**33, allow_nan=False)),
    st.integers(0, 2**50),
    st.integers(0, 2**50),
    endpoints,
)


def after(*steps: tuple[PeerCounters, int], before: StoredActivity | None = None) -> StoredActivity | None:
    """What is known after readings, each with its moment."""
    for reading, now in steps:
        before = advance(before, reading, now)
    return before


@given(seens)
def test_what_is_stored_is_read_back(seen: StoredActivity) -> None:
    assert decode(encode(seen)) == seen
    assert decode(encode(seen).encode()) == seen


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80)))
def test_what_is_no_entry_counts_as_never_stored(damaged: bytes | str) -> None:
    activity = decode(damaged)
    assert activity is None or decode(encode(activity)) == activity


def test_an_entry_of_another_version_counts_as_never_stored() -> None:
    assert decode(encode(StoredActivity(1, 2, 3, 4, 5, 6)).replace("1 ", "2 ", 1)) is None
    assert decode("1 1 2 3 4 5") is None
    assert decode("1 1 2 3 4 5 -6") is None
    assert decode(f"1 1 2 3 4 5 {U64 + 1}") is None


def test_a_peer_that_did_nothing_is_not_stored() -> None:
    assert advance(None, raw(), 100) is None


def test_a_first_reading_with_a_handshake_counts_as_seen_now() -> None:
    assert advance(None, raw(handshake=50.5, rx=10, tx=20), 100) == StoredActivity(100, 10, 20, 50_500_000, 10, 20)


def test_bytes_without_a_handshake_are_counted_but_no_sign_of_life() -> None:
    activity = advance(None, raw(tx=148), 100)
    assert activity is not None
    assert (activity.last_seen, activity.tx) == (0, 148)


def test_a_reading_that_shows_nothing_new_gives_the_same_object() -> None:
    known = advance(None, raw(50, 10, 20, ("192.0.2.1", 7)), 100)
    assert advance(known, raw(50, 10, 20, ("192.0.2.1", 7)), 200) is known


def test_a_new_handshake_moves_last_seen_whatever_the_gateways_clock_says() -> None:
    activity = after((raw(5_000_000_000), 100), (raw(1_000), 200), (raw(9_000_000_000), 300))
    assert activity is not None
    assert activity.last_seen == 300


def test_the_same_handshake_does_not_move_last_seen() -> None:
    activity = after((raw(50, rx=1), 100), (raw(50, rx=2), 9_000))
    assert activity is not None
    assert (activity.last_seen, activity.rx) == (100, 2)


def test_a_device_made_anew_keeps_last_seen_and_totals() -> None:
    activity = after((raw(50, 1_000, 2_000), 100), (raw(), 200), (raw(0, 0, 148), 230))
    assert activity is not None
    assert (activity.last_seen, activity.rx, activity.tx) == (100, 1_000, 2_148)


def test_the_first_handshake_on_a_new_device_is_a_sign_of_life() -> None:
    activity = after((raw(50, 1_000, 2_000), 100), (raw(), 200), (raw(250, 92, 180), 260))
    assert activity is not None
    assert (activity.last_seen, activity.rx, activity.tx) == (260, 1_092, 2_180)


def test_an_endpoint_stays_known_while_the_device_has_forgotten_it() -> None:
    activity = after((raw(50, 1, 1, ("2001:db8::1", 51820)), 100), (raw(), 200))
    assert activity is not None
    assert activity.endpoint == "[2001:db8::1]:51820"


@given(seens, readings, moments)
def test_totals_never_fall_and_neither_does_last_seen(before: StoredActivity, reading: PeerCounters, now: int) -> None:
    activity = advance(before, reading, now)
    assert activity is not None
    assert activity.rx >= before.rx
    assert activity.tx >= before.tx
    assert activity.last_seen >= before.last_seen


@given(st.lists(st.tuples(readings, st.integers(0, 2**33)), min_size=1, max_size=12))
def test_an_observer_that_restarts_at_any_time_knows_the_same(steps: list[tuple[PeerCounters, int]]) -> None:
    lasting = after(*steps)
    restarted: StoredActivity | None = None
    for reading, now in steps:
        stored = advance(restarted, reading, now)
        restarted = None if stored is None else decode(encode(stored))
    assert restarted == lasting


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=12), st.data())
def test_a_total_is_the_sum_of_what_each_life_of_the_counter_brought(steps: list[int], data: st.DataObject) -> None:
    """A counter that grows by ``steps`` and begins anew here and there, read after every step."""
    value, known = 0, advance(None, raw(handshake=1), 1)
    for number, step in enumerate(steps):
        if data.draw(st.booleans()):
            value = 0
            known = advance(known, raw(), number + 2)
        value += step
        known = advance(known, raw(rx=value), number + 2)
    assert known is not None
    assert known.rx == sum(steps)
