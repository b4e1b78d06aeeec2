"""The kept connection of a list: its slices go out on it, and all of their outcomes come back on one channel."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from celery import signals
from faultproxy import FaultProxy
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import some_key
from redis import Redis
from redis.exceptions import RedisError
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane import Gateway, OutcomeUnknown, PeerAnswer, PeerResult
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.lane.slices import cut, new_list_id
from peerlane.tasks.redis.list_replies import ListReplies
from peerlane.tasks.redis.subscription import Listeners


def some(count: int) -> list[dict[str, Any]]:
    return [{"public_key": some_key()} for _ in range(count)]


def kinds(answers: list[PeerAnswer]) -> set[str]:
    return {each.outcome if isinstance(each, PeerResult) else each.code for each in answers}


def counts(server: RedisServer, *commands: str) -> list[int]:
    """How often the server has carried out these commands."""
    stats = cast("dict[str, dict[str, int]]", server.redis.info("commandstats"))
    return [stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in commands]


@pytest.fixture
def link(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(str(redis_server.socket)) as proxy:
        yield proxy


class TestAList:
    def test_needs_one_subscription_for_all_of_its_slices(
        self, own_redis: RedisServer, gateway: MakeGateway, client: MakeClient
    ) -> None:
        site = gateway(redis=own_redis)
        api = client(site, redis=own_redis)
        api.create_peers(some(1))
        before = counts(own_redis, "subscribe", "unsubscribe", "lpush")
        assert kinds(api.create_peers(some(300))) == {"created"}
        after = counts(own_redis, "subscribe", "unsubscribe", "lpush")
        assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 5]

    def test_whose_connection_is_lost_gets_its_answers_all_the_same(
        self, gateway: MakeGateway, client: MakeClient, link: FaultProxy
    ) -> None:
        site, wishes = gateway(), some(400)
        api = client(site.name, redis_url=link.url)
        api.create_peer(some_key())
        site.hold()
        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(api.create_peers, wishes, timeout=PATIENCE)
            eventually(lambda: site.look().waiting_bulk >= 4, "four slices waiting")
            link.reset()
            site.resume()
            answers = asking.result()
        assert [each.public_key for each in answers if isinstance(each, PeerResult)] == [
            w["public_key"] for w in wishes
        ]
        assert kinds(answers) == {"created"}

    def test_of_which_a_push_has_no_answer_is_done_or_never_will_be(
        self, gateway: MakeGateway, client: MakeClient, link: FaultProxy
    ) -> None:
        site, wishes = gateway(), some(200)
        api = client(site.name, redis_url=link.url)
        api.create_peers(some(1), timeout=PATIENCE)
        site.hold()
        link.reset_mid_reply(to=b"LPUSH")
        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(api.create_peers, wishes, timeout=PATIENCE)
            eventually(lambda: site.look().waiting_bulk >= 4, "all slices waiting")
            site.resume()
            answers = asking.result()
        assert kinds(answers) == {"timed_out", "created"}
        created = {each.public_key for each in answers if isinstance(each, PeerResult)}
        assert len(created) == 136, "the other slices"
        api.create_peer(some_key(), timeout=PATIENCE)
        there = {peer.public_key for peer in api.peers()}
        assert there >= created
        assert len(there) == len(created) + 2

    def test_goes_celerys_way_where_something_listens_to_its_signals(
        self, shared_gateway: GatewayProcess, app: PeerlaneApp
    ) -> None:
        published: list[str] = []

        def note(headers: dict[str, Any], **_: Any) -> None:
            published.append(headers["id"])

        signals.before_task_publish.connect(note)
        try:
            answers = Gateway(shared_gateway.name, app=app).create_peers(some(65), timeout=PATIENCE)
        finally:
            signals.before_task_publish.disconnect(note)
        assert kinds(answers) == {"created"}
        assert len(published) == 2


class TestTheIdsOfSlices:
    def test_of_a_new_list_have_one_channel(self) -> None:
        list_id = new_list_id("iad")
        assert re.fullmatch(r"iad\.[0-9a-f]{32}", list_id)
        slices = list(cut(names.CREATE_PEERS, "iad", some(130), list_id))
        assert [each.request_id for each in slices] == [f"{list_id}_{number}" for number in range(3)]
        channels = {names.result_channels(names.result_key(each.request_id))[1] for each in slices}
        assert channels == {names.result_key(list_id)}

    def test_are_the_same_where_the_list_is_asked_again_under_its_id(self) -> None:
        (unknown,) = cut(names.DELETE_PEERS, "iad", [some_key()], new_list_id("iad"), new=True)
        (answer,) = unknown.answers(OutcomeUnknown("away", unknown.request_id))
        assert isinstance(answer, OutcomeUnknown)
        keys = [wish.public_key for wish in unknown.wishes]
        (again,) = cut(names.DELETE_PEERS, "iad", keys, new_list_id("iad", answer.request_id))
        assert again.request_id == unknown.request_id


class TestReplies:
    @pytest.fixture
    def redis(self, redis_server: RedisServer) -> Iterator[Redis]:
        made = Redis(unix_socket_path=str(redis_server.socket), client_name="list-replies")
        yield made
        made.close()

    @staticmethod
    def publish(redis: Redis, request_id: str) -> str:
        record = json.dumps({"task_id": request_id})
        for channel in names.result_channels(names.result_key(request_id)):
            redis.publish(channel, record)
        return record

    def test_are_heard_in_any_order_and_of_several_lists(self, redis: Redis) -> None:
        lists = [new_list_id("iad"), new_list_id("ams")]
        with ListReplies(Listeners(redis)) as replies:
            asked = [f"{list_id}_{number}" for number in range(2) for list_id in lists]
            expected = [replies.expect(request_id.rpartition("_")[0], request_id) for request_id in asked]
            records = {request_id: self.publish(redis, request_id) for request_id in reversed(asked)}
            assert expected[0].push("a queue of a test", "message") == 1
            until = time.monotonic() + PATIENCE
            assert [reply.wait(until) for reply in expected] == [records[request_id] for request_id in asked]
        redis.delete("a queue of a test")

    def test_on_a_lost_connection_are_an_error_and_the_next_list_has_another(
        self, redis: Redis, redis_server: RedisServer
    ) -> None:
        list_id = new_list_id("iad")
        with ListReplies(Listeners(redis)) as replies:
            first, second = (replies.expect(list_id, f"{list_id}_{number}") for number in range(2))
            redis_server.redis.client_kill_filter(_type="pubsub")
            for lost in (first, second):
                with pytest.raises(RedisError):
                    lost.wait(time.monotonic() + PATIENCE)
            third = replies.expect(list_id, f"{list_id}_3")
            record = self.publish(redis, f"{list_id}_3")
            assert third.wait(time.monotonic() + PATIENCE) == record

    def test_that_do_not_come_in_time_cost_the_connection(self, redis: Redis) -> None:
        listeners, list_id = Listeners(redis), new_list_id("iad")
        with ListReplies(listeners) as replies:
            reply = replies.expect(list_id, f"{list_id}_0")
            assert reply.wait(time.monotonic() + 0.01) is None
            with pytest.raises(RedisError):
                reply.wait(time.monotonic() + PATIENCE)

    def test_leave_the_connection_to_the_next_list(self, redis: Redis, redis_server: RedisServer) -> None:
        listeners = Listeners(redis)
        connections: list[set[str]] = []
        for _ in range(3):
            list_id = new_list_id("iad")
            with ListReplies(listeners) as replies:
                reply = replies.expect(list_id, f"{list_id}_0")
                self.publish(redis, f"{list_id}_1")  # nobody waits for it
                record = self.publish(redis, f"{list_id}_0")
                assert reply.wait(time.monotonic() + PATIENCE) == record
            clients = redis_server.redis.client_list()
            connections.append({each["id"] for each in clients if each["name"] == "list-replies"})
        assert len(connections[0]) == 2
        assert connections[1:] == connections[:1] * 2
        listeners.close()
