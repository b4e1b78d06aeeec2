"""After an outage of Redis the lane is soon served again, and the log tells of an outage as of one thing."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import some_key
from kombu import Connection
from servers import RedisServer
from waiting import eventually

from peerlane.workers.lane.worker import LONGEST_PAUSE, LaneConsumer
from peerlane.workers.store import retry
from peerlane.workers.store.retry import Outage


def test_a_consumer_never_pauses_for_long(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kombu itself, but that its pauses are noted instead of slept."""
    own_redis.stop()
    pauses: list[float] = []

    def paused(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            own_redis.start()

    monkeypatch.setattr("kombu.utils.functional.sleep", paused)
    consumer = cast("Any", SimpleNamespace(first_connection_attempt=True, _try_to_write=lambda: None))
    connection = Connection(f"redis+socket://{own_redis.socket}")
    assert LaneConsumer.ensure_connected(consumer, connection) is connection
    connection.release()
    assert len(pauses) >= 20
    assert max(pauses) <= LONGEST_PAUSE


def test_a_lane_is_served_again_after_an_outage_that_the_log_tells_once(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer
) -> None:
    site = gateway(redis=own_redis)
    api = client(site, redis=own_redis)
    api.create_peer(some_key())
    own_redis.stop()
    eventually(lambda: "Redis is away (" in site.log, "the outage in the log")
    own_redis.start()
    eventually(lambda: "Redis is back after" in site.log, "the return in the log")
    eventually(lambda: site.look().state == "active", "the lane being served")
    assert api.create_peer(some_key(), timeout=20).outcome == "created"
    assert site.log.count("Redis is away (") == 1, site.log
    assert "Cannot connect" not in site.log
    assert "Trying to re-establish" not in site.log


def test_an_outage_is_told_at_its_beginning_now_and_then_and_at_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: now[0]))
    outage = Outage()
    with caplog.at_level(logging.INFO):
        outage.over()
        for _ in range(70):
            outage.failed("nobody listens there")
            now[0] += 1
        outage.over()
        outage.over()
        outage.failed("it does not answer in time")
    assert [record.getMessage() for record in caplog.records] == [
        "Redis is away (nobody listens there)",
        "Redis is still away, for 30 s (nobody listens there)",
        "Redis is still away, for 60 s (nobody listens there)",
        "Redis is back after 70.0 s",
        "Redis is away (it does not answer in time)",
    ]


def started_without_redis(gateway: MakeGateway, server: RedisServer, role: str) -> GatewayProcess:
    """A writer or observer that waits for its Redis, which was stopped before."""
    site = gateway(redis=server, start=False)
    server.stop()
    site.program = ["-m", "peerlane.workers.cli", "gateway", "run", site.name, "--only", role, "--await-redis"]
    site.program += ["--loglevel"]
    site.start(wait=False)
    eventually(lambda: "Redis is away (" in site.log, "it waiting")
    assert re.search(r"Redis is away \(.+\): \w+://", site.log), "it names the Redis that it waits for"
    return site


@pytest.mark.parametrize("role", ["writer", "observer"])
def test_a_process_that_starts_while_redis_is_away_waits_for_it(
    gateway: MakeGateway, own_redis: RedisServer, role: str
) -> None:
    site = started_without_redis(gateway, own_redis, role)
    own_redis.start()
    if role == "writer":
        site.await_serving()
    else:
        eventually(lambda: "observed" in site.log, "the observer's start")
    assert site.stop() == 0


@pytest.mark.parametrize("role", ["writer", "observer"])
def test_ended_while_it_waits_for_redis_it_ends_well(gateway: MakeGateway, own_redis: RedisServer, role: str) -> None:
    site = started_without_redis(gateway, own_redis, role)
    assert site.stop() == 0, site.log


def test_ended_while_a_start_that_had_begun_waits_for_redis_it_ends_well(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer, tmp_path: Path
) -> None:
    control = tmp_path / "failpoints"
    site = gateway(redis=own_redis, test_failpoints=control)
    client(site, redis=own_redis).create_peer(some_key())
    site.kill()
    control.write_text("between_batches:stop")
    site.start(wait=False)
    eventually(lambda: not control.read_text(), "the writer in the middle of its start")
    own_redis.stop()
    site.resume()
    eventually(lambda: "Redis is away (" in site.log, "it waiting")
    assert site.stop() == 0, site.log
    own_redis.start()
    eventually(lambda: site.look().state == "down", "nobody being told as recovering")
