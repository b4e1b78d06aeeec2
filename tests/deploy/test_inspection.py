"""``celery status`` and ``celery inspect``: answered from what gateways write in Redis; nothing is sent to anybody."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import preloaded
import pytest
from gateways import ROOT, GatewayProcess, MakeSettings, clean_environment, close
from observers import Observer, ending
from servers import RedisServer, serving
from waiting import eventually

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.errors import OutcomeUnknown
from peerlane.tasks.status.inspection import ANSWERS

#: Every other command of Celery's that a worker would obey or answer.
OTHERS = (
    *("shutdown", "revoke", "revoke_by_stamped_headers", "rate_limit", "time_limit", "enable_events", "disable_events"),
    *("pool_grow", "pool_shrink", "pool_restart", "autoscale", "add_consumer", "cancel_consumer", "election", "clock"),
    *("hello", "report", "query_task", "objgraph", "memsample", "memdump"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server for this fleet alone."""
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def fleet(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with its observer; and fra, whose writer died long ago."""
    writer = GatewayProcess("iad", server.url, tmp_path_factory.mktemp("fleet"), dataplane="memory")
    writer.start()
    dead: dict[Any, Any] = {
        "heartbeat": "1000",
        "phase": "serving",
        "holder_host": "gone",
        "holder_pid": "7",
        "max_peers": "10",
    }
    server.redis.hset(names.gateway_key("fra"), mapping=dead)
    server.redis.sadd(names.GATEWAYS_KEY, "fra")
    with ending(observer := Observer(writer)):
        observer.says("ready.")
        yield writer
    writer.finish()


@pytest.fixture
def app(fleet: GatewayProcess, settings: MakeSettings) -> Iterator[PeerlaneApp]:
    made = PeerlaneApp(settings(redis_url=fleet.settings["redis_url"]))
    yield made
    close(made)


def celery(fleet: GatewayProcess, *words: str) -> tuple[int, str]:
    """A command's status, and what it says."""
    variables = {"PEERLANE_REDIS_URL": str(fleet.settings["redis_url"]), "NO_COLOR": "1"}
    ended = preloaded.run(
        [sys.executable, "-m", "celery", "-A", "peerlane", *words], ROOT, clean_environment() | variables
    )
    assert ended.returncode in (0, 69), ended.stderr.decode()
    return ended.returncode, ended.stdout.decode()


def nodes(app: PeerlaneApp) -> tuple[str, str]:
    """The names of the writer and of the observer."""
    answers = app.control.inspect().ping() or {}
    observer, writer = sorted(answers)
    return writer, observer


def test_live_writers_and_observers_answer_a_ping_and_dead_ones_do_not(app: PeerlaneApp) -> None:
    writer, observer = nodes(app)
    assert writer.startswith("iad@")
    assert observer.startswith("iad-observer@")


def test_celerys_status_lists_them(fleet: GatewayProcess, app: PeerlaneApp) -> None:
    status, said = celery(fleet, "status")
    assert status == 0
    assert all(f"{node}: OK" in said for node in nodes(app))
    assert "2 nodes online." in said
    document = celery(fleet, "status", "--json")[1].splitlines()[0]
    assert json.loads(document) == {node: {"ok": "pong"} for node in nodes(app)}


def test_one_node_can_be_asked_and_serves_as_a_health_check(fleet: GatewayProcess, app: PeerlaneApp) -> None:
    writer, _ = nodes(app)
    assert celery(fleet, "inspect", "ping", "-d", writer)[0] == 0
    assert celery(fleet, "inspect", "ping", "-d", "fra@gone")[0] == 69


@pytest.mark.parametrize("command", sorted(ANSWERS))
def test_each_answer_is_one_that_celery_prints(fleet: GatewayProcess, command: str) -> None:
    status, said = celery(fleet, "inspect", command)
    assert status == 0
    assert "2 nodes online." in said


def test_the_queues_of_a_node_are_its_lanes(app: PeerlaneApp) -> None:
    writer, observer = nodes(app)
    queues: Any = app.control.inspect().active_queues()
    assert [queue["name"] for queue in queues[writer]] == ["gateway.iad", "gateway.iad.bulk"]
    assert [queue["name"] for queue in queues[observer]] == ["gateway.iad.observer"]


def test_stats_tell_state_peers_and_alarms(app: PeerlaneApp, server: RedisServer) -> None:
    writer, _ = nodes(app)
    server.redis.hset(names.alarms_key("iad"), "drill", '{"message": "only a drill", "since": 1, "detail": {}}')
    answers: Any = app.control.inspect(destination=[writer]).stats()
    server.redis.hdel(names.alarms_key("iad"), "drill")
    assert list(answers) == [writer]
    stats = answers[writer]
    assert (stats["state"], stats["alarms"]) == ("active", "drill: only a drill")
    assert stats["peers"].startswith("0 of ")


def test_a_pattern_and_a_limit_are_obeyed(app: PeerlaneApp) -> None:
    writer, observer = nodes(app)
    assert list(app.control.inspect(pattern="*-observer@*").ping() or {}) == [observer]
    assert app.control.broadcast("ping", reply=True, limit=1) == [{writer: {"ok": "pong"}}]


def test_no_command_is_sent_and_none_but_inspection_is_answered(own_redis: RedisServer, settings: MakeSettings) -> None:
    # A gateway that seems to live, on a server that nobody else speaks to.
    ahead = (own_redis.redis.time()[0] + 1_000) * 1000
    own_redis.redis.hset(names.gateway_key("iad"), mapping={"heartbeat": ahead, "phase": "serving", "holder_host": "h"})
    own_redis.redis.sadd(names.GATEWAYS_KEY, "iad")
    own_redis.redis.config_resetstat()
    app = PeerlaneApp(settings(redis_url=own_redis.url))
    for command in OTHERS:
        assert app.control.broadcast(command, {"task_id": "iad.x"}, reply=True, timeout=60) == []
        assert app.control.broadcast(command, {"task_id": "iad.x"}) is None
    app.control.shutdown()
    app.control.revoke("iad.x", terminate=True)
    assert app.control.ping(timeout=60) == [{"iad@h": {"ok": "pong"}}]
    stats: dict[str, Any] = own_redis.redis.info("commandstats")
    reads = {"time", "smembers", "hgetall", "llen", "hget"}
    connection = {"ping", "info", "client|setinfo", "client", "select", "hello", "auth", "config|resetstat", "config"}
    assert {name.removeprefix("cmdstat_") for name in stats} - reads - connection == set()
    close(app)


def test_away_is_told_as_that(own_redis: RedisServer, settings: MakeSettings) -> None:
    app = PeerlaneApp(settings(redis_url=own_redis.url))
    own_redis.stop()
    with pytest.raises(OutcomeUnknown):
        app.control.inspect().ping()
    own_redis.start()
    eventually(lambda: app.control.inspect().ping() is None, "an answer that nobody is there")
    close(app)
