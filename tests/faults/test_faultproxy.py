"""The proxy of the fault runs does to real connections what it says, and no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faultproxy import FaultProxy
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from servers import RedisServer
from waiting import PATIENCE, Stopwatch


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(str(redis_server.socket)) as made:
        yield made


@pytest.fixture
def redis(proxy: FaultProxy) -> Iterator[Redis]:
    with Redis(host=proxy.host, port=proxy.port, socket_timeout=PATIENCE, retry=Retry(NoBackoff(), 0)) as client:
        yield client


def test_passes_everything_on_while_no_knob_is_turned(redis: Redis) -> None:
    assert redis.echo("x" * 100_000) == b"x" * 100_000


def test_holds_back_each_way_by_its_latency(proxy: FaultProxy, redis: Redis) -> None:
    redis.ping()
    proxy.latency = 0.1
    watch = Stopwatch()
    redis.ping()
    assert 0.2 <= watch.seconds < PATIENCE


def test_lets_only_so_many_bytes_pass_in_a_second(proxy: FaultProxy, redis: Redis) -> None:
    redis.ping()
    proxy.bandwidth = 100_000
    watch = Stopwatch()
    redis.echo("x" * 10_000)
    assert watch.seconds >= 0.2


def test_resets_what_is_connected_and_refuses_what_comes_while_it_is_cut(proxy: FaultProxy, redis: Redis) -> None:
    redis.ping()
    proxy.cut()
    for _ in range(3):
        with pytest.raises(RedisConnectionError):
            redis.ping()
    proxy.mend()
    assert redis.ping()


def test_swallows_both_ways_while_half_open_and_leaves_those_connections_dead(proxy: FaultProxy, redis: Redis) -> None:
    kept = redis.connection_pool.get_connection()
    kept.connect()
    proxy.half_open()
    kept.send_command("PING")
    assert not kept.can_read(timeout=0.5)
    kept.disconnect()
    proxy.mend()
    assert redis.ping(), "a new connection works"


def test_resets_in_the_middle_of_a_reply_that_redis_has_given(
    proxy: FaultProxy, redis: Redis, redis_server: RedisServer
) -> None:
    redis.ping()
    proxy.reset_mid_reply(1)
    with pytest.raises(RedisConnectionError):
        redis.incr("faultproxy:counted")
    assert redis_server.redis.get("faultproxy:counted") == "1", "the command took effect, its answer was lost"
    assert redis.incr("faultproxy:counted") == 2


def test_leads_to_a_server_that_comes_back(own_redis: RedisServer) -> None:
    with (
        FaultProxy(str(own_redis.socket)) as proxy,
        Redis(host=proxy.host, port=proxy.port, socket_timeout=PATIENCE, retry=Retry(NoBackoff(), 0)) as client,
    ):
        assert client.ping()
        own_redis.stop()
        with pytest.raises(RedisConnectionError):
            client.ping()
        own_redis.start()
        assert client.ping()
