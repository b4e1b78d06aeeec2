"""A list is one request: one change of the device, one commit, and an answer for each of its wishes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import pytest
from grouped_lane import GroupedLane
from hypothesis import given
from hypothesis import strategies as st
from keys import key_number, some_key
from redis.exceptions import ResponseError
from writer_alone import WriterAlone, carry_out

from peerlane.config import names
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.admission.list_quota import members
from peerlane.tasks.errors import (
    Conflict,
    Invalid,
    KernelError,
    PeerlaneError,
    StorageError,
    TimedOut,
    Unavailable,
)
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.lists import ANSWER_BYTES, read_answers, wish_of
from peerlane.tasks.wire.model import DeletePeer, PeerResult, parse
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.dataplane import Change, SetPeer
from peerlane.workers.peers.handlers import PlanningContext, decide
from peerlane.workers.peers.plan import take_out
from peerlane.workers.peers.table import PeerTable, Policy
from peerlane.workers.store.store import Answer


def create_all(bench: WriterAlone, *wishes: dict[str, Any], request: str | None = None, **more: Any) -> dict[str, Any]:
    arguments = {"gateway": bench.name, "wishes": list(wishes), **more}
    return carry_out(bench.writer, names.CREATE_PEERS, request or bench.request(), arguments)


def delete_all(bench: WriterAlone, *keys: str, request: str | None = None) -> dict[str, Any]:
    arguments = {"gateway": bench.name, "public_keys": list(keys)}
    return carry_out(bench.writer, names.DELETE_PEERS, request or bench.request(), arguments)


def kinds(result: dict[str, Any]) -> list[str]:
    return [each.get("outcome") or each["error"]["code"] for each in result["answers"]]


def some(count: int) -> list[dict[str, Any]]:
    return [{"public_key": some_key()} for _ in range(count)]


class Steps:
    """What the writer asks of the device and of Redis."""

    def __init__(self, bench: WriterAlone) -> None:
        self.applied: list[int] = []
        self.commits: list[int] = []
        apply, commit = bench.plane.apply, bench.writer.store.commit

        def watched_apply(changes: Sequence[Change]) -> None:
            if changes:
                self.applied.append(len(changes))
            apply(changes)

        def watched_commit(*arguments: Any, **named: Any) -> Answer:
            self.commits.append(len(arguments[3]) if len(arguments) > 3 else 0)
            return commit(*arguments, **named)

        bench.plane.apply = watched_apply
        bench.writer.store.commit = watched_commit


def refuse_keys(bench: WriterAlone, *keys: str) -> None:
    """Have the device refuse these peers, whatever comes with them."""
    apply = bench.plane.apply

    def refusing(changes: Sequence[Change]) -> None:
        for number, change in enumerate(changes):
            if isinstance(change, SetPeer) and change.public_key in keys:
                apply(changes[:number])  # as the kernel does: what came before it stays
                raise KernelError("the kernel refuses this peer")
        apply(changes)

    bench.plane.apply = refusing


class TestAList:
    def test_is_one_change_of_the_device_and_one_commit(self, bench: WriterAlone) -> None:
        steps = Steps(bench)
        result = create_all(bench, *some(64))
        assert kinds(result) == ["created"] * 64
        assert (steps.applied, steps.commits) == ([64], [64])
        assert [each["allowed_ips"][0] for each in result["answers"]] == [f"10.8.0.{n}/32" for n in range(2, 66)]
        bench.agree()

    def test_enters_each_peer_in_the_table_once(self, bench: WriterAlone, monkeypatch: pytest.MonkeyPatch) -> None:
        entered, add = list[str](), PeerTable.add

        def watched(table: PeerTable, peer: StoredPeer, record: str | None = None) -> None:
            assert record == peer.record()
            entered.append(peer.public_key)
            add(table, peer, record)

        def dropped(_: PeerTable, public_key: str) -> None:
            raise AssertionError(public_key)

        wishes = some(64)
        with monkeypatch.context() as patched:
            patched.setattr(PeerTable, "add", watched)
            patched.setattr(PeerTable, "drop", dropped)
            create_all(bench, *wishes)
        assert entered == [wish["public_key"] for wish in wishes]
        bench.agree()

    def test_of_deletes_is_one_too(self, bench: WriterAlone) -> None:
        wishes = some(10)
        create_all(bench, *wishes)
        steps = Steps(bench)
        keys = [wish["public_key"] for wish in wishes]
        result = delete_all(bench, *keys[:9], some_key(), keys[0])
        assert kinds(result) == ["deleted"] * 9 + ["absent", "absent"]
        assert (steps.applied, steps.commits) == ([9], [10])
        assert list(bench.records) == [keys[9]]
        bench.agree()

    def test_answers_each_wish_for_itself(self, bench: WriterAlone) -> None:
        here = bench.create(ttl=60)
        taken = "10.8.0.77/32"
        result = create_all(
            bench,
            {"public_key": some_key(), "allowed_ips": [taken]},
            {"public_key": some_key(), "allowed_ips": [taken]},
            {"public_key": here["public_key"], "ttl": 60},
            {"public_key": here["public_key"], "ttl": 61},
            {"public_key": some_key(), "allowed_ips": ["192.0.2.1/32"]},
            {"public_key": "short"},
            {"public_key": some_key(), "gateway": bench.name},
            {"public_key": some_key(), "colour": "red"},
            {"public_key": bench.public_key},
            {"public_key": some_key()},
        )
        expected = ["created", "conflict", "existing", "conflict", *["invalid"] * 5, "created"]
        assert kinds(result) == expected
        assert result["answers"][2]["allowed_ips"] == here["allowed_ips"]
        bench.agree()

    def test_that_names_a_key_twice_answers_as_if_asked_one_by_one(self, bench: WriterAlone) -> None:
        key = some_key()
        result = create_all(bench, {"public_key": key}, {"public_key": key}, {"public_key": key, "keepalive": 25})
        assert kinds(result) == ["created", "existing", "conflict"]
        bench.agree()

    def test_in_which_the_pool_ends_gives_what_there_is(self, bench: WriterAlone) -> None:
        for _ in range(3):
            create_all(bench, *some(64))
        create_all(bench, *some(50))
        here = some_key()
        bench.create(here)
        result = create_all(
            bench, *some(20), {"public_key": here}, {"public_key": some_key(), "allowed_ips": ["192.168.0.9/32"]}
        )
        assert kinds(result) == ["created"] * 10 + ["pool_exhausted"] * 10 + ["existing", "created"]
        bench.agree()

    def test_for_a_drained_gateway_still_answers_what_is_there(self, bench: WriterAlone) -> None:
        here = bench.create()["public_key"]
        bench.raw.hset(names.gateway_key(bench.name), mapping={"public_key": bench.public_key, "state": "draining"})
        assert bench.writer.state == "active", "the writer has not heard of it"
        result = create_all(bench, {"public_key": some_key()}, {"public_key": here}, {"public_key": some_key()})
        assert kinds(result) == ["draining", "existing", "draining"]
        assert list(bench.records) == [here]
        bench.agree()

    def test_delivered_again_is_answered_the_same(self, bench: WriterAlone) -> None:
        request, wishes = bench.request(), some(5)
        first = create_all(bench, *wishes, request=request)
        delete_all(bench, wishes[0]["public_key"])
        steps = Steps(bench)
        arguments = {"gateway": bench.name, "wishes": wishes}
        again = carry_out(bench.writer, names.CREATE_PEERS, request, arguments, redelivered=True)
        assert again == first
        assert steps.applied == []
        assert len(bench.records) == 4

    @pytest.mark.parametrize("how", ["cancelled", "late"])
    def test_that_was_given_up_is_not_done_at_all(self, bench: WriterAlone, how: str) -> None:
        request, deadline = bench.request(), 0
        if how == "cancelled":
            Lanes(bench.writer.store.redis, result_ttl=600).cancel(request)
        else:
            deadline = bench.now() - 1
        with pytest.raises(TimedOut):
            create_all(bench, *some(5), request=request, deadline=deadline)
        assert bench.records == {}
        bench.agree()

    def test_cancelled_between_device_and_commit_is_undone_whole(self, bench: WriterAlone) -> None:
        here = bench.create()["public_key"]
        request, lanes, commit = (
            bench.request(),
            Lanes(bench.writer.store.redis, result_ttl=600),
            bench.writer.store.commit,
        )

        def cancelled_first(*arguments: Any, **named: Any) -> Answer:
            lanes.cancel(request)
            return commit(*arguments, **named)

        bench.writer.store.commit = cancelled_first
        with pytest.raises(TimedOut):
            create_all(bench, *some(63), {"public_key": here}, request=request)
        assert list(bench.records) == [here]
        bench.agree()

    def test_that_redis_does_not_store_changes_nothing(self, bench: WriterAlone) -> None:
        store = bench.writer.store
        commit = store.commit

        def refused(*_: Any, **__: Any) -> Answer:
            store.commit = commit
            raise ResponseError("OOM command not allowed")

        store.commit = refused
        with pytest.raises(StorageError, match="nothing was changed"):
            create_all(bench, *some(10))
        assert bench.records == {}
        bench.agree()

    @pytest.mark.parametrize("wishes", cast("list[Any]", [[], [{}] * 65, "x", None, [7], [None], {"a": 1}]))
    def test_that_is_none_is_refused_whole(self, bench: WriterAlone, wishes: Any) -> None:
        with pytest.raises(Invalid, match="wishes"):
            carry_out(bench.writer, names.CREATE_PEERS, bench.request(), {"gateway": bench.name, "wishes": wishes})
        bench.agree()

    def test_for_another_gateway_is_refused_whole(self, bench: WriterAlone) -> None:
        with pytest.raises(Invalid, match="this lane serves"):
            carry_out(bench.writer, names.CREATE_PEERS, bench.request(), {"gateway": "other", "wishes": some(1)})

    def test_is_made_on_what_redis_holds_where_somebody_changed_it(self, bench: WriterAlone) -> None:
        gone = bench.create()["public_key"]
        bench.raw.hdel(bench.peers_key, gone)
        result = create_all(bench, {"public_key": gone}, *some(2))
        assert kinds(result) == ["created"] * 3
        bench.agree()


class TestAWishThatTheDeviceRefuses:
    def test_leaves_the_others(self, bench: WriterAlone) -> None:
        wishes = some(10)
        refuse_keys(bench, wishes[3]["public_key"], wishes[7]["public_key"])
        result = create_all(bench, *wishes)
        assert kinds(result) == [*["created"] * 3, "kernel_error", *["created"] * 3, "kernel_error", *["created"] * 2]
        assert result["answers"][3]["error"]["message"] == "the kernel refuses this peer"
        assert set(bench.records) == {wish["public_key"] for wish in wishes} - {
            wishes[3]["public_key"],
            wishes[7]["public_key"],
        }
        bench.agree()

    def test_gives_its_address_to_who_conflicted_with_it(self, bench: WriterAlone) -> None:
        first, second = ({"public_key": some_key(), "allowed_ips": ["10.8.0.9/32"]} for _ in range(2))
        refuse_keys(bench, str(first["public_key"]))
        assert kinds(create_all(bench, first, second, {"public_key": first["public_key"]})) == [
            "kernel_error",
            "created",
            "kernel_error",
        ]
        bench.agree()

    def test_alone_is_refused_with_that(self, bench: WriterAlone) -> None:
        (wish,) = some(1)
        refuse_keys(bench, wish["public_key"])
        assert kinds(create_all(bench, wish)) == ["kernel_error"]
        bench.agree()

    def test_that_is_not_to_be_told_refuses_the_list(self, bench: WriterAlone) -> None:
        bench.plane.fail_next(after=3)
        with pytest.raises(KernelError):
            create_all(bench, *some(10))
        assert bench.records == {}
        bench.agree()

    def test_does_not_take_a_live_peer_with_it(self, bench: WriterAlone) -> None:
        here = bench.create()["public_key"]
        (bad,) = some(1)
        refuse_keys(bench, bad["public_key"])
        assert kinds(create_all(bench, {"public_key": here}, bad)) == ["existing", "kernel_error"]
        bench.agree()


def _rest(wish: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wish.items() if name != "public_key"}


class TestTheAnswers:
    def test_are_results_as_if_each_had_been_asked_for_by_itself(self, bench: WriterAlone) -> None:
        wish: dict[str, Any] = {
            "public_key": some_key(),
            "labels": {"a": "1"},
            "ttl": 60,
            "keepalive": 5,
            "preshared_key": some_key(),
        }
        alone = PeerResult.model_validate(bench.create(wish["public_key"], **_rest(wish)))
        bench.delete(wish["public_key"])
        (in_a_list,) = read_answers(create_all(bench, wish), [wish_of(bench.name, wish)])
        assert isinstance(in_a_list, PeerResult)
        assert in_a_list.model_dump(exclude={"created_at", "expires_at"}) == alone.model_dump(
            exclude={"created_at", "expires_at"}
        )
        assert in_a_list.created_at is not None

    def test_of_deletes_too(self, bench: WriterAlone) -> None:
        wish: dict[str, Any] = {
            "public_key": some_key(),
            "labels": {"a": "1"},
            "pinned": True,
            "preshared_key": some_key(),
        }
        made = bench.create(wish["public_key"], **_rest(wish))
        alone = PeerResult.model_validate(bench.delete(wish["public_key"]))
        again = bench.create(wish["public_key"], **_rest(wish))
        key = parse(DeletePeer, {"gateway": bench.name, "public_key": wish["public_key"]})
        (in_a_list,) = read_answers(delete_all(bench, wish["public_key"]), [key])
        assert isinstance(in_a_list, PeerResult)
        assert in_a_list.model_dump() == {**alone.model_dump(), "created_at": again["created_at"]}
        assert made["public_key"] == in_a_list.public_key

    def test_hold_no_secret(self, bench: WriterAlone) -> None:
        secret, request = some_key(), bench.request()
        create_all(bench, {"public_key": some_key(), "preshared_key": secret}, request=request)
        assert secret not in str(bench.raw.get(names.result_key(request)))

    def test_are_bounded(self, bench: WriterAlone) -> None:
        request = bench.request()
        labels = {f"label{n}": "\U0001f600" * 256 for n in range(32)}
        keys = [some_key() for _ in range(8)]
        for key in keys:
            bench.create(key, labels=labels)
        result = delete_all(bench, *keys, request=request)
        done = kinds(result).count("deleted")
        assert kinds(result) == ["deleted"] * done + ["unavailable"] * (8 - done)
        assert 0 < done < 8
        assert len(str(bench.raw.get(names.result_key(request)))) < ANSWER_BYTES + 64 * 1024 + len(json.dumps(labels))
        assert set(bench.records) == set(keys[done:]), "what was refused is there still"
        bench.agree()

    @pytest.mark.parametrize(
        "answers",
        [None, [], "x", [{}], [7, 7], [{"outcome": "x"}] * 2, [{"error": 7}] * 2, [{"error": {"code": "x"}}] * 2],
    )
    def test_of_anybody_elses_making_are_errors_of_ours(self, answers: object) -> None:
        wishes = [wish_of("iad", {"public_key": key_number(number)}) for number in (1, 2)]
        try:
            results = read_answers({"gateway": "iad", "answers": answers}, wishes)
        except PeerlaneError as error:
            results = [error, error]
        assert [isinstance(each, PeerlaneError) for each in results] == [True, True]

    @pytest.mark.parametrize(
        "error", [Conflict("taken"), Unavailable("full", 2.5), KernelError("no"), Invalid("x")], ids=lambda e: e.code
    )
    def test_bring_an_error_back_as_itself(self, error: PeerlaneError) -> None:
        again = commit_record.error_from_dict(json.loads(json.dumps(error.as_dict())))
        assert type(again) is type(error)
        assert again.args == error.args


class TestInALane:
    def test_a_list_goes_alone_and_what_is_interactive_goes_between_two(self, lane: GroupedLane) -> None:
        order: list[str] = []
        commit = lane.writer.store.commit

        def watched(request_id: str, *arguments: Any, **named: Any) -> Answer:
            order.append(request_id)
            return commit(request_id, *arguments, **named)

        lane.writer.store.commit = watched
        lists = [lane.send_list(some(3)) for _ in range(3)]
        lane.wake(lane.bulk)
        assert order == lists[:1], "one list at a time"
        (asked,) = lane.send({})
        lane.wake()  # as BRPOP does: the interactive queue first
        lane.wake(lane.bulk)
        assert order == [lists[0], asked, lists[1]]
        lane.wake(lane.bulk)
        lane.check()

    def test_singles_in_front_of_a_list_go_without_it(self, lane: GroupedLane) -> None:
        singles = lane.send({}, {}, bulk=True)
        listed = lane.send_list(some(3))
        lane.wake(lane.bulk)
        assert lane.kinds(singles) == ["created"] * 2
        assert lane.redis.llen(lane.bulk) == 1
        lane.wake(lane.bulk)
        assert lane.kinds([listed]) == ["listed"]

    def test_singles_behind_a_list_wait_for_it(self, lane: GroupedLane) -> None:
        listed = lane.send_list(some(3))
        (single,) = lane.send({}, bulk=True)
        lane.wake(lane.bulk)
        assert lane.kinds([listed]) == ["listed"]
        assert lane.redis.llen(lane.bulk) == 1
        lane.wake(lane.bulk)
        assert lane.kinds([single]) == ["created"]

    def test_a_list_counts_for_each_of_its_wishes_and_lets_go_of_all(self, lane: GroupedLane) -> None:
        vars(lane.writer)["_fair_label"] = "tenant"  # a gateway's settings name it
        wishes = [{**wish, "labels": {"tenant": "ab"[number % 2]}} for number, wish in enumerate(some(6))]
        listed = lane.send_list(wishes)
        counted = members(lane.name, "tenant", listed, {"wishes": wishes})
        assert len({key for key, _ in counted}) == 2
        assert len(set(counted)) == 6
        for key, member in counted:
            lane.redis.zadd(key, {member: 10**15})
        lane.wake(lane.bulk)
        assert lane.kinds([listed]) == ["listed"]
        assert [lane.redis.zcard(key) for key, _ in counted] == [0] * 6


POLICY = Policy(
    "iad",
    key_number(999),
    (Prefix.parse("10.8.0.0/29"), Prefix.parse("fd00:8::/64")),
    (Prefix.parse("192.168.0.0/24"),),
    (Prefix.parse("10.8.0.1/32"),),
    max_peers=7,
)
KEYS = st.integers(1, 9).map(key_number)
WISHES = st.fixed_dictionaries(
    {"public_key": KEYS},
    optional={
        "keepalive": st.integers(0, 1),
        "ttl": st.integers(1, 2),
        "allowed_ips": st.lists(
            st.sampled_from(["192.168.0.1/32", "192.168.0.2/32", "10.8.0.3/32"]), min_size=1, max_size=2
        ),
    },
)


def context_of(table: PeerTable) -> PlanningContext:
    return PlanningContext(table, 10_000, "active", {}, dict, lambda _: [])


def enter(table: PeerTable, decision: Any) -> None:
    for plan in decision.plans:
        if plan.before is not plan.after:
            table.put(plan.after) if plan.after is not None else table.drop(plan.public_key)


def one_by_one(table: PeerTable, task: str, wishes: Sequence[dict[str, Any]]) -> list[str]:
    codes: list[str] = []
    for wish in wishes:
        try:
            decision = decide(task, context_of(table), {"gateway": "iad", **wish})
        except PeerlaneError as error:
            codes.append(error.code)
            continue
        enter(table, decision)
        codes.append(str(decision.result["outcome"]))
    return codes


@given(
    before=st.lists(WISHES, max_size=6),
    wishes=st.lists(WISHES, min_size=1, max_size=12),
    keys=st.lists(KEYS, min_size=1, max_size=12),
)
def test_a_list_comes_to_the_same_as_its_wishes_one_by_one(
    before: list[dict[str, Any]], wishes: list[dict[str, Any]], keys: list[str]
) -> None:
    listed, alone = PeerTable(POLICY), PeerTable(POLICY)
    for table in (listed, alone):
        one_by_one(table, names.CREATE_PEER, before)
    untouched, taken = dict(listed.peers), sorted(listed.index)
    decision = decide(names.CREATE_PEERS, context_of(listed), {"gateway": "iad", "wishes": wishes})
    assert decision.entered
    take_out(listed, decision.plans)
    assert listed.peers == untouched, "not committed, nothing of it stays"
    assert sorted(listed.index) == taken
    assert decide(names.CREATE_PEERS, context_of(listed), {"gateway": "iad", "wishes": wishes}) == decision
    assert kinds(dict(decision.result)) == one_by_one(alone, names.CREATE_PEER, wishes)
    assert listed.peers == alone.peers
    assert sorted(listed.index) == sorted(alone.index)
    decision = decide(names.DELETE_PEERS, context_of(listed), {"gateway": "iad", "public_keys": keys})
    enter(listed, decision)
    assert kinds(dict(decision.result)) == one_by_one(alone, names.DELETE_PEER, [{"public_key": key} for key in keys])
    assert listed.peers == alone.peers
    for table in (listed, alone):
        one_by_one(table, names.CREATE_PEER, [{"public_key": key_number(50)}])
    assert listed.peers == alone.peers, "the pools go on alike"
