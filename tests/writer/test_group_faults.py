"""A group meets a device that refuses, a Redis that is full, away or back, a signal, and kill -9: nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, close
from grouped_lane import GroupedLane
from keys import some_key
from servers import RedisServer
from waiting import eventually
from writer_alone import create_peer

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import KernelError, OutcomeUnknown, PeerlaneError, TimedOut
from peerlane.tasks.lane.tasks import task_of
from peerlane.workers.dataplane import Change, SetPeer
from peerlane.workers.host.pulse import PULSE
from peerlane.workers.store import procedures


@pytest.fixture
def lane(own_redis: RedisServer, tmp_path: Path) -> Iterator[GroupedLane]:
    own_redis.redis.config_set("appendfsync", "no")
    procedures.load(cast("Any", own_redis.redis))
    lane = GroupedLane(own_redis, tmp_path)
    yield lane
    lane.close()


@pytest.fixture
def app(settings: MakeSettings, own_redis: RedisServer) -> Iterator[PeerlaneApp]:
    made = PeerlaneApp(settings(redis_url=own_redis.url))
    yield made
    close(made)


class TestADeviceThatRefusesOnePeer:
    def test_refuses_that_one_and_has_the_others(self, lane: GroupedLane) -> None:
        bad = some_key()
        apply = lane.writer.plane.apply

        def refusing(changes: Sequence[Change]) -> None:
            for at, change in enumerate(changes):
                if isinstance(change, SetPeer) and change.public_key == bad:
                    apply(changes[:at])  # what a message had made before stays
                    raise KernelError("no such peer can be made")
            apply(changes)

        lane.writer.plane.apply = refusing
        sent = lane.send({}, {}, {"public_key": bad}, {}, {})
        lane.wake()
        assert lane.kinds(sent) == ["created", "created", KernelError, "created", "created"]
        assert bad not in lane.writer.plane.peers()

    def test_is_no_reason_to_take_the_writer_for_stuck(self, lane: GroupedLane) -> None:
        """64 requests one by one on a slow disk take longer than one may: the writer tells of each."""
        apply, commit = lane.writer.plane.apply, lane.writer.store.commit
        turns: list[float] = []

        def refusing(changes: Sequence[Change]) -> None:
            if len(changes) > 1:
                raise KernelError("no two peers can be made at once")
            apply(changes)

        def watched(*arguments: Any, **options: Any) -> Any:
            turns.append(PULSE.turned)
            return commit(*arguments, **options)

        lane.writer.plane.apply, lane.writer.store.commit = refusing, watched
        sent = lane.send({}, {}, {}, {})
        lane.wake()
        assert lane.kinds(sent) == ["created"] * 4
        assert len(set(turns)) == len(turns) == 4

        assert lane.writer.recovery_needed is None
        assert not lane.redis.exists(names.unacked_key(lane.name))
        lane.writer.plane.apply = apply
        lane.check()


class TestARedisThatIsFull:
    def test_confirms_no_create_and_every_delete(self, lane: GroupedLane) -> None:
        key = some_key()
        create_peer(lane.writer, f"{lane.name}.before", {"gateway": lane.name, "public_key": key})
        sent = lane.send({}, {"public_key": key, "delete": True}, {}, {})
        lane.redis.config_set("maxmemory", 1)
        lane.wake()
        lane.redis.config_set("maxmemory", 0)
        assert lane.kinds(sent[1:2]) == ["deleted"]
        assert not any(lane.redis.exists(names.result_key(request)) for request in (sent[0], *sent[2:]))
        assert lane.writer.plane.peers() == {}
        assert not lane.redis.exists(names.unacked_key(lane.name))
        # Whoever waits cancels, and what was not stored can never take effect.
        again = lane.send({}, {})
        lane.wake()
        assert lane.kinds(again) == ["created"] * 2
        lane.check()

    def test_has_its_dead_struck_out_all_the_same(self, lane: GroupedLane) -> None:
        deadline = lane.writer.store.clock.now_ms() - 500
        sent = lane.send(*({"deadline": deadline} for _ in range(3)))
        lane.redis.config_set("maxmemory", 1)
        lane.wake()
        lane.redis.config_set("maxmemory", 0)
        assert lane.kinds(sent) == [TimedOut] * 3


def hand_over(process: GatewayProcess, app: PeerlaneApp, server: RedisServer, keys: Sequence[str]) -> list[Any]:
    """Have the gateway take a create for each key as one group, and sleep a second before it commits them."""
    control = Path(process.settings["test_failpoints"])
    process.hold()
    create = task_of(app, names.CREATE_PEER)
    sent = [create.apply_async(kwargs={"gateway": process.name, "public_key": key}, expires=90) for key in keys]
    control.write_text("before_commit.group:sleep:1.5")
    process.resume()
    eventually(lambda: server.redis.hlen(names.unacked_key(process.name)) == len(keys), "the group in hand")
    return sent


def assert_all_created(process: GatewayProcess, server: RedisServer, keys: Sequence[str], sent: Sequence[Any]) -> None:
    answers = [each.get(timeout=60) for each in sent]
    assert [each["outcome"] for each in answers] == ["created"] * len(keys)
    assert len({each["allowed_ips"][0] for each in answers}) == len(keys)
    assert set(cast("Any", server.redis.hkeys(names.peers_key(process.name)))) >= set(keys)
    unacked = names.unacked_key(process.name), names.unacked_key(process.name, "_index")
    eventually(lambda: not server.redis.exists(*unacked), "every message being acknowledged")


class TestAGroupInHand:
    """One gateway's way through what can happen to it; each test leaves it serving."""

    @pytest.fixture
    def process(
        self, gateway: MakeGateway, client: MakeClient, own_redis: RedisServer, tmp_path: Path
    ) -> GatewayProcess:
        made = gateway(redis=own_redis, test_failpoints=tmp_path / "failpoints")
        client(made).create_peer(some_key())
        return made

    def test_is_finished_before_the_writer_obeys_a_signal(
        self, process: GatewayProcess, app: PeerlaneApp, own_redis: RedisServer
    ) -> None:
        keys = [some_key() for _ in range(12)]
        sent = hand_over(process, app, own_redis, keys)
        assert process.stop() == 0
        assert_all_created(process, own_redis, keys, sent)

    def test_waits_for_a_redis_that_comes_back(
        self, process: GatewayProcess, app: PeerlaneApp, own_redis: RedisServer
    ) -> None:
        keys = [some_key() for _ in range(12)]
        sent = hand_over(process, app, own_redis, keys)
        own_redis.kill()
        eventually(lambda: "Redis is away" in process.log, "the writer seeing it")
        own_redis.start()
        assert_all_created(process, own_redis, keys, sent)
        assert process.status is None

    def test_is_the_next_writers_where_the_writer_has_to_end_without_redis(
        self, process: GatewayProcess, app: PeerlaneApp, own_redis: RedisServer
    ) -> None:
        keys = [some_key() for _ in range(12)]
        sent = hand_over(process, app, own_redis, keys)
        own_redis.kill()
        os.kill(process.pid, signal.SIGTERM)
        process.await_end(within=30)
        own_redis.start()
        assert not any(own_redis.redis.exists(names.result_key(str(each.id))) for each in sent)
        assert own_redis.redis.hlen(names.unacked_key(process.name)) == len(keys)
        Path(process.settings["test_failpoints"]).write_text("")
        process.start()
        assert_all_created(process, own_redis, keys, sent)


