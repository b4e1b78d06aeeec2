"""What Flower shows of a fleet: workers, lanes and the Gateways page out of Redis, refusals by their code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flowers import Page, flower
from gateways import GatewayProcess, close
from keys import key_number
from observers import Observer, ending
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery_app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks import errors
from peerlane.tasks.errors import Conflict
from peerlane.tasks.flower.task_format import formatted, refusal

KEY, OTHER = key_number(8_001), key_number(8_002)
#: What somebody who may write a gateway's hash could put there.
HOSTILE = "<script>alert('x')</script>"
DEAD: dict[Any, Any] = {
    "heartbeat": "1000",
    "phase": "serving",
    "holder_host": "gone",
    "holder_pid": "7",
    "region": HOSTILE,
    "endpoint": HOSTILE,
    "peers": "9",
    "max_peers": "10",
    "lane_cap": "4",
    "epoch": "3",
}


@pytest.fixture(scope="module")
def page(own_redis_of_module: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Flower beside a live gateway with an observer, and fra: dead, with an alarm, three requests in its lane."""
    server, directory = own_redis_of_module, tmp_path_factory.mktemp("flower")
    writer = GatewayProcess("iad", server.url, directory, dataplane="memory", region="eu", observe_every=1)
    server.redis.hset(names.gateway_key("fra"), mapping=DEAD)
    alarm = json.dumps({"message": HOSTILE, "since": 1_000, "detail": {}})
    server.redis.hset(names.alarms_key("fra"), "swept_too_much", alarm)
    server.redis.lpush(names.lane_queue("fra"), "a", "b", "c")
    server.redis.lpush(names.poison_key("fra"), "{}")
    server.redis.sadd(names.GATEWAYS_KEY, "fra")
    app = PeerlaneApp(read(redis_url=server.url))
    with flower(server.url, directory) as found:
        writer.start()
        with ending(observer := Observer(writer)):
            observer.says("ready.")
            gateway = Gateway("iad", app=app)
            eventually(lambda: "iad@" in found.text("/workers"), "the gateway among Flower's workers", within=30)
            gateway.create_peer(KEY, allowed_ips=["10.8.0.5/32"])
            with suppress(Conflict):
                gateway.create_peer(OTHER, allowed_ips=["10.8.0.5/32"])
            eventually(lambda: "FAILURE" in found.text("/api/tasks"), "the refusal among Flower's tasks", within=30)
            eventually(lambda: row(found, "iad")["observer_silent_for"] is not None, "the observer", within=30)
            eventually(lambda: row(found, "iad")["peers"] == 1, "the peer", within=30)
            yield found
    close(app)
    writer.finish()


@pytest.fixture(scope="module")
def own_redis_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("r"))
    server.start()
    yield server
    server.stop()


def told(page: Page) -> dict[str, Any]:
    """The Gateways page for programs."""
    return json.loads(page.text("/gateways?json=1"))


def row(page: Page, gateway: str) -> dict[str, Any]:
    return next((one for one in told(page)["gateways"] if one["gateway"] == gateway), {"observer_silent_for": None})


def words(html: str) -> str:
    """A page's text, without its scripts and tags."""
    return re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL))


def node(page: Page, gateway: str) -> str:
    return next(name for name in json.loads(page.text("/api/workers")) if name.startswith(f"{gateway}@"))


def test_the_gateways_page_shows_each_gateway_and_the_dead_one_first(page: Page) -> None:
    assert [one["gateway"] for one in told(page)["gateways"]] == ["fra", "iad"]
    text = words(page.text("/gateways"))
    assert text.index(" fra down ") < text.index(" iad active eu 1 of ")
    assert "9 of 10 3 of 4 0" in text
    assert "1 of 2 active; 10 peers" in text
    assert "ALARM fra swept_too_much, for " in text
    assert "fra has set 1 messages aside: peerlane gateway poison fra" in text


def test_its_document_is_that_of_top(page: Page) -> None:
    found = row(page, "iad")
    assert (found["state"], found["region"], found["peers"], found["waiting"]) == ("active", "eu", 1, 0)
    assert found["epoch"] == 1
    assert found["alarms"] == []
    assert row(page, "fra")["alarms"][0]["kind"] == "swept_too_much"
    assert told(page)["trouble"] is None


def test_rates_appear_and_a_refusal_is_among_them(page: Page) -> None:
    eventually(lambda: row(page, "iad").get("refused_per_second") is not None, "a rate", within=20)


@pytest.mark.parametrize("path", ["/gateways", "/worker/fra@gone", "/broker"])
def test_what_gateways_write_is_escaped(page: Page, path: str) -> None:
    body = page.text(path)
    assert HOSTILE not in body
    assert path == "/broker" or "&lt;script&gt;" in body


def test_every_page_leads_to_the_gateways(page: Page) -> None:
    for path in ("/workers", "/tasks", "/broker", "/gateways"):
        assert 'href="/gateways"' in page.text(path)


