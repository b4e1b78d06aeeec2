"""A gateway starts only on a server that can keep what it confirms, and says what may be lost where it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import Shell
from fenced import FencedServer, fenced, printed
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings
from keys import some_key
from redis import Redis
from redis.exceptions import ResponseError
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane.tasks.errors import OutcomeUnknown, StorageError
from peerlane.workers.cli.doctor_checks import examine
from peerlane.workers.store.redis_checks import check_durability, judge, memory

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


def refused(site: GatewayProcess) -> str:
    """What a gateway says that does not start."""
    site.start(wait=False)
    assert site.await_end() != 0
    return site.log


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
    (finding,) = judge({**SOUND, **otherwise}, "always")
    assert finding.fatal
    assert sentence in finding.sentence


@pytest.mark.parametrize(
    ("otherwise", "appendfsync", "sentence"),
    [
        ({"aof_enabled": 0}, "always", "CONFIRMED PEERS ARE LOST WHEN IT STOPS"),
        ({}, "everysec", "syncs its append-only file everysec: a power loss can lose confirmed peers"),
        ({}, "no", "a power loss can lose"),
        ({}, None, "only CONFIG GET tells, which this Redis user may not give, as it shows passwords too"),
        ({"aof_last_write_status": "err"}, "always", "is its disk full?"),
        ({"connected_slaves": 1}, "always", "a failover can lose confirmed peers (set min-replicas-to-write 1)"),
    ],
)
def test_what_may_lose_a_confirmed_peer_is_said(
    otherwise: Mapping[str, Any], appendfsync: str | None, sentence: str
) -> None:
    (finding,) = judge({**SOUND, **otherwise}, appendfsync)
    assert not finding.fatal
    assert sentence in finding.sentence


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
    site = gateway(redis=own_redis)
    assert "CONFIRMED PEERS ARE LOST WHEN IT STOPS" in site.log
    assert client(site).create_peer(some_key()).outcome == "created"


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
    site = gateway(redis=own_redis, start=False)
    assert "Redis is a replica" in refused(site)
    assert site.status == 3, "a failover makes it the primary: the supervisor tries again"
    own_redis.redis.replicaof("NO", "ONE")
    site.start()


def test_info_tells_that_writes_wait_for_replicas(own_redis: RedisServer) -> None:
    redis = Redis.from_url(own_redis.url)
    with_replica: Mapping[str, Any] = {"connected_slaves": 1}
    assert judge({**redis.info(), **with_replica}, "always")
    redis.config_set("min-replicas-to-write", 1)
    assert not judge({**redis.info(), **with_replica}, "always")
    redis.close()


# A writer with the rights of `peerlane acl`, which CONFIG GET is not among


@pytest.fixture
def fenced_server(capsys: pytest.CaptureFixture[str]) -> Iterator[FencedServer]:
    with fenced(printed(capsys, "iad", "--passwords")) as fenced_server:
        yield fenced_server


@pytest.fixture
def make_writer(fenced_server: FencedServer, tmp_path: Path) -> Iterator[Callable[..., GatewayProcess]]:
    made: list[GatewayProcess] = []

    def make(**settings: Any) -> GatewayProcess:
        url = fenced_server.url_of("writer-iad")
        made.append(GatewayProcess("iad", url, tmp_path, dataplane="memory", **settings))
        return made[-1]

    yield make
    for writer in made:
        writer.finish()


def test_a_writer_that_may_not_read_appendfsync_says_so_and_what_to_do(
    make_writer: Callable[..., GatewayProcess],
) -> None:
    site = make_writer()
    site.start()
    assert "whether it syncs it at each write is unknown" in site.log
    assert "state it: PEERLANE_REDIS_APPENDFSYNC=always" in site.log
    site.stop()
    assert "PEERLANE_REQUIRE_DURABLE forbids that" in refused(make_writer(require_durable=True))


def test_an_operator_may_state_it_and_have_the_writer_require_it(make_writer: Callable[..., GatewayProcess]) -> None:
    site = make_writer(require_durable=True, redis_appendfsync="always")
    site.start()
    assert "appendfsync is always, as PEERLANE_REDIS_APPENDFSYNC states" in site.log
    assert "unknown" not in site.log
    site.stop()
    said = refused(make_writer(require_durable=True, redis_appendfsync="everysec"))
    assert "syncs its append-only file everysec" in said


def test_what_redis_tells_wins_over_what_is_stated(own_redis: RedisServer) -> None:
    redis = Redis.from_url(own_redis.url)
    redis.config_set("appendfsync", "everysec")
    with pytest.raises(StorageError, match="everysec"):
        check_durability(redis, require=True, stated="always")
    redis.close()


def test_the_doctor_says_which_of_it_is_only_stated(fenced_server: FencedServer, settings: MakeSettings) -> None:
    def durability(user: str, **stated: str) -> list[tuple[str, str]]:
        checks = examine(settings(redis_url=fenced_server.url_of(user), **stated))
        return [(check.verdict, check.sentence) for check in checks if check.what == "durability"]

    ((verdict, sentence),) = durability("operator-iad")
    assert (verdict, "is unknown: only CONFIG GET tells" in sentence) == ("warning", True)
    ((verdict, sentence),) = durability("operator-iad", redis_appendfsync="always")
    assert (verdict, "this Redis user may not check" in sentence) == ("ok", True)
    assert durability("admin") == [("ok", "what is confirmed is on disk first")]


def test_redis_cannot_allow_a_user_to_read_appendfsync_alone(own_redis: RedisServer) -> None:
    """Why the writer's user may not ask: it would be all settings, passwords among them, or none."""
    admin: Any = own_redis.redis
    with pytest.raises(ResponseError, match="not supported"):
        admin.execute_command("ACL", "SETUSER", "some", "on", "nopass", "+config|get|appendfsync")
    admin.execute_command("ACL", "SETUSER", "some", "on", "nopass", "+config|get", "+auth")
    admin.config_set("requirepass", "a-password-of-all")
    some = Redis.from_url(own_redis.url, username="some", password="any", decode_responses=True)
    assert some.config_get("requirepass") == {"requirepass": "a-password-of-all"}
    some.close()


