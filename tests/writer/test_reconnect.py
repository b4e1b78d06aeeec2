"""After an outage of Redis the lane is soon served again, and the log tells of an outage as of one thing."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gateways import MakeClient, MakeGateway
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
    one = gateway(redis=own_redis)
    api = client(one, redis=own_redis)
    api.create_peer(some_key())
    own_redis.stop()
    eventually(lambda: "Redis is away (" in one.log, "the outage in the log")
    own_redis.start()
    eventually(lambda: "Redis is back after" in one.log, "the return in the log")
    eventually(lambda: one.look().state == "active", "the lane being served")
    assert api.create_peer(some_key(), timeout=20).outcome == "created"
    assert one.log.count("Redis is away (") == 1, one.log
    assert "Cannot connect" not in one.log
    assert "Trying to re-establish" not in one.log


def test_an_outage_is_told_at_its_beginning_now_and_then_and_at_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: now[0]))
    told = Outage()
    with caplog.at_level(logging.INFO):
        told.over()
        for _ in range(70):
            told.failed("nobody listens there")
            now[0] += 1
        told.over()
        told.over()
        told.failed("it does not answer in time")
    assert [record.getMessage() for record in caplog.records] == [
        "Redis is away (nobody listens there)",
        "Redis is still away, for 30 s (nobody listens there)",
        "Redis is still away, for 60 s (nobody listens there)",
        "Redis is back after 70.0 s",
        "Redis is away (it does not answer in time)",
    ]


@pytest.mark.parametrize("role", ["writer", "observer"])
def test_a_process_that_starts_while_redis_is_away_waits_for_it(
    gateway: MakeGateway, own_redis: RedisServer, role: str
) -> None:
    one = gateway(redis=own_redis, start=False)
    own_redis.stop()
    one.program = ["-m", "peerlane.workers.cli", "gateway", "run", one.name, "--only", role, "--await-redis"]
    one.program += ["--loglevel"]
    one.start(wait=False)
    eventually(lambda: "Redis is away (" in one.log, "it waiting")
    own_redis.start()
    if role == "writer":
        one.await_serving()
    else:
        eventually(lambda: "observed" in one.log, "the observer's start")
    assert one.stop() == 0


@pytest.mark.parametrize("role", ["writer", "observer"])
def test_ended_while_it_waits_for_redis_it_ends_well(gateway: MakeGateway, own_redis: RedisServer, role: str) -> None:
    one = gateway(redis=own_redis, start=False)
    own_redis.stop()
    one.program = ["-m", "peerlane.workers.cli", "gateway", "run", one.name, "--only", role, "--await-redis"]
    one.program += ["--loglevel"]
    one.start(wait=False)
    eventually(lambda: "Redis is away (" in one.log, "it waiting")
    assert one.stop() == 0, one.log


def test_ended_while_a_start_that_had_begun_waits_for_redis_it_ends_well(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer, tmp_path: Path
) -> None:
    control = tmp_path / "failpoints"
    one = gateway(redis=own_redis, test_failpoints=control)
    client(one, redis=own_redis).create_peer(some_key())
    one.kill()
    control.write_text("between_batches:stop")
    one.start(wait=False)
    eventually(lambda: not control.read_text(), "the writer in the middle of its start")
    own_redis.stop()
    one.resume()
    eventually(lambda: "Redis is away (" in one.log, "it waiting")
    assert one.stop() == 0, one.log
    own_redis.start()
    eventually(lambda: one.look().state == "down", "nobody being told as recovering")
