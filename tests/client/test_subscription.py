"""The kept connections of a caller: requests go out on them, and outcomes come back, whatever happens to them."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from calls import create_in_lane
from celery import signals
from faultproxy import FaultProxy
from gateways import GatewayProcess, MakeClient, MakeGateway, new_name
from keys import some_key
from redis import Redis
from servers import RedisServer
from waiting import PATIENCE, Stopwatch, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.tasks.errors import TimedOut
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.redis.subscription import Link, Listeners

Linked = tuple[GatewayProcess, Gateway]


def app_of(client: Gateway) -> Any:
    return client._app  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - one client, one app in these tests


def commands(server: RedisServer) -> dict[str, int]:
    """How often the server has carried out each command."""
    stats = cast("dict[str, dict[str, int]]", server.redis.info("commandstats"))
    return {name.removeprefix("cmdstat_"): figures["calls"] for name, figures in stats.items()}


def connections(server: RedisServer) -> int:
    """How many the server has accepted so far."""
    return cast("dict[str, int]", server.redis.info("stats"))["total_connections_received"]


@pytest.fixture
def link(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(str(redis_server.socket)) as proxy:
        yield proxy


@pytest.fixture
def linked(gateway: MakeGateway, client: MakeClient, link: FaultProxy) -> Linked:
    """A gateway, and a client that reaches Redis by the link and has asked once."""
    site = gateway()
    api = client(site.name, redis_url=link.url)
    api.create_peer(some_key())
    return site, api


class TestARequest:
    def test_needs_no_subscription_and_no_connection_of_its_own(
        self, own_redis: RedisServer, gateway: MakeGateway, client: MakeClient
    ) -> None:
        site = gateway(redis=own_redis)
        api = client(site, redis=own_redis)
        api.create_peer(some_key())
        eventually(lambda: "answered" in site.look().facts, "the writer's heartbeat, on a connection of its own")
        before, connected = commands(own_redis), connections(own_redis)
        for _ in range(20):
            assert api.create_peer(some_key()).outcome == "created"
        after = commands(own_redis)
        assert after["subscribe"] == before["subscribe"]
        assert after.get("unsubscribe", 0) == before.get("unsubscribe", 0)
        assert after["lpush"] - before["lpush"] == 20
        assert connections(own_redis) == connected

    @pytest.mark.parametrize("bulk", [False, True], ids=["interactive", "bulk"])
    def test_lies_in_its_lane_as_celery_would_have_put_it(
        self, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, *, bulk: bool
    ) -> None:
        site = gateway()
        api, wish = (
            client(site),
            {"labels": {"build": "17", "who": "Zoë"}, "keepalive": 25, "preshared_key": some_key()},
        )
        site.hold()
        key, queue = some_key(), names.bulk_queue(site.name) if bulk else names.lane_queue(site.name)
        with pytest.raises(TimedOut):
            api.create_peer(key, **cast("Any", wish), bulk=bulk, timeout=0.3)
        task_of(app_of(api), names.CREATE_PEER).apply_async(
            kwargs={"gateway": site.name, "public_key": key, **wish}, expires=0.3, bulk=bulk
        )
        messages = cast("list[str]", redis_server.redis.lrange(queue, 0, -1))
        celery, own = (_comparable(json.loads(message)) for message in messages)
        assert own["properties"].items() <= celery["properties"].items()
        assert {**own, "properties": {}} == {**celery, "properties": {}}
        site.resume()

    def test_is_sent_by_celery_where_somebody_listens_to_its_signals(
        self, shared_gateway: GatewayProcess, client: MakeClient
    ) -> None:
        seen: list[str] = []

        def see(sender: str, headers: dict[str, Any], **_: Any) -> None:
            seen.append(f"{sender} {headers['id']}")

        api = client(shared_gateway)
        signals.before_task_publish.connect(see)
        try:
            assert api.create_peer(some_key()).outcome == "created"
        finally:
            signals.before_task_publish.disconnect(see)
        assert len(seen) == 1
        assert seen[0].startswith(f"{names.CREATE_PEER} {shared_gateway.name}.")
        assert api.create_peer(some_key()).outcome == "created"
        assert len(seen) == 1

    def test_asked_again_under_the_id_that_it_was_given_is_the_same(
        self, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
    ) -> None:
        """The id that an OutcomeUnknown names may be one whose outcome went to another connection."""
        site = gateway()
        api, other, key = client(site), client(site), some_key()
        created = api.create_peer(key)
        redis = redis_server.redis
        scan = cast("Iterator[str]", redis.scan_iter(names.result_key(f"{site.name}.*")))
        (request,) = (name.removeprefix(names.RESULT_PREFIX) for name in scan if key in str(redis.get(name)))
        assert other.create_peer(key, request_id=request) == created


def _comparable(message: dict[str, Any]) -> dict[str, Any]:
    """Without what is another in each message."""
    body = json.loads(base64.b64decode(message["body"]))
    deadline = body[1].pop("deadline")
    assert isinstance(deadline, int)
    for name in ("id", "root_id", "origin", "kwargsrepr", "sent_at", "deadline"):
        message["headers"][name] = type(message["headers"][name]).__name__
    for name in ("correlation_id", "delivery_tag", "reply_to"):
        message["properties"][name] = type(message["properties"][name]).__name__
    return {**message, "body": body}


class TestThreads:
    def test_share_a_client_and_each_hears_its_own_outcome(self, gateway: MakeGateway, client: MakeClient) -> None:
        api = client(gateway(), timeout=PATIENCE)
        keys = [some_key() for _ in range(200)]
        with ThreadPoolExecutor(24) as threads:
            made = list(threads.map(api.create_peer, keys))
        assert [result.public_key for result in made] == keys
        assert len({result.allowed_ips for result in made}) == 200

    def test_reuse_what_others_are_done_with(self, gateway: MakeGateway, client: MakeClient, link: FaultProxy) -> None:
        api = client(gateway().name, redis_url=link.url)
        api.create_peer(some_key())
        before = link.accepted
        for _ in range(5):
            thread = threading.Thread(target=api.create_peer, args=(some_key(),))
            thread.start()
            thread.join(PATIENCE)
        assert link.accepted == before

    def test_that_give_up_at_once_cancel_on_the_connections_that_they_have(
        self, gateway: MakeGateway, client: MakeClient, link: FaultProxy
    ) -> None:
        site = gateway()
        api = client(site, redis_url=link.url)
        together = threading.Barrier(8)

        def ask(timeout: float) -> str:
            together.wait(PATIENCE)
            try:
                return api.create_peer(some_key(), timeout=timeout).outcome
            except TimedOut as error:
                return error.code

        with ThreadPoolExecutor(8) as threads:
            assert {*threads.map(ask, [PATIENCE] * 8)} == {"created"}
            site.hold()
            asking = [threads.submit(ask, 1.5) for _ in range(8)]
            eventually(lambda: site.look().waiting == 8, "all have sent their requests")
            connected = link.accepted
            assert {future.result(PATIENCE) for future in asking} == {"timed_out"}
            assert link.accepted == connected
            site.resume()
            assert {*threads.map(ask, [PATIENCE] * 8)} == {"created"}


class TestAfterAFork:
    # As programs that fork do it, Celery's prefork pool say: no thread is in the middle of anything.
    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_the_child_asks_on_connections_of_its_own_and_the_parent_goes_on(
        self, gateway: MakeGateway, client: MakeClient
    ) -> None:
        api = client(gateway())
        api.create_peer(some_key())
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = (
                    0
                    if all(api.create_peer(some_key(), timeout=PATIENCE).outcome == "created" for _ in range(3))
                    else 2
                )
            finally:
                os._exit(status)
        made = [api.create_peer(some_key(), timeout=PATIENCE).outcome for _ in range(3)]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert made == ["created"] * 3
        assert len(list(api.peers())) == 7


class TestAPushWhoseAnswerIsLost:
    """Its message may be in the lane: sent again it is the same request, which is done once."""

    def once(self, api: Gateway, site: GatewayProcess, server: RedisServer, key: str) -> None:
        assert [peer.public_key for peer in api.peers() if peer.public_key == key] == [key]
        unacked = names.unacked_key(site.name)
        eventually(lambda: not server.redis.exists(unacked, names.lane_queue(site.name)), "both being acknowledged")

    @pytest.mark.parametrize("given", [False, True], ids=["new", "with-an-id"])
    def test_is_repeated_while_time_is_left(
        self, linked: Linked, link: FaultProxy, redis_server: RedisServer, *, given: bool
    ) -> None:
        (site, api), key = linked, some_key()
        link.reset_mid_reply(to=b"LPUSH")
        request = names.request_id(site.name, uuid.uuid4().hex) if given else None
        assert api.create_peer(key, timeout=20, request_id=request).outcome == "created"
        self.once(api, site, redis_server, key)

    def test_lies_twice_in_a_lane_that_nobody_serves_and_is_answered_from_one_record(
        self, linked: Linked, link: FaultProxy, redis_server: RedisServer
    ) -> None:
        (site, api), key = linked, some_key()
        site.hold()
        link.reset_mid_reply(to=b"LPUSH")
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(api.create_peer, key, timeout=30)
            eventually(lambda: redis_server.redis.llen(names.lane_queue(site.name)) == 2, "both messages")
            site.resume()
            assert waiting.result().outcome == "created"
        self.once(api, site, redis_server, key)

    def test_on_a_connection_that_died_without_a_word_is_sent_on_another(
        self, linked: Linked, link: FaultProxy, redis_server: RedisServer
    ) -> None:
        (site, api), key = linked, some_key()
        link.silence()
        assert api.create_peer(key, timeout=20).outcome == "created"
        self.once(api, site, redis_server, key)

    def test_is_cancelled_where_redis_stays_away_until_the_time_is_up(self, linked: Linked, link: FaultProxy) -> None:
        (site, api), key = linked, some_key()
        site.hold()
        link.reset_mid_reply(to=b"LPUSH")
        with pytest.raises(TimedOut):
            api.create_peer(key, timeout=0.5)
        site.resume()
        api.create_peer(some_key(), timeout=20)
        assert api.peer(key) is None


class TestAConnection:
    def test_that_was_closed_while_it_was_kept_costs_no_request(
        self, own_redis: RedisServer, gateway: MakeGateway, client: MakeClient
    ) -> None:
        api = client(gateway(redis=own_redis), redis=own_redis)
        api.create_peer(some_key())
        own_redis.redis.client_kill_filter(_type="pubsub")
        assert api.create_peer(some_key(), timeout=PATIENCE).outcome == "created"

    @pytest.mark.parametrize(("how", "timeout"), [("reset", PATIENCE), ("silence", 100)], ids=["reset", "silent"])
    def test_that_is_lost_while_its_request_waits_is_made_anew(
        self, linked: Linked, link: FaultProxy, pushes: list[str], how: str, timeout: float
    ) -> None:
        site, api = linked
        with create_in_lane(site, api, pushes, timeout) as waiting:
            getattr(link, how)()
            site.resume()
            watch = Stopwatch()
            assert waiting.result().outcome == "created"
            assert watch.seconds < timeout / 2, "its timeout would have told it too"

    def test_that_died_without_a_word_while_it_was_kept_is_found_out_before_it_is_used(
        self, link: FaultProxy, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        redis = Redis.from_url(link.url, socket_timeout=1)
        listeners = Listeners(redis)
        listeners.reply("iad").close()
        link.silence()
        monkeypatch.setattr("peerlane.tasks.redis.subscription.DOUBTED_AFTER", -1.0)
        with listeners.reply("iad") as listening:
            assert link.accepted == 2
            assert listening.push(queue := f"a-test.{uuid.uuid4()}", "a message") == 1
        assert redis_server.redis.delete(queue) == 1
        listeners.close()
        redis.close()


def test_what_has_come_while_a_program_stood_still_is_an_answer(redis_server: RedisServer) -> None:
    link = Link(Redis.from_url(redis_server.url, protocol=3, socket_timeout=PATIENCE))
    try:
        link.hear_replies("iad", PATIENCE)
        channel = names.result_key(link.new_id("iad").rpartition("_")[0])
        for _ in range(3):
            redis_server.redis.publish(channel, "a late record of somebody's")
        link.still_hears(within=PATIENCE)  # reads these first
        for _ in range(3):
            redis_server.redis.publish(channel, "a late record of somebody's")
        link._send("PING")  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - its answer is to be there before it is read
        eventually(lambda: b"PONG" in _unread(link), "the answer")
        stood_still = time.monotonic() - 5
        assert link._until(stood_still, lambda message: message in (b"PONG", "PONG"))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as above
    finally:
        link.close()


def _unread(link: Link) -> bytes:
    sock = link._connection._sock  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - redis-py hides it
    return cast("bytes", sock.recv(65536, socket.MSG_PEEK))


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["as-the-commit", "as-celery"])
def test_a_record_is_heard_however_its_json_is_spaced(redis_server: RedisServer, separators: tuple[str, str]) -> None:
    redis = Redis.from_url(redis_server.url, socket_timeout=PATIENCE)
    listeners = Listeners(redis)
    record = {"status": "SUCCESS", "task_id": "", "more": "last"}
    for listening in (listeners.reply("iad"), listeners.listen(names.request_id("iad", new_name()))):
        with listening:
            channel = names.result_channels(names.result_key(listening.request_id))[-1]
            for request_id in (listening.request_id + "1", listening.request_id):
                published = json.dumps({**record, "task_id": request_id}, separators=separators)
                redis.publish(channel, published)
            assert listening.wait(time.monotonic() + PATIENCE) == published
    listeners.close()
    redis.close()


def test_many_gateways_are_asked_on_one_connection(gateway: MakeGateway, client: MakeClient, link: FaultProxy) -> None:
    sites = [gateway() for _ in range(2)]
    first = client(sites[0].name, redis_url=link.url)
    clients = [first, Gateway(sites[1].name, app=app_of(first))]
    for api in clients:
        api.create_peer(some_key())
    before = link.accepted
    for api in clients * 3:
        assert api.create_peer(some_key()).outcome == "created"
    assert link.accepted == before


def test_a_connection_has_no_end_of_channels_where_callers_choose_the_names(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerlane.tasks.redis.subscription.MOST_CHANNELS", 3)
    redis = Redis.from_url(own_redis.url, socket_timeout=PATIENCE)
    listeners = Listeners(redis)
    for number in range(10):
        with listeners.reply(f"iad-{number}"):
            assert len(cast("list[bytes]", own_redis.redis.pubsub_channels())) <= 4
    listeners.close()
    redis.close()
