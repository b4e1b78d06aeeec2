"""Peers that only the device has: they stay where a person must decide, and what a writer has begun does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forgetful import Moment
from grouped_lane import GroupedLane
from keys import key_number, some_key
from redis import Redis
from servers import RedisServer
from writer_alone import POOLS, WriterAlone, carry_out, create_peer

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError, TimedOut
from peerlane.tasks.status.alarms import clear_alarm
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire import commit_record
from peerlane.workers.dataplane import DevicePeer, SetPeer
from peerlane.workers.peers.drift import MANY_UNKNOWN
from peerlane.workers.start.loss import LOST_DATA
from peerlane.workers.start.recovery import keep
from peerlane.workers.store.store import Store
from peerlane.workers.writer.struck_out import end_struck_out


class Bench(WriterAlone):
    """A writer, what others put on its device, and its successors."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        super().__init__(server, directory)
        self.directory = directory
        self.bytes = Redis.from_url(server.url)
        self._clients.append(self.bytes)

    def put(self, number: int, *allowed_ips: str, **fields: Any) -> str:
        """A peer on the device that Redis does not know; its key."""
        addresses = frozenset(map(Prefix.parse, allowed_ips)) or {Prefix.host(4, POOLS[0].network + 100 + number)}
        self.plane.apply([SetPeer(key_number(number), frozenset(addresses), **fields)])
        return key_number(number)

    def first_start(self) -> None:
        self.raw.hdel(names.gateway_key(self.name), "began")
        self.writer = self.new_writer()

    def at_apply(self, then: Callable[[], object]) -> None:
        """Have this happen once the device has the next request's changes."""
        apply = self.plane.apply

        def watched(changes: Any) -> None:
            apply(changes)
            self.plane.apply = apply
            then()

        self.plane.apply = watched

    def cancelled(self, request: str) -> Callable[[], object]:
        """What the caller of a request does when it has waited for long enough."""
        return lambda: self.raw.set(names.result_key(request), commit_record.tombstone(request))

    def importing(self, request: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
        lines = [json.dumps(entry) for entry in entries]
        self.raw.rpush(names.staged_key(self.name, "t"), *lines)
        digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
        wish = {"gateway": self.name, "token": "t", "count": len(lines), "digest": digest}
        return carry_out(self.writer, names.IMPORT_PEERS, request, wish)

    def start_anew(self, in_hand: frozenset[str] = frozenset(), unknown: int = 0) -> None:
        """A writer's start; ``unknown``: so many outcomes of earlier writers Redis knows nothing of."""
        redis = Redis.from_url(self.server.url, socket_timeout=2)
        self._clients.append(redis)
        store = Store(redis, self.name, result_ttl=600)
        store.open_epoch()
        store.sequence.lost.unknown = unknown
        self.writer = type(self.writer)(self.policy, store, self.plane, self.writer.facts)
        self.writer.recover(in_hand=in_hand)


def message_of(request: str, wish: dict[str, Any]) -> bytes:
    """The message of a create, as it waits in the lane."""
    headers = {"id": request, "task": names.CREATE_PEER}
    return json.dumps({"headers": headers, "properties": {}, "body": json.dumps([[], wish, {}])}).encode()


@pytest.fixture
def bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(redis_server, tmp_path)
    yield made
    made.close()


class TestWhatAWriterHasKept:
    def test_stays_at_its_next_recovery(self, bench: Bench) -> None:
        theirs = bench.put(1)
        bench.first_start()
        bench.writer.recovery_needed = "Redis has restarted"
        done = bench.writer.recover()
        assert theirs in bench.plane.peers()
        assert list(done.kept) == [theirs]
        assert theirs in bench.writer.table.foreign, "nobody gets its addresses"

    def test_goes_with_what_others_put_there_since_left_out(self, bench: Bench) -> None:
        kept = bench.put(1)
        bench.first_start()
        bench.put(2)
        bench.writer.recovery_needed = "Redis has restarted"
        bench.writer.recover()
        assert set(bench.plane.peers()) == {kept}

    def test_stays_at_every_start_until_a_person_has_looked_at_what_redis_lost(self, bench: Bench) -> None:
        confirmed = bench.put(1)
        bench.start_anew(unknown=1)
        assert confirmed in bench.plane.peers()
        bench.start_anew()
        assert confirmed in bench.plane.peers(), "the alarm stands: it says that it is kept"
        clear_alarm(bench.bytes, bench.name, LOST_DATA)
        bench.start_anew()
        assert confirmed not in bench.plane.peers()


class TestAnImportThatIsCancelled:
    @pytest.mark.parametrize("unknown", ["remove", "adopt"])
    def test_leaves_none_of_its_peers_on_an_empty_device(self, bench: Bench, unknown: Any) -> None:
        bench.unknown = unknown
        bench.writer = bench.new_writer()
        entries = [
            {"public_key": key_number(n), "allowed_ips": [f"10.8.0.{n}/32"]} for n in range(2, 80 + MANY_UNKNOWN)
        ]
        request = bench.request()
        bench.at_apply(bench.cancelled(request))
        with pytest.raises(TimedOut):
            bench.importing(request, entries)
        made = bench.create(key_number(2))
        assert made["outcome"] == "created"
        bench.agree()

    @pytest.mark.parametrize("known", [True, False], ids=["kept at the start", "put there since"])
    def test_leaves_what_the_device_had_before(self, bench: Bench, *, known: bool) -> None:
        bench.unknown = "keep"
        if not known:
            bench.writer = bench.new_writer()
        theirs = [bench.put(1, "192.168.7.0/24"), bench.put(2)]
        if known:
            bench.writer = bench.new_writer()
        before = bench.plane.peers()
        request = bench.request()
        bench.at_apply(bench.cancelled(request))
        with pytest.raises(TimedOut):
            carry_out(bench.writer, names.IMPORT_PEERS, request, {"gateway": bench.name, "live": True})
        assert bench.plane.peers() == before
        assert bench.records == {}
        again = carry_out(bench.writer, names.IMPORT_PEERS, bench.request(), {"gateway": bench.name, "live": True})
        assert again["created"] == len(theirs)
        bench.agree()

    def test_gives_back_what_it_has_changed(self, bench: Bench) -> None:
        bench.unknown = "keep"
        theirs = bench.put(1, "10.8.0.77/32", keepalive=5)
        bench.writer = bench.new_writer()
        before = bench.plane.peers()
        request = bench.request()
        bench.at_apply(bench.cancelled(request))
        with pytest.raises(TimedOut):
            bench.importing(request, [{"public_key": theirs, "allowed_ips": ["10.8.0.78/32"], "keepalive": 9}])
        assert bench.plane.peers() == before
        assert theirs in bench.writer.table.foreign

    def test_that_redis_refuses_to_store_leaves_the_device_as_it_was(self, bench: Bench) -> None:
        bench.unknown = "keep"
        bench.put(1)
        bench.writer = bench.new_writer()
        before = bench.plane.peers()
        bench.raw.config_set("maxmemory", 1)
        try:
            with pytest.raises(PeerlaneError, match="nothing was changed"):
                carry_out(bench.writer, names.IMPORT_PEERS, bench.request(), {"gateway": bench.name, "live": True})
        finally:
            bench.raw.config_set("maxmemory", 0)
        assert bench.plane.peers() == before

    def test_of_a_delete_gives_the_peer_back(self, bench: Bench) -> None:
        bench.unknown = "keep"
        theirs = bench.put(1)
        bench.writer = bench.new_writer()
        before = bench.plane.peers()
        request = bench.request()
        bench.at_apply(bench.cancelled(request))
        with pytest.raises(TimedOut):
            bench.delete(theirs, request=request)
        assert bench.plane.peers() == before


class TestACreateInHandWhenRedisLostData:
    """Its caller may have been told its addresses: of a commit with a preshared key in clear no file has a copy."""

    @pytest.fixture
    def answered(self, bench: Bench) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
        """A peer that was confirmed, though Redis holds its create as taken and not done; a smaller address is free."""
        lower = bench.create()
        key, request = some_key(), bench.request()
        wish = {"gateway": bench.name, "public_key": key, "preshared_key": some_key()}
        bench.delete(lower["public_key"])
        bench.create()  # takes the smallest one
        before = Moment(bench.bytes, bench.name)
        answer = create_peer(bench.writer, request, wish)
        before.come_back()
        (key_of_smallest,) = bench.records
        bench.start_anew(in_hand=frozenset({key}), unknown=1)
        bench.delete(key_of_smallest)
        return key, request, wish, answer

    def test_stays_on_the_device(self, bench: Bench, answered: tuple[str, str, dict[str, Any], dict[str, Any]]) -> None:
        key, _, _, answer = answered
        assert {str(p) for p in bench.plane.peers()[key].allowed_ips} == set(answer["allowed_ips"])
        assert bench.create()["allowed_ips"] != answer["allowed_ips"], "nobody else gets them"

    def test_is_given_the_same_addresses_when_its_message_comes_again(
        self, bench: Bench, answered: tuple[str, str, dict[str, Any], dict[str, Any]]
    ) -> None:
        _, request, wish, answer = answered
        again = carry_out(bench.writer, names.CREATE_PEER, request, wish, redelivered=True)
        assert (again["outcome"], again["allowed_ips"]) == ("created", answer["allowed_ips"])
        bench.agree()

    def test_in_a_list_too(self, bench: Bench, answered: tuple[str, str, dict[str, Any], dict[str, Any]]) -> None:
        key, _, wish, answer = answered
        listed = {name: value for name, value in wish.items() if name != "gateway"}
        again = carry_out(
            bench.writer, names.CREATE_PEERS, bench.request(), {"gateway": bench.name, "wishes": [listed]}
        )
        assert again["answers"][0]["allowed_ips"] == answer["allowed_ips"]
        assert key in bench.records
        bench.agree()

    @pytest.mark.parametrize("taken", [True, False], ids=["when it is taken", "when it is struck out"])
    def test_goes_where_its_caller_has_cancelled_it_during_the_start(
        self, bench: Bench, answered: tuple[str, str, dict[str, Any], dict[str, Any]], *, taken: bool
    ) -> None:
        key, request, wish, _ = answered
        bench.cancelled(request)()
        if taken:
            with pytest.raises(TimedOut):
                carry_out(bench.writer, names.CREATE_PEER, request, wish, redelivered=True)
        else:
            end_struck_out(bench.writer, [(request, message_of(request, wish), commit_record.tombstone(request))])
        assert key not in bench.plane.peers()
        bench.agree()

    def test_stays_where_it_was_only_late(
        self, bench: Bench, answered: tuple[str, str, dict[str, Any], dict[str, Any]]
    ) -> None:
        """Who still waits for it cancels it at its deadline; who does not has been told."""
        key, request, wish, _ = answered
        for record in ("", commit_record.late(request)):
            end_struck_out(bench.writer, [(request, message_of(request, wish), record)])
        with pytest.raises(TimedOut):
            carry_out(bench.writer, names.CREATE_PEER, request, {**wish, "deadline": 1}, redelivered=True)
        assert key in bench.plane.peers()

    def test_goes_where_it_is_refused(
        self, bench: Bench, answered: tuple[str, str, dict[str, Any], dict[str, Any]]
    ) -> None:
        key, request, wish, _ = answered
        bench.at_apply(bench.cancelled(request))
        with pytest.raises(TimedOut):
            carry_out(bench.writer, names.CREATE_PEER, request, wish, redelivered=True)
        assert key not in bench.plane.peers()
        bench.agree()


def test_what_was_begun_goes_once_its_cancelled_message_is_struck_out_of_the_lane(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    lane = GroupedLane(redis_server, tmp_path)
    try:
        begun = DevicePeer(some_key(), None, 0, frozenset({Prefix.host(4, POOLS[0].network + 9)}))
        lane.writer.plane.apply([SetPeer(begun.public_key, begun.allowed_ips)])
        keep(lane.writer.table, begun, "it was being created")
        lane.writer.table.begun.add(begun.public_key)
        cancelled, other = lane.send({"public_key": begun.public_key}, {}, redelivered=True)
        lane.redis.set(names.result_key(cancelled), commit_record.tombstone(cancelled))
        lane.wake()
        if lane.redis.llen(lane.queue):
            lane.wake()
        assert lane.kinds([other]) == ["created"]
        assert begun.public_key not in lane.writer.plane.peers()
        assert begun.public_key not in lane.writer.table.peers
    finally:
        lane.close()
