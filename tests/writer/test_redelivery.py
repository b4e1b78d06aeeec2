"""What a writer had taken when it died is carried out by its successor at once, before anything that waits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from fenced import GATEWAYS, fenced, printed
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, close, new_name
from grouped_lane import GroupedLane
from keys import some_key
from program_path import PROGRAM_PATH
from redis import ConnectionPool, Redis
from redis.client import Pipeline
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admin.poison_messages import set_aside_messages
from peerlane.tasks.lane.tasks import task_of
from peerlane.workers.lane.taking import Taker
from peerlane.workers.lane.unacked import keys_in_hand, take_back


@pytest.fixture
def control(tmp_path: Path) -> Path:
    """The file that says at which point a writer dies or stops."""
    return tmp_path / "failpoints"


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    redis = Redis.from_url(redis_server.url)
    yield redis
    redis.close()


# One writer after another


@pytest.mark.parametrize("point", ["before_apply", "after_apply", "before_commit"])
def test_a_caller_that_waits_is_answered_by_the_next_writer(
    gateway: MakeGateway, client: MakeClient, control: Path, redis: Redis, point: str
) -> None:
    site = gateway(test_failpoints=control)
    api, key = client(site), some_key()
    control.write_text(f"{point}:kill")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(api.create_peer, key, timeout=25)  # below the visibility timeout
        assert site.await_end() == -9
        site.start()
        assert waiting.result().outcome == "created"
    assert api.peer(key) is not None
    eventually(lambda: not redis.exists(names.unacked_key(site.name)), "every message being acknowledged")
    assert "1 requests that an earlier writer had taken" in site.log


def test_what_was_committed_does_not_come_again(
    gateway: MakeGateway, client: MakeClient, control: Path, redis: Redis
) -> None:
    site = gateway(test_failpoints=control)
    api, key = client(site), some_key()
    control.write_text("after_commit:kill")
    assert api.create_peer(key, timeout=25).outcome == "created"
    assert site.await_end() == -9
    # Its commit has acknowledged it, and the writer had no time to.
    assert not redis.exists(names.unacked_key(site.name), names.unacked_key(site.name, "_index"))
    site.start()
    assert api.create_peer(key).outcome == "existing"
    assert "requests that an earlier writer had taken" not in site.log


def test_a_message_with_the_tag_of_the_one_before_is_acknowledged_for_itself(
    gateway: MakeGateway, client: MakeClient, redis: Redis, settings: MakeSettings
) -> None:
    site, key = gateway(), some_key()
    api, asked = client(site), names.request_id(site.name, "asked-twice")
    api.create_peer(key, request_id=asked)
    api.delete_peer(key)
    site.hold()
    app, lane = PeerlaneApp(settings()), names.lane_queue(site.name)
    create = task_of(app, names.CREATE_PEER)
    create.apply_async(kwargs={"gateway": site.name, "public_key": some_key()}, expires=PATIENCE)
    # Answered from the record, before anything is changed, and so by no commit.
    create.apply_async(kwargs={"gateway": site.name, "public_key": key}, task_id=asked, expires=PATIENCE)
    second, first = (json.loads(raw) for raw in cast("list[bytes]", redis.lrange(lane, 0, -1)))
    second["properties"]["delivery_tag"] = first["properties"]["delivery_tag"]
    redis.lset(lane, 0, json.dumps(second))
    site.resume()
    eventually(lambda: not redis.llen(lane), "the lane being empty")
    eventually(lambda: not redis.exists(names.unacked_key(site.name)), "both being acknowledged")
    close(app)


def test_a_request_is_acknowledged_by_its_commit_and_not_a_second_time(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer
) -> None:
    site = gateway(redis=own_redis)
    api = client(site)
    own_redis.redis.config_resetstat()  # a start asks by such a command whether Redis takes writes
    for _ in range(20):
        api.create_peer(some_key())
    stats: Any = own_redis.redis.info("commandstats")
    assert stats["cmdstat_zadd"]["calls"] == stats["cmdstat_zrem"]["calls"] == 20
    assert not own_redis.redis.exists(names.unacked_key(site.name), names.unacked_key(site.name, "_index"))


def test_what_was_taken_goes_before_what_waits(
    gateway: MakeGateway, client: MakeClient, control: Path, settings: MakeSettings
) -> None:
    site = gateway(test_failpoints=control)
    app, keys = PeerlaneApp(settings()), [some_key() for _ in range(4)]
    client(site).create_peer(some_key())
    control.write_text("before_apply:kill")
    create = task_of(app, names.CREATE_PEER)
    sent = [create.apply_async(kwargs={"gateway": site.name, "public_key": keys[0]}, expires=PATIENCE)]
    site.await_end()
    sent += [create.apply_async(kwargs={"gateway": site.name, "public_key": key}, expires=PATIENCE) for key in keys[1:]]
    site.start()
    addresses = [each.get(timeout=25)["allowed_ips"][0] for each in sent]
    assert addresses == ["10.8.0.3/32", "10.8.0.4/32", "10.8.0.5/32", "10.8.0.6/32"]
    close(app)


def test_a_writer_elsewhere_that_wakes_up_later_does_no_harm(
    gateway: MakeGateway,
    client: MakeClient,
    redis: Redis,
    tmp_path: Path,
    control: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The successor dies of the same message, just after the earlier writer has let go of it: it is still noted."""
    monkeypatch.setenv("PYTHONPATH", PROGRAM_PATH)
    others = tmp_path / "others"
    first = _on_a_device_of_its_own(gateway, "one", control, tmp_path)
    first.may_show_tracebacks = True  # Celery shows one of each request that a replaced writer gives back
    first.start()
    second = _on_a_device_of_its_own(gateway, "two", others, tmp_path, name=first.name)
    api, key = client(first), some_key()
    control.write_text("before_commit:stop")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(api.create_peer, key, timeout=100)
        eventually(lambda: not control.read_text(), "the first writer having stopped")
        others.write_text("before_commit:stop")
        second.start(wait=False)
        eventually(lambda: not others.read_text(), "the second writer having stopped")
        assert redis.hlen(names.unacked_key(first.name)) == 1, "the same message, in the second writer's hands"
        first.resume()
        assert first.await_end() == 1, "replaced"
        assert redis.hlen(names.unacked_key(first.name)) == 1, "it is still noted"
        second.kill()
        second.start(wait=False)
        assert waiting.result().outcome == "created"
    changed = [json.loads(line) for line in (tmp_path / "two").read_text().splitlines()]
    assert sum(change.get("set") == key for change in changed) >= 1
    eventually(lambda: not redis.exists(names.unacked_key(first.name)), "every message being acknowledged")