@pytest.mark.parametrize(
    ("used", "most", "fatal"), [(10**9, 0, None), (89, 100, None), (90, 100, False), (100, 100, True), (120, 100, True)]
)
def test_a_memory_that_is_full_or_nearly_is_told(used: int, most: int, *, fatal: bool | None) -> None:
    finding = memory({"used_memory": used << 20, "maxmemory": most << 20})
    assert (finding and finding.fatal) == fatal
    if finding is not None:
        assert f"{used} of {most} MiB" in finding.sentence


def test_while_memory_is_full_the_gateway_says_so_and_is_served_again_afterwards(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer
) -> None:
    site = gateway(redis=own_redis)
    api, shell = client(site, redis=own_redis), Shell(site)
    key = some_key()
    api.create_peer(key)
    before = int(site.look().facts["heartbeat"])
    own_redis.redis.config_set("maxmemory", "1")
    eventually(lambda: "Redis' memory is full" in site.log, "it in the writer's log")
    eventually(lambda: int(site.look().facts["heartbeat"]) > before + 2_000, "signs of life all the while")
    assert site.look().state == "active", "it is there"
    checks = {check["what"]: check for check in shell.ask("doctor", status=1)["checks"]}
    assert checks["memory"]["verdict"] == "failed"
    with pytest.raises(OutcomeUnknown, match="OOM: its memory is full"):
        api.delete_peer(key, timeout=2)
    own_redis.redis.config_set("maxmemory", "0")
    eventually(lambda: "Requests can be made again" in site.log, "the end in the log")
    assert api.delete_peer(key, timeout=PATIENCE).outcome == "deleted"
