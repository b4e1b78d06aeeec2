"""What is dead in a lane is struck out many at a time; while the oldest is late, the newest are carried out."""

from __future__ import annotations

import json
import time
from typing import Any, cast

import pytest
from grouped_lane import GroupedLane
from keys import some_key
from redis import Redis
from waiting import PATIENCE
from writer_alone import create_peer

from peerlane.config import names
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.admission.quota import share_key
from peerlane.tasks.errors import TimedOut
from peerlane.tasks.wire import commit_record
from peerlane.workers.lane.taking import (
    BULK_TURN,
    LOOKED_THROUGH,
    MANY,
    MOST_DELETES,
    MOST_IN_A_GROUP,
    MOST_STRUCK_OUT,
    Dead,
    Noted,
    Taker,
)
from peerlane.workers.store.store import Answer


def now_ms(lane: GroupedLane) -> int:
    seconds, micros = lane.redis.time()
    return seconds * 1000 + micros // 1000


def cancel(lane: GroupedLane, *requests: str) -> None:
    lanes = Lanes(lane.redis, result_ttl=600)
    for request in requests:
        lanes.cancel(request)


def late(lane: GroupedLane, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"deadline": now_ms(lane) - 1_000, **more} for _ in range(count)]


def fresh(lane: GroupedLane, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"deadline": now_ms(lane) + 60_000, **more} for _ in range(count)]


def answered(lane: GroupedLane, requests: list[str]) -> list[bool]:
    return [bool(lane.redis.exists(names.result_key(request))) for request in requests]


class TestTheDead:
    def test_are_struck_out_when_they_were_cancelled(self, lane: GroupedLane) -> None:
        sent = lane.send(*fresh(lane, 5))
        cancel(lane, *sent[1:4])
        lane.wake()
        assert lane.kinds(sent) == ["created", TimedOut, TimedOut, TimedOut, "created"]
        assert (lane.commits, lane.applied) == ([2], [2])
        assert lane.writer.answered == 5
        assert not lane.redis.exists(names.unacked_key(lane.name), names.unacked_key(lane.name, "_index"))
        lane.check()

    @pytest.mark.parametrize("unheard", [False, True], ids=["by the header", "by the arguments"])
    def test_are_struck_out_when_they_are_late_and_their_callers_told(
        self, lane: GroupedLane, *, unheard: bool
    ) -> None:
        sent = lane.send(*late(lane, 3, unheard=unheard), *fresh(lane, 2))
        assert lane.wake_and_hear(len(sent)) == set(map(names.result_key, sent))
        assert lane.kinds(sent) == [TimedOut] * 3 + ["created"] * 2
        assert lane.applied == [2]
        assert lane.writer.answered == 5
        stored = cast("bytes", lane.redis.get(names.result_key(sent[0]))).decode()
        written, expected = (commit_record.decode, commit_record.late(sent[0]))
        for record in (stored, expected):
            with pytest.raises(TimedOut, match="its deadline had passed before the gateway could commit it"):
                written(record)
        assert set(stored.split('"')) - set(expected.split('"')) <= {stored.split('"date_done":"')[1].split('"')[0]}
        assert 0 < lane.redis.ttl(names.result_key(sent[0])) <= 600
        lane.check()

    def test_are_told_on_the_one_channel_of_a_caller(self, lane: GroupedLane) -> None:
        reply = "0" * 32
        lane.send(*late(lane, 1, id=f"{reply}_7"), *fresh(lane, 1))
        with lane.redis.pubsub(ignore_subscribe_messages=True) as heard:
            heard.subscribe(names.result_key(f"{lane.name}.{reply}"))
            heard.get_message(timeout=PATIENCE)
            lane.wake()
            message = cast("Any", heard.get_message(timeout=PATIENCE))
        assert b"TimedOut" in message["data"]

    def test_have_the_outcome_that_they_had(self, lane: GroupedLane) -> None:
        key = some_key()
        first = lane.send({"public_key": key, "id": "same"})
        lane.wake()
        before = lane.redis.get(names.result_key(first[0]))
        lane.send({"public_key": key, "id": "same", "deadline": now_ms(lane) - 5}, {})
        lane.applied.clear()
        lane.wake()
        assert lane.redis.get(names.result_key(first[0])) == before
        assert lane.applied == [1]
        lane.check()

    def test_no_longer_count_in_their_shares(self, lane: GroupedLane) -> None:
        lane.writer._fair_label = "tenant"  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as if the settings said so
        labels = {"tenant": "a"}
        sent = lane.send(*late(lane, 2, labels=labels), *late(lane, 1, labels=labels, unheard=True), *fresh(lane, 1))
        sent += lane.send(*fresh(lane, 1, labels=labels))
        cancel(lane, sent[-1])
        share = share_key(lane.name, "tenant", labels)
        lane.redis.zadd(share, dict.fromkeys([*sent[:3], sent[-1]], 1) | {"another": 1})
        lane.wake()
        assert lane.redis.zrange(share, 0, -1) == [b"another"]

    def test_are_no_more_than_redis_can_strike_out_in_a_moment(self, lane: GroupedLane) -> None:
        sent = lane.send(*late(lane, MOST_STRUCK_OUT + 100), *fresh(lane, 3))
        lane.wake()
        assert answered(lane, sent[-3:]) == [True] * 3
        assert 0 < answered(lane, sent).count(False) < 100
        lane.wake()
        assert answered(lane, sent).count(False) == 0
        lane.check()

    def test_cost_the_device_and_the_list_of_taken_messages_nothing(self, lane: GroupedLane) -> None:
        lane.send(*late(lane, 20))
        before = lane.redis.info("commandstats")
        lane.wake()
        after = lane.redis.info("commandstats")
        calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
        assert calls.get("cmdstat_zadd", 0) == 0
        assert calls.get("cmdstat_hset", 0) == 0
        assert lane.commits == lane.applied == []

    def test_that_were_delivered_before_are_struck_out_too(self, lane: GroupedLane) -> None:
        sent = lane.send(*late(lane, 2), redelivered=True) + lane.send(*fresh(lane, 2))
        lane.wake()
        assert lane.kinds(sent) == [TimedOut, TimedOut, "created", "created"]
        assert lane.commits == [2]

    def test_that_come_after_one_that_was_delivered_before_are_struck_out_for_a_moment_only(
        self, lane: GroupedLane
    ) -> None:
        count = MANY + 2 * MOST_STRUCK_OUT
        sent = lane.send(*late(lane, 1), redelivered=True) + lane.send(*late(lane, count))
        lane.wake()
        assert MOST_STRUCK_OUT < sum(answered(lane, sent)) <= 1 + MOST_STRUCK_OUT + MOST_IN_A_GROUP
        while lane.redis.llen(lane.queue):
            lane.wake()
        assert all(answered(lane, sent))

    def test_are_dead_for_certain_where_the_answer_was_lost(self, lane: GroupedLane) -> None:
        sent = lane.send(*late(lane, 2), *fresh(lane, 3))
        raw = cast("bytes", lane.redis.rpop(lane.queue))
        taker = Taker(lane.redis, lane.name, result_ttl=600)
        taken, dead = taker.once(lane.queue, raw, "tag.")
        assert [each.request_id for each in dead] == sent[:2]
        assert taker.once(lane.queue, raw, "tag.") == (taken, [])
        assert len(taken) == 3
        assert answered(lane, sent) == [True, True, False, False, False]