def _on_a_device_of_its_own(
    gateway: MakeGateway, device: str, control: Path, directory: Path, *, name: str | None = None
) -> GatewayProcess:
    made = gateway(name, start=False, interface=device, test_device=directory / device, test_failpoints=control)
    made.program = ["-m", "celery", "-A", "fault_device", "worker", "-l"]
    return made


# Any store of messages taken


def note(redis: Redis, gateway: str, tag: str, at: float, queue: str) -> None:
    """As kombu notes a message."""
    properties = {"delivery_tag": tag, "delivery_info": {"exchange": "", "routing_key": queue}}
    message = {"body": tag, "headers": {"id": f"{gateway}.{tag}"}, "properties": properties}
    redis.zadd(names.unacked_key(gateway, "_index"), {tag: at})
    redis.hset(names.unacked_key(gateway), tag, json.dumps([message, "", queue]))


def waiting(redis: Redis, queue: str) -> list[dict[str, Any]]:
    """What a queue holds, the next first."""
    return [json.loads(raw) for raw in reversed(cast("list[bytes]", redis.lrange(queue, 0, -1)))]


def test_the_order_in_which_messages_were_taken_is_that_in_which_they_come_back(redis: Redis) -> None:
    name = new_name()
    lane, bulk = names.lane_queue(name), names.bulk_queue(name)
    redis.lpush(lane, json.dumps({"body": "waits"}))
    for at, tag in enumerate("abcd"):
        note(redis, name, tag, at, lane if tag in "abc" else bulk)
    assert take_back(redis, name) == 4
    assert [message["body"] for message in waiting(redis, lane)] == ["a", "b", "c", "waits"]
    assert [message["body"] for message in waiting(redis, bulk)] == ["d"]
    assert all(message["headers"]["redelivered"] for message in waiting(redis, lane)[:3])
    assert not redis.exists(names.unacked_key(name), names.unacked_key(name, "_index"))
    assert take_back(redis, name) == 0


def test_a_late_acknowledgement_of_the_earlier_delivery_strikes_nothing_out(redis: Redis) -> None:
    name = new_name()
    note(redis, name, "a", 1, names.lane_queue(name))
    take_back(redis, name)
    (again,) = waiting(redis, names.lane_queue(name))
    assert again["properties"]["delivery_tag"] != "a"


