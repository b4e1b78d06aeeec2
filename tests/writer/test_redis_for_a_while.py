"""A server that is a replica for a while, has lost its own, or was emptied: Redis is away, and nobody ends of it."""

from __future__ import annotations

import contextlib

import pytest
from gateways import MakeClient, MakeGateway
from keys import some_key
from observers import Observer, ending
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway, OutcomeUnknown, PeerlaneError, Unavailable
from peerlane.config import names


def creates_again(lane: Gateway) -> None:
    def created() -> bool:
        with contextlib.suppress(PeerlaneError):
            return lane.create_peer(some_key(), timeout=3).outcome == "created"
        return False

    eventually(created, "creates being answered again")


@pytest.mark.parametrize("answer", ["READONLY", "MASTERDOWN", "NOREPLICAS", "MISCONF"])
def test_writer_observer_and_callers_outlive_a_server_that_takes_no_writes(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer, answer: str
) -> None:
    site = gateway(redis=own_redis)
    with ending(watcher := Observer(site)):
        lane, key = client(site, redis=own_redis), some_key()
        lane.create_peer(key)
        redis = own_redis.redis
        match answer:
            case "NOREPLICAS":
                redis.config_set("min-replicas-to-write", "1")
            case "MISCONF":
                (own_redis.directory / "dump.rdb").mkdir()  # nothing can be renamed to it
                redis.config_set("save", "3600 1")
                redis.bgsave()
            case "MASTERDOWN":
                redis.config_set("replica-serve-stale-data", "no")
                redis.replicaof("127.0.0.1", "1")
            case _:
                redis.replicaof("127.0.0.1", "1")
        eventually(lambda: "Redis is away (" in site.log, "the writer saying so")
        # It takes no request, or the writer could not tell for so long that it lives.
        with pytest.raises((OutcomeUnknown, Unavailable)):
            lane.create_peer(some_key(), timeout=2)
        if answer == "NOREPLICAS":
            redis.config_set("min-replicas-to-write", "0")
        elif answer == "MISCONF":
            redis.config_set("stop-writes-on-bgsave-error", "no")
        else:
            redis.replicaof("NO", "ONE")
        creates_again(lane)
        assert lane.peer(key) is not None
        assert site.status is None
        assert watcher.status is None
        assert "newer writer" not in site.log


def test_a_neighbours_flushall_is_lost_data_and_no_newer_writer(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer
) -> None:
    site = gateway(redis=own_redis)
    lane, kept, gone = client(site, redis=own_redis), some_key(), some_key()
    addresses = lane.create_peer(kept).allowed_ips
    lane.create_peer(gone)
    lane.delete_peer(gone)
    own_redis.redis.flushall()
    eventually(lambda: "Redis is behind its writer" in site.log, "the writer noticing, by its heartbeat")
    creates_again(lane)
    peers = {peer.public_key: peer.allowed_ips for peer in lane.peers()}
    assert tuple(map(str, peers[kept])) == addresses
    assert gone not in peers
    assert site.status is None
    assert "newer writer" not in site.log
    assert own_redis.redis.hgetall(names.alarms_key(site.name)) == {}, "nothing is lost"
