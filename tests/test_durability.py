"""A gateway starts only on a server that can keep what it confirms, and says what may be lost where it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import some_key
from redis import Redis
from servers import RedisServer

from workers.durability import check_durability, judge

#: What INFO says of a server that keeps everything.
SOUND: Mapping[str, Any] = {
    "redis_version": "7.0.15",
    "redis_mode": "standalone",
    "cluster_enabled": 0,
    "role": "master",
    "connected_slaves": 0,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
}


def refused(one: GatewayProcess) -> str:
    """What a gateway says that does not start."""
    one.start(wait=False)
    assert one.await_end() != 0
    return one.log


def test_a_sound_server_is_found_sound() -> None:
    assert judge(SOUND, "always") == []


@pytest.mark.parametrize(
    ("otherwise", "sentence"),
    [
        ({"redis_version": "6.2.14"}, "Redis 6.2.14 is too old: 7.0 or newer is needed"),
        ({"redis_version": "what"}, "too old"),
        ({"redis_mode": "cluster"}, "runs as a cluster"),
        ({"cluster_enabled": 1}, "runs as a cluster"),
        ({"role": "slave"}, "is a replica, and takes no writes"),
        ({"maxmemory": 10**9, "maxmemory_policy": "allkeys-lru"}, "may evict peers (maxmemory-policy allkeys-lru)"),
        ({"maxmemory": 10**9, "maxmemory_policy": "volatile-ttl"}, "may evict peers"),
    ],
)
def test_what_would_break_a_promise_is_refused(otherwise: Mapping[str, Any], sentence: str) -> None:
    (found,) = judge({**SOUND, **otherwise}, "always")
    assert found.fatal
    assert sentence in found.sentence


@pytest.mark.parametrize(
    ("otherwise", "appendfsync", "sentence"),
    [
        ({"aof_enabled": 0}, "always", "CONFIRMED PEERS ARE LOST WHEN IT STOPS"),
        ({}, "everysec", "syncs its append-only file everysec: a power loss can lose confirmed peers"),
        ({}, "no", "a power loss can lose"),
        ({}, None, "does not tell this user how often"),
        ({"aof_last_write_status": "err"}, "always", "is its disk full?"),
        ({"connected_slaves": 1}, "always", "a failover can lose confirmed peers (set min-replicas-to-write 1)"),
    ],
)
def test_what_may_lose_a_confirmed_peer_is_said(
    otherwise: Mapping[str, Any], appendfsync: str | None, sentence: str
) -> None:
    (found,) = judge({**SOUND, **otherwise}, appendfsync)
    assert not found.fatal
    assert sentence in found.sentence


def test_a_valkey_of_any_version_will_do() -> None:
    assert judge({**SOUND, "redis_version": "6.9.9", "valkey_version": "9.1.2"}, "always") == []


def test_a_full_server_that_evicts_nothing_will_do() -> None:
    assert judge({**SOUND, "maxmemory": 10**9}, "always") == []


def test_replicas_that_have_to_confirm_will_do() -> None:
    assert judge({**SOUND, "connected_slaves": 2, "min_slaves_good_slaves": 2}, "always") == []


def test_the_server_of_these_tests_is_sound(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    redis = Redis.from_url(redis_server.url)
    check_durability(redis, require=True)
    redis.close()
    assert not caplog.records


def test_a_writer_on_a_server_without_a_file_says_so_loudly_and_serves(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer
) -> None:
    own_redis.redis.config_set("appendonly", "no")
    one = gateway(redis=own_redis)
    assert "CONFIRMED PEERS ARE LOST WHEN IT STOPS" in one.log
    assert client(one).create_peer(some_key()).outcome == "created"


@pytest.mark.parametrize(("name", "value"), [("appendonly", "no"), ("appendfsync", "everysec")])
def test_a_writer_that_must_be_durable_does_not_start_on_a_server_that_is_not(
    gateway: MakeGateway, own_redis: RedisServer, name: str, value: str
) -> None:
    own_redis.redis.config_set(name, value)
    said = refused(gateway(redis=own_redis, start=False, require_durable=True))
    assert "PEERLANE_REQUIRE_DURABLE forbids that" in said


def test_a_writer_does_not_start_where_peers_may_be_evicted(gateway: MakeGateway, own_redis: RedisServer) -> None:
    own_redis.redis.config_set("maxmemory", 100_000_000)
    own_redis.redis.config_set("maxmemory-policy", "allkeys-lru")
    assert "Redis may evict peers" in refused(gateway(redis=own_redis, start=False))


def test_a_writer_does_not_start_on_a_replica_and_says_that_another_try_may_help(
    gateway: MakeGateway, own_redis: RedisServer
) -> None:
    own_redis.redis.replicaof("127.0.0.1", "1")
    one = gateway(redis=own_redis, start=False)
    assert "Redis is a replica" in refused(one)
    assert one.status == 3, "a failover makes it the primary: the supervisor tries again"
    own_redis.redis.replicaof("NO", "ONE")
    one.start()


def test_info_tells_that_writes_wait_for_replicas(own_redis: RedisServer) -> None:
    redis = Redis.from_url(own_redis.url)
    with_replica: Mapping[str, Any] = {"connected_slaves": 1}
    assert judge({**redis.info(), **with_replica}, "always")
    redis.config_set("min-replicas-to-write", 1)
    assert not judge({**redis.info(), **with_replica}, "always")
    redis.close()
