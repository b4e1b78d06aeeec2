"""A lane end to end: a real client, queue and Redis server, and a gateway's writer in a process of its own."""

from __future__ import annotations

import threading
import uuid
from typing import Any, cast

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway, new_name
from keys import some_key
from servers import RedisServer
from waiting import PATIENCE, Stopwatch, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.tasks.admission.lanes import BELIEVED_FOR, lanes_of
from peerlane.tasks.errors import Conflict, Invalid, OutcomeUnknown, TimedOut, Unavailable
from peerlane.tasks.lane.tasks import LaneTask
from peerlane.tasks.wire.commit_record import decode


def new_request(gateway: GatewayProcess) -> str:
    return names.request_id(gateway.name, str(uuid.uuid4()))


def plain(client: Gateway) -> tuple[LaneTask, LaneTask]:
    """The client's tasks, for use as in plain Celery."""
    tasks: Any = client._app.tasks  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - a test's app has no global tasks
    return tasks[names.CREATE_PEER], tasks[names.DELETE_PEER]


class TestAPeer:
    def test_is_created_found_again_and_deleted(self, gateway: MakeGateway, client: MakeClient) -> None:
        key = some_key()
        iad = client(gateway(endpoint="vpn.example:4500"))
        created = iad.create_peer(key, preshared_key=some_key(), keepalive=25, ttl=3600, labels={"build": "17"})
        assert (created.outcome, created.public_key) == ("created", key)
        assert created.allowed_ips == ("10.8.0.2/32", "fd00:8::2/128")
        assert (created.keepalive, created.ttl, created.labels) == (25, 3600, {"build": "17"})
        assert created.endpoint == "vpn.example:4500"
        assert created.gateway_public_key == iad.info().public_key
        stored = iad.peer(key)
        assert stored is not None
        assert tuple(str(prefix) for prefix in stored.allowed_ips) == created.allowed_ips
        assert [peer.public_key for peer in iad.peers()] == [key]
        assert iad.delete_peer(key).outcome == "deleted"
        assert iad.peer(key) is None
        assert iad.delete_peer(key).outcome == "absent"

    def test_that_is_there_is_existing_or_a_conflict(self, gateway: MakeGateway, client: MakeClient) -> None:
        key = some_key()
        iad = client(gateway())
        first = iad.create_peer(key)
        assert iad.create_peer(key).model_dump() == {**first.model_dump(), "outcome": "existing"}
        with pytest.raises(Conflict, match="keepalive"):
            iad.create_peer(key, keepalive=5)
        with pytest.raises(Conflict, match="overlaps"):
            iad.create_peer(some_key(), allowed_ips=["10.8.0.2"])
        assert iad.create_peer(some_key(), allowed_ips=["10.8.0.4/30"]).allowed_ips == ("10.8.0.4/30",)

    def test_cannot_have_the_gateways_own_key(self, gateway: MakeGateway, client: MakeClient) -> None:
        iad = client(gateway())
        with pytest.raises(Invalid, match="itself"):
            iad.create_peer(iad.info().public_key)

    def test_of_many_callers_at_once_is_each_ones_own(self, gateway: MakeGateway, client: MakeClient) -> None:
        iad = client(gateway())
        addresses: list[tuple[str, ...]] = []

        def create() -> None:
            addresses.extend(iad.create_peer(some_key(), timeout=PATIENCE).allowed_ips for _ in range(25))

        threads = [threading.Thread(target=create, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(set(addresses)) == len(addresses) == 100
        assert len(list(iad.peers())) == 100

    def test_of_another_gateway_is_none_of_this_ones(self, gateway: MakeGateway, client: MakeClient) -> None:
        iad, fra = client(gateway()), client(gateway())
        key = some_key()
        assert iad.create_peer(key).outcome == "created"
        assert fra.create_peer(key).outcome == "created"
        assert fra.delete_peer(key).outcome == "deleted"
        assert iad.peer(key) is not None


class TestPlainCelery:
    def test_creates_and_deletes(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        create, delete = plain(client(served))
        wish = {"gateway": served.name, "public_key": some_key()}
        assert create.apply_async(kwargs=wish).get(timeout=PATIENCE)["outcome"] == "created"
        assert create.apply_async(kwargs=wish).get(timeout=PATIENCE)["outcome"] == "existing"
        assert delete.delay(**wish).get(timeout=PATIENCE)["outcome"] == "deleted"

    def test_raises_the_refusal(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        create, _ = plain(client(served))
        sent = create.apply_async(
            kwargs={"gateway": served.name, "public_key": some_key(), "allowed_ips": ["172.16.0.1"]}
        )
        with pytest.raises(Invalid, match="outside what the gateway"):
            sent.get(timeout=PATIENCE)
        assert isinstance(sent.get(timeout=PATIENCE, propagate=False), Invalid)

    def test_is_told_before_anything_is_sent_where_the_arguments_are_bad(
        self, gateway: MakeGateway, client: MakeClient
    ) -> None:
        served = gateway()
        create, _ = plain(client(served))
        for wrong in ({"public_key": "hello"}, {"public_key": some_key(), "colour": "red"}, {}):
            with pytest.raises(Invalid):
                create.apply_async(kwargs={"gateway": served.name, **wrong})
        with pytest.raises(Invalid, match="keyword arguments only"):
            create.apply_async(args=(served.name,))
        with pytest.raises(Invalid, match="carried out now"):
            create.apply_async(kwargs={"gateway": served.name, "public_key": some_key()}, countdown=60)
        with pytest.raises(Invalid, match="a request id is"):
            create.apply_async(kwargs={"gateway": served.name, "public_key": some_key()}, task_id="mine")

    def test_get_cancels_when_its_patience_ends(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        create, _ = plain(client(served))
        served.pause(alive=True)
        sent = create.apply_async(kwargs={"gateway": served.name, "public_key": some_key()}, expires=30)
        with pytest.raises(TimedOut, match="will never take effect"):
            sent.get(timeout=0.5)
        with pytest.raises(TimedOut):
            sent.get(timeout=5)
        served.resume()


class TestTheSameRequestTwice:
    def test_is_one_request(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        iad, key, request = client(served), some_key(), new_request(served)
        first = iad.create_peer(key, request_id=request)
        assert iad.create_peer(key, request_id=request) == first
        iad.delete_peer(key)
        assert iad.create_peer(key, request_id=request) == first, "the outcome of then"
        assert iad.peer(key) is None, "and nothing was done again"

    def test_stays_timed_out(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        iad, key, request = client(served), some_key(), new_request(served)
        served.pause(alive=True)
        with pytest.raises(TimedOut):
            iad.create_peer(key, request_id=request, timeout=0.5)
        served.resume()
        with pytest.raises(TimedOut):
            iad.create_peer(key, request_id=request)
        assert iad.peer(key) is None


class TestATimeout:
    def test_is_told_in_time_and_the_peer_never_comes(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        iad, key, then = client(served), some_key(), some_key()
        earlier = iad.create_peer(some_key())
        served.pause(alive=True)
        watch = Stopwatch()
        with pytest.raises(TimedOut, match="will never take effect"):
            iad.create_peer(key, timeout=1)
        assert 0.9 < watch.seconds < 10
        assert iad.peer(key) is None
        served.resume()
        # What comes after it in the lane is done: so its own turn has passed.
        created = eventually(lambda: _when_live(iad, then), "the resumed gateway serving")
        assert created.allowed_ips == ("10.8.0.3/32", "fd00:8::3/128"), "it holds no address either"
        assert {peer.public_key for peer in iad.peers()} == {earlier.public_key, then}
        assert iad.create_peer(key).outcome == "created", "asking anew is another request"

    def test_of_a_delete_leaves_the_peer(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        iad, key = client(served), some_key()
        iad.create_peer(key)
        served.pause(alive=True)
        with pytest.raises(TimedOut):
            iad.delete_peer(key, timeout=0.5)
        served.resume()
        eventually(lambda: _when_live(iad, some_key()), "the resumed gateway serving")
        assert iad.peer(key) is not None

    def test_ends_with_the_deadline_and_so_outlives_the_loss_of_its_cancel(
        self, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
    ) -> None:
        """A Redis that loses its last second may lose the tombstone, and keep the message."""
        served = gateway()
        iad, lost = client(served), names.request_id(served.name, str(uuid.uuid4()))
        served.pause(alive=True)
        with pytest.raises(TimedOut, match="will never take effect"):
            iad.create_peer(some_key(), timeout=0.5, request_id=lost)
        assert redis_server.redis.delete(names.result_key(lost)) == 1
        served.resume()
        then = some_key()
        eventually(lambda: _when_live(iad, then), "the resumed gateway serving")
        assert [peer.public_key for peer in iad.peers()] == [then]

    def test_shorter_than_the_deadline_rests_on_its_cancel(
        self, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
    ) -> None:
        """What docs/guarantees.md says of a cancel that Redis loses: plain Celery alone waits for less than it asks."""
        served = gateway()
        iad, kept, lost = client(served), some_key(), some_key()
        results: dict[str, Any] = {}
        create, _ = plain(iad)
        served.pause(alive=True)
        for key in (kept, lost):
            results[key] = create.apply_async(kwargs={"gateway": served.name, "public_key": key}, expires=30)
            with pytest.raises(TimedOut):
                results[key].get(timeout=0.2)
        assert redis_server.redis.delete(names.result_key(results[lost].id)) == 1
        served.resume()
        eventually(lambda: _when_live(iad, some_key()), "the resumed gateway serving")
        assert iad.peer(kept) is None
        assert iad.peer(lost) is not None


def _when_live(client: Gateway, key: str) -> Any:
    try:
        return client.create_peer(key, timeout=10)
    except Unavailable:
        return None


class TestNobodyServes:
    def test_an_unknown_gateway_is_unavailable_at_once(self, client: MakeClient) -> None:
        nowhere = client(new_name())
        watch = Stopwatch()
        with pytest.raises(Unavailable, match=r"no gateway .* is registered"):
            nowhere.create_peer(some_key(), timeout=PATIENCE)
        with pytest.raises(Unavailable, match="is registered"):
            nowhere.info()
        assert watch.seconds < PATIENCE / 2, "the timeout was not waited for"

    def test_after_a_graceful_stop_callers_are_refused_at_once(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        lane = client(served)
        lane.create_peer(some_key())
        assert served.stop() == 0
        watch = Stopwatch()
        with pytest.raises(Unavailable, match="no live writer"):
            client(served).create_peer(some_key(), timeout=PATIENCE)
        assert watch.seconds < PATIENCE / 2, "the timeout was not waited for"
        # A client that has just looked believes what it saw, but not for long.
        eventually(lambda: watch.seconds > BELIEVED_FOR, "what was seen being old")
        watch.restart()
        with pytest.raises(Unavailable):
            lane.create_peer(some_key(), timeout=PATIENCE)
        assert watch.seconds < PATIENCE / 2, "the timeout was not waited for"
        assert lane.info().state == "down"

    def test_after_a_kill_callers_are_refused_at_once_when_the_silence_is_noticed(
        self, gateway: MakeGateway, client: MakeClient
    ) -> None:
        served = gateway()
        iad = client(served)
        served.kill()
        eventually(lambda: not served.look().live, "the silence being noticed")
        watch = Stopwatch()
        with pytest.raises(Unavailable, match="no live writer"):
            iad.create_peer(some_key(), timeout=PATIENCE)
        assert watch.seconds < PATIENCE / 2, "the timeout was not waited for"

    def test_a_full_lane_is_refused_at_once(
        self, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
    ) -> None:
        served = gateway(lane_cap=3)
        served.pause(alive=True)
        redis_server.redis.lpush(
            names.lane_queue(served.name), *("a message",) * 4
        )  # the writer may have asked for one
        watch = Stopwatch()
        with pytest.raises(Unavailable, match="is full"):
            client(served).create_peer(some_key(), timeout=PATIENCE)
        assert watch.seconds < PATIENCE / 2, "the timeout was not waited for"
        served.resume()


class TestOneWriter:
    def test_a_second_says_who_holds_the_lane_and_takes_no_message(
        self, gateway: MakeGateway, client: MakeClient
    ) -> None:
        first = gateway()
        iad = client(first)
        first.pause(alive=True)  # whatever is taken off the lane now, the second has taken
        create, _ = plain(iad)
        sent = create.apply_async(kwargs={"gateway": first.name, "public_key": some_key()}, expires=60)
        taken_by_first = first.look().waiting == 0
        second = gateway(first.name, start=False)
        second.start(wait=False)
        assert second.await_end() != 0
        assert f"process {first.pid}" in second.log
        assert "Traceback" not in second.log
        assert taken_by_first or first.look().waiting == 1
        assert int(first.look().facts["epoch"]) == 1, "it has not even opened an epoch"
        first.resume()
        assert sent.get(timeout=PATIENCE)["outcome"] == "created"
        assert first.status is None

    def test_a_replaced_writer_stops_by_itself_and_changes_nothing(
        self, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
    ) -> None:
        served = gateway()
        iad = client(served)
        iad.create_peer(some_key())
        redis_server.redis.incr(names.epoch_key(served.name))
        assert served.await_end() != 0
        assert "a newer writer has taken over" in served.log
        served.start()
        assert iad.create_peer(some_key()).outcome == "created"

    def test_on_another_device_is_refused_too(self, gateway: MakeGateway) -> None:
        first = gateway()
        redis = first._redis  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - to say that it holds another lock
        lock = str(first.look().facts["holder_lock"])
        redis.hset(names.gateway_key(first.name), "holder_lock", lock + "-of-another-device")
        second = gateway(first.name, start=False)
        second.settings["redis_url"] = f"{first.settings['redis_url']}?"  # another lock for the same gateway
        second.start(wait=False)
        assert second.await_end() != 0
        assert f"has a live writer: process {first.pid}" in second.log


class TestARestart:
    def test_after_a_kill_finds_every_confirmed_peer_and_serves(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        iad = client(served)
        keys = [some_key() for _ in range(20)]
        confirmed = [iad.create_peer(key) for key in keys]
        iad.delete_peer(keys[3])
        served.kill()
        served.start()
        assert {peer.public_key for peer in iad.peers()} == set(keys) - {keys[3]}
        again = _when_live(iad, keys[7])
        assert again.model_dump() == {**confirmed[7].model_dump(), "outcome": "existing"}
        assert iad.create_peer(some_key()).allowed_ips == confirmed[3].allowed_ips
        assert "19 missing" in served.log, "a device in memory starts empty, and was filled"

    def test_carries_out_what_was_asked_while_it_was_away(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        iad, key = client(served), some_key()
        create, _ = plain(iad)
        served.pause(alive=True)
        sent = create.apply_async(kwargs={"gateway": served.name, "public_key": key}, expires=60)
        waiting = served.look().waiting
        served.kill()
        served.start()
        if waiting:
            assert sent.get(timeout=PATIENCE)["outcome"] == "created"
        else:  # the killed writer's socket had taken it: it comes again after the visibility timeout, or never
            with pytest.raises(TimedOut):
                sent.get(timeout=1)

    def test_in_good_order_leaves_nothing_undone(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        iad = client(served)
        create, _ = plain(iad)
        sent = [
            create.apply_async(kwargs={"gateway": served.name, "public_key": some_key()}, expires=60)
            for _ in range(200)
        ]
        assert served.stop() == 0
        served.start()
        outcomes = {each.get(timeout=PATIENCE)["outcome"] for each in sent}
        assert outcomes == {"created"}
        assert len(list(iad.peers())) == 200


class TestRedisFails:
    def test_a_restart_under_the_worker_is_survived(
        self, own_redis: RedisServer, gateway: MakeGateway, client: MakeClient
    ) -> None:
        served = gateway(redis=own_redis)
        iad, key = client(served), some_key()
        iad.create_peer(key)
        pid = served.pid
        own_redis.restart()

        def served_again() -> Any:
            try:
                return iad.create_peer(some_key(), timeout=5)
            except (OutcomeUnknown, Unavailable, TimedOut):
                return None

        assert eventually(served_again, "the lane being served again").outcome == "created"
        assert (served.pid, served.status) == (pid, None)
        assert iad.create_peer(key).outcome == "existing"

    def test_a_caller_learns_in_time_that_it_cannot_know_and_the_same_id_settles_it(
        self, own_redis: RedisServer, gateway: MakeGateway, client: MakeClient
    ) -> None:
        served = gateway(redis=own_redis)
        served.may_show_tracebacks = True  # kombu shows one when it cannot acknowledge
        iad, key, request = client(served), some_key(), new_request(served)
        iad.create_peer(some_key())
        own_redis.pause()
        watch = Stopwatch()
        with pytest.raises(OutcomeUnknown) as caught:
            iad.create_peer(key, timeout=2, request_id=request)
        assert watch.seconds < 15, "the timeout, and what it takes to tell"
        assert caught.value.request_id == request
        own_redis.resume()

        def settled() -> str | None:
            try:
                return iad.create_peer(key, request_id=request, timeout=5).outcome
            except TimedOut:
                return "timed out"
            except (OutcomeUnknown, Unavailable):
                return None

        outcome = eventually(settled, "the request being settled")
        assert outcome in {"created", "timed out"}
        assert (iad.peer(key) is not None) == (outcome == "created")
        stored = lanes_of(iad._app).stored(request)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - Redis' own word for it
        assert stored is not None
        if outcome == "created":
            assert decode(stored)["outcome"] == "created"

    def test_where_nothing_listens_it_is_told_at_once(self, client: MakeClient) -> None:
        nobody = client("iad", redis_url="redis://127.0.0.1:1/0")
        watch = Stopwatch()
        with pytest.raises(OutcomeUnknown):
            nobody.create_peer(some_key(), timeout=PATIENCE)
        with pytest.raises(OutcomeUnknown):
            nobody.peer(some_key())
        with pytest.raises(OutcomeUnknown):
            list(nobody.peers())
        assert watch.seconds < PATIENCE / 2, "the timeout was not waited for"

    def test_a_gateway_whose_redis_is_away_says_so_and_ends(self, gateway: MakeGateway) -> None:
        lost = gateway(start=False)
        lost.settings["redis_url"] = "unix:///nonexistent/redis.sock"
        lost.start(wait=False)
        assert lost.await_end() != 0
        assert "Redis cannot be used" in lost.log


class TestAGateway:
    def test_shows_no_secret_in_its_log_or_in_redis_but_where_it_belongs(
        self, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
    ) -> None:
        served = gateway()
        iad, psk, request = client(served), some_key(), new_request(served)
        iad.create_peer(some_key(), preshared_key=psk, request_id=request)
        private = (served.directory / f"{served.name}.key").read_text().strip()
        redis = redis_server.redis
        stored = cast("str", redis.get(names.result_key(request)))
        served.stop()
        for text in (served.log, stored, str(redis.hgetall(names.gateway_key(served.name)))):
            assert psk not in text
            assert private not in text
        assert psk in str(redis.hgetall(names.peers_key(served.name)))

    def test_keeps_its_key_over_restarts(self, gateway: MakeGateway, client: MakeClient) -> None:
        served = gateway()
        iad = client(served)
        key = iad.info().public_key
        served.stop()
        served.start()
        assert iad.info().public_key == key

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"pools": "10.8.0.0/24,10.8.0.0/16"}, "overlap"),
            ({"pools": "10.8.0.1/24"}, "did you mean 10.8.0.0/24"),
            ({"pools": "10.8.0.0/31"}, "no room for peers"),
            ({"serves": "10.8.0.0/30"}, "overlap"),
            ({"listen_port": "http"}, "PEERLANE_LISTEN_PORT"),
            ({"lisen_port": "1"}, "PEERLANE_LISEN_PORT"),
        ],
    )
    def test_that_is_set_up_wrongly_says_what_is_wrong(
        self, gateway: MakeGateway, settings: dict[str, str], says: str
    ) -> None:
        wrong = gateway(start=False)
        wrong.settings |= settings
        wrong.may_show_tracebacks = True  # Celery shows one where the app cannot be made
        wrong.start(wait=False)
        assert wrong.await_end() != 0
        assert says in wrong.log
