"""The commit, on a real server: each verdict, nothing but it changed, and one winner of every race."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from gateways import new_name
from keys import some_key
from redis import Redis
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane.config import names
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import Conflict, TimedOut
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.peers.plan import Plan
from peerlane.workers.store.store import Commit, Store

TTL = 600


class Bench:
    """One gateway's store, and the means to look behind it."""

    def __init__(self, server: RedisServer) -> None:
        self.name = new_name()
        self.raw = Redis.from_url(server.url)
        self.store = Store(self.raw, self.name, result_ttl=TTL)
        self.store.open_epoch()
        self._requests = 0

    def request(self) -> str:
        self._requests += 1
        return names.request_id(self.name, f"r{self._requests}")

    def now(self) -> int:
        seconds, micros = self.raw.time()
        return seconds * 1000 + micros // 1000

    def stored(self, request: str) -> str | None:
        record = cast("bytes | None", self.raw.get(names.result_key(request)))
        return None if record is None else record.decode()

    def life(self, request: str) -> int:
        """Seconds until the request's outcome is forgotten."""
        return self.raw.ttl(names.result_key(request))

    def listen(self, request: str) -> Callable[[], str]:
        """Subscribe to a request's outcome; what is returned waits for it."""
        listening: Any = self.raw.pubsub(ignore_subscribe_messages=True)
        listening.subscribe(names.result_key(request))
        listening.get_message(timeout=PATIENCE)

        def heard() -> str:
            message = eventually(lambda: listening.get_message(timeout=0.1), "the outcome being published")
            listening.close()
            return message["data"].decode()

        return heard

    def everything(self) -> dict[str, Any]:
        """All that the gateway's hashes hold."""
        keys = (names.peers_key(self.name), names.addresses_key(self.name), names.gateway_key(self.name))
        content: dict[str, Any] = {key: self.raw.hgetall(key) for key in keys}
        content[keys[2]].pop(b"seq", None)  # it counts outcomes, refusals too
        return content | {"epoch": self.raw.get(names.epoch_key(self.name))}

    @property
    def peers(self) -> dict[str, str]:
        return self._hash(names.peers_key(self.name))

    @property
    def addresses(self) -> dict[str, str]:
        return self._hash(names.addresses_key(self.name))

    def _hash(self, key: str) -> dict[str, str]:
        fields = cast("dict[bytes, bytes]", self.raw.hgetall(key))
        return {name.decode(): value.decode() for name, value in fields.items()}

    def take(self, *tags: str) -> None:
        """What a worker notes of messages that it takes."""
        self.raw.hset(names.unacked_key(self.name), mapping=dict.fromkeys(tags, "message"))
        self.raw.zadd(names.unacked_key(self.name, "_index"), dict.fromkeys(tags, 1.0))

    @property
    def taken(self) -> tuple[set[str], set[str]]:
        """Tags of the messages taken and not acknowledged, and of their index."""
        index = cast("list[bytes]", self.raw.zrange(names.unacked_key(self.name, "_index"), 0, -1))
        return set(self._hash(names.unacked_key(self.name))), {tag.decode() for tag in index}

    def create(self, peer: StoredPeer, *, request: str | None = None, deadline: int = 0) -> str:
        plan = Plan("created", peer.public_key, None, peer)
        return self.commit([plan], request=request, deadline=deadline)

    def commit(self, plans: list[Plan], *, request: str | None = None, deadline: int = 0) -> str:
        request = request or self.request()
        return self.store.commit(request, deadline, commit_record.encode(request, {"outcome": "x"}), plans).verdict


@pytest.fixture
def bench(redis_server: RedisServer) -> Iterator[Bench]:
    bench = Bench(redis_server)
    yield bench
    bench.raw.close()


def some_peer(*prefixes: str, key: str | None = None, **fields: Any) -> StoredPeer:
    return StoredPeer(
        public_key=key or some_key(), allowed_ips=tuple(sorted(Prefix.parse(p) for p in prefixes)), **fields
    )


