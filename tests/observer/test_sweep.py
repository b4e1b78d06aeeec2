"""Which peers are stale, and what holds a sweep back: by the rules, and over any state of things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keys import key_number

from peerlane.tasks.values.key_set import KeySet
from peerlane.workers.store.activity import StoredActivity
from peerlane.workers.upkeep.clock_monitor import TOLERANCE, ClockDrift
from peerlane.workers.upkeep.lean_mappings import Lifetime
from peerlane.workers.upkeep.sweep_policy import (
    Decision,
    Judgement,
    Limits,
    Refusal,
    Sight,
    decide,
    excessive,
    implausible,
    judge,
)

NOW = 1_800_000_000
DAY = 86_400
LIMITS = Limits(never_after=DAY, idle_after=30 * DAY, start_grace=600, share=0.5, floor=50)
ONE, TWO = key_number(1), key_number(2)


def seen_at(moment: int) -> StoredActivity:
    return StoredActivity(moment, 1, 1, 1, 1, 1)


def watched(*keys: str, since: int = NOW - DAY, complete: bool = True) -> Sight:
    return Sight(frozenset(keys), complete, since)


def reasons(
    peer: Lifetime, seen: StoredActivity | None, *, now: int = NOW, limits: Limits = LIMITS, sight: Sight | None = None
) -> list[str]:
    known = {} if seen is None else {ONE: seen}
    return [victim.reason for victim in decide({ONE: peer}, known, now, limits, sight or watched(ONE))]


def test_a_peer_whose_time_is_up_is_expired_from_that_second_on() -> None:
    peer = Lifetime(NOW - 100, NOW, pinned=False)
    assert reasons(peer, seen_at(NOW)) == ["expired"]
    assert reasons(peer, seen_at(NOW - 1), now=NOW - 1) == []


def test_a_peer_that_never_handshaked_is_stale_after_its_grace_not_since_1970() -> None:
    assert reasons(Lifetime(NOW - 60, None, pinned=False), None) == []
    assert reasons(Lifetime(NOW - DAY, None, pinned=False), None) == []
    assert reasons(Lifetime(NOW - DAY - 1, None, pinned=False), None) == ["never"]


def test_bytes_without_a_handshake_are_no_sign_of_life() -> None:
    assert reasons(Lifetime(NOW - 2 * DAY, None, pinned=False), seen_at(0)) == ["never"]


def test_a_peer_not_seen_for_long_is_idle() -> None:
    old = Lifetime(NOW - 90 * DAY, None, pinned=False)
    assert reasons(old, seen_at(NOW - 30 * DAY)) == []
    assert reasons(old, seen_at(NOW - 30 * DAY - 1)) == ["idle"]


def test_a_peer_made_anew_is_not_judged_by_what_its_key_did_before() -> None:
    assert reasons(Lifetime(NOW - 60, None, pinned=False), seen_at(NOW - 90 * DAY)) == []
    assert reasons(Lifetime(NOW - 2 * DAY, None, pinned=False), seen_at(NOW - 90 * DAY)) == ["never"]


def test_an_imported_peer_has_its_grace_from_its_import_on_however_old_it_is() -> None:
    def imported(moment: int) -> Lifetime:
        return Lifetime(NOW - 90 * DAY, None, pinned=False, imported_at=moment)

    assert reasons(imported(NOW - DAY), None) == []
    assert reasons(imported(NOW - DAY - 1), None) == ["never"]


def test_a_pinned_peer_is_never_stale() -> None:
    for seen in (None, seen_at(NOW - 90 * DAY)):
        assert reasons(Lifetime(1, NOW - 1, pinned=True), seen) == []


def test_after_a_start_only_expired_peers_are_stale() -> None:
    fresh = watched(ONE, since=NOW - 599)
    assert reasons(Lifetime(1, None, pinned=False), None, sight=fresh) == []
    assert reasons(Lifetime(1, NOW, pinned=False), None, sight=fresh) == ["expired"]
    assert reasons(Lifetime(1, None, pinned=False), None, sight=watched(ONE, since=NOW - 600)) == ["never"]


def test_a_peer_whose_activity_redis_has_lost_is_not_one_that_never_came() -> None:
    for ago, expected in ((DAY, []), (DAY + 1, ["never"])):
        sight = replace(watched(ONE), kept_since=NOW - ago)
        assert reasons(Lifetime(1, None, pinned=False), None, sight=sight) == expected


def test_a_peer_that_the_reading_does_not_show_is_judged_by_its_expiry_only() -> None:
    assert reasons(Lifetime(1, None, pinned=False), seen_at(5), sight=watched(TWO)) == []
    assert reasons(Lifetime(1, 7, pinned=False), seen_at(5), sight=watched(TWO)) == ["expired"]


def test_without_counters_only_expiry_counts() -> None:
    peers = {ONE: Lifetime(1, None, pinned=False), TWO: Lifetime(1, 2, pinned=False)}
    assert [victim.public_key for victim in decide(peers, {}, NOW, LIMITS, None)] == [TWO]


def test_a_limit_of_0_is_off() -> None:
    off = Limits(never_after=0, idle_after=0)
    assert reasons(Lifetime(1, None, pinned=False), None, limits=off) == []
    assert reasons(Lifetime(1, None, pinned=False), seen_at(5), limits=off) == []


def test_those_that_expired_first_go_first() -> None:
    peers = {
        ONE: Lifetime(1, None, pinned=False),
        TWO: Lifetime(1, 9, pinned=False),
        key_number(3): Lifetime(1, 5, pinned=False),
    }
    victims = decide(peers, {}, NOW, LIMITS, watched(*peers))
    assert [(victim.reason, victim.since) for victim in victims] == [("expired", 5), ("expired", 9), ("never", 1)]


# What holds a sweep back


def stale(count: int, among: int) -> dict[str, Lifetime]:
    return {key_number(n + 1): Lifetime(1, 5 if n < count else None, pinned=n >= count) for n in range(among)}


@pytest.mark.parametrize(("count", "among", "refused"), [(50, 50, False), (51, 102, False), (51, 101, True)])
def test_more_than_the_share_and_more_than_the_floor_needs_a_person(count: int, among: int, refused: bool) -> None:  # noqa: FBT001 - a parameter of the test
    decision = judge(stale(count, among), {}, NOW, LIMITS, None)
    assert len(decision.victims) == count
    assert (decision.refusal is not None) == refused


def test_who_expired_while_the_clock_was_watched_does_not_count_a_flood_ends_all_at_once() -> None:
    flood = {key_number(n + 1): Lifetime(NOW - 3600, NOW - 5, pinned=False) for n in range(200)}
    watched_it = judge(flood, {}, NOW, LIMITS, None, sure_since=NOW - 6)
    assert (watched_it.refusal, len(watched_it.victims)) == (None, 200)
    for since in (NOW - 5, None):
        assert judge(flood, {}, NOW, LIMITS, None, sure_since=since).refusal is not None
    never = {key_number(n + 1): Lifetime(1, None, pinned=False) for n in range(60)}
    assert judge(never, {}, NOW, LIMITS, watched(*never), sure_since=0).refusal is not None


def test_force_overrules_what_holds_a_sweep_back() -> None:
    known = [Refusal("clock", "it jumped")]
    assert judge(stale(60, 60), {}, NOW, LIMITS, None, refusals=known, force=True).refusal is None
    assert judge(stale(1, 60), {}, NOW, LIMITS, None, refusals=known).refusal == known[0]


@pytest.mark.parametrize(
    ("shown", "complete", "plausible"),
    [(100, True, True), (50, True, True), (49, True, False), (0, True, False), (90, False, True), (89, False, False)],
)
def test_a_reading_that_shows_far_fewer_peers_than_redis_holds_is_not_believed(
    shown: int,
    complete: bool,  # noqa: FBT001 - a parameter of the test
    plausible: bool,  # noqa: FBT001 - likewise
) -> None:
    peers = stale(0, 100)
    sight = watched(*list(peers)[:shown], complete=complete)
    assert (implausible(100, 100 - shown, complete=complete) is None) == plausible
    assert (judge(peers, {}, NOW, LIMITS, sight).refusal is None) == plausible


def test_a_report_counts_victims_by_reason() -> None:
    peers = {ONE: Lifetime(1, 5, pinned=False), TWO: Lifetime(1, None, pinned=False)}
    assert judge(peers, {}, NOW, LIMITS, watched(ONE, TWO)).counts == {"expired": 1, "never": 1}
    assert Decision(0).counts == {}


# Over any state

keys = st.sampled_from([key_number(n) for n in range(1, 30)])
times = st.integers(NOW - 100 * DAY, NOW + 100 * DAY)
lives = st.builds(Lifetime, times, st.one_of(st.none(), times), st.booleans())
states = st.dictionaries(keys, lives, max_size=25)
activities = st.dictionaries(keys, st.one_of(st.just(0), times).map(seen_at), max_size=25)
limits = st.builds(
    Limits,
    never_after=st.integers(0, 50 * DAY),
    idle_after=st.integers(0, 50 * DAY),
    start_grace=st.integers(0, DAY),
    share=st.floats(0.01, 1),
    floor=st.integers(0, 30),
)
sights = st.one_of(st.none(), st.builds(Sight, st.frozensets(keys), st.booleans(), times))


@given(states, activities, limits, sights)
def test_nobody_pinned_live_or_within_its_time_is_ever_stale(
    peers: dict[str, Lifetime], seen: dict[str, StoredActivity], policy: Limits, sight: Sight | None
) -> None:
    for victim in decide(peers, seen, NOW, policy, sight):
        peer, known = peers[victim.public_key], seen.get(victim.public_key)
        assert not peer.pinned
        assert victim.created_at == peer.created_at
        if peer.expires_at is not None and peer.expires_at <= NOW:
            assert victim.reason == "expired"
            continue
        assert sight is not None
        assert victim.public_key in sight.shown
        assert NOW - sight.since >= policy.start_grace
        assert NOW - peer.created_at > (policy.never_after if victim.reason == "never" else 0)
        last = known.last_seen if known is not None else 0
        if victim.reason == "idle":
            assert NOW - last > policy.idle_after > 0
        else:
            assert policy.never_after > 0
            assert last < peer.created_at or last == 0


@given(states, activities, limits, sights)
def test_deciding_again_after_the_removal_finds_nobody(
    peers: dict[str, Lifetime], seen: dict[str, StoredActivity], policy: Limits, sight: Sight | None
) -> None:
    first = decide(peers, seen, NOW, policy, sight)
    assert decide(peers, seen, NOW, policy, sight) == first
    gone = {victim.public_key for victim in first}
    left = {key: peer for key, peer in peers.items() if key not in gone}
    assert decide(left, seen, NOW, policy, sight) == []


@given(states, activities, limits, sights, st.integers(0, 200 * DAY))
def test_who_is_stale_stays_stale(
    peers: dict[str, Lifetime], seen: dict[str, StoredActivity], policy: Limits, sight: Sight | None, later: int
) -> None:
    def stale_at(now: int) -> set[str]:
        return {victim.public_key for victim in decide(peers, seen, now, policy, sight)}

    assert stale_at(NOW) <= stale_at(NOW + later)


@given(states, activities, limits, sights)
def test_a_sweep_by_itself_never_removes_more_than_share_and_floor_allow(
    peers: dict[str, Lifetime], seen: Mapping[str, StoredActivity], policy: Limits, sight: Sight | None
) -> None:
    decision = judge(peers, seen, NOW, policy, sight)
    if decision.refusal is None:
        count = len(decision.victims)
        assert count <= policy.floor or count <= policy.share * len(peers)
        assert excessive(count, len(peers), policy) is None


@given(states, activities, limits, sights, st.integers(1, 7))
def test_peers_judged_page_by_page_are_judged_as_if_all_at_once(
    peers: dict[str, Lifetime], seen: dict[str, StoredActivity], policy: Limits, sight: Sight | None, size: int
) -> None:
    paged = Judgement(NOW, policy, sight)
    keys = list(peers)
    for start in range(0, len(keys), size):
        part = keys[start : start + size]
        paged.take({key: peers[key] for key in part}, {key: seen[key] for key in part if key in seen})
    decision, whole = paged.decision(), judge(peers, seen, NOW, policy, sight)
    assert (decision.peers, decision.counts, decision.refusal) == (whole.peers, whole.counts, whole.refusal)
    assert sorted(decision.victims) == sorted(whole.victims)
    assert [(v.reason == "expired", v.since) for v in decision.victims] == [
        (v.reason == "expired", v.since) for v in whole.victims
    ]


def test_who_was_made_after_a_reading_began_is_not_missing_from_it() -> None:
    old = {key_number(n): Lifetime(NOW - DAY, None, pinned=True) for n in range(1, 21)}
    new = {key_number(n): Lifetime(NOW, None, pinned=True) for n in range(21, 81)}
    shown = KeySet(old)
    assert judge(old | new, {}, NOW, LIMITS, Sight(shown, complete=True, since=0, at=NOW)).refusal is None
    assert judge(old | new, {}, NOW, LIMITS, Sight(shown, complete=True, since=0, at=NOW + 9)).refusal is not None
    imported = {key: life._replace(created_at=1, imported_at=NOW) for key, life in new.items()}
    assert judge(old | imported, {}, NOW, LIMITS, Sight(shown, complete=True, since=0, at=NOW)).refusal is None


# The clock


def test_a_clock_that_is_slewed_is_believed() -> None:
    watch = ClockDrift()
    assert all(watch.look(NOW + n * 30 * 1.5, n * 30.0) is None for n in range(100))


@pytest.mark.parametrize("hour", [3600.0, -3600.0])
def test_a_jump_is_noticed_and_lasts_until_the_clock_is_right_again(hour: float) -> None:
    watch = ClockDrift()
    watch.look(NOW, 0)
    assert watch.look(NOW + 30 + hour, 30) == hour
    assert watch.look(NOW + 9_000 + hour, 9_000) == hour
    assert watch.look(NOW + 9_030, 9_030) is None
    assert watch.jumped is None


def test_a_person_may_take_the_clock_as_it_is() -> None:
    watch = ClockDrift()
    watch.look(NOW, 0)
    watch.look(NOW + 3600, 1)
    watch.accept(NOW + 3601, 2)
    assert watch.look(NOW + 3602, 3) is None


def test_a_jump_while_nobody_looked_is_noticed_by_what_was_known_before() -> None:
    assert ClockDrift(offset=NOW).look(NOW + TOLERANCE + 6, 5.0) == TOLERANCE + 1
