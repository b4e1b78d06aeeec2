"""The judge of the fault runs on upkeep: it lets sound histories pass, and each invariant can be seen to fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from fault_checker import judge
from fault_evidence import Commit, Evidence, Final, Life, PeerState, Sighting, Upkeep
from fault_history import Call

ONE, TWO, OLD = "10.8.0.2/32", "10.8.0.3/32", "10.8.0.9/32"
#: Redis' clock is so far ahead of the callers'.
LEAD = 1000.0


def created(key: str, began: float, *, ttl: int | None = None, pinned: bool = False, **fields: object) -> Call:
    expires = None if ttl is None else int(LEAD + began) + ttl
    plain = Call(
        number=f"{key}-{began}",
        act="create",
        key=key,
        request=f"gw.{key}-{began}",
        began=began,
        timeout=2.0,
        ttl=ttl,
        pinned=pinned,
        ended=began + 0.1,
        end="ok",
        outcome="created",
        addresses=(ONE if key == "a" else TWO,),
        expires=expires,
    )
    return replace(plain, **fields)  # pyright: ignore[reportArgumentType] - whatever the test says


def stored(call: Call, **fields: object) -> Commit:
    at = LEAD + call.began + 0.05
    lives = {call.key: Life(call.expires, call.pinned)}
    plain = Commit(call.request, 1, 1, wrote=True, changed=True, at=at, deadline=at + 2, stores=lives)
    return replace(plain, **fields)  # pyright: ignore[reportArgumentType] - whatever the test says


def swept(key: str, at: float, **fields: object) -> Commit:
    moment = LEAD + at
    plain = Commit(
        f"gw.sweep-{at}", 1, 1, wrote=True, changed=True, at=moment, deadline=moment + 9, removes=frozenset({key})
    )
    return replace(plain, **fields)  # pyright: ignore[reportArgumentType] - whatever the test says


def final(now: float, **peers: tuple[str, Life]) -> Final:
    stored_peers = {key: PeerState(frozenset({address}), life=life) for key, (address, life) in peers.items()}
    owners = {address: key for key, (address, _) in peers.items()}
    return Final(redis=stored_peers, owners=owners, kernel=dict(stored_peers), now=LEAD + now, lead=LEAD)


def broken(evidence: Evidence) -> set[str]:
    return {violation.invariant for violation in judge(evidence).violations}


def seen(*rows: tuple[int, int, int]) -> Sequence[Sighting]:
    return [Sighting("b", *row) for row in rows]


SHORT, LASTING = created("a", 1.0, ttl=2), created("b", 1.0, ttl=2, pinned=True)
SOUND = Evidence(
    calls=[SHORT, LASTING],
    final=final(9.0, b=(TWO, Life(int(LEAD) + 3, pinned=True)), old=(OLD, Life())),
    residents={"old": PeerState(frozenset({OLD}))},
    commits=[stored(SHORT), stored(LASTING), swept("a", 3.7)],
    upkeep=Upkeep(every=1.0, sightings=seen((0, 5, 5), (1003, 9, 5), (1003, 9, 8)), back_after=2.0),
)


def with_commits(*commits: Commit) -> Evidence:
    return replace(SOUND, commits=[*SOUND.commits, *commits])


def test_a_sound_history_has_no_violation() -> None:
    assert judge(SOUND).violations == ()


class TestASweep:
    def test_may_not_remove_a_pinned_peer(self) -> None:
        assert "I8" in broken(with_commits(swept("b", 5.0)))

    def test_may_not_remove_a_peer_before_its_time_is_up(self) -> None:
        assert broken(replace(SOUND, commits=[stored(SHORT), stored(LASTING), swept("a", 2.2)])) == {"I8"}

    def test_may_not_remove_a_peer_that_was_there_before_the_run(self) -> None:
        assert broken(with_commits(swept("old", 5.0))) == {"I8"}

    def test_may_not_remove_a_peer_that_was_made_anew_since_it_expired(self) -> None:
        again = created("a", 4.0)
        evidence = with_commits(stored(again), swept("a", 5.0))
        there = final(9.0, a=(ONE, Life()), b=(TWO, Life(1003, pinned=True)), old=(OLD, Life()))
        assert broken(replace(evidence, calls=[*SOUND.calls, again], final=there)) == {"I8"}

    def test_is_told_from_a_delete_that_a_caller_has_asked_for(self) -> None:
        asked = created("b", 5.0, act="delete", request="gw.delete", outcome="deleted", addresses=(), expires=None)
        evidence = with_commits(swept("b", 5.0, request="gw.delete"))
        gone = final(9.0, old=(OLD, Life()))
        assert broken(replace(evidence, calls=[*SOUND.calls, asked], final=gone)) == set()

    def test_that_changed_nothing_is_no_sweep(self) -> None:
        assert broken(with_commits(swept("b", 5.0, wrote=False, changed=False))) == set()


class TestAPeerWithTimeLeft:
    def test_must_be_there(self) -> None:
        long = created("c", 1.0, ttl=60, addresses=("10.8.0.4/32",))
        assert broken(replace(SOUND, calls=[*SOUND.calls, long])) == {"I1"}

    def test_keeps_its_address_for_itself_and_no_longer(self) -> None:
        long, other = created("c", 1.0, ttl=60, addresses=(ONE,)), created("a", 6.0, ttl=2)
        calls, there = [long, other], (ONE, Life(int(LEAD) + 61))
        assert "I4" in broken(replace(SOUND, calls=calls, final=final(7.0, c=there, old=(OLD, Life()))))
        calls = [replace(SHORT, key="c"), other]
        assert broken(replace(SOUND, calls=calls, commits=[], final=final(9.0, old=(OLD, Life())))) == set()


class TestAPeerThatHasExpired:
    def test_may_not_be_told_to_exist(self) -> None:
        again = created("a", 5.0, outcome="existing", expires=SHORT.expires)
        assert broken(replace(SOUND, calls=[*SOUND.calls, again])) == {"I8"}

    def test_may_be_told_of_by_who_is_asked_the_same_request_again(self) -> None:
        again = created("a", 5.0, request=SHORT.request, expires=SHORT.expires)
        assert broken(replace(SOUND, calls=[*SOUND.calls, again])) == set()

    def test_must_be_gone_after_one_interval(self) -> None:
        left = replace(
            SOUND.final, redis={**SOUND.final.redis, "a": PeerState(frozenset({ONE}), life=Life(SHORT.expires))}
        )
        evidence = replace(SOUND, final=replace(left, kernel=left.redis, owners={**left.owners, ONE: "a"}))
        assert broken(evidence) == {"I9"}
        assert broken(replace(evidence, final=replace(evidence.final, now=LEAD + 3.9))) == set()
        assert broken(replace(evidence, upkeep=replace(SOUND.upkeep, every=None))) == set()


class TestAPeerThatNeverCame:
    """Swept after three seconds, as long as it is silent and not pinned."""

    @staticmethod
    def after_a_sweep_at(at: float, *, silent: frozenset[str], pinned: bool = False) -> Evidence:
        call = created("a", 1.0, pinned=pinned)
        lives = {"a": Life(None, pinned, int(LEAD) + 1)}
        commits = [stored(call, stores=lives), swept("a", at)]
        upkeep = replace(SOUND.upkeep, never_after=3.0, silent=silent)
        gone = final(9.0, old=(OLD, Life()))
        return replace(SOUND, calls=[call], commits=commits, upkeep=upkeep, final=gone)

    def test_may_be_swept(self) -> None:
        assert broken(self.after_a_sweep_at(4.5, silent=frozenset({"a"}))) == set()

    def test_may_not_be_swept_before_its_time(self) -> None:
        assert broken(self.after_a_sweep_at(3.2, silent=frozenset({"a"}))) == {"I8"}

    def test_may_not_be_swept_if_it_is_pinned(self) -> None:
        assert broken(self.after_a_sweep_at(4.5, silent=frozenset({"a"}), pinned=True)) == {"I1", "I8"}

    def test_may_not_be_swept_once_it_came(self) -> None:
        assert broken(self.after_a_sweep_at(4.5, silent=frozenset())) == {"I1", "I8"}


class TestADecision:
    def test_may_not_be_carried_out_beyond_its_deadline(self) -> None:
        late = swept("a", 9.0, deadline=LEAD + 8.0)
        assert broken(replace(SOUND, commits=[*SOUND.commits[:2], late])) == {"I10"}

    def test_may_be_refused_then(self) -> None:
        assert broken(with_commits(swept("a", 9.0, deadline=LEAD + 8.0, changed=False))) == set()


class TestWhatIsSeenOfAPeer:
    @pytest.mark.parametrize("next_", [(1002, 9, 8), (1003, 8, 8), (1003, 9, 7)])
    def test_never_goes_back(self, next_: tuple[int, int, int]) -> None:
        upkeep = replace(SOUND.upkeep, sightings=[*SOUND.upkeep.sightings, *seen(next_)])
        assert broken(replace(SOUND, upkeep=upkeep)) == {"I11"}
        assert broken(replace(SOUND, upkeep=upkeep, lost_at=0.5)) == set()


@pytest.mark.parametrize("after", [None, 35.1])
def test_the_observer_must_be_back_in_time(after: float | None) -> None:
    assert broken(replace(SOUND, upkeep=replace(SOUND.upkeep, back_after=after))) == {"I7"}