class TestACommit:
    def test_stores_record_addresses_and_result_at_once(self, bench: Bench) -> None:
        peer = some_peer("10.8.0.2", "fd00:8::2", labels={"a": "b"}, preshared_key=some_key())
        request = bench.request()
        record = commit_record.encode(request, {"outcome": "created"})
        answer = bench.store.commit(request, 0, record, [Plan("created", peer.public_key, None, peer)])
        assert (answer.verdict, answer.stored) == ("committed", "")
        assert bench.peers == {peer.public_key: peer.record()}
        assert bench.addresses == {"10.8.0.2/32": peer.public_key, "fd00:8::2/128": peer.public_key}
        assert bench.stored(request) == record
        assert bench.store.peer(peer.public_key) == peer

    def test_gives_the_result_a_life(self, bench: Bench) -> None:
        request = bench.request()
        bench.create(some_peer("10.8.0.2"), request=request)
        assert TTL - 5 <= bench.life(request) <= TTL

    @pytest.mark.parametrize("hours", [1, 24])
    def test_keeps_the_result_for_as_long_as_the_request_may_be_delivered_again(self, bench: Bench, hours: int) -> None:
        request = bench.request()
        bench.create(some_peer("10.8.0.2"), request=request, deadline=bench.now() + hours * 3_600_000)
        assert bench.life(request) >= hours * 3600

    def test_keeps_no_result_for_ever_whatever_deadline_a_message_names(self, bench: Bench) -> None:
        request = bench.request()
        bench.create(some_peer("10.8.0.2"), request=request, deadline=2**53)
        assert 0 < bench.life(request) <= 90_000

    def test_acknowledges_the_message_that_asked_for_it_and_no_other(self, bench: Bench) -> None:
        bench.take("mine", "another")
        request = bench.request()
        bench.store.commit(request, 0, commit_record.encode(request, {"outcome": "x"}), tag="mine")
        assert bench.taken == ({"another"}, {"another"})

    @pytest.mark.parametrize("deadline", [0, 1])
    def test_acknowledges_what_was_answered_before_or_comes_too_late(self, bench: Bench, deadline: int) -> None:
        bench.take("mine")
        request, record = bench.request(), commit_record.encode("x", {"outcome": "x"})
        if not deadline:
            bench.store.commit(request, 0, record)
        verdict = bench.store.commit(request, deadline, record, tag="mine").verdict
        assert (verdict, bench.taken) == ("expired" if deadline else "duplicate", (set(), set()))

    def test_leaves_the_message_of_what_it_refuses(self, bench: Bench) -> None:
        bench.take("mine")
        earlier, record = Store(bench.raw, bench.name, result_ttl=TTL), commit_record.encode("x", {"outcome": "x"})
        earlier.sequence.epoch = bench.store.epoch - 1
        assert earlier.commit(bench.request(), 0, record, tag="mine").verdict == "fenced"
        gone = some_peer("10.8.0.2")
        deletion = [Plan("deleted", gone.public_key, gone, None)]
        assert bench.store.commit(bench.request(), 0, record, deletion, tag="mine").verdict == "stale"
        assert bench.taken == ({"mine"}, {"mine"})

    def test_tells_who_waits(self, bench: Bench) -> None:
        request = bench.request()
        heard = bench.listen(request)
        bench.create(some_peer("10.8.0.2"), request=request)
        assert heard() == bench.stored(request)

    @pytest.mark.parametrize("together", [False, True], ids=["alone", "in-a-group"])
    @pytest.mark.parametrize("late", [False, True], ids=["committed", "late"])
    def test_tells_who_listens_for_all_of_its_requests_on_one_channel(
        self, bench: Bench, *, together: bool, late: bool
    ) -> None:
        reply = names.request_id(bench.name, "0123456789abcdef" * 2)
        request, deadline = f"{reply}_17", int(late)
        heard, of_it_alone = bench.listen(reply), bench.listen(request)
        if together:
            bench.store.commit_many([Commit(request, deadline, "the result")])
        else:
            bench.store.commit(request, deadline, "the result")
        assert heard() == of_it_alone() == bench.stored(request)

    @pytest.mark.parametrize("token", ["build_17", "0123456789abcdef_17", "0123456789abcdef0123456789abcdefg_17"])
    def test_is_told_on_no_other_requests_channel_where_an_id_is_its_callers(self, bench: Bench, token: str) -> None:
        request = names.request_id(bench.name, token)
        other, own = bench.listen(request.rpartition("_")[0]), bench.listen(request)
        bench.store.commit(request, 0, "the result")
        assert own() == "the result"
        bench.raw.publish(names.result_key(request.rpartition("_")[0]), "its own")
        assert other() == "its own"

    def test_of_a_deletion_leaves_nothing_of_the_peer(self, bench: Bench) -> None:
        peer, other = some_peer("10.8.0.2", "fd00:8::2"), some_peer("10.8.0.3")
        bench.create(peer)
        bench.create(other)
        assert bench.commit([Plan("deleted", peer.public_key, peer, None)]) == "committed"
        assert bench.peers == {other.public_key: other.record()}
        assert bench.addresses == {"10.8.0.3/32": other.public_key}

    def test_of_a_change_moves_only_what_changed(self, bench: Bench) -> None:
        key = some_key()
        before, after = some_peer("10.8.0.2", "10.8.0.3", key=key), some_peer("10.8.0.3", "10.8.0.4", key=key)
        bench.create(before)
        assert bench.commit([Plan("created", key, before, after)]) == "committed"
        assert bench.peers == {key: after.record()}
        assert bench.addresses == {"10.8.0.3/32": key, "10.8.0.4/32": key}

    def test_of_many_plans_is_one(self, bench: Bench) -> None:
        peers = [some_peer(f"10.8.1.{n}") for n in range(200)]
        request = bench.request()
        plans = [Plan("created", peer.public_key, None, peer) for peer in peers]
        assert bench.commit(plans, request=request) == "committed"
        assert bench.peers == {peer.public_key: peer.record() for peer in peers}
        assert len(bench.addresses) == 200

    @pytest.mark.parametrize("outcome", ["existing", "absent"])
    def test_of_what_changes_nothing_stores_the_result_alone(self, bench: Bench, outcome: Any) -> None:
        peer = some_peer("10.8.0.2")
        bench.create(peer)
        before = bench.everything()
        request = bench.request()
        stored = peer if outcome == "existing" else None
        key = peer.public_key if stored else some_peer("10.8.0.3").public_key
        assert bench.commit([Plan(outcome, key, stored, stored)], request=request) == "committed"
        assert bench.everything() == before
        assert bench.stored(request)

    def test_survives_the_loss_of_the_servers_scripts(self, bench: Bench) -> None:
        bench.create(some_peer("10.8.0.2"))
        bench.raw.script_flush()
        assert bench.create(some_peer("10.8.0.3")) == "committed"
        assert bench.store.check(bench.request(), 0).verdict == "open"
        assert bench.store.heartbeat(phase="serving")


