"""The judge of the fault runs: it lets sound histories pass, and each invariant can be seen to fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fault_checker import judge
from fault_evidence import Commit, Evidence, Facts, Final, PeerState, Window
from fault_history import Call, History, read

ONE, TWO = "10.8.0.2/32", "10.8.0.3/32"


def call(number: int, act: str, key: str, began: float, **fields: object) -> Call:
    plain = Call(
        number=str(number),
        act="create" if act == "create" else "delete",
        key=key,
        request=f"gw.{number}",
        began=began,
        timeout=2.0,
        ended=began + 0.1,
        end="ok",
        outcome=f"{act}d",
        addresses=(ONE,) if act == "create" else (),
    )
    return replace(plain, **fields)  # pyright: ignore[reportArgumentType] - whatever the test says


def final(**peers: str) -> Final:
    stored = {key: PeerState(frozenset({address})) for key, address in peers.items()}
    return Final(redis=stored, owners={address: key for key, address in peers.items()}, kernel=dict(stored))


def broken(evidence: Evidence) -> set[str]:
    return {violation.invariant for violation in judge(evidence).violations}


SOUND = Evidence(
    calls=[
        call(1, "create", "a", 1.0),
        call(2, "delete", "a", 2.0),
        call(3, "create", "b", 3.0),
        call(4, "create", "c", 3.0, end="refused", outcome="timed_out", addresses=(), ended=6.9),
        call(5, "create", "d", 4.0, end="unknown", outcome="outcome_unknown", addresses=(), ended=5.0),
        call(6, "create", "d", 7.0, request="gw.5", addresses=(TWO,)),
    ],
    final=final(b=ONE, d=TWO, old="10.8.0.9/32"),
    residents={"old": PeerState(frozenset({"10.8.0.9/32"}))},
    commits=[Commit("gw.1", 1, 1, wrote=True, changed=True), Commit("gw.2", 2, 2, wrote=True, changed=True)],
    away=[Window(3.5, 4.5)],
    back_after=3.0,
)


def test_a_sound_history_has_no_violation() -> None:
    assert judge(SOUND).violations == ()


class TestWhatWasConfirmed:
    def test_must_be_in_redis(self) -> None:
        assert broken(replace(SOUND, final=final(d=TWO, old="10.8.0.9/32"))) == {"I1"}

    def test_must_be_with_the_addresses_that_were_told(self) -> None:
        assert broken(replace(SOUND, final=final(b="10.8.0.7/32", d=TWO, old="10.8.0.9/32"))) == {"I1"}

    def test_must_be_in_the_kernel(self) -> None:
        lost = replace(SOUND.final, kernel={key: stored for key, stored in SOUND.final.kernel.items() if key != "b"})
        assert broken(replace(SOUND, final=lost)) == {"I2"}

    def test_gives_way_to_the_heir_of_its_address_after_a_delete_that_was_lost_and_cancelled(
        self,
    ) -> None:
        delete = call(2, "delete", "a", 2.0, end="refused", outcome="timed_out", ended=4.5)
        calls = [call(1, "create", "a", 1.0), delete, call(3, "create", "b", 2.3)]
        heir = replace(SOUND, calls=calls, final=final(b=ONE, old="10.8.0.9/32"), lost_at=3.2)
        assert broken(heir) == set()
        assert broken(replace(heir, lost_at=None)) == {"I1", "I4"}
        assert broken(replace(heir, lost_at=5.0)) == {"I1"}, "it was cancelled before"
        assert broken(replace(heir, calls=calls[:2], final=final(old="10.8.0.9/32"))) == {"I1"}, "there is no heir"

    def test_counts_no_more_once_its_caller_asked_again_and_cancelled_what_redis_had_lost(self) -> None:
        deleted = call(2, "delete", "a", 2.0)
        again = replace(deleted, number="3", began=2.5, end="refused", outcome="timed_out", ended=4.5)
        back = replace(
            SOUND,
            calls=[call(1, "create", "a", 1.0), deleted, again],
            final=final(a=ONE, old="10.8.0.9/32"),
            lost_at=3.2,
        )
        assert broken(back) == set()
        assert broken(replace(back, calls=back.calls[:2])) == {"I1"}, "nobody has cancelled it"
        assert broken(replace(back, lost_at=5.0)) == {"I1"}, "it was cancelled before"
        assert broken(replace(back, final=final(old="10.8.0.9/32"))) == set(), "or Redis has not lost it"

    def test_must_be_gone_once_its_delete_was_confirmed(self) -> None:
        assert "I1" in broken(replace(SOUND, final=final(a=ONE, d=TWO, old="10.8.0.9/32")))

    def test_includes_what_was_there_before_the_run(self) -> None:
        assert broken(replace(SOUND, final=final(b=ONE, d=TWO))) == {"I1"}

    @pytest.mark.parametrize("redo_alone", [False, True])
    def test_is_made_true_again_where_redis_lost_its_last_second(self, redo_alone: bool) -> None:  # noqa: FBT001 - pytest's
        lost = replace(SOUND, final=final(d=TWO, old="10.8.0.9/32"), lost_at=3.2, redo_alone=redo_alone)
        assert broken(lost) == {"I1"}

    def test_may_be_lost_with_the_last_second_and_the_writer_where_it_holds_a_secret(self) -> None:
        calls = [replace(call, secret=call.key == "b") for call in SOUND.calls]
        lost = replace(SOUND, calls=calls, final=final(d=TWO, old="10.8.0.9/32"), lost_at=3.2, redo_alone=True)
        assert (judge(lost).violations, judge(lost).lost) == ((), 1)
        kept = replace(lost.final, kernel=SOUND.final.kernel)
        assert broken(replace(lost, final=kept)) == set(), "the device may keep it"
        assert broken(replace(lost, final=kept, redo_alone=False)) == {"I1", "I2"}
        assert broken(replace(lost, redo_alone=False)) == {"I1"}, "a writer that lives knows it"
        assert broken(replace(lost, lost_at=3.0)) == {"I1"}, "it was confirmed after Redis came back"

    def test_to_be_gone_may_never_come_back_whatever_is_lost(self) -> None:
        calls = [replace(call, secret=True) for call in SOUND.calls]
        back = final(a="10.8.0.7/32", b=ONE, d=TWO, old="10.8.0.9/32")
        lost = judge(replace(SOUND, calls=calls, final=back, lost_at=2.2, redo_alone=True))
        assert [violation.invariant for violation in lost.violations] == ["I1"]
        assert "a confirmed delete came back" in lost.violations[0].sentence


class TestATimeout:
    def cancelled(self, **fields: object) -> Evidence:
        changed = replace(SOUND.calls[3], **fields)  # pyright: ignore[reportArgumentType] - whatever the test says
        calls = [*SOUND.calls[:3], changed, *SOUND.calls[4:]]
        return replace(SOUND, calls=calls, final=final(b=ONE, c="10.8.0.5/32", d=TWO, old="10.8.0.9/32"))

    def test_leaves_nothing(self) -> None:
        assert broken(self.cancelled()) == {"I3"}
        assert broken(self.cancelled(deadline=30.0)) == {"I3"}, "its cancel holds"

    def test_shorter_than_its_deadline_is_forgotten_with_its_cancel(self) -> None:
        assert broken(replace(self.cancelled(deadline=30.0), lost_at=7.0)) == set()
        assert broken(replace(self.cancelled(deadline=30.0), lost_at=2.9)) == {"I3"}, "it was cancelled later"

    @pytest.mark.parametrize("deadline", [None, 1.0, 2.0])
    def test_that_ends_with_its_deadline_needs_no_cancel(self, deadline: float | None) -> None:
        assert broken(replace(self.cancelled(deadline=deadline), lost_at=7.0)) == {"I3"}


FACTS = Facts(
    {
        "phase": "serving",
        "epoch": "2",
        "seq": "40",
        "peers": "3",
        "public_key": "key",
        "listen_port": "51820",
        "holder_pid": "7",
        "endpoint": "vpn.example.com:51820",
        "heartbeat": "99500",
    },
    epoch=2,
    writer=7,
    public_key="key",
    listen_port=51820,
)


class TestTheGatewaysHash:
    def evidence_with(self, facts: Facts = FACTS, **fields: str) -> Evidence:
        now = replace(facts, fields={**facts.fields, **fields})
        return replace(SOUND, final=replace(SOUND.final, facts=now, now=100.0), facts_before=FACTS)

    def test_tells_what_is_so(self) -> None:
        assert broken(self.evidence_with()) == set()
        assert broken(self.evidence_with(replace(FACTS, writer=None, public_key=None, listen_port=None))) == set()
        assert broken(self.evidence_with(seq="44", state="active", heartbeat="100200")) == set()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("phase", "recovering"),
            ("state", "draining"),
            ("epoch", "1"),
            ("peers", "4"),
            ("public_key", "another"),
            ("listen_port", "51821"),
            ("holder_pid", "8"),
            ("heartbeat", "94000"),
            ("heartbeat", "0"),
            ("endpoint", "rival.example.com:51820"),
            ("seq", "39"),
        ],
    )
    def test_may_tell_nothing_else(self, name: str, value: str) -> None:
        assert broken(self.evidence_with(FACTS, **{name: value})) == {"I12"}

    @pytest.mark.parametrize("change", [{"public_key": "another"}, {"listen_port": 1}, {"writer": 8}, {"epoch": 3}])
    def test_may_not_be_left_behind_by_the_device_or_its_writer(self, change: dict[str, object]) -> None:
        assert broken(self.evidence_with(replace(FACTS, **change))) == {"I12"}  # pyright: ignore[reportArgumentType] - likewise

    def test_may_not_forget_an_epoch(self) -> None:
        assert broken(self.evidence_with(replace(FACTS, epoch=1), epoch="1")) == {"I12"}


class TestKernelAndRedis:
    @pytest.mark.parametrize(
        "odd",
        [
            PeerState(frozenset({TWO})),
            PeerState(frozenset({ONE}), keepalive=25),
            PeerState(frozenset({ONE}), preshared_key="x"),
        ],
    )
    def test_must_agree_in_all_that_a_peer_has(self, odd: PeerState) -> None:
        kernel = {**SOUND.final.kernel, "b": odd}
        assert broken(replace(SOUND, final=replace(SOUND.final, kernel=kernel))) == {"I2"}

    def test_must_agree_on_who_there_is(self) -> None:
        kernel = {**SOUND.final.kernel, "ghost": PeerState(frozenset({"10.8.0.77/32"}))}
        assert broken(replace(SOUND, final=replace(SOUND.final, kernel=kernel))) == {"I2"}

    def test_must_agree_on_routes(self) -> None:
        assert broken(replace(SOUND, final=replace(SOUND.final, routes=frozenset({"10.77.0.0/24"})))) == {"I2"}

    def test_need_an_address_hash_that_says_the_same(self) -> None:
        owners = {**SOUND.final.owners, "10.8.0.66/32": "nobody"}
        assert broken(replace(SOUND, final=replace(SOUND.final, owners=owners))) == {"I2"}


def test_what_was_refused_must_leave_nothing() -> None:
    assert broken(replace(SOUND, final=final(b=ONE, d=TWO, c="10.8.0.4/32", old="10.8.0.9/32"))) == {"I3"}


class TestNothingTwice:
    def test_one_address_may_not_be_told_to_two_keys_at_one_time(self) -> None:
        calls = [*SOUND.calls, call(7, "create", "e", 5.0), call(8, "delete", "e", 6.0)]
        assert broken(replace(SOUND, calls=calls)) == {"I4"}

    def test_an_address_may_go_to_another_key_after_its_delete(self) -> None:
        calls = [call(1, "create", "a", 1.0), call(2, "delete", "a", 2.0), call(3, "create", "b", 2.05)]
        assert broken(Evidence(calls, final(b=ONE))) == set()

    def test_a_prefix_that_holds_another_keys_address_counts_as_the_same(self) -> None:
        calls = [*SOUND.calls, call(7, "create", "e", 5.0, addresses=("10.8.0.0/30",)), call(8, "delete", "e", 6.0)]
        assert broken(replace(SOUND, calls=calls)) == {"I4"}

    def test_one_request_may_not_be_committed_twice(self) -> None:
        commits = [*SOUND.commits, Commit("gw.1", 2, 2, wrote=True, changed=True)]
        assert broken(replace(SOUND, commits=commits)) == {"I4"}

    def test_one_request_may_not_be_answered_in_two_ways(self) -> None:
        calls = [*SOUND.calls, call(9, "create", "d", 8.0, request="gw.5", addresses=("10.8.0.5/32",))]
        assert "I4" in broken(replace(SOUND, calls=calls))

    def test_a_time_out_stays_the_answer_even_where_redis_took_no_writes(self) -> None:
        calls = [*SOUND.calls, call(9, "create", "c", 8.0, request="gw.4", addresses=("10.8.0.5/32",))]
        evidence = replace(SOUND, calls=calls, final=final(b=ONE, d=TWO, c="10.8.0.5/32", old="10.8.0.9/32"))
        assert broken(replace(evidence, away=[Window(3.0, 9.0)])) == {"I4"}


class TestEpochs:
    def test_may_not_decrease_in_commits(self) -> None:
        commits = [*SOUND.commits, Commit("gw.3", 1, 1, wrote=True, changed=True)]
        assert broken(replace(SOUND, commits=commits)) == {"I5"}

    def test_may_not_be_older_than_the_newest_that_redis_has_given(self) -> None:
        commits = [*SOUND.commits, Commit("gw.3", 2, 3, wrote=False, changed=True)]
        assert broken(replace(SOUND, commits=commits)) == {"I5"}

    def test_may_be_old_in_a_commit_that_redis_refused(self) -> None:
        commits = [*SOUND.commits, Commit("gw.3", 1, 2, wrote=False, changed=False)]
        assert broken(replace(SOUND, commits=commits)) == set()


class TestEveryCall:
    def with_fourth(self, **fields: object) -> Evidence:
        changed = replace(SOUND.calls[3], **fields)  # pyright: ignore[reportArgumentType]
        return replace(SOUND, calls=[*SOUND.calls[:3], changed, *SOUND.calls[4:]])

    def test_ends_within_two_seconds_of_its_timeout(self) -> None:
        assert broken(self.with_fourth(ended=7.2)) == {"I6"}

    def test_may_take_as_much_longer_as_its_caller_was_stopped(self) -> None:
        assert broken(self.with_fourth(ended=7.2, stalled=0.5)) == set()

    def test_may_take_as_much_longer_as_redis_took_to_answer(self) -> None:
        late = self.with_fourth(ended=7.5)
        assert broken(replace(late, slow=[Window(5.0, 5.4)])) == {"I6"}
        assert broken(replace(late, slow=[Window(2.0, 2.9), Window(5.0, 5.6)])) == set()

    def test_may_be_unknown_where_redis_took_long_to_answer(self) -> None:
        assert broken(replace(SOUND, away=[], slow=[Window(3.9, 4.6)])) == set()
        assert broken(replace(SOUND, away=[], slow=[Window(8.0, 9.0)])) == {"I6"}

    def test_ends_in_an_error_that_is_promised(self) -> None:
        assert broken(self.with_fourth(end="broken", outcome="ValueError")) == {"I6"}

    def test_is_unknown_only_while_redis_is_away(self) -> None:
        assert broken(replace(SOUND, away=[Window(8.0, 9.0)])) == {"I6"}

    def test_may_be_unknown_to_a_caller_that_did_not_run_for_a_while(self) -> None:
        def stalled(seconds: float) -> Evidence:
            unknown = replace(SOUND.calls[4], stalled=seconds)
            return replace(SOUND, calls=[*SOUND.calls[:4], unknown, SOUND.calls[5]], away=[])

        assert broken(stalled(0.4)) == {"I6"}
        assert broken(stalled(0.7)) == set()
        assert broken(replace(stalled(0.7), calls=stalled(0.7).calls[:5], final=final(b=ONE, old="10.8.0.9/32"))) == {
            "I6"
        }, "it is settled all the same"

    def test_is_settled_by_asking_again(self) -> None:
        assert "I6" in broken(replace(SOUND, calls=SOUND.calls[:5], final=final(b=ONE, old="10.8.0.9/32")))


class TestTheLane:
    @pytest.mark.parametrize("after", [None, 35.1])
    def test_must_be_back_in_time(self, after: float | None) -> None:
        assert broken(replace(SOUND, back_after=after)) == {"I7"}


def test_a_history_is_read_as_it_was_written_even_where_its_writer_was_killed(tmp_path: Path) -> None:
    history = History(tmp_path / "history", "one")
    done = history.end(history.begin("create", "a", "gw.1", 2.0, [ONE]), "ok", "created", [ONE], "")
    history.begin("delete", "a", "gw.2", 1.0)
    with (tmp_path / "history").open("a") as file:
        file.write('{"number": "one-3", "act": ')
    first, second = read([tmp_path / "history"])
    assert first == done
    assert (second.request, second.end, second.ended) == ("gw.2", "open", None)
