"""What waits is carried out together: one step on the device, one commit, and each request's own outcome."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest
from gateways import MakeClient, MakeGateway, MakeSettings, close
from grouped_lane import GroupedLane
from keys import some_key
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError
from servers import RedisServer
from waiting import eventually
from writer_alone import create_peer

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.admission.quota import share_key
from peerlane.tasks.errors import Conflict, Draining, PoolExhausted, TimedOut, WriterError
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.dataplane.memory import MemoryDataPlane
from peerlane.workers.lane.taking import BULK_BYTES, MOST_IN_A_GROUP, Taker
from peerlane.workers.peers.table import PeerTable
from peerlane.workers.store.store import Answer


def some(count: int) -> list[dict[str, Any]]:
    return [{"public_key": some_key()} for _ in range(count)]


class TestAGroup:
    def test_is_one_change_of_the_device_and_one_commit(self, lane: GroupedLane) -> None:
        sent = lane.send(*some(20))
        lane.wake()
        assert lane.kinds(sent) == ["created"] * 20
        assert (lane.commits, lane.applied) == ([20], [20])
        assert not lane.redis.exists(names.unacked_key(lane.name), names.unacked_key(lane.name, "_index"))
        lane.check()

    def test_enters_each_peer_in_the_table_once(self, lane: GroupedLane, monkeypatch: pytest.MonkeyPatch) -> None:
        entered, put = list[str](), PeerTable.put

        def watched(table: PeerTable, peer: StoredPeer, record: str | None = None) -> None:
            entered.append(peer.public_key)
            put(table, peer, record)

        monkeypatch.setattr(PeerTable, "put", watched)
        wishes = some(20)
        lane.send(*wishes)
        lane.wake()
        assert entered == [wish["public_key"] for wish in wishes]
        lane.check()

    def test_gives_addresses_in_the_order_of_arrival(self, lane: GroupedLane) -> None:
        sent = lane.send(*some(3))
        lane.wake()
        answers = [cast("dict[str, Any]", lane.outcome(request)) for request in sent]
        assert [each["allowed_ips"][0] for each in answers] == ["10.8.0.2/32", "10.8.0.3/32", "10.8.0.4/32"]

    def test_is_no_larger_than_what_redis_can_do_in_a_moment(self, lane: GroupedLane) -> None:
        sent = lane.send(*some(MOST_IN_A_GROUP + 5))
        lane.wake()
        assert lane.redis.llen(lane.queue) == 5
        lane.wake()
        assert lane.kinds(sent) == ["created"] * len(sent)
        assert lane.commits == [MOST_IN_A_GROUP, 5]

    def test_of_one_is_carried_out_as_ever(self, lane: GroupedLane) -> None:
        (sent,) = lane.send({})
        lane.wake()
        assert lane.kinds([sent]) == ["created"]
        assert lane.commits == []

    def test_tells_each_caller(self, lane: GroupedLane) -> None:
        sent = lane.send(*some(3))
        assert lane.wake_and_hear(len(sent)) == set(map(names.result_key, sent))

    def test_takes_a_key_once(self, lane: GroupedLane) -> None:
        key = some_key()
        sent = lane.send({"public_key": key}, {}, {"public_key": key}, {}, {"public_key": key, "delete": True})
        lane.wake()
        assert lane.kinds(sent) == ["created", "created", "existing", "created", "deleted"]
        assert lane.commits == [2, 2]
        lane.check()

    def test_that_comes_to_one_leaves_nothing_planned_behind(
        self, lane: GroupedLane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first is planned for a group, and goes alone after all: it is planned again, on what is committed."""
        key = some_key()
        recovered: list[object] = []
        monkeypatch.setattr(lane.writer, "recover", recovered.append)
        sent = lane.send({"public_key": key}, {"public_key": key})
        lane.wake()
        assert lane.writer.recovery_needed is None, "what was planned was taken for committed"
        assert (lane.kinds(sent), lane.commits, recovered) == (["created", "existing"], [], [])
        lane.check()

    def test_refuses_only_on_what_is_committed(self, lane: GroupedLane) -> None:
        wish = {"allowed_ips": ["10.8.0.9/32"]}
        sent = lane.send(wish, {}, wish, {})
        lane.wake()
        assert lane.kinds(sent) == ["created", "created", Conflict, "created"]
        assert lane.commits == [2]
        lane.check()

    def test_whose_first_is_cancelled_gives_its_address_to_who_conflicted(self, lane: GroupedLane) -> None:
        wish = {"allowed_ips": ["10.8.0.9/32"]}
        first, other, second = lane.send(wish, {}, wish)
        lane.before_commit = lambda: cancel(lane, first)
        lane.wake()
        assert lane.kinds([first, other, second]) == [TimedOut, "created", "created"]
        lane.check()

    def test_has_what_a_delete_frees_for_the_next_group_only(self, lane: GroupedLane) -> None:
        key = some_key()
        create_peer(lane.writer, f"{lane.name}.before", {"gateway": lane.name, "public_key": key})
        sent = lane.send({"public_key": key, "delete": True}, {}, {})
        lane.wake()
        answers = [cast("dict[str, Any]", lane.outcome(request)) for request in sent]
        assert [each["outcome"] for each in answers] == ["deleted", "created", "created"]
        assert [each["allowed_ips"][0] for each in answers[1:]] == ["10.8.0.3/32", "10.8.0.4/32"]
        lane.check()
        assert lane.writer.plane.peers().keys() == lane.writer.table.peers.keys()

    def test_that_fills_the_pool_leaves_nobody_without_an_answer(self, lane: GroupedLane) -> None:
        for number in range(2, 250):
            create_peer(lane.writer, f"{lane.name}.f{number}", {"gateway": lane.name, "public_key": some_key()})
        sent = lane.send(*some(10))
        lane.wake()
        kinds = lane.kinds(sent)
        assert set(kinds) <= {"created", PoolExhausted}
        assert len(lane.writer.table.peers) == 248 + kinds.count("created")


