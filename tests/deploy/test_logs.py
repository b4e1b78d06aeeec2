"""Lines of the log as JSON documents: every process, Celery's own lines too; and levels."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import preloaded
import pytest
from flowers import COMPOSE, flower
from gateways import ROOT, MakeClient, clean_environment, named_endpoint, new_name
from keys import some_key
from observers import Process
from redis import Redis
from servers import RedisServer
from waiting import eventually

from peerlane import Conflict
from peerlane.config import logs, names
from peerlane.config.settings import read
from peerlane.tasks.errors import Unavailable


@contextmanager
def running(words: Sequence[str], log: Path, **settings: str) -> Generator[preloaded.Running]:
    """A process with its settings as variables, and all that it says in one file."""
    environment = clean_environment() | {f"PEERLANE_{key.upper()}": value for key, value in settings.items()}
    with log.open("wb") as output:
        process = preloaded.start([sys.executable, *words], ROOT, environment, output)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def documents(log: Path) -> list[dict[str, Any]]:
    """Every line; AssertionError names one that is no document."""
    parsed: list[dict[str, Any]] = []
    for line in log.read_text().splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            raise AssertionError(f"no document: {line}") from None
        assert {"time", "level", "process", "logger", "message"} <= set(document), line
        parsed.append(document)
    return parsed


@pytest.fixture
def redis(own_redis: RedisServer) -> Iterator[Redis]:
    made = Redis(unix_socket_path=str(own_redis.socket))
    yield made
    made.close()


def test_a_gateway_logs_documents_alone(
    own_redis: RedisServer, redis: Redis, tmp_path: Path, client: MakeClient
) -> None:
    name, log = new_name(), tmp_path / "gateway.log"
    settings = {"log_format": "json", "redis_url": own_redis.url, "private_key_file": str(tmp_path / "key")}
    words = ["-m", "peerlane.workers.cli", "gateway", "run", name, "--dataplane", "memory"]
    with running(words, log, **settings, **named_endpoint()) as process:
        peers = client(name, redis=own_redis, timeout=20)
        eventually(lambda: redis.hget(names.gateway_key(name), "phase") == b"serving", "the lane served")
        eventually(lambda: redis.hget(names.observer_key(name), "heartbeat"), "the observer")
        peers.create_peer(key := some_key())
        with pytest.raises(Conflict):
            peers.create_peer(key, keepalive=25)
        message = {
            "body": "[]",
            "headers": {"id": f"{name}.mine", "task": "no.such"},
            "content-type": "application/json",
        }
        about = {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "x"}}
        redis.lpush(names.lane_queue(name), json.dumps({**message, "content-encoding": "utf-8", "properties": about}))
        eventually(lambda: "a message was refused" in log.read_text(), "the refusal in the log")
        own_redis.restart()
        eventually(lambda: "Redis has restarted" in log.read_text(), "the recovery in the log")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    lines = documents(log)
    assert {line["process"] for line in lines} == {"gateway run", "writer", "observer"}
    assert {line["gateway"] for line in lines} == {name}
    assert {"info", "warning"} <= {line["level"] for line in lines}
    assert any(line["logger"].startswith("celery.") for line in lines), "Celery's own lines are among them"
    (refused,) = [line for line in lines if line["message"].startswith("a message was refused")]
    assert refused["code"] == "invalid"


def test_a_line_about_a_request_has_its_id(own_redis: RedisServer, tmp_path: Path, client: MakeClient) -> None:
    name, log = new_name(), tmp_path / "writer.log"
    control = tmp_path / "failpoints"
    settings = {"log_format": "json", "redis_url": own_redis.url, "private_key_file": str(tmp_path / "key")}
    settings |= {"dataplane": "memory", "test_failpoints": str(control), **named_endpoint()}
    words = ["-m", "peerlane.workers.cli", "gateway", "run", name, "--only", "writer", "--loglevel", "debug"]
    with running(words, log, **settings):
        peers = client(name, redis=own_redis, timeout=20)
        eventually(lambda: "ready." in log.read_text(), "the writer")
        peers.create_peer(some_key(), request_id=f"{name}.first")
        control.write_text("before_commit:raise\n")
        with pytest.raises(Exception, match="nothing was committed"):
            peers.create_peer(some_key(), request_id=f"{name}.second")
    lines = documents(log)
    assert any(line.get("request") == f"{name}.first" for line in lines), "Celery's line on a task that succeeded"
    (crash,) = [line for line in lines if "failed in an unforeseen way" in line["message"]]
    assert crash["request"] == f"{name}.second"
    assert "FailpointError" in crash["exception"]
    assert "Traceback" in crash["exception"]


def test_beat_and_exporter_log_documents(own_redis: RedisServer, redis: Redis, tmp_path: Path) -> None:
    log = tmp_path / "beat.log"
    beat: list[str] = COMPOSE["services"]["beat"]["command"]
    with running(["-m", *beat, f"--pidfile={tmp_path / 'pid'}"], log, log_format="json", redis_url=own_redis.url):
        eventually(lambda: "gateways are looked after" in log.read_text(), "beat having looked")
    assert {line["process"] for line in documents(log)} == {"beat"}
    redis.sadd(names.GATEWAYS_KEY, "iad")
    log = tmp_path / "exporter.log"
    words = ["-m", "peerlane.workers.cli", "exporter", "--listen", "127.0.0.1:0"]
    with running(words, log, log_format="json", redis_url=own_redis.url):
        eventually(lambda: "/metrics" in log.read_text(), "the exporter")
        url = documents(log)[0]["message"].split()[1]
        own_redis.stop()
        with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - http on loopback
            assert b"peerlane_redis_up 0" in answer.read()
    serving, away = documents(log)
    assert serving["message"] == f"serving {url} until Ctrl-C"
    assert (away["process"], away["level"]) == ("exporter", "warning")
    assert away["message"].startswith("the fleet cannot be read: ")


def test_flower_logs_documents(own_redis: RedisServer, tmp_path: Path) -> None:
    with flower(own_redis.url, tmp_path, PEERLANE_LOG_FORMAT="json") as page:
        own_redis.stop()
        eventually(lambda: page.status("/healthcheck") == 503, "Flower to notice")
    lines = documents(page.log)
    assert {line["process"] for line in lines} == {"flower"}
    assert any(line["message"].startswith("the fleet cannot be read: ") for line in lines)
    assert any(line["logger"] == "flower.command" for line in lines), "Flower's own lines are among them"


def test_flower_keeps_to_the_level(own_redis: RedisServer, tmp_path: Path) -> None:
    with flower(own_redis.url, tmp_path, PEERLANE_LOG_FORMAT="json", PEERLANE_LOG_LEVEL="error") as page:
        assert page.status("/healthcheck") == 200
    assert documents(page.log) == []


@pytest.mark.parametrize("trouble", ["key", "redis"])
def test_a_gateway_that_cannot_start_says_so_in_documents(trouble: str, own_redis: RedisServer, tmp_path: Path) -> None:
    name, log, key = new_name(), tmp_path / "gateway.log", tmp_path / "key"
    url = own_redis.url if trouble == "key" else f"unix://{tmp_path}/nobody"
    if trouble == "key":
        key.write_text("no key")
        key.chmod(0o600)
    settings = {"log_format": "json", "redis_url": url, "private_key_file": str(key), "dataplane": "memory"}
    words = ["-m", "peerlane.workers.cli", "gateway", "run", name]
    with running(words, log, **settings, **named_endpoint()) as process:
        if trouble == "key":
            assert process.wait(60) == 2
        else:
            eventually(lambda: "Redis is away" in log.read_text(), "word of Redis")
    assert "gateway run" in {line["process"] for line in documents(log)}


def test_a_command_that_runs_on_says_in_documents_why_it_ends(own_redis: RedisServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["-m", "peerlane.workers.cli", "exporter", "--listen", "192.0.2.1:1"]
    with running(words, log, log_format="json", redis_url=own_redis.url) as process:
        assert process.wait(60) == 2
    (line,) = documents(log)
    assert (line["level"], line["process"]) == ("critical", "exporter")
    assert line["message"].startswith("nothing can listen on 192.0.2.1:1: ")


@pytest.mark.parametrize("settings", [{"log_level": "warning"}, {}], ids=["warning", "default"])
def test_a_level_leaves_out_what_is_below(own_redis: RedisServer, tmp_path: Path, settings: dict[str, str]) -> None:
    """In Celery's own text, which stays the default."""
    log = tmp_path / "beat.log"
    words = ["-A", "peerlane", "beat", f"--pidfile={tmp_path / 'pid'}"]
    beat = Process(words, log, {"redis_url": own_redis.url, "beat_file": tmp_path / "looked", **settings})
    try:
        eventually((tmp_path / "looked").exists, "beat having looked")
        if not settings:
            beat.says("INFO/")
        assert ("INFO/" in beat.log) is not bool(settings)
    finally:
        beat.stop()


