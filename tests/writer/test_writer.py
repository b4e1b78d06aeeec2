"""The writer in this process, on a real server and a device in memory: every request has one outcome, on all three."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from keys import some_key
from redis import Redis
from servers import RedisServer
from waiting import PATIENCE, eventually
from writer_alone import WatchedPlane, WriterAlone

from peerlane.config import names
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import (
    Conflict,
    Draining,
    Fenced,
    Invalid,
    KernelError,
    PeerlaneError,
    PoolExhausted,
    StorageError,
    TimedOut,
    WriterError,
)
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import Peer
from peerlane.workers.dataplane import Change, RemovePeer, SetPeer
from peerlane.workers.store.retry import ShutdownRequested


@pytest.fixture
def own_bench(own_redis: RedisServer, tmp_path: Path) -> Iterator[WriterAlone]:
    """For tests that hurt the server."""
    own_bench = WriterAlone(own_redis, tmp_path)
    yield own_bench
    own_bench.close()


class TestARequest:
    def test_to_create_answers_a_whole_client_configuration(self, bench: WriterAlone) -> None:
        key, request = some_key(), bench.request()
        answer = bench.create(key, request=request, preshared_key=some_key(), labels={"a": "b"}, ttl=60, keepalive=25)
        assert answer["outcome"] == "created"
        assert (answer["public_key"], answer["gateway"]) == (key, bench.name)
        assert answer["allowed_ips"] == ["10.8.0.2/32", "fd00:8::2/128"]
        assert (answer["gateway_public_key"], answer["endpoint"]) == (bench.public_key, "gw:51820")
        assert (answer["labels"], answer["ttl"], answer["keepalive"]) == ({"a": "b"}, 60, 25)
        assert abs(answer["expires_at"] - answer["created_at"] - 60) <= 1
        assert answer["has_preshared_key"] is True
        assert bench.outcome(request) == answer
        assert bench.plane.peers()[key].keepalive == 25
        bench.agree()

    def test_shows_no_preshared_key_in_its_outcome(self, bench: WriterAlone) -> None:
        psk, request = some_key(), bench.request()
        bench.create(request=request, preshared_key=psk)
        assert psk not in str(bench.raw.get(names.result_key(request)))

    def test_to_create_what_is_there_is_existing_and_touches_no_device(self, bench: WriterAlone) -> None:
        key = some_key()
        first = bench.create(key)
        bench.plane.made.clear()
        again = bench.create(key)
        assert again == {**first, "outcome": "existing"}
        assert bench.plane.made == []

    def test_to_delete_removes_and_frees(self, bench: WriterAlone) -> None:
        key = some_key()
        bench.create(key, allowed_ips=["10.8.0.77", "192.168.5.0/24"])
        bench.agree()
        answer = bench.delete(key)
        assert (answer["outcome"], answer["allowed_ips"]) == ("deleted", ["10.8.0.77/32", "192.168.5.0/24"])
        assert bench.records == {}
        bench.agree()
        assert bench.create(allowed_ips=["10.8.0.77"])["outcome"] == "created"

    def test_to_delete_what_is_not_there_is_absent(self, bench: WriterAlone) -> None:
        key = some_key()
        request = bench.request()
        assert bench.delete(key, request=request) == {"outcome": "absent", "gateway": bench.name, "public_key": key}
        assert bench.outcome(request)["outcome"] == "absent"
        assert bench.plane.made == []

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"public_key": "hello"}, Invalid),
            ({"gateway": "elsewhere"}, Invalid),
            ({"allowed_ips": ["10.8.0.2/32"]}, Conflict),
            ({"allowed_ips": ["10.8.0.0/24"]}, Conflict),
            ({"allowed_ips": ["172.16.0.1"]}, Invalid),
            ({"colour": "red"}, Invalid),
            ({"ttl": -1}, Invalid),
            ({"deadline": "soon"}, Invalid),
        ],
    )
    def test_that_is_refused_leaves_its_refusal_and_nothing_else(
        self, bench: WriterAlone, arguments: dict[str, Any], error: type[PeerlaneError]
    ) -> None:
        bench.create()
        bench.plane.made.clear()
        before, request = bench.records, bench.request()
        with pytest.raises(error):
            bench.create(request=request, **arguments)
        with pytest.raises(error):
            bench.outcome(request)
        assert bench.plane.made == []
        assert bench.records == before
        bench.agree()

    def test_while_draining_creates_nothing_and_deletes(self, bench: WriterAlone) -> None:
        key = some_key()
        bench.create(key)
        bench.raw.hset(names.gateway_key(bench.name), "state", "draining")
        with pytest.raises(Draining):
            bench.create()
        bench.agree()
        assert bench.delete(key)["outcome"] == "deleted"
        bench.agree()

    def test_beyond_the_limit_is_refused_until_there_is_room(self, bench: WriterAlone) -> None:
        keys = [some_key() for _ in range(253)]
        for key in keys:
            bench.create(key)
        with pytest.raises(PoolExhausted):
            bench.create()
        bench.delete(keys[100])
        assert bench.create()["allowed_ips"][0] == "10.8.0.102/32"
        bench.agree()

    def test_whose_deadline_has_passed_times_out_and_changes_nothing(self, bench: WriterAlone) -> None:
        key, request = some_key(), bench.request()
        with pytest.raises(TimedOut):
            bench.create(key, request=request, deadline=bench.now() - 1)
        assert bench.records == {}
        bench.agree()
        bench.create(key)
        bench.plane.made.clear()
        with pytest.raises(TimedOut):
            bench.delete(key, deadline=bench.now() - 1)
        assert bench.plane.made == [], "no session is broken for a delete that comes too late"
        bench.agree()


class TestTheSameRequestTwice:
    @pytest.mark.parametrize("restarted", [False, True])
    def test_is_one_request_and_no_change_to_the_device(self, bench: WriterAlone, restarted: bool) -> None:  # noqa: FBT001 - a parameter of the test
        key, first, then = some_key(), bench.request(), bench.request()
        created = bench.create(key, request=first)
        if restarted:
            bench.writer = bench.new_writer()
        bench.plane.made.clear()
        assert bench.create(key, request=first) == created
        assert bench.plane.made == []
        deleted = bench.delete(key, request=then)
        if restarted:
            bench.writer = bench.new_writer()
        bench.plane.made.clear()
        assert bench.delete(key, request=then) == deleted
        assert bench.plane.made == []
        bench.agree()

    def test_is_answered_as_the_first_time_though_the_peer_is_gone_since(self, bench: WriterAlone) -> None:
        key, request = some_key(), bench.request()
        created = bench.create(key, request=request)
        bench.delete(key)
        assert bench.create(key, request=request) == created
        assert bench.records == {}
        bench.agree()

    def test_deletes_nothing_that_was_created_since(self, bench: WriterAlone) -> None:
        key, request = some_key(), bench.request()
        bench.create(key)
        bench.delete(key, request=request)
        bench.create(key)
        bench.plane.made.clear()
        assert bench.delete(key, request=request)["outcome"] == "deleted"
        assert bench.plane.made == [], "the new peer's session is not touched"
        assert key in bench.records
        bench.agree()

    def test_stays_refused_though_it_could_be_granted_now(self, bench: WriterAlone) -> None:
        key, request = some_key(), bench.request()
        bench.create(key, allowed_ips=["10.8.0.9"])
        with pytest.raises(Conflict):
            bench.create(request=request, allowed_ips=["10.8.0.9"])
        bench.delete(key)
        with pytest.raises(Conflict):
            bench.create(request=request, allowed_ips=["10.8.0.9"])
        assert bench.records == {}
        bench.agree()

    def test_that_was_cancelled_never_takes_effect(self, bench: WriterAlone) -> None:
        key, request = some_key(), bench.request()
        lanes = Lanes(Redis.from_url(bench.server.url), result_ttl=600)
        lanes.cancel(request)
        with pytest.raises(TimedOut):
            bench.create(key, request=request)
        assert bench.records == {}
        bench.agree()
        lanes.redis.close()


class TestTheKernelRefuses:
    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_a_create_is_undone_whatever_part_was_made(self, bench: WriterAlone, after: int) -> None:
        key, request = some_key(), bench.request()
        bench.plane.fail_next(after=after, message="no memory")
        with pytest.raises(KernelError, match="no memory"):
            bench.create(key, request=request, allowed_ips=["10.8.0.9", "192.168.5.0/24"])
        with pytest.raises(KernelError):
            bench.outcome(request)
        assert bench.records == {}
        bench.agree()
        assert bench.create(key, allowed_ips=["10.8.0.9", "192.168.5.0/24"])["outcome"] == "created"
        bench.agree()

    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_a_delete_is_undone_whatever_part_was_made(self, bench: WriterAlone, after: int) -> None:
        key = some_key()
        bench.create(key, allowed_ips=["10.8.0.9", "192.168.5.0/24"], preshared_key=some_key(), keepalive=7)
        before = bench.plane.peers()[key]
        bench.plane.fail_next(after=after)
        with pytest.raises(KernelError):
            bench.delete(key)
        assert key in bench.records
        assert bench.plane.peers()[key] == before
        bench.agree()

    def test_and_again_while_undoing_then_all_is_read_anew_before_the_next_request(self, bench: WriterAlone) -> None:
        class Stubborn(WatchedPlane):
            refusals = 2

            def apply(self, changes: Sequence[Change]) -> None:
                if self.refusals:
                    self.refusals -= 1
                    raise KernelError("not now")
                super().apply(changes)

        stubborn = Stubborn()
        stubborn.open(bench.spec)
        bench.plane = bench.writer.plane = stubborn
        with pytest.raises(KernelError):
            bench.create()
        assert bench.writer.recovery_needed
        assert bench.create()["outcome"] == "created"
        bench.agree()


class TestWhatNobodyForesaw:
    def test_is_a_writer_error_and_read_anew_before_the_next_request(
        self, bench: WriterAlone, caplog: pytest.LogCaptureFixture
    ) -> None:
        key, psk, request = some_key(), some_key(), bench.request()
        bench.create()
        bench.plane.breaks = True
        with pytest.raises(WriterError, match="ZeroDivisionError; nothing was committed"):
            bench.create(key, request=request, preshared_key=psk)
        with pytest.raises(WriterError):
            bench.outcome(request)
        assert key in bench.plane.peers(), "the device has it: that is why all is read anew"
        assert "ZeroDivisionError" in caplog.text
        assert psk not in caplog.text
        assert bench.create()["outcome"] == "created"
        assert key not in bench.plane.peers()
        bench.agree()


class TestAReplacedWriter:
    def test_commits_nothing_and_undoes_what_it_had_begun(self, bench: WriterAlone) -> None:
        key, request = some_key(), bench.request()
        bench.raw.incr(names.epoch_key(bench.name))
        with pytest.raises(Fenced):
            bench.create(key, request=request)
        assert bench.raw.get(names.result_key(request)) is None, "the request is the new writer's"
        assert bench.records == {}
        assert key not in bench.plane.peers()

    def test_changes_nothing_from_then_on(self, bench: WriterAlone) -> None:
        key = some_key()
        bench.create(key)
        bench.raw.incr(names.epoch_key(bench.name))
        with pytest.raises(Fenced):
            bench.delete(key)
        bench.plane.made.clear()
        for _ in range(2):
            with pytest.raises(Fenced):
                bench.create()
            with pytest.raises(Fenced):
                bench.delete(key)
        assert bench.plane.made == []
        assert key in bench.plane.peers()

    def test_learns_it_by_a_refusal_too(self, bench: WriterAlone) -> None:
        bench.raw.incr(names.epoch_key(bench.name))
        request = bench.request()
        with pytest.raises(Fenced):
            bench.create("hello", request=request)
        assert bench.writer.fenced
        assert bench.raw.get(names.result_key(request)) is None


class TestRedisWasChangedByAnotherHand:
    def test_a_record_that_was_added_is_taken_up_by_the_next_request(self, bench: WriterAlone) -> None:
        key = some_key()
        other = Peer(public_key=key, allowed_ips=(Prefix.parse("10.8.0.200"),))
        bench.raw.hset(bench.peers_key, key, other.record())
        bench.raw.hset(names.addresses_key(bench.name), "10.8.0.200/32", key)
        assert bench.create(key)["outcome"] == "existing"
        with pytest.raises(Conflict, match="allowed_ips"):
            bench.create(key, allowed_ips=["10.8.0.201"])
        assert bench.create(key)["allowed_ips"] == ["10.8.0.200/32"]
        bench.agree()

    def test_a_record_that_was_removed_goes_from_the_device_with_the_next_request(self, bench: WriterAlone) -> None:
        key = some_key()
        bench.create(key)
        bench.raw.hdel(bench.peers_key, key)
        bench.raw.delete(names.addresses_key(bench.name))
        assert bench.delete(key)["outcome"] == "absent"
        bench.agree()

    def test_an_address_that_is_taken_again_and_again_is_told_and_left_to_its_holder(
        self, bench: WriterAlone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other, apply = some_key(), bench.plane.apply

        def while_somebody_takes_it(changes: Sequence[Change]) -> None:
            bench.raw.hset(names.addresses_key(bench.name), "10.8.0.2/32", other)
            apply(changes)

        monkeypatch.setattr(bench.plane, "apply", while_somebody_takes_it)
        with pytest.raises(WriterError, match="ask again"):
            bench.create()
        assert bench.plane.peers() == {}
        assert bench.addresses == {"10.8.0.2/32": other}

    def test_all_of_it_was_lost(self, bench: WriterAlone) -> None:
        for _ in range(3):
            bench.create()
        bench.raw.delete(bench.peers_key, names.addresses_key(bench.name))
        bench.writer.recover()
        assert bench.plane.peers() == {}
        bench.agree()


class TestARecordThatNoLongerParses:
    @pytest.mark.parametrize("record", ["garbage", "{}", '{"v":99,"allowed_ips":["10.8.0.9/32"]}', "[" * 5000])
    def test_hurts_nobody_else_and_goes_when_it_is_deleted(
        self, bench: WriterAlone, record: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad, good = some_key(), some_key()
        bench.create(bad, allowed_ips=["10.8.0.9", "192.168.9.0/24"])
        bench.create(good)
        session = bench.plane.peers()[bad]
        bench.raw.hset(bench.peers_key, bad, record)
        with caplog.at_level(logging.ERROR):
            bench.writer = bench.new_writer()
        assert bad in caplog.text, "the operator is told which"
        assert bench.plane.peers()[bad] == session, "its tunnel goes on"
        assert bench.create(good)["outcome"] == "existing"
        assert bench.create()["outcome"] == "created"
        request = bench.request()
        with pytest.raises(StorageError, match="delete the peer"):
            bench.create(bad, request=request)
        with pytest.raises(StorageError):
            bench.outcome(request)
        with pytest.raises(Conflict, match="overlaps"):
            bench.create(allowed_ips=["10.8.0.9"])
        assert bench.records[bad] == record, "it stays as it is"
        assert bench.delete(bad)["outcome"] == "deleted"
        bench.agree()
        assert bench.create(bad, allowed_ips=["10.8.0.9"])["outcome"] == "created"

    def test_under_a_name_that_is_no_key_is_left_alone(self, bench: WriterAlone) -> None:
        bench.create()
        bench.raw.hset(bench.peers_key, "no key at all", "garbage")
        bench.raw.hset(names.addresses_key(bench.name), "no prefix at all", "no key at all")
        bench.writer = bench.new_writer()
        assert bench.create()["outcome"] == "created"
        assert len(bench.plane.peers()) == 2
        assert bench.records["no key at all"] == "garbage"


class TestRedisIsFull:
    def test_nothing_is_confirmed_and_the_device_is_as_before(self, own_bench: WriterAlone) -> None:
        earlier = some_key()
        own_bench.create(earlier)
        before = own_bench.plane.peers()
        own_bench.raw.config_set("maxmemory-policy", "noeviction")
        own_bench.raw.config_set("maxmemory", "1")
        key, request = some_key(), own_bench.request()
        with pytest.raises(StorageError, match=r"\(OutOfMemoryError\); nothing was changed"):
            own_bench.create(key, request=request)
        assert own_bench.raw.get(names.result_key(request)) is None
        assert own_bench.plane.peers() == before
        own_bench.agree()
        own_bench.raw.config_set("maxmemory", "0")
        assert own_bench.create(key)["outcome"] == "created"
        own_bench.agree()

    def test_a_delete_is_whole_or_not_at_all(self, own_bench: WriterAlone) -> None:
        earlier = some_key()
        own_bench.create(earlier, allowed_ips=["10.8.0.9", "192.168.9.0/24"])
        before = own_bench.plane.peers()
        own_bench.raw.config_set("maxmemory", "1")
        try:
            own_bench.delete(earlier)
        except StorageError:
            assert earlier in own_bench.records
            assert own_bench.plane.peers() == before
        else:
            assert own_bench.records == {}
        own_bench.agree()

    def test_a_replica_that_takes_no_writes_confirms_nothing(self, own_bench: WriterAlone) -> None:
        own_bench.raw.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StorageError, match=r"\(ReadOnlyError\)"):
            own_bench.create()
        assert own_bench.plane.peers() == {}
        own_bench.raw.execute_command("REPLICAOF", "NO", "ONE")
        assert own_bench.create()["outcome"] == "created"
        own_bench.agree()


class TestRedisIsAway:
    def test_the_writer_waits_and_the_request_is_carried_out_once(self, own_bench: WriterAlone) -> None:
        own_bench.server.stop()
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: answers.append(own_bench.create()), daemon=True)
        thread.start()
        own_bench.server.start()
        thread.join(timeout=PATIENCE)
        assert not thread.is_alive()
        assert [each["outcome"] for each in answers] == ["created"]
        own_bench.agree()

    def test_a_frozen_server_is_waited_for_too(self, own_bench: WriterAlone) -> None:
        own_bench.create()
        own_bench.plane.made.clear()
        own_bench.server.pause()
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: answers.append(own_bench.create()), daemon=True)
        thread.start()
        eventually(lambda: own_bench.plane.made, "the device being changed")
        # The commit is on its way into a server that does not answer; the writer will ask more than once.
        thread.join(timeout=2.5)
        own_bench.server.resume()
        thread.join(timeout=PATIENCE)
        assert not thread.is_alive()
        assert [each["outcome"] for each in answers] == ["created"]
        assert [type(change) for change in own_bench.plane.made] == [SetPeer]
        own_bench.agree()

    def test_a_writer_that_is_told_to_stop_waits_no_longer(self, own_bench: WriterAlone) -> None:
        own_bench.server.stop()
        own_bench.stopping = True
        with pytest.raises(ShutdownRequested):
            own_bench.create()
        own_bench.stopping = False
        own_bench.server.start()
        own_bench.writer = own_bench.new_writer()
        assert own_bench.plane.peers() == {}, "the start mends what was begun"
        own_bench.agree()


class TestAStart:
    def test_mends_the_device_and_touches_nothing_that_is_right(self, bench: WriterAlone) -> None:
        keys = [some_key() for _ in range(5)]
        for key in keys:
            bench.create(key)
        stranger, lost = some_key(), keys[2]
        bench.plane.apply([RemovePeer(lost), SetPeer(stranger, frozenset({Prefix.parse("10.8.0.99")}))])
        bench.plane.handshake(keys[0], at=1.0, rx=10, tx=20)
        untouched = bench.plane.peers()[keys[0]]
        bench.writer = bench.new_writer()
        assert bench.plane.peers()[keys[0]] == untouched
        assert stranger not in bench.plane.peers()
        bench.agree()

    def test_allocates_what_is_free_and_nothing_else(self, bench: WriterAlone) -> None:
        keys = [some_key() for _ in range(4)]
        for key in keys:
            bench.create(key)
        bench.delete(keys[1])
        bench.writer = bench.new_writer()
        assert bench.create()["allowed_ips"] == ["10.8.0.3/32", "fd00:8::3/128"]
        assert bench.create()["allowed_ips"] == ["10.8.0.6/32", "fd00:8::6/128"]
        bench.agree()


def test_a_result_is_json_that_other_languages_read(bench: WriterAlone) -> None:
    request = bench.request()
    bench.create(request=request, labels={"name": "Zoë"})
    meta = json.loads(cast("str", bench.raw.get(names.result_key(request))))
    assert meta["result"]["labels"] == {"name": "Zoë"}
    assert set(meta) == {"status", "result", "traceback", "children", "date_done", "task_id"}