def cancel(lane: GroupedLane, request_id: str) -> None:
    Lanes(lane.redis, result_ttl=600).cancel(request_id)


class TestWhatGoesWrongInAGroup:
    @pytest.mark.parametrize("after", [0, 3, 9])
    def test_in_the_kernel_leaves_each_alone_and_nothing_behind(self, lane: GroupedLane, after: int) -> None:
        cast("MemoryDataPlane", lane.writer.plane).fail_next(after=after)
        sent = lane.send(*some(10))
        lane.wake()
        assert lane.kinds(sent) == ["created"] * 10
        assert lane.writer.recovery_needed is None, "the peers were settled, not everything read anew"
        lane.check()

    def test_for_one_that_is_cancelled_meanwhile_is_its_own_affair(self, lane: GroupedLane) -> None:
        wishes = some(5)
        sent = lane.send(*wishes)
        lane.before_commit = lambda: cancel(lane, sent[2])
        lane.wake()
        assert lane.kinds(sent) == ["created", "created", TimedOut, "created", "created"]
        assert wishes[2]["public_key"] not in lane.writer.plane.peers()
        assert not lane.redis.exists(names.unacked_key(lane.name))
        lane.before_commit = lambda: None
        lane.check()

    def test_for_one_that_comes_too_late_is_its_own_affair(self, lane: GroupedLane) -> None:
        deadline = lane.writer.store.clock.now_ms() + 400
        sent = lane.send({}, {"deadline": deadline}, {})

        def until_late() -> None:
            while (now := lane.redis.time())[0] * 1000 + now[1] // 1000 <= deadline:
                time.sleep(0.02)

        lane.before_commit = until_late
        lane.wake()
        assert lane.kinds(sent) == ["created", TimedOut, "created"]
        lane.check()

    def test_with_the_answer_is_asked_again_and_found_committed(self, lane: GroupedLane) -> None:
        store, commit_many = lane.writer.store, lane.writer.store.commit_many
        lost: list[object] = []

        def losing(commits: Any) -> list[Answer]:
            answers = commit_many(commits)
            if not lost:
                lost.append(answers)
                raise RedisConnectionError("the answer was lost")
            return answers

        store.commit_many = losing
        sent = lane.send(*some(4))
        lane.wake()
        assert lane.kinds(sent) == ["created"] * 4
        assert lane.writer.created == 4
        assert lane.writer.recovery_needed is None
        lane.check()

    def test_with_redis_that_takes_no_writes_leaves_each_alone(self, lane: GroupedLane) -> None:
        def full() -> None:
            raise ResponseError("OOM command not allowed when used memory > 'maxmemory'.")

        lane.before_commit = full
        sent = lane.send(*some(4))
        lane.wake()
        assert lane.kinds(sent) == ["created"] * 4
        lane.check()

    def test_with_a_result_of_a_foreign_kind_is_one_requests_misfortune(self, lane: GroupedLane) -> None:
        sent = lane.send(*some(4))
        lane.before_commit = lambda: lane.redis.lpush(names.result_key(sent[1]), "a list")
        lane.wake()
        assert lane.kinds([sent[0], *sent[2:]]) == ["created"] * 3
        lane.redis.delete(names.result_key(sent[1]))
        lane.before_commit = lambda: None
        lane.check()

    def test_with_a_gateway_that_begins_to_drain_refuses_each_create(self, lane: GroupedLane) -> None:
        sent = lane.send(*some(3))
        lane.before_commit = lambda: lane.redis.hset(names.gateway_key(lane.name), "state", "draining")
        lane.wake()
        assert lane.kinds(sent) == [Draining] * 3
        assert lane.writer.plane.peers() == {}

    def test_with_what_somebody_else_wrote_is_planned_again(self, lane: GroupedLane) -> None:
        sent = lane.send({"allowed_ips": ["10.8.0.7/32"]}, {})
        other = some_key()

        def meddle() -> None:
            record = '{"v":1,"allowed_ips":["10.8.0.7/32"],"created_at":1800000000}'
            lane.redis.hset(names.peers_key(lane.name), other, record)
            lane.redis.hset(names.addresses_key(lane.name), "10.8.0.7/32", other)

        lane.before_commit = meddle
        lane.wake()
        assert lane.kinds(sent) == [Conflict, "created"]
        assert len(lane.writer.plane.peers()) == 2
        assert other in lane.writer.plane.peers(), "what is in Redis counts"

    def test_with_a_cancelled_delete_ends_no_session(self, lane: GroupedLane) -> None:
        key = some_key()
        create_peer(lane.writer, f"{lane.name}.before", {"gateway": lane.name, "public_key": key})
        sent = lane.send({}, {"public_key": key, "delete": True, "id": "gone"}, {})
        # Cancelled after it was taken: the message itself was not in doubt.
        check_many = lane.writer.store.check_many

        def meanwhile(requests: Any) -> list[Answer]:
            cancel(lane, sent[1])
            return check_many(requests)

        lane.writer.store.check_many = meanwhile
        lane.changes.clear()
        lane.wake()
        assert lane.kinds(sent) == ["created", TimedOut, "created"]
        assert {change.public_key for change in cast("Any", lane.changes)} & {key} == set()
        assert key in lane.writer.plane.peers()

    def test_with_a_writer_that_was_replaced_is_left_to_the_new_one(self, lane: GroupedLane) -> None:
        sent = lane.send(*some(3))
        lane.before_commit = lambda: lane.redis.incr(names.epoch_key(lane.name))
        lane.wake()
        assert lane.writer.fenced
        assert not any(lane.redis.exists(names.result_key(request)) for request in sent)
        assert lane.writer.plane.peers() == {}
        assert lane.redis.llen(lane.queue) == 3

    def test_that_nobody_foresaw_leaves_each_alone_after_a_recovery(self, lane: GroupedLane) -> None:
        failed: list[bool] = []

        def unforeseen() -> None:
            if not failed:
                failed.append(True)
                raise ZeroDivisionError

        lane.before_commit = unforeseen
        sent = lane.send(*some(3))
        lane.wake()
        assert lane.kinds(sent) == ["created"] * 3
        lane.check()