class TestALateLane:
    def test_has_its_newest_carried_out_in_their_order(self, lane: GroupedLane) -> None:
        sent = lane.send(*late(lane, 5), *fresh(lane, MOST_IN_A_GROUP + 10))
        lane.wake()
        assert answered(lane, sent) == [True] * 5 + [False] * 10 + [True] * MOST_IN_A_GROUP
        newest = [cast("dict[str, Any]", lane.outcome(request))["allowed_ips"][0] for request in sent[15:]]
        assert newest == [f"10.8.0.{number}/32" for number in range(2, 2 + MOST_IN_A_GROUP)]
        lane.wake()
        assert answered(lane, sent) == [True] * len(sent)
        lane.check()

    def test_is_one_whose_oldest_would_be_late_before_its_commit(
        self, lane: GroupedLane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("peerlane.workers.lane.taking.NEARLY_LATE", 120_000)
        later = now_ms(lane) + 600_000
        sent = lane.send(*fresh(lane, 3), *({"deadline": later} for _ in range(MOST_IN_A_GROUP + 5)))
        lane.wake()  # the first is in hand already
        assert answered(lane, sent[1:3]) == [False] * 2
        assert answered(lane, sent[-60:]) == [True] * 60

    def test_is_none_whose_callers_cancel_for_other_reasons(self, lane: GroupedLane) -> None:
        sent = lane.send(*fresh(lane, MOST_IN_A_GROUP + 10))
        cancel(lane, *sent[:4])
        lane.wake()
        assert answered(lane, sent) == [True] * (MOST_IN_A_GROUP + 4) + [False] * 6

    def test_is_one_whose_callers_cancel_where_deadlines_are_not_told(self, lane: GroupedLane) -> None:
        sent = lane.send(*fresh(lane, MOST_IN_A_GROUP + 10, unheard=True))
        cancel(lane, *sent[:4])
        lane.wake()
        assert answered(lane, sent) == [True] * 4 + [False] * 6 + [True] * MOST_IN_A_GROUP

    @pytest.mark.parametrize("bulk", [False, True], ids=["interactive", "bulk"])
    def test_has_deletes_carried_out_first_wherever_they_wait(self, lane: GroupedLane, *, bulk: bool) -> None:
        keys = [some_key() for _ in range(3)]
        for number, key in enumerate(keys):
            create_peer(lane.writer, f"{lane.name}.b{number}", {"gateway": lane.name, "public_key": key})
        wishes = late(lane, 1) + fresh(lane, 9)
        for key in keys:
            wishes += fresh(lane, 1, public_key=key, delete=True) + fresh(lane, LOOKED_THROUGH - 200)
        sent = lane.send(*wishes, bulk=bulk)
        deletes = [request for request, wish in zip(sent, wishes, strict=True) if wish.get("delete")]
        for _ in range(-(-len(wishes) // LOOKED_THROUGH)):
            lane.wake(lane.bulk if bulk else lane.queue)
        assert lane.kinds(deletes) == ["deleted"] * 3
        assert not lane.writer.plane.peers().keys() & set(keys)
        assert answered(lane, sent).count(True) <= 3 * MOST_IN_A_GROUP + 1

    def test_does_not_take_a_name_in_a_label_for_a_delete(self, lane: GroupedLane) -> None:
        labels = {"queue": f'"{names.DELETE_PEER}"'}
        sent = lane.send(*late(lane, 1), *fresh(lane, 1, labels=labels), *fresh(lane, MOST_IN_A_GROUP))
        lane.wake()
        assert answered(lane, sent[1:2]) == [False]

    def test_leaves_alone_what_was_delivered_before(self, lane: GroupedLane) -> None:
        first = lane.send(*late(lane, 1))
        again = lane.send(*fresh(lane, 2), redelivered=True)
        behind = lane.send(*fresh(lane, 5))
        lane.wake()
        assert answered(lane, [*first, *again, *behind]) == [True] + [False] * 7
        for _ in again:
            lane.wake()
        assert answered(lane, again) == [True] * 2
        lane.wake()
        assert answered(lane, behind) == [True] * 5

    def without_the_right_to_look(self, lane: GroupedLane) -> tuple[list[Noted], list[Dead]]:
        """One step of a user whose rights an earlier version has printed."""
        lane.redis.acl_setuser(
            "old", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-lrange"]
        )
        raw = cast("bytes", lane.redis.rpop(lane.queue))
        path = cast("Any", lane.redis.connection_pool.connection_kwargs)["path"]
        with Redis(unix_socket_path=path, username="old", password="x") as old:
            return Taker(old, lane.name, result_ttl=600)(lane.queue, raw)

    def test_occupies_redis_for_a_moment_only_also_for_a_user_who_may_not_look(self, lane: GroupedLane) -> None:
        lane.send(*late(lane, 2 * MOST_STRUCK_OUT))
        taken, dead = self.without_the_right_to_look(lane)
        assert not taken
        assert len(dead) <= MOST_STRUCK_OUT + 1, "and the one that was popped"
        assert lane.redis.llen(lane.queue) >= MOST_STRUCK_OUT - 1

    def test_is_taken_in_its_order_by_a_user_who_may_not_look(self, lane: GroupedLane) -> None:
        sent = lane.send(*late(lane, 2), *fresh(lane, MOST_IN_A_GROUP + 5))
        taken, dead = self.without_the_right_to_look(lane)
        assert [each.request_id for each in dead] == sent[:2]
        assert [request for each in taken for request in sent if request.encode() in each.message] == sent[2:66]

    def test_with_few_waiting_has_all_of_them_carried_out(self, lane: GroupedLane) -> None:
        sent = lane.send(*late(lane, 2), *fresh(lane, 10))
        lane.wake()
        assert lane.kinds(sent) == [TimedOut] * 2 + ["created"] * 10
        assert lane.commits == [10]
        lane.check()


class TestALaneInWhichManyWait:
    def deletes(self, lane: GroupedLane, count: int, **more: Any) -> list[dict[str, Any]]:
        return fresh(lane, count, delete=True, **more)

    def test_has_deletes_carried_out_before_all_else_though_nothing_is_late(self, lane: GroupedLane) -> None:
        sent = lane.send(*fresh(lane, MANY), *self.deletes(lane, 1), *fresh(lane, MANY), *self.deletes(lane, 1))
        lane.wake()
        assert lane.kinds([sent[MANY], sent[-1]]) == ["absent"] * 2
        assert answered(lane, sent[:MANY]) == [True] * (MOST_IN_A_GROUP - 2) + [False] * (MANY - MOST_IN_A_GROUP + 2)

    def test_looks_at_each_message_once(self, lane: GroupedLane) -> None:
        lane.send(*fresh(lane, LOOKED_THROUGH - 10))
        lane.wake()
        before = lane.redis.info("commandstats")["cmdstat_lrange"]["calls"]
        lane.wake()
        assert lane.redis.info("commandstats")["cmdstat_lrange"]["calls"] == before
        sent = lane.send(*self.deletes(lane, 1), *fresh(lane, 5))
        lane.wake()
        assert lane.redis.info("commandstats")["cmdstat_lrange"]["calls"] == before + 1
        assert answered(lane, sent) == [True] + [False] * 5

    def test_looks_at_all_anew_where_somebody_else_has_taken_from_it(self, lane: GroupedLane) -> None:
        lane.send(*fresh(lane, MANY + 200))
        lane.wake()
        sent = lane.send(*self.deletes(lane, 1), *fresh(lane, 10))
        for _ in range(50):
            lane.redis.rpop(lane.queue)
        lane.wake()
        assert answered(lane, sent[:1]) == [True]

    def test_serves_creates_beside_a_flood_of_deletes(self, lane: GroupedLane) -> None:
        sent = lane.send(*fresh(lane, 20), *self.deletes(lane, MANY))
        lane.wake()
        assert answered(lane, sent[:20]) == [True] * (MOST_IN_A_GROUP - MOST_DELETES) + [False] * 4
        assert answered(lane, sent[20:]).count(True) == MOST_DELETES
        while lane.redis.llen(lane.queue):
            lane.wake()
        assert answered(lane, sent) == [True] * len(sent)

    def test_gives_deletes_that_can_still_be_in_time_before_those_that_hardly_can(
        self, lane: GroupedLane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("peerlane.workers.lane.taking.NEARLY_LATE", 120_000)
        later = now_ms(lane) + 600_000
        sent = lane.send(*self.deletes(lane, 60), *({"deadline": later, "delete": True} for _ in range(MANY)))
        lane.wake()
        assert answered(lane, sent[1:60]) == [False] * 59
        assert answered(lane, sent[60:]).count(True) >= MOST_DELETES

    def test_has_one_by_one_what_may_only_be_popped_by_the_event_loop(self, lane: GroupedLane) -> None:
        rights = ["+@all", "-rpop", "-lrange", "-lrem"]
        lane.redis.acl_setuser("old", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=rights)
        sent = lane.send(*fresh(lane, MANY + 10))
        raw = cast("bytes", lane.redis.rpop(lane.queue))
        path = cast("Any", lane.redis.connection_pool.connection_kwargs)["path"]
        with Redis(unix_socket_path=path, username="old", password="x") as old:
            taken, dead = Taker(old, lane.name, result_ttl=600)(lane.queue, raw)
        assert dead == []
        assert [sent[0].encode() in each.message for each in taken] == [True]

    def test_takes_a_sweep_before_what_else_waits_for_bulk(self, lane: GroupedLane) -> None:
        lane.send(*fresh(lane, MANY + 10), bulk=True)
        (message,) = cast("list[bytes]", lane.redis.lrange(lane.bulk, 0, 0))
        envelope = json.loads(message)
        identity = names.request_id(lane.name, "sweep")
        envelope["headers"] |= {"task": names.REMOVE_PEERS, "id": identity}
        victims = [{"public_key": some_key(), "reason": "expired", "created_at": 1}]
        envelope["body"] = json.dumps([[], {"gateway": lane.name, "victims": victims}, {}])
        envelope["properties"] |= {"delivery_tag": identity}
        lane.redis.lpush(lane.bulk, json.dumps(envelope))
        lane.wake(lane.bulk)
        assert answered(lane, [identity]) == [True]
        assert lane.redis.llen(lane.bulk) == MANY + 10, "a slice goes alone"


class TestBulk:
    def test_has_a_turn_beside_a_flood_of_interactive_requests(self, lane: GroupedLane) -> None:
        sent = lane.send(*fresh(lane, MOST_IN_A_GROUP * (BULK_TURN + 2)))
        bulk = lane.send(*fresh(lane, 3), bulk=True)
        for _ in range(BULK_TURN):
            lane.wake()
        assert answered(lane, bulk) == [False] * 3
        lane.wake()
        assert answered(lane, bulk) == [True] * 3
        for _ in range(2):
            lane.wake()
        assert answered(lane, sent) == [True] * len(sent)
        lane.check()

    def test_has_no_turn_where_no_lane_is_full(self, lane: GroupedLane) -> None:
        bulk = lane.send(*fresh(lane, 3), bulk=True)
        for _ in range(BULK_TURN + 2):
            lane.send(*fresh(lane, MOST_IN_A_GROUP - 1))
            lane.wake()
        assert answered(lane, bulk) == [False] * 3


class TestWhatIsNearlyLate:
    def test_is_asked_for_and_goes_with_the_others(self, lane: GroupedLane) -> None:
        deadline = now_ms(lane) + 95
        asked: list[int] = []
        check_many = lane.writer.store.check_many

        def watched(requests: Any) -> list[Answer]:
            asked.append(len(requests))
            return check_many(requests)

        lane.writer.store.check_many = watched
        sent = lane.send({"deadline": deadline + 60_000}, *({"deadline": deadline} for _ in range(3)))
        lane.wake()
        kinds = lane.kinds(sent)
        assert kinds[0] == "created"
        assert set(kinds) <= {"created", TimedOut}
        assert asked in ([3], [])  # none, where this machine was so slow that all of them were dead
        lane.check()

    def test_and_cancelled_meanwhile_never_touches_the_device(
        self, lane: GroupedLane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("peerlane.workers.writer.group.NEARLY_LATE", 120_000)
        sent = lane.send(*fresh(lane, 4))
        check_many = lane.writer.store.check_many

        def meanwhile(requests: Any) -> list[Answer]:
            cancel(lane, sent[1])
            return check_many(requests)

        lane.writer.store.check_many = meanwhile
        lane.wake()
        assert lane.kinds(sent) == ["created", TimedOut, "created", "created"]
        assert lane.applied == [3]
        assert lane.writer.recovery_needed is None
        lane.check()

    def test_all_of_it_cancelled_meanwhile_needs_no_recovery(
        self, lane: GroupedLane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("peerlane.workers.writer.group.NEARLY_LATE", 120_000)
        sent = lane.send(*fresh(lane, 4))
        check_many = lane.writer.store.check_many

        def meanwhile(requests: Any) -> list[Answer]:
            cancel(lane, *sent)
            return check_many(requests)

        lane.writer.store.check_many = meanwhile
        lane.wake()
        assert lane.kinds(sent) == [TimedOut] * 4
        assert lane.applied == []
        assert lane.writer.recovery_needed is None
        assert "unforeseen" not in caplog.text
        lane.check()

    def test_is_late_by_the_servers_clock(self, lane: GroupedLane, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("peerlane.workers.writer.group.NEARLY_LATE", 120_000)
        deadline = now_ms(lane) + 150
        sent = lane.send({"deadline": deadline}, *fresh(lane, 3))
        check_many = lane.writer.store.check_many

        def meanwhile(requests: Any) -> list[Answer]:
            while now_ms(lane) <= deadline:
                time.sleep(0.01)
            return check_many(requests)

        lane.writer.store.check_many = meanwhile
        lane.wake()
        assert lane.kinds(sent) == [TimedOut, "created", "created", "created"]
        assert lane.applied == [3]
        lane.check()


@pytest.mark.parametrize("order", ["late_first", "late_last"])
def test_a_request_that_was_asked_again_with_time_left_is_carried_out_though_an_earlier_message_is_late(
    lane: GroupedLane, order: str
) -> None:
    """Its caller had chosen its id, and the lane stood still until nothing was known of the first try any more."""
    wish = {"public_key": some_key(), "id": f"again-{order}", "unheard": True}
    late, timely = {**wish, "deadline": 1}, {**wish, "deadline": lane.writer.store.clock.now_ms() + 600_000}
    both = (late, timely) if order == "late_first" else (timely, late)
    other, *messages = lane.send({"public_key": some_key()}, *both, {"public_key": some_key()})
    lane.wake()
    assert lane.kinds([other, *messages]) == ["created"] * 4
    assert not lane.redis.exists(names.unacked_key(lane.name), names.unacked_key(lane.name, "_index"))
    lane.check()