class TestARefusedCommitChangesNothingElse:
    def test_duplicate_where_the_request_has_an_outcome(self, bench: Bench) -> None:
        request = bench.request()
        bench.create(some_peer("10.8.0.2"), request=request)
        stored, before = bench.stored(request), bench.everything()
        other = some_peer("10.8.0.9")
        answer = bench.store.commit(request, 0, "another result", [Plan("created", other.public_key, None, other)])
        assert (answer.verdict, answer.stored) == ("duplicate", stored)
        assert bench.everything() == before
        assert bench.stored(request) == stored

    def test_duplicate_even_of_a_writer_that_was_replaced(self, bench: Bench) -> None:
        """A redelivery learns the outcome, whoever it is delivered to."""
        request = bench.request()
        bench.create(some_peer("10.8.0.2"), request=request)
        bench.raw.incr(names.epoch_key(bench.name))
        assert bench.store.commit(request, 0, "x").verdict == "duplicate"

    @pytest.mark.parametrize("changes", [True, False])
    def test_fenced_where_a_newer_writer_has_begun(self, bench: Bench, changes: bool) -> None:  # noqa: FBT001 - a parameter of the test
        bench.raw.incr(names.epoch_key(bench.name))
        before, request = bench.everything(), bench.request()
        peer = some_peer("10.8.0.2")
        plans = [Plan("created", peer.public_key, None, peer)] if changes else []
        assert bench.commit(plans, request=request) == "fenced"
        assert bench.everything() == before
        assert bench.stored(request) is None
        assert bench.store.heartbeat(phase="serving") is None
        assert bench.everything() == before

    def test_expired_where_the_deadline_has_passed_by_the_servers_clock(self, bench: Bench) -> None:
        request, before = bench.request(), bench.everything()
        assert bench.create(some_peer("10.8.0.2"), request=request, deadline=bench.now() - 1) == "expired"
        assert bench.everything() == before
        with pytest.raises(TimedOut):
            commit_record.decode(bench.stored(request) or "")
        assert bench.life(request) > 0
        assert bench.create(some_peer("10.8.0.2"), deadline=bench.now() + 60_000) == "committed"

    def test_expired_is_what_everybody_learns(self, bench: Bench) -> None:
        request = bench.request()
        heard = bench.listen(request)
        answer = bench.store.commit(request, 1, "x")
        assert heard() == answer.stored == bench.stored(request)

    def test_stale_where_the_record_is_there_already(self, bench: Bench) -> None:
        peer = some_peer("10.8.0.2")
        bench.raw.hset(names.peers_key(bench.name), peer.public_key, "by another hand")
        self._is_stale(bench, Plan("created", peer.public_key, None, peer))

    def test_stale_where_the_record_is_gone(self, bench: Bench) -> None:
        peer = some_peer("10.8.0.2")
        bench.create(peer)
        bench.raw.hdel(names.peers_key(bench.name), peer.public_key)
        self._is_stale(bench, Plan("deleted", peer.public_key, peer, None))

    def test_stale_where_an_address_is_another_peers(self, bench: Bench) -> None:
        bench.raw.hset(names.addresses_key(bench.name), "10.8.0.3/32", some_key())
        peer = some_peer("10.8.0.2", "10.8.0.3", "10.8.0.4")
        self._is_stale(bench, Plan("created", peer.public_key, None, peer))

    def test_stale_where_only_the_last_of_many_plans_is(self, bench: Bench) -> None:
        bench.raw.hset(names.addresses_key(bench.name), "10.8.0.99/32", some_key())
        peers = [some_peer(f"10.8.0.{n}") for n in range(90, 100)]
        self._is_stale(bench, *(Plan("created", peer.public_key, None, peer) for peer in peers))

    def _is_stale(self, bench: Bench, *plans: Plan) -> None:
        before, request = bench.everything(), bench.request()
        assert bench.commit(list(plans), request=request) == "stale"
        assert bench.everything() == before
        assert bench.stored(request) is None, "the request is still open"

    def test_draining_where_the_gateway_takes_no_new_peers(self, bench: Bench) -> None:
        stored = some_peer("10.8.0.2")
        bench.create(stored)
        bench.raw.hset(names.gateway_key(bench.name), "state", "draining")
        before, request = bench.everything(), bench.request()
        assert bench.create(some_peer("10.8.0.3"), request=request) == "draining"
        assert bench.everything() == before
        assert bench.stored(request) is None
        assert bench.commit([Plan("existing", stored.public_key, stored, stored)]) == "committed"
        assert bench.commit([Plan("deleted", stored.public_key, stored, None)]) == "committed"

    def test_of_one_gateway_never_touches_anothers(self, bench: Bench, redis_server: RedisServer) -> None:
        other = Bench(redis_server)
        other.create(some_peer("10.8.0.2"))
        before = other.everything()
        bench.create(some_peer("10.8.0.2"))
        bench.create(some_peer("10.8.0.3"), deadline=1)
        assert other.everything() == before
        other.raw.close()