class TestWhatIsTaken:
    def test_was_delivered_before_and_goes_alone(self, lane: GroupedLane) -> None:
        again = lane.send(*some(3), redelivered=True)
        fresh = lane.send(*some(3))
        for taken in (1, 2, 3):
            lane.wake()
            assert sum(lane.redis.exists(names.result_key(each)) for each in again) == taken
        assert lane.commits == []
        lane.wake()
        assert lane.kinds(again + fresh) == ["created"] * 6
        assert lane.commits == [3]

    def test_leaves_where_it_was_what_was_delivered_before(self, lane: GroupedLane) -> None:
        fresh = lane.send(*some(2))
        again = lane.send({}, redelivered=True)
        behind = lane.send({})
        lane.wake()
        assert lane.kinds(fresh) == ["created"] * 2
        assert lane.redis.llen(lane.queue) == 2
        lane.wake()
        assert lane.kinds(again) == ["created"]
        assert not lane.redis.exists(names.result_key(behind[0]))

    def test_is_no_message_and_spoils_nothing(self, lane: GroupedLane) -> None:
        sent = lane.send({})
        lane.redis.lpush(lane.queue, b"\xff no message", b'{"half": ')
        sent += lane.send({})
        lane.wake()
        assert lane.kinds(sent) == ["created"] * 2
        assert lane.redis.llen(names.poison_key(lane.name)) == 2
        assert not lane.redis.exists(names.unacked_key(lane.name), names.unacked_key(lane.name, "_index"))

    def test_counts_no_longer_in_its_share(self, lane: GroupedLane) -> None:
        lane.writer._fair_label = "tenant"  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as if the settings said so
        labels = {"tenant": "a"}
        sent = lane.send({"labels": labels}, {"labels": labels}, {})
        share = share_key(lane.name, "tenant", labels)
        lane.redis.zadd(share, dict.fromkeys(sent[:2], 1) | {"another": 1})
        lane.wake()
        assert lane.kinds(sent) == ["created"] * 3
        assert lane.commits == [3]
        assert lane.redis.zrange(share, 0, -1) == [b"another"]

    def test_from_the_bulk_queue_yields_to_what_is_interactive(self, lane: GroupedLane) -> None:
        bulk = lane.send(*some(3), bulk=True)
        lane.send({})
        lane.wake(lane.bulk)
        assert lane.kinds(bulk[:1]) == ["created"]
        assert lane.redis.llen(lane.bulk) == 2

    def test_from_the_bulk_queue_is_bounded_by_its_bytes(self, lane: GroupedLane) -> None:
        wide = [{"labels": {f"l{n}": "x" * 200 for n in range(20)}} for _ in range(20)]
        sent = lane.send(*wide, bulk=True)
        size = lane.redis.lrange(lane.bulk, 0, 0)
        lane.wake(lane.bulk)
        taken = len(sent) - lane.redis.llen(lane.bulk)
        assert taken == -(-BULK_BYTES // len(cast("list[bytes]", size)[0]))
        assert 1 < taken < 20

    def test_is_told_again_where_the_answer_was_lost(self, lane: GroupedLane) -> None:
        lane.send(*some(3))
        raw = cast("bytes", lane.redis.rpop(lane.queue))
        taker = Taker(lane.redis, lane.name, result_ttl=600)
        first = taker.once(lane.queue, raw, "tag.")
        lane.send({})
        assert taker.once(lane.queue, raw, "tag.") == first
        assert len(first[0]) == 3
        assert lane.redis.llen(lane.queue) == 1

    def test_is_one_message_where_this_user_may_not_pop_more(self, lane: GroupedLane) -> None:
        lane.redis.acl_setuser("old", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-rpop"])
        lane.send(*some(2))
        raw = cast("bytes", lane.redis.rpop(lane.queue))
        with Redis(
            unix_socket_path=cast("Any", lane.redis.connection_pool.connection_kwargs)["path"],
            username="old",
            password="x",
        ) as old:
            taken, _ = Taker(old, lane.name, result_ttl=600)(lane.queue, raw)
        assert len(taken) == 1
        assert lane.redis.llen(lane.queue) == 1

    def test_goes_one_by_one_where_the_procedure_is_refused(self, lane: GroupedLane) -> None:
        class Refused:
            def __call__(self, *_: object) -> object:
                raise NoPermissionError

        lane.channel._taker = Refused()  # noqa: SLF001
        sent = lane.send(*some(2))
        lane.wake()
        lane.wake()
        assert lane.kinds(sent) == ["created"] * 2
        assert lane.commits == []


@pytest.mark.parametrize("point", ["before_apply", "after_apply", "before_commit", "after_commit"])
def test_a_writer_that_dies_with_a_group_in_hand_loses_nothing(
    gateway: MakeGateway,
    client: MakeClient,
    redis_server: RedisServer,
    settings: MakeSettings,
    tmp_path: Path,
    point: str,
) -> None:
    control = tmp_path / "failpoints"
    site = gateway(test_failpoints=control)
    client(site).create_peer(some_key())
    site.hold()
    app, keys = PeerlaneApp(settings()), [some_key() for _ in range(12)]
    create = task_of(app, names.CREATE_PEER)
    sent = [create.apply_async(kwargs={"gateway": site.name, "public_key": key}, expires=60) for key in keys]
    control.write_text(f"{point}.group:kill")
    site.resume()
    site.await_end()
    site.start()
    answers = [each.get(timeout=30) for each in sent]
    assert [each["outcome"] for each in answers] == ["created"] * 12
    assert len({each["allowed_ips"][0] for each in answers}) == 12
    eventually(lambda: not redis_server.redis.exists(names.unacked_key(site.name)), "every message being acknowledged")
    assert set(cast("Any", redis_server.redis.hkeys(names.peers_key(site.name)))) >= set(keys)
    close(app)


def test_a_message_that_ends_the_writer_again_and_again_takes_one_group_along_and_then_dies_alone(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, settings: MakeSettings, tmp_path: Path
) -> None:
    control = tmp_path / "failpoints"
    site = gateway(test_failpoints=control)
    app, key = PeerlaneApp(settings()), some_key()
    client(site).create_peer(key)
    site.hold()
    create, delete = task_of(app, names.CREATE_PEER), task_of(app, names.DELETE_PEER)
    # The delete is what it dies of: as part of a group first, then by itself.
    poison = delete.apply_async(kwargs={"gateway": site.name, "public_key": key}, expires=90)
    others = [create.apply_async(kwargs={"gateway": site.name, "public_key": some_key()}, expires=90) for _ in range(5)]
    control.write_text("before_apply.group:kill\nbefore_apply.deleted:kill")
    site.resume()
    site.await_end()
    for _ in range(2):
        site.start(wait=False)  # it may die before anybody sees it serve
        site.await_end()
        control.write_text("before_apply.deleted:kill")
    site.start()
    assert [each.get(timeout=30)["outcome"] for each in others] == ["created"] * 5
    with pytest.raises(WriterError, match="set aside"):
        poison.get(timeout=30)
    stored = [
        json.loads(raw) for raw in cast("list[str]", redis_server.redis.lrange(names.poison_key(site.name), 0, -1))
    ]
    assert len(stored) == 1
    close(app)