def test_a_workers_own_page_tells_of_it_dead_or_alive(page: Page) -> None:
    status, body = page.get(f"/worker/{node(page, 'iad')}", user=page.USER)
    assert status == 200
    text = words(body)
    assert "gateway.iad.bulk" in text
    assert "state active" in text
    assert "last sign of life" in text
    status, body = page.get("/worker/fra@gone", user=page.USER)
    assert (status, "state down" in words(body)) == (200, True)


def test_an_observer_has_a_page_too(page: Page) -> None:
    observer = eventually(
        lambda: next((n for n in json.loads(page.text("/api/workers")) if n.startswith("iad-observer@")), None),
        "the observer among the workers",
    )
    assert "last sweep" in words(page.text(f"/worker/{observer}"))


def test_the_broker_page_shows_all_lanes_of_all_gateways(page: Page) -> None:
    lengths = {one["name"]: one["messages"] for one in json.loads(page.text("/api/queues/length"))["active_queues"]}
    lanes = {queue(name) for name in ("fra", "iad") for queue in (names.lane_queue, names.bulk_queue)}
    assert lanes <= set(lengths)
    assert lengths["gateway.fra"] == 3
    assert "gateway.fra 3" in words(page.text("/broker"))


def test_a_refusal_is_shown_as_its_code_and_sentence(page: Page) -> None:
    tasks = json.loads(page.text("/api/tasks"))
    refused = next(identity for identity, task in tasks.items() if task["state"] == "FAILURE")
    text = words(page.text(f"/task/{refused}"))
    assert "Result conflict" in text
    assert "conflict: " in text
    assert "Traceback" not in text


def test_state_outlives_a_restart(own_redis_of_module: RedisServer, page: Page, tmp_path: Path) -> None:
    assert KEY in page.text("/api/tasks")
    server = own_redis_of_module
    app = PeerlaneApp(read(redis_url=server.url))
    with flower(server.url, tmp_path) as first:
        # It hears of requests while it runs.
        eventually(lambda: "iad@" in first.text("/workers"), "a gateway", within=30)
        Gateway("iad", app=app).create_peer(KEY, allowed_ips=["10.8.0.5/32"])
        eventually(lambda: KEY in first.text("/api/tasks"), "the create", within=30)
        before = json.loads(first.text("/api/tasks")).keys()
    close(app)
    with flower(server.url, tmp_path) as second:
        assert before <= json.loads(second.text("/api/tasks")).keys()
    assert "Failed to load state" not in second.log.read_text()


def test_a_removed_gateway_leaves(own_redis_of_module: RedisServer, page: Page) -> None:
    redis = own_redis_of_module.redis
    redis.hset(names.gateway_key("zed"), mapping=DEAD | {"region": ""})
    redis.sadd(names.GATEWAYS_KEY, "zed")
    eventually(lambda: "gateway.zed" in page.text("/broker"), "the new gateway's lane", within=20)
    redis.srem(names.GATEWAYS_KEY, "zed")
    redis.delete(names.gateway_key("zed"))
    eventually(lambda: "gateway.zed" not in page.text("/broker"), "its leaving the broker page", within=20)
    assert "zed" not in page.text("/gateways?json=1")
    assert page.status("/worker/zed@gone", user=page.USER) == 404


def test_without_redis_it_is_not_healthy_and_every_page_says_why(own_redis: RedisServer, tmp_path: Path) -> None:
    with flower(own_redis.url, tmp_path) as page:
        own_redis.stop()
        eventually(lambda: page.status("/healthcheck") == 503, "an unhealthy Flower", within=20)
        for path in ("/workers", "/tasks", "/broker", "/gateways"):
            assert "What is shown may be old: " in words(page.text(path))
        assert "reached" in told(page)["trouble"]
        assert page.get("/healthcheck")[1] == "Redis does not answer"
        own_redis.start()
        eventually(lambda: page.status("/healthcheck") == 200, "a healthy Flower", within=20)
        assert "What is shown may be old" not in page.text("/workers")
    log = page.log.read_text()
    assert (log.count("the fleet cannot be read"), log.count("the fleet can be read again")) == (1, 1)


# Refusals


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (repr(Conflict("the key is there")), ("conflict", "the key is there")),
        (repr(errors.Unavailable("it's full", 5.0)), ("unavailable", "it's full")),
        (repr(errors.OutcomeUnknown('say "x"', "iad.1")), ("outcome_unknown", 'say "x"')),
        ("Conflict('cut off in the mid...)", ("conflict", "'cut off in the mid...")),
        ("Conflict()", ("conflict", "")),
        (repr(errors.WriterError("unforeseen")), None),
        ("ValueError('x')", None),
        ("<SomeObject at 0x7f>", None),
        (None, None),
    ],
)
def test_an_errors_repr_tells_code_and_message(exception: str | None, expected: tuple[str, str] | None) -> None:
    assert refusal(exception) == expected


def test_an_unforeseen_error_keeps_its_traceback() -> None:
    task = SimpleNamespace(exception="ValueError('x')", traceback="Traceback ...", result=None)
    assert formatted(task).traceback == "Traceback ..."
    task = SimpleNamespace(exception=repr(Conflict("x")), traceback="Traceback ...", result=None)
    assert (formatted(task).result, task.traceback) == ("conflict", None)