def test_another_gateways_messages_stay_where_they_are(redis: Redis) -> None:
    name, other = new_name(), new_name()
    note(redis, other, "a", 1, names.lane_queue(other))
    assert take_back(redis, name) == 0
    assert redis.hlen(names.unacked_key(other)) == 1
    note(redis, name, "b", 1, names.lane_queue(other))
    assert take_back(redis, name) == 0
    assert redis.llen(names.lane_queue(other)) == 0
    assert len(set_aside_messages(redis, name)) == 1


@pytest.mark.parametrize("junk", [b"", b"\xff", b"null", b"[]", b"[1,2,3]", b'[[],"","QUEUE"]', b'[{},"","QUEUE"]'])
def test_what_no_writer_has_noted_is_set_aside_and_stops_nobody(redis: Redis, junk: bytes) -> None:
    name = new_name()
    noted = junk.replace(b"QUEUE", names.lane_queue(name).encode())
    redis.zadd(names.unacked_key(name, "_index"), cast("Any", {b"\xff": 1, "gone": 2}))
    redis.hset(names.unacked_key(name), cast("Any", b"\xff"), cast("Any", noted))
    note(redis, name, "sound", 3, names.lane_queue(name))
    assert take_back(redis, name) == 1
    assert [message.size for message in set_aside_messages(redis, name)] == [len(noted)]
    assert not redis.exists(names.unacked_key(name), names.unacked_key(name, "_index"))


def test_a_store_of_another_kind_stops_nobody(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    name = new_name()
    redis.set(names.unacked_key(name, "_index"), "no index")
    assert take_back(redis, name) == 0
    assert "only after a while" in caplog.text


class Interrupted(Redis):
    """Lets somebody else act between each reading and the transaction that follows it."""

    def __init__(self, url: str, act: Callable[[], object]) -> None:
        self._act = act
        super().__init__(connection_pool=ConnectionPool.from_url(url))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: FBT001, FBT002 - redis-py's signature
        pipe = super().pipeline(transaction, shard_hint)
        multi = pipe.multi

        def then_multi() -> None:
            self._act()
            multi()

        pipe.multi = then_multi
        return pipe


def test_what_is_acknowledged_in_that_very_moment_does_not_come_back(redis: Redis, redis_server: RedisServer) -> None:
    name = new_name()
    note(redis, name, "a", 1, names.lane_queue(name))

    def acknowledge() -> None:
        pipe = redis.pipeline()
        pipe.zrem(names.unacked_key(name, "_index"), "a")
        pipe.hdel(names.unacked_key(name), "a")
        pipe.execute()

    interrupted = Interrupted(redis_server.url, acknowledge)
    assert take_back(interrupted, name) == 0
    interrupted.connection_pool.disconnect()
    assert waiting(redis, names.lane_queue(name)) == []


def test_a_writer_of_least_rights_takes_back_what_is_its_gateways(
    capsys: pytest.CaptureFixture[str], client: MakeClient, tmp_path: Path, control: Path
) -> None:
    with fenced(printed(capsys, *GATEWAYS, "--passwords")) as server:
        site = GatewayProcess("iad", server.url_of("writer-iad"), tmp_path, dataplane="memory", test_failpoints=control)
        site.start()
        api = client("iad", redis_url=server.url_of("api"))
        control.write_text("after_commit:kill")
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(api.create_peer, some_key(), timeout=25)
            site.await_end()
            note(server.redis, "iad", "junk", 1, names.lane_queue("fra"))
            site.start()
            assert answer.result().outcome == "created"
        eventually(lambda: not server.redis.exists(names.unacked_key("iad")), "every message being acknowledged")
        site.finish()
        noted = [(entry["username"], entry["object"]) for entry in server.redis.acl_log()]
        assert [entry for entry in noted if entry[1] != "config|get"] == []


def test_what_a_writer_had_in_hand_names_the_keys_that_it_was_about_to_create(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    lane = GroupedLane(redis_server, tmp_path)
    try:
        keys = [some_key() for _ in range(4)]
        lane.send({"public_key": keys[0]}, {"public_key": some_key(), "delete": True}, {"public_key": keys[1]})
        lane.redis.lpush(lane.queue, b"no message")
        taker = Taker(lane.redis, lane.name, result_ttl=600)
        taker.once(lane.queue, cast("bytes", lane.redis.rpop(lane.queue)), "one.")
        lane.send_list([{"public_key": keys[2], "preshared_key": some_key()}, {"public_key": keys[3]}])
        taker.once(lane.bulk, cast("bytes", lane.redis.rpop(lane.bulk)), "two.")
        assert lane.redis.hlen(names.unacked_key(lane.name)) == 5
        assert keys_in_hand(lane.redis, lane.name) == set(keys)
    finally:
        lane.close()