class TestADocument:
    def formatted(self, message: str, *arguments: object, **extra: Any) -> dict[str, Any]:
        record = logging.LogRecord("peerlane.x", logging.WARNING, "x.py", 1, message, arguments, extra.pop("exc", None))
        record.__dict__.update(extra)
        document: dict[str, Any] = json.loads(logs.json_formatter("writer", "iad").format(record))
        return document

    def test_has_what_the_line_is_about_and_nothing_else(self) -> None:
        document = self.formatted(
            "request %s: %s", "iad.abc", Unavailable("no writer"), preshared_key="hidden", args_=1
        )
        assert document.pop("time").endswith("+00:00")
        assert document == {
            "level": "warning",
            "process": "writer",
            "gateway": "iad",
            "request": "iad.abc",
            "code": "unavailable",
            "logger": "peerlane.x",
            "message": "request iad.abc: no writer",
        }

    @pytest.mark.parametrize("argument", ["fra.abc", "iad", "iad.a b", 7, None, OSError("x"), b"iad.abc"], ids=str)
    def test_has_no_request_and_no_code_where_there_is_none(self, argument: object) -> None:
        assert not {"request", "code"} & set(self.formatted("about %s", argument))

    def test_of_celerys_lines_of_tasks_has_the_request(self) -> None:
        assert self.formatted("Task %(id)s", {"id": "iad.abc", "name": "peerlane.create_peer"})["request"] == "iad.abc"

    def test_is_one_line_whatever_is_in_it(self) -> None:
        assert self.formatted("two\nlines \x00 \ud800 %s", "\u2028")["message"].startswith("two\nlines")


@pytest.mark.parametrize("value", ["xml", "JSON", ""])
def test_a_format_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PEERLANE_LOG_FORMAT", value)
    with pytest.raises(Exception, match="PEERLANE_LOG_FORMAT"):
        read()