class TestAskingFirst:
    def test_says_whether_the_request_could_still_commit(self, bench: Bench) -> None:
        request = bench.request()
        assert bench.store.check(request, 0).verdict == "open"
        assert bench.store.check(request, bench.now() + 60_000).verdict == "open"
        assert bench.store.check(request, bench.now() - 1).verdict == "late"
        assert bench.stored(request) is None, "asking stores nothing"
        bench.create(some_peer("10.8.0.2"), request=request)
        answer = bench.store.check(request, 0)
        assert (answer.verdict, answer.stored) == ("duplicate", bench.stored(request))
        bench.raw.incr(names.epoch_key(bench.name))
        assert bench.store.check(bench.request(), 0).verdict == "fenced"


class TestCancelAgainstCommit:
    def test_a_cancelled_request_never_commits(self, bench: Bench) -> None:
        lanes, request, peer = Lanes(bench.raw, result_ttl=TTL), bench.request(), some_peer("10.8.0.2")
        with pytest.raises(TimedOut):
            commit_record.decode(lanes.cancel(request))
        answer = bench.store.commit(request, 0, "x", [Plan("created", peer.public_key, None, peer)])
        assert answer.verdict == "duplicate"
        with pytest.raises(TimedOut):
            commit_record.decode(answer.stored)
        assert (bench.peers, bench.addresses) == ({}, {})

    def test_a_committed_request_is_not_cancelled_but_told(self, bench: Bench) -> None:
        lanes, request = Lanes(bench.raw, result_ttl=TTL), bench.request()
        bench.create(some_peer("10.8.0.2"), request=request)
        stored = bench.stored(request)
        assert lanes.cancel(request) == stored == bench.stored(request)

    def test_a_refused_request_is_told_its_refusal(self, bench: Bench) -> None:
        lanes, request = Lanes(bench.raw, result_ttl=TTL), bench.request()
        bench.store.commit(request, 0, commit_record.encode(request, Conflict("taken")))
        with pytest.raises(Conflict, match="taken"):
            commit_record.decode(lanes.cancel(request))

    @pytest.mark.parametrize("ahead", [0, 3_600_000])
    def test_a_tombstone_outlives_the_deadline_of_its_request(self, bench: Bench, ahead: int) -> None:
        lanes, request = Lanes(bench.raw, result_ttl=TTL), bench.request()
        lanes.cancel(request, deadline=bench.now() + ahead)
        assert bench.life(request) * 1000 > max(ahead, TTL * 1000 - 5000)

    def test_a_tombstone_of_a_request_of_unknown_deadline_outlives_any(self, bench: Bench) -> None:
        lanes, request = Lanes(bench.raw, result_ttl=TTL), bench.request()
        lanes.cancel(request)
        assert bench.life(request) > 86_400

    def test_has_exactly_one_winner_whoever_is_first(self, bench: Bench, redis_server: RedisServer) -> None:
        """Two threads, 300 races; which of the two goes first varies by a few microseconds to both sides."""
        mine = Redis.from_url(redis_server.url)
        lanes = Lanes(mine, result_ttl=TTL)
        lanes.clock.now_ms()
        winners: dict[str, int] = {"commit": 0, "cancel": 0}
        for number in range(300):
            request, peer = bench.request(), some_peer(f"10.9.{number // 256}.{number % 256}")
            start, records = threading.Barrier(2), list[str]()

            def cancel(request: str = request, start: threading.Barrier = start, records: list[str] = records) -> None:
                start.wait()
                records.append(lanes.cancel(request))

            thread = threading.Thread(target=cancel)
            thread.start()
            start.wait()
            until = time.perf_counter() + (number % 30) * 20e-6
            while time.perf_counter() < until:
                pass
            verdict = bench.create(peer, request=request)
            thread.join()
            assert records == [bench.stored(request)], "both know the same outcome"
            if verdict == "committed":
                winners["commit"] += 1
                assert commit_record.decode(records[0]) == {"outcome": "x"}
                assert peer.public_key in bench.peers
            else:
                winners["cancel"] += 1
                assert verdict == "duplicate"
                with pytest.raises(TimedOut):
                    commit_record.decode(records[0])
                assert peer.public_key not in bench.peers
        assert all(winners.values()), f"a race that one side always wins is none: {winners}"
        mine.close()