def test_kill_9_again_and_again_with_groups_in_hand_loses_nothing_and_leaves_no_ghost(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer, app: PeerlaneApp
) -> None:
    site = gateway(redis=own_redis)
    client(site).create_peer(some_key())
    create, delete = task_of(app, names.CREATE_PEER), task_of(app, names.DELETE_PEER)
    redis, lanes = own_redis.redis, lanes_of(app)
    asked: dict[str, Any] = {}
    cancelled: dict[str, Any] = {}
    gone: dict[str, Any] = {}
    for _ in range(3):
        site.hold()
        for number in range(70):
            key = some_key()
            sent = create.apply_async(kwargs={"gateway": site.name, "public_key": key}, expires=120)
            (cancelled if number % 5 == 4 else asked)[key] = sent
        for key in list(asked)[:5]:
            if key not in gone and asked[key].ready():
                gone[key] = delete.apply_async(kwargs={"gateway": site.name, "public_key": key}, expires=120)
        site.resume()
        eventually(lambda: redis.hlen(names.unacked_key(site.name)) > 1, "a group in hand", every=0.0005)
        for each in list(cancelled.values())[-3:]:
            lanes.cancel(str(each.id))
        site.kill()
        site.start()
    answers = {key: outcome(each) for key, each in (asked | cancelled).items()}
    deletes = {key: outcome(each) for key, each in gone.items()}
    assert {type(answers[key]) for key in asked} <= {dict}, "what nobody cancelled was carried out"
    assert all(isinstance(each, (dict, TimedOut)) for each in answers.values())
    assert all(isinstance(each, dict) for each in deletes.values())
    expected = {key for key, each in answers.items() if isinstance(each, dict)} - deletes.keys()
    stored = set(cast("Any", redis.hkeys(names.peers_key(site.name))))
    assert expected <= stored
    assert len(stored - expected) == 1, "the first peer, and no ghost"
    owners = cast("dict[str, str]", redis.hgetall(names.addresses_key(site.name)))
    assert set(owners.values()) == stored
    granted = {prefix: key for key in expected for prefix in cast("dict[str, Any]", answers[key])["allowed_ips"]}
    assert owners.items() >= granted.items()
    unacked = names.unacked_key(site.name), names.unacked_key(site.name, "_index")
    eventually(lambda: not redis.exists(*unacked), "every message being acknowledged")


def outcome(sent: Any) -> dict[str, Any] | PeerlaneError:
    """What became of a request, once that is known."""
    try:
        return cast("dict[str, Any]", sent.get(timeout=60))
    except OutcomeUnknown:
        raise
    except PeerlaneError as error:
        return error
